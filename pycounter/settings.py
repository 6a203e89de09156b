"""The servers' settings: defaults, then a TOML file, then the environment, then the command line.

A shard's (`ServerSettings`), those of a whole cluster, which hand on most of what they hold to its shards
(`ClusterSettings`), and those of one coordinator (`CoordinatorSettings`).

Each layer overrides the one before. Every value is checked as it is read, in a layer that another one overrides too; an
error names the setting and where it came from.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec

from pycounter._native import HashRing
from pycounter.errors import SettingsError
from pycounter.machine_memory import memory_bytes

__all__ = [
    "ClusterSettings",
    "CoordinatorSettings",
    "ServerSettings",
    "counters_share",
    "is_loopback",
    "load_coordinator_settings",
    "load_serve_settings",
    "load_settings",
    "parse_bytes",
    "parse_ring",
]

#: Environment variables are these letters and a setting's name in capitals: PYCOUNTER_PORT.
ENVIRONMENT_PREFIX = "PYCOUNTER_"

#: Bounds of memory that are not set follow the memory that there is (`_fill_bounds`): at most and at least so much.
BOUND_BYTES_MAX = 256 << 20
BOUND_BYTES_MIN = 8 << 20
COUNTERS_BYTES_MIN = 16 << 20
_FROM_MEMORY = ("input_bytes_max", "held_bytes_max", "session_bytes_max", "ids_bytes_max")

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """A number of bytes: 1048576, "64MiB", "1.5 GB".

    Raises:
        ValueError: it is none.
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no size such as 1048576 or 64MiB")
    return int(Fraction(match[1]) * _UNITS[(match[2] or "").lower()])


