"""The topology: a frozen document with a version, checked where it enters.

It has one shape everywhere: in replies to `topology`, in the supervisor's messages, in files. Maps with these names,
made of what JSON and MessagePack both have. Fields that a newer version adds are ignored; a field that is there has the
right type and a sane value, or the whole document is refused. Any thread may use one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from pycounter._native import HashRing
from pycounter.errors import TopologyError
from pycounter.topology.addresses import Address, parse_address

__all__ = ["WATCH_S", "ProcessInfo", "ProcessKind", "ReplicaInfo", "ShardInfo", "State", "Topology"]

#: `starting`: not ready yet, the first time or again. `down`: its process has exited, or can't start. `stalled`: its
#: process is there and doesn't answer.
State = Literal["ok", "read_only", "starting", "down", "stalled"]
ProcessKind = Literal["shard", "replica", "coordinator", "supervisor"]

#: After so long without news `watch_topology` answers all the same.
WATCH_S = 25.0
#: The ring takes names of as many bytes.
NAME_BYTES_MAX = 255
SHARDS_MAX = 1024
#: All shards together: the ring has no room for more points.
WEIGHT_MAX = 2048.0
REPLICAS_MAX = 64
STRICT_MAX = 1024
PREFIX_BYTES_MAX = 1024
PROCESSES_MAX = 1 << 17
VERSION_MAX = (1 << 63) - 1

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
_Hex = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{0,64}\Z")]
_Text = Annotated[str, msgspec.Meta(max_length=300)]
#: The last lines that a process wrote.
_Reason = Annotated[str, msgspec.Meta(max_length=8192)]


class _Checked(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the document that has a name and may have an address."""

    name: _Name
    #: `host:port`, or empty as long as nobody knows it.
    address: _Text = ""

    def __post_init__(self) -> None:
        if len(self.name.encode("utf-8")) > NAME_BYTES_MAX:
            raise ValueError(f"a name has at most {NAME_BYTES_MAX} bytes")
        if self.address:
            parse_address(self.address)

    @property
    def endpoint(self) -> Address | None:
        """Host and port, or None as long as nobody knows them."""
        return parse_address(self.address) if self.address else None


class ReplicaInfo(_Checked, frozen=True, kw_only=True):
    """A copy of a shard that answers reads."""

    state: State


class ShardInfo(_Checked, frozen=True, kw_only=True):
    """One shard: what it is called, where it is, and its share of the ring."""

    state: State
    #: 0.01 to 100.
    weight: Annotated[float, msgspec.Meta(ge=0.01, le=100.0)] = 1.0
    #: Hexadecimal; empty as long as the shard was never seen. Another one under the same name is another shard.
    identity: _Hex = ""
    replicas: Annotated[tuple[ReplicaInfo, ...], msgspec.Meta(max_length=REPLICAS_MAX)] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Not a number is neither below nor above.
        if not 0.01 <= self.weight <= 100.0:
            raise ValueError(f"{self.name} has weight {self.weight}, but must have 0.01 to 100")
        _check_once("replica", self.replicas)


class ProcessInfo(_Checked, frozen=True, kw_only=True):
    """A process of the cluster, as `pycounter status` shows it."""

    kind: ProcessKind
    state: State
    #: 0: there is none now.
    pid: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    #: How often it was started again since the supervisor started.
    restarts: Annotated[int, msgspec.Meta(ge=0, le=VERSION_MAX)] = 0
    #: Why it is in this state, or why it was started again; empty if there is nothing to say.
    reason: _Reason = ""


class Topology(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All shards of one address. A document with a higher version is newer.

    A shard without coordinator has a topology too, of itself alone.
    """

    version: Annotated[int, msgspec.Meta(ge=0, le=VERSION_MAX)]
    shards: Annotated[tuple[ShardInfo, ...], msgspec.Meta(min_length=1, max_length=SHARDS_MAX)]
    #: Hexadecimal, made with the cluster's folder; empty for a shard without cluster.
    cluster: _Hex = ""
    #: Counters whose keys begin so are served by their home only.
    strict: Annotated[tuple[str, ...], msgspec.Meta(max_length=STRICT_MAX)] = ()
    processes: Annotated[tuple[ProcessInfo, ...], msgspec.Meta(max_length=PROCESSES_MAX)] = ()

    def __post_init__(self) -> None:
        _check_once("shard", self.shards)
        if sum(shard.weight for shard in self.shards) > WEIGHT_MAX:
            raise ValueError(f"the shards' weights add up to more than {WEIGHT_MAX:.0f}")
        if max((len(prefix.encode("utf-8")) for prefix in self.strict), default=0) > PREFIX_BYTES_MAX:
            raise ValueError(f"a strict prefix has at most {PREFIX_BYTES_MAX} bytes")

    @classmethod
    def from_wire(cls, document: object) -> Topology:
        """A topology from decoded MessagePack or JSON, whoever sent it.

        Raises:
            TopologyError: it is none; the message names the field.
        """
        try:
            return msgspec.convert(document, cls)
        except (msgspec.ValidationError, ValueError) as error:
            raise TopologyError(f"this is no topology: {error}") from error

    def to_wire(self) -> dict[str, Any]:
        """The document, of dicts, sequences, texts and numbers: as JSON and MessagePack take it."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    @cached_property
    def ring(self) -> HashRing:
        """The ring over the shards' configured weights, whatever their states."""
        return HashRing({shard.name: shard.weight for shard in self.shards})

    @cached_property
    def strict_prefixes(self) -> tuple[bytes, ...]:
        """The prefixes as keys have them."""
        return tuple(prefix.encode("utf-8") for prefix in self.strict)

    def shard(self, name: str) -> ShardInfo | None:
        """The shard of this name."""
        return next((shard for shard in self.shards if shard.name == name), None)

    def process(self, name: str) -> ProcessInfo | None:
        """The process of this name."""
        return next((process for process in self.processes if process.name == name), None)


def _check_once(what: str, named: Sequence[_Checked]) -> None:
    seen: set[str] = set()
    for one in named:
        if one.name in seen:
            raise ValueError(f"there are two of {what} {one.name!r}")
        seen.add(one.name)
