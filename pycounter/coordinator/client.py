"""The client of a counter service: one object for one shard or many, directly or through a coordinator.

It belongs to the event loop that connected it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, overload

import msgspec

from pycounter._native import ForeignKeys
from pycounter.client import LostTail
from pycounter.client.coalescer import Detail
from pycounter.client.framing import Level
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.direct_route import DirectRoute
from pycounter.coordinator.listing import Listing
from pycounter.coordinator.load_balancer import LoadBalancer, Serving
from pycounter.coordinator.removals import Removals
from pycounter.coordinator.shard_routes import Key
from pycounter.coordinator.shard_set import ShardSet
from pycounter.coordinator.topology_watch import TopologyWatch
from pycounter.coordinator.total import Total
from pycounter.coordinator.totals import Accuracy, ReadFrom, Totals
from pycounter.errors import PyCounterError, RpcError, Unavailable
from pycounter.topology import Topology, format_address

__all__ = ["Client", "Connecting", "connect"]

_log = logging.getLogger(__name__)

Item = tuple[Key, int]


class Client:
    """Counts, and reads counters, over all shards of a service.

    Each increment counts exactly once, whatever is cut, killed or diverted; or its caller is told that nobody knows
    (`UnknownOutcome`, `DeadlineExceeded`), and it is on the list `unknown` until it is settled. A key is str or bytes,
    of 1 to 1,024 bytes; a str is its UTF-8. All times are seconds.

    Made by `pycounter.connect`. A coordinator's process makes its own, of the topology that its supervisor tells.

    Args:
        settings: where to and how.
        topology: None: the server at the addresses is asked, and followed.
        foreign, cache, balancer: shared with a router; made here otherwise.
        on_lost_tail: told of increments that were acknowledged at `applied` and lost in a crash; logged otherwise.
        on_serving: told when the balancer has changed who serves what.
        clock: time and random numbers.
    """

    def __init__(
        self,
        settings: ConnectSettings,
        *,
        topology: Topology | None = None,
        foreign: ForeignKeys | None = None,
        cache: Any | None = None,
        balancer: LoadBalancer | None = None,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_serving: Callable[[list[Serving]], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings
        #: Increments that were sent, and of which nobody knows yet whether they counted.
        self.unknown = UnknownOperations(self._unknown)
        self._topology = topology
        self._foreign = foreign
        self._cache = cache
        self._balancer = balancer
        self._on_lost_tail = on_lost_tail
        self._on_serving = on_serving
        self._clock = clock
        self._watch: TopologyWatch | None = None
        self._shards: ShardSet | None = None
        self._is_closed = False

    # --- life ------------------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Learns the topology and connects to the shards.

        Raises:
            Unavailable: no server can be reached in time, or no shard.
            Unauthenticated: the token is missing or wrong.
        """
        try:
            async with asyncio.timeout(self.settings.connect_timeout_s):
                await self._open()
        except TimeoutError as late:
            await self._end()
            raise Unavailable(f"can't reach {self._whereto()} in time: nothing was sent") from late
        except BaseException:
            await self._end()
            raise
        return self

    async def _open(self) -> None:
        timeout_s = self.settings.connect_timeout_s
        topology = self._topology
        if topology is None:
            self._watch = TopologyWatch(self.settings, self._clock)
            topology = self._placed(await self._watch.ask(timeout_s))
        shards = self._shards = ShardSet(
            topology,
            settings=self.settings,
            clock=self._clock,
            is_behind_tls=_is_alone(topology),
            foreign=self._foreign,
            balancer=self._balancer,
            on_unknown=self.unknown.end,
            on_lost_tail=self._on_lost_tail,
            on_serving=self._on_serving,
        )
        self._totals = Totals(
            shards, foreign=shards.foreign, cache=self._cache, timeout_s=self.settings.request_timeout_s
        )
        bump: Callable[[Any], object] = _forget if self._cache is None else self._cache.bump
        self._removals = Removals(
            shards,
            self._totals,
            bump=bump,
            clock=self._clock,
        )
        self._listing = Listing(shards, self._totals, foreign=shards.foreign)
        self._route = DirectRoute(shards, bump=bump, timeout_s=self.settings.increment_timeout_s)
        shards.start()
        if self._watch is not None:
            await shards.wait_connected(timeout_s)
            self._watch.follow(topology.version, self.set_topology)

    async def close(self, *, timeout_s: float | None = None) -> None:
        """Waits for what is not settled, and ends every connection.

        Raises:
            SessionLost: not everything was settled in time; the message says how much is unknown.
        """
        if self._is_closed:
            return
        self._is_closed = True
        await self._end(self.settings.close_timeout_s if timeout_s is None else timeout_s)

    async def _end(self, timeout_s: float = 0.0) -> None:
        try:
            if self._watch is not None:
                await self._watch.close()
        finally:
            if self._shards is not None:
                await self._shards.close(timeout_s=timeout_s)

    async def __aenter__(self) -> Self:
        if self._shards is None:
            await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PyCounterError:
            if error is None:
                raise
            _log.exception("closing the client")

    # --- counting --------------------------------------------------------------------------------------------------

    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> int: ...
    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[True],
        timeout_s: float | None = None,
    ) -> Detail: ...
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int | Detail:
        """Adds to a counter and gives its value after.

        Increments of many callers travel together. Where the counter lies on several shards, the value is that of the
        shard which took the increment, and what the others were last known to hold: `detail` says `exact` is False.

        Args:
            key: which.
            delta: from -2**63 to 2**63 - 1.
            level: `durable` (on disk when it is answered) or `applied` (in memory); None: the client's.
            detail: answer a `Detail`: value, exact, level, commit and shard.
            timeout_s: how long to wait.

        Raises:
            Unavailable: nothing was applied.
            DeadlineExceeded: it was sent and not answered yet; don't repeat it, see `unknown`.
            SessionLost: nobody can tell whether it counted.
            RpcError: it was refused; `effect` says what that means.
        """
        return await self._route.incr(key, delta, level=level, detail=detail, timeout_s=timeout_s)

    async def incr_many(
        self, items: Iterable[Item], *, level: Level | None = None, timeout_s: float | None = None
    ) -> list[int | RpcError]:
        """Adds to many counters: pairs of key and delta.

        Returns:
            For each item, in order, its value after, or the error that `incr` would have raised.
        """
        return await self._route.incr_many(list(items), level=level, timeout_s=timeout_s)

    async def flush(self, *, timeout_s: float | None = None) -> None:
        """Waits until everything that is acknowledged now is durable, or reported as lost. For the level `applied`.

        Raises:
            DeadlineExceeded: it isn't yet.
        """
        await asyncio.gather(
            *(handle.session.flush(timeout_s=timeout_s) for handle in self._all_shards.handles if handle.is_connected)
        )

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(
        self,
        key: Key,
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> int:
        """A counter's value; 0 if it was never touched.

        Args:
            key: which.
            accuracy: `cached` may be as old as the cache allows, but never older than this client's own writes;
                `recent` asks the shards that hold the counter; `exact` asks every shard.
            read_from: `primary` reads a replica only where the shard can't answer; `replica` prefers one; `any`
                spreads.
            timeout_s: for all of it.

        Raises:
            Unavailable: a shard can't answer, and no replica in its place.
        """
        return await self._totals.get(key, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[int]:
        """The values of counters, in the keys' order, by one request to each shard. As `get`."""
        return await self._totals.get_many(keys, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def total(
        self,
        key: Key,
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> Total:
        """A counter's total with the part of each shard, and with what is missing from it."""
        return await self._totals.total(key, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def total_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[Total]:
        """The totals of counters, in the keys' order, by one request to each shard. As `total`."""
        return await self._totals.total_many(keys, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    def scan(self, prefix: Key = b"") -> AsyncIterator[tuple[bytes, int]]:
        """Every counter whose key begins with `prefix`, with its value, in no order."""
        return self._listing.scan(prefix)

    async def top(self, n: int = 10, prefix: Key = b"") -> list[tuple[bytes, int]]:
        """The `n` largest counters whose keys begin with `prefix`, the largest first."""
        return await self._listing.top(n, prefix)

    # --- removing --------------------------------------------------------------------------------------------------

    async def drain(self, key: Key, *, timeout_s: float | None = None) -> int:
        """Takes a counter's whole value and leaves it at 0; no increment is lost. Gives the amount taken.

        Raises:
            Unavailable: a shard can't be reached: nothing was taken.
            RemovalUnsettled: nobody knows it of every shard.
        """
        return await self._removals.drain(key, timeout_s=timeout_s)

    async def delete(self, key: Key, *, timeout_s: float | None = None) -> int:
        """Removes a counter, and gives the amount removed. As `drain`."""
        return await self._removals.delete(key, timeout_s=timeout_s)

    async def set(self, key: Key, value: int, *, timeout_s: float | None = None) -> int:
        """Makes a counter's value this one, by adding the difference. Not atomic: increments meanwhile add to it."""
        return await self._removals.set(key, value, timeout_s=timeout_s)

    # --- the cluster -----------------------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """The shards, as the client knows them now."""
        return self._all_shards.topology

    def set_topology(self, topology: Topology) -> None:
        """Takes a newer topology, as its server or its supervisor tells it."""
        self._all_shards.update(self._placed(topology))

    @property
    def shards(self) -> ShardSet:
        """Where requests go; for a coordinator's server."""
        return self._all_shards

    @property
    def statistics(self) -> dict[str, int | float | bool]:
        """What the client has done: operations `succeeded`, `failed`, `queued`, `pending` and more.

        `healthy` is False where more than 1 % failed lately or more than 1,000 at one shard are unanswered.
        """
        sessions = [handle.session for handle in self._all_shards.handles]
        health = [session.health for session in sessions]
        return {
            "succeeded": sum(session.statistics.operations_succeeded for session in sessions),
            "failed": sum(session.statistics.operations_failed for session in sessions),
            "queued": sum(one.queued for one in health),
            "pending": sum(one.pending for one in health),
            "success_rate": min(one.success_rate for one in health),
            "healthy": all(one.is_healthy for one in health),
            "batches": sum(session.statistics.batches for session in sessions),
            "batches_resent": sum(session.statistics.batches_resent for session in sessions),
            "reconnects": sum(session.statistics.reconnects for session in sessions),
            "sessions_renewed": sum(session.statistics.sessions_renewed for session in sessions),
            "unknown": sum(session.statistics.operations_unknown for session in sessions),
            "lost": sum(session.statistics.operations_lost for session in sessions),
        }

    def status(self) -> dict[str, Any]:
        """What the client knows of the cluster, as plain values: topology, shards, decisions, figures."""
        balancer = self._all_shards.balancer
        return {
            "topology": self.topology.to_wire(),
            "shards": balancer.status(),
            "events": balancer.events_status(),
            "statistics": self.statistics,
            "reads": {
                "loaded": self._totals.statistics.loaded,
                "requests": self._totals.statistics.requests,
                "from_replicas": self._totals.statistics.from_replicas,
                "incomplete": self._totals.statistics.incomplete,
                "shared": self._totals.shared_loads,
            },
            "cache": None if self._cache is None else self._cache.statistics(),
            "unknown": len(self.unknown),
        }

    # --- inside ----------------------------------------------------------------------------------------------------

    @property
    def _all_shards(self) -> ShardSet:
        if self._shards is None:
            raise Unavailable("the client is not connected: nothing was applied")
        return self._shards

    def _unknown(self) -> Iterator[tuple[UnknownOperation, Callable[[Callable[[], None]], None]]]:
        return iter(()) if self._shards is None else self._shards.unknown()

    def _placed(self, topology: Topology) -> Topology:
        """A shard alone is where the caller reached it, whatever it calls its own address."""
        if not _is_alone(topology) or self._watch is None:
            return topology
        address = format_address(*self._watch.pool.address)
        shard = msgspec.structs.replace(topology.shards[0], address=address)
        return msgspec.structs.replace(topology, shards=(shard,))

    def _whereto(self) -> str:
        return " or ".join(format_address(*address) for address in self.settings.addresses)


def _is_alone(topology: Topology) -> bool:
    return not topology.cluster and len(topology.shards) == 1


def _forget(_: object) -> None:
    """Where nothing is cached, nothing has to be told of writes."""


class Connecting:
    """What `connect` gives: `await` it for a client, or use it as `async with`, which closes the client."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._client: Client | None = None

    def __await__(self) -> Generator[Any, None, Client]:
        opening: Awaitable[Client] = self._make().open()
        return opening.__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._make().open()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.__aexit__(kind, error, traceback)


def connect(
    url: str = "pycounter://127.0.0.1:7400",
    *,
    on_lost_tail: Callable[[LostTail], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Any,
) -> Connecting:
    """Connects to a counter service.

        async with pycounter.connect("pycounter://127.0.0.1:7400") as client:
            await client.incr("visits")

    Args:
        url: `pycounter://[token@]host[:port][,host[:port]...][?route=auto|direct|coordinator]`.
        on_lost_tail: told of increments that were acknowledged at `applied` and lost in a crash; logged otherwise.
        clock: time and random numbers.
        settings: fields of `ConnectSettings`, such as `token`, `tls`, `level` and `request_timeout_s`.

    Raises:
        SettingsError: the URL or a setting is wrong. Awaiting it raises what `Client.open` does.
    """
    checked = ConnectSettings.from_url(url, **settings)
    return Connecting(lambda: Client(checked, on_lost_tail=on_lost_tail, clock=clock))