def counters_share(processes: int = 1) -> int:
    """The default of `counters_bytes_max`: half of what each of so many processes has of this machine's memory."""
    return max(COUNTERS_BYTES_MIN, memory_bytes() // processes // 2)


def parse_ring(words: tuple[str, ...]) -> dict[str, float]:
    """Weights by name from words such as "shard-0=1".

    Raises:
        ValueError: one is no such word, or a name comes twice.
    """
    ring: dict[str, float] = {}
    for word in words:
        name, _, weight = word.rpartition("=")
        if not name or name in ring:
            raise ValueError(f"ring has {word!r}, but is a list of different names with weights such as shard-0=1")
        try:
            ring[name] = float(weight)
        except ValueError:
            raise ValueError(f"ring has {word!r}, whose weight is no number") from None
    if ring:
        HashRing(ring)
    return ring


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an operator may set on a shard server. Sizes are bytes, times are seconds.

    Bounds of memory that are 0 here are set when it is made, by the memory that there is.
    """

    #: The shard's folder.
    data: str
    host: str = "127.0.0.1"
    #: 0 lets the system choose.
    port: int = 7400
    #: Path of a Unix socket to listen on too.
    unix: str | None = None
    #: The level of operations that name none.
    level: Literal["applied", "durable"] = "durable"
    #: The shard's name, given to a new folder ("shard-0" if none is); an old one must have it.
    name: str | None = None
    #: Names and weights ("shard-0=1") of all shards of the cluster that it belongs to; the cluster sets it.
    ring: tuple[str, ...] = ()
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    #: Listen on other than loopback addresses without a token.
    insecure: bool = False
    connections_max: int = 10_000
    #: Close a connection that was silent for so long; 0: never.
    idle_timeout_s: float = 300.0
    #: A TLS handshake must be done by then.
    handshake_timeout_s: float = 10.0
    frame_bytes_max: int = 1 << 20
    #: Unfinished requests of all connections together: beyond it, those who bring most of them are sent away.
    input_bytes_max: int = 0
    #: Replies that wait for one connection, before reading from it stops.
    reply_bytes_max: int = 4 << 20
    #: The same for all connections together.
    held_bytes_max: int = 0
    counters_bytes_max: int = 0
    #: Changed counters that are not committed yet; beyond it changes are refused as overloaded.
    dirty_counters_max: int = 1 << 20
    sessions_max: int = 100_000
    results_per_session_max: int = 10_000
    session_bytes_max: int = 0
    ids_bytes_max: int = 0
    #: A session idle for less is never forgotten.
    session_window_s: float = 7 * 24 * 3600.0
    #: An operation id seen less long ago is never forgotten.
    id_window_s: float = 120.0
    #: `applied` changes are on disk after at most so long.
    flush_interval_s: float = 1.0
    segment_bytes: int = 64 << 20
    #: Checkpoint once the log has grown by so much ...
    checkpoint_log_bytes: int = 64 << 20
    #: ... or after so long.
    checkpoint_interval_s: float = 300.0
    #: Room kept in the folder for starts and checkpoints on a full disk, at most a sixteenth of what is free; 0: none.
    reserve_bytes: int = 16 << 20
    #: How long an orderly stop may take to answer what is in and to write it.
    stop_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        self._fill_bounds()
        _check_all(self)
        if self.input_bytes_max < 8 * self.frame_bytes_max:
            raise ValueError(
                f"input_bytes_max is {self.input_bytes_max}, but must be at least 8 times frame_bytes_max, "
                f"{8 * self.frame_bytes_max}: a longest request has to fit in beside others"
            )

    def _processes(self) -> int:
        """How many processes share the machine's memory."""
        return 1

    def _fill_bounds(self) -> None:
        """Gives the bounds of memory that aren't set a share of it: counters a half, the others a sixteenth each."""
        processes = self._processes()
        bound = min(BOUND_BYTES_MAX, max(BOUND_BYTES_MIN, memory_bytes() // processes // 16))
        shares = {**dict.fromkeys(_FROM_MEMORY, bound), "counters_bytes_max": counters_share(processes)}
        # A longest request has to fit in, however little memory there is.
        shares["input_bytes_max"] = max(bound, 8 * self.frame_bytes_max)
        for name, share in shares.items():
            if getattr(self, name) == 0:
                msgspec.structs.force_setattr(self, name, share)


class CoordinatorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that may be set on a coordinator process. Sizes are bytes, times are seconds."""

    #: The coordinator's own folder, for what it has to remember over a restart; made if missing.
    data: str
    #: Descriptors of the public listening sockets, inherited.
    listen_fds: tuple[int, ...]
    name: str = "coordinator-0"
    #: The level of operations that name none.
    level: Literal["applied", "durable"] = "durable"
    #: What clients must send, and what the coordinator sends to shards.
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    connections_max: int = 10_000
    idle_timeout_s: float = 300.0
    handshake_timeout_s: float = 10.0
    frame_bytes_max: int = 1 << 20
    input_bytes_max: int = 256 << 20
    reply_bytes_max: int = 4 << 20
    held_bytes_max: int = 256 << 20
    #: How long a request may take.
    request_timeout_s: float = 2.0
    #: How long an orderly stop may take to answer what is in.
    stop_timeout_s: float = 30.0
    #: Health, balance and the read cache: fields of `pycounter.coordinator.settings.CoordinatorSettings`.
    tuning: dict[str, Any] = {}

    def __post_init__(self) -> None:
        _check_all(self)


class ClusterSettings(ServerSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cluster's: `data` is its folder, `host`, `port` and TLS are the public ones; shards get the rest, each."""

    #: Fixed with the folder.
    shards: int
    #: Of each shard, at least.
    replicas: int = 0
    #: Processes that serve the public port.
    coordinators: int = 1
    #: Keys that begin so are served by their home only, whatever happens: for unique numbers.
    strict: tuple[str, ...] = ()
    #: A process that has not answered for so long is called stalled.
    stall_timeout_s: float = 5.0
    #: Settings of the coordinators by name, from the file's table [coordinator]; what isn't there is as for the shards.
    coordinator: dict[str, Any] = {}

    def _processes(self) -> int:
        # A negative number or a wrong one is refused later, in words.
        return max(1, self.shards) * (1 + max(0, self.replicas)) + max(0, self.coordinators)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None:
            raise ValueError("name is set, but the shards of a cluster have names of its own: shard-0, shard-1 ...")
        if self.ring:
            raise ValueError("ring is set, but a cluster's ring is made of its shards")
        for name, value in self.coordinator.items():
            if name not in _fields(CoordinatorSettings) or name in _SUPERVISED:
                allowed = ", ".join(_fields(CoordinatorSettings).keys() - _SUPERVISED)
                raise ValueError(f"[coordinator] has no setting {name!r}; it has {allowed}")
            try:
                _check(name, _convert(CoordinatorSettings, name, value))
            except ValueError as error:
                raise ValueError(f"[coordinator] {error}") from error


_TEBI = 1 << 40
_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "shards": (1, 256),
    "replicas": (0, 16),
    "coordinators": (1, 64),
    "stall_timeout_s": (1.0, 1e6),
    "request_timeout_s": (0.001, 1e6),
    "connections_max": (1, 1_000_000),
    "idle_timeout_s": (0, 1e9),
    "handshake_timeout_s": (0.1, 1e6),
    "frame_bytes_max": (4096, 1 << 28),
    "input_bytes_max": (65_536, _TEBI),
    "reply_bytes_max": (65_536, 1 << 30),
    "held_bytes_max": (65_536, _TEBI),
    "counters_bytes_max": (1 << 20, _TEBI),
    "dirty_counters_max": (1024, 1 << 28),
    "sessions_max": (1, 1 << 28),
    "results_per_session_max": (1, 1 << 24),
    "session_bytes_max": (65_536, _TEBI),
    "ids_bytes_max": (1 << 20, _TEBI),
    "session_window_s": (0.001, 1e9),
    "id_window_s": (0.001, 1e9),
    "flush_interval_s": (0.001, 1.0),
    "segment_bytes": (4096, 1 << 34),
    "checkpoint_log_bytes": (4096, 1 << 40),
    "checkpoint_interval_s": (0.05, 1e9),
    "reserve_bytes": (0, _TEBI),
    "stop_timeout_s": (0, 1e6),
}
#: What only the supervisor knows.
_SUPERVISED = {"data", "listen_fds", "name"}
_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    str | None: "a text",
    tuple[str, ...]: "a list of texts",
    tuple[int, ...]: "a list of integers",
    dict[str, Any]: "a table",
}
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

Kind = type[msgspec.Struct]
S = TypeVar("S", bound=msgspec.Struct)


def _fields(kind: Kind) -> dict[str, msgspec.structs.FieldInfo]:
    """The settings of a kind by name."""
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _check_all(settings: Any) -> None:
    """Raises ValueError for values that make no sense, alone or together."""
    for name in _fields(type(settings)):
        _check(name, getattr(settings, name))
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("tls_cert", "tls_key") if settings.tls_key is None else ("tls_key", "tls_cert")
        raise ValueError(f"{given} is set and {missing} is not: they go together")


def _check(name: str, value: Any) -> None:
    """Raises ValueError for a value of the right type that makes no sense."""
    if name in _RANGES:
        low, high = _RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, but must be from {low} to {high}")
    if name in {"data", "host", "unix"} and value is not None and not value:
        raise ValueError(f"{name} is empty")
    if name == "ring":
        parse_ring(value)
    if name == "name" and value is not None and not 1 <= len(value) <= 64:
        raise ValueError(f"name has {len(value)} characters, but must have 1 to 64")


def _convert(kind: Kind, name: str, value: object) -> Any:
    """A value, which may be a text, as its setting's type. Raises ValueError."""
    wanted: Any = _fields(kind)[name].type
    if isinstance(value, str):
        if name == "host":
            value = value.removeprefix("[").removesuffix("]")
        if name.endswith(("_bytes", "_bytes_max")):
            try:
                return parse_bytes(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        if wanted is bool:
            value = _BOOLEANS.get(value.lower(), value)
        elif wanted == tuple[str, ...]:
            value = [word for word in value.split(",") if word]
    try:
        return msgspec.convert(value, wanted, strict=not isinstance(value, str))
    except msgspec.ValidationError:
        said = _KINDS.get(wanted) or " or ".join(get_args(wanted))
        raise ValueError(f"{name} must be {said}, not {value!r}") from None


def _parse(kind: Kind, name: str, value: object, source: str) -> Any:
    """One value, checked; an error names `source`."""
    if name not in _fields(kind):
        near = difflib.get_close_matches(name, _fields(kind), n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; docs/operations.md lists all settings"
        raise SettingsError(f"{source}: there is no setting {name!r}{hint}")
    try:
        converted = _convert(kind, name, value)
        _check(name, converted)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from error
    return converted


def load_settings(
    overrides: Mapping[str, object],
    *,
    config: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerSettings:
    """Merges all sources of a shard's settings.

    Args:
        overrides: from the command line; None means not given.
        config: a TOML file with settings at its top level or in a table [server].
        environment: where PYCOUNTER_... variables are looked up; the process's by default.

    Raises:
        SettingsError: a value is wrong, a name is unknown, a file can't be read.
    """
    return _build(ServerSettings, _merge(ServerSettings, overrides, config, environment))


def load_serve_settings(
    overrides: Mapping[str, object],
    *,
    config: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerSettings | ClusterSettings:
    """The same for what may be a shard or a cluster: a cluster where any source says how many `shards`."""
    merged = _merge(ClusterSettings, overrides, config, environment)
    if "shards" in merged:
        return _build(ClusterSettings, merged)
    for name in merged.keys() - _fields(ServerSettings).keys():
        raise SettingsError(f"{name} is set and shards is not: one shard alone has none; a cluster has --shards N")
    return _build(ServerSettings, merged)


def load_coordinator_settings(
    overrides: Mapping[str, object], *, config: str | os.PathLike[str] | None = None
) -> CoordinatorSettings:
    """A coordinator's, from the command line and a file that the supervisor wrote. Raises SettingsError."""
    return _build(CoordinatorSettings, _merge(CoordinatorSettings, overrides, config, {}))


def _merge(
    kind: Kind,
    overrides: Mapping[str, object],
    config: str | os.PathLike[str] | None,
    environment: Mapping[str, str] | None,
) -> dict[str, Any]:
    environment = os.environ if environment is None else environment
    merged: dict[str, Any] = {}
    config = config if config is not None else environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    if config is not None:
        for name, value in _read_config(Path(config)).items():
            merged[name] = _parse(kind, name, value, str(config))
    for name in _fields(kind):
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            merged[name] = _parse(kind, name, environment[variable], variable)
    for name, value in overrides.items():
        if value is not None:
            merged[name] = _parse(kind, name, value, "--" + name.replace("_", "-"))
    return merged


def _build(kind: type[S], merged: dict[str, Any]) -> S:
    if "data" not in merged:
        raise SettingsError("no data folder: give --data DIR, PYCOUNTER_DATA, or data in the config file")
    try:
        return kind(**merged)
    except (TypeError, ValueError) as error:
        raise SettingsError(str(error)) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"the config file {path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the config file {path} is no TOML: {error}") from error
    server = content.pop("server", {})
    if not isinstance(server, dict):
        raise SettingsError(f"{path}: server must be a table")
    twice = content.keys() & server.keys()
    if twice:
        raise SettingsError(f"{path}: {min(twice)} stands both at the top level and in [server]")
    return {**content, **server}


def is_loopback(host: str) -> bool:
    """Whether an address, as the system understands it, reaches this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        # IPv4 has short forms too, such as 127.1.
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))
        except OSError:
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
