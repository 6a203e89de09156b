"""How a client is told where a server is and how to behave. Times are seconds."""

from __future__ import annotations

import difflib
import ssl
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, TypedDict
from urllib.parse import parse_qsl, unquote, urlsplit

from pycounter.client import ClientSettings
from pycounter.client.framing import Level
from pycounter.client.retry import RetryPolicy
from pycounter.client.settings import PoolSettings
from pycounter.coordinator.settings import TuningSettings
from pycounter.durations import check_numbers
from pycounter.errors import SettingsError
from pycounter.topology import Address, parse_address

__all__ = ["ConnectOptions", "ConnectSettings", "Route"]

#: `direct`: to the shards themselves. `coordinator`: everything through the address that was given. `auto`: directly
#: where the shards can be reached.
Route = Literal["auto", "direct", "coordinator"]

DEFAULT_PORT = 7400
_ROUTES = ("auto", "direct", "coordinator")
_LEVELS = ("durable", "applied")


class ConnectOptions(TypedDict, total=False):
    """The keywords of `connect` and `connect_blocking`, for type checkers: the fields of `ConnectSettings`."""

    token: str | bytes | None
    tls: ssl.SSLContext | None
    route: Route
    level: Level
    connect_timeout_s: float
    request_timeout_s: float
    increment_timeout_s: float
    close_timeout_s: float
    batch_operations_max: int
    batch_delay_s: float
    pending_operations_max: int
    pool_connections_max: int
    pool_idle_s: float
    retries: int
    retry_first_s: float
    poll_interval_s: float
    coordinator: TuningSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """What may be set on a client, in `connect(url, **settings)` or, for `route` and `level`, in the URL.

    Raises:
        SettingsError: a value is wrong.
    """

    #: Where servers listen. Any of them does; the next one is asked when one can't be reached.
    addresses: tuple[Address, ...] = (("127.0.0.1", DEFAULT_PORT),)
    token: str | bytes | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    route: Route = "auto"
    #: Of increments that name none.
    level: Level = "durable"
    #: How long `connect` waits for the first server and for the shards.
    connect_timeout_s: float = 5.0
    #: Of reads and other requests that name no time.
    request_timeout_s: float = 2.0
    #: Of increments that name none: what was sent by then stays in its session and is listed in `unknown`.
    increment_timeout_s: float = 10.0
    #: How long `close` waits for what is not settled.
    close_timeout_s: float = 10.0
    #: Batches: so many operations, or so long.
    batch_operations_max: int = 100
    batch_delay_s: float = 0.010
    #: Operations accepted and not settled, of each shard; beyond it callers wait.
    pending_operations_max: int = 50_000
    #: Connections to each server, and how long an unused one stays.
    pool_connections_max: int = 100
    pool_idle_s: float = 300.0
    retries: int = 3
    retry_first_s: float = 0.100
    #: Where the topology can't be watched, it is asked for so often.
    poll_interval_s: float = 1.0
    #: Everything about health, balance and the cache.
    coordinator: TuningSettings = field(default_factory=TuningSettings)

    def __post_init__(self) -> None:
        if not self.addresses:
            raise SettingsError("there must be an address", setting="addresses")
        if self.route not in _ROUTES:
            raise SettingsError(f"route is one of {', '.join(_ROUTES)}, not {self.route!r}", setting="route")
        if self.level not in _LEVELS:
            raise SettingsError(f"level is one of {', '.join(_LEVELS)}, not {self.level!r}", setting="level")
        check_numbers(self, may_be_zero={"retries"})

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> Self:
        """Settings from a URL and from the caller.

        `pycounter://[token@]host[:port][,host[:port]...][?route=...&level=...]`, or `pycounter+unix://[token@]/path[?...]`.

        Raises:
            SettingsError: the URL is none, or a setting is wrong or unknown.
        """
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise SettingsError(f"{url!r} is no URL: {error}", setting="url") from error
        token, at, hosts = parts.netloc.rpartition("@")
        is_unix = parts.scheme == "pycounter+unix" and not hosts and len(parts.path) > 1
        is_tcp = parts.scheme == "pycounter" and hosts and parts.path in {"", "/"}
        if parts.fragment or not (is_unix or is_tcp):
            raise SettingsError(
                "a URL is pycounter://[token@]host[:port][?route=auto|direct|coordinator], or "
                f"pycounter+unix://[token@]/path, not {_without_token(url)!r}",
                setting="url",
            )
        addresses: tuple[Address, ...] = ((unquote(parts.path), 0),)
        if is_tcp:
            try:
                addresses = tuple(parse_address(host, DEFAULT_PORT) for host in hosts.split(","))
            except ValueError as error:
                raise SettingsError(str(error), setting="url") from error
        merged: dict[str, Any] = {"addresses": addresses}
        if at:
            merged["token"] = unquote(token)
        known = {each.name for each in fields(cls)}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in {"route", "level"}:
                raise SettingsError(f"a URL has no setting {name!r}: give it to connect", setting=name)
            merged[name] = value
        for name, value in settings.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
                raise SettingsError(f"there is no setting {name!r}; {hint}", setting=name)
            merged[name] = value
        return cls(**merged)

    # --- what the parts of a client are told -----------------------------------------------------------------------

    def session(self) -> ClientSettings:
        """Of the sessions."""
        return ClientSettings(
            coalesced_operations_max=self.batch_operations_max,
            coalesced_delay_s=self.batch_delay_s,
            batch_operations_max=max(1000, self.batch_operations_max),
            pending_operations_max=self.pending_operations_max,
            call_timeout_s=self.increment_timeout_s,
            connect_timeout_s=self.connect_timeout_s,
            close_timeout_s=self.close_timeout_s,
            backoff_max_s=0.5,
        )

    def pool(self) -> PoolSettings:
        """Of the pools."""
        return PoolSettings(
            connections_max=self.pool_connections_max,
            idle_s=self.pool_idle_s,
            connect_timeout_s=self.connect_timeout_s,
            request_timeout_s=self.request_timeout_s,
        )

    def retry(self) -> RetryPolicy:
        """Of requests."""
        return RetryPolicy(retries=self.retries, first_s=self.retry_first_s)


def _without_token(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.split('://', maxsplit=1)[0]}://...@{after}" if at else url
