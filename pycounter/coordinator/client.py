"""The client of a counter service: one object for one shard or many, directly or through a coordinator.

It belongs to the event loop that connected it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self, overload

from pycounter._native import ForeignKeys, ReadCache
from pycounter.client import LostTail
from pycounter.client.framing import Level
from pycounter.client.outcomes import Detail, checked
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations, Watchers
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.bulk_removals import BulkRemovals
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.increments import Increments
from pycounter.coordinator.listing import Listing
from pycounter.coordinator.load_balancer import LoadBalancer, Serving
from pycounter.coordinator.removals import Removals
from pycounter.coordinator.settings import TuningSettings
from pycounter.coordinator.shard_routes import Items, Key, shown_key
from pycounter.coordinator.shard_set import ShardSet
from pycounter.coordinator.topology_watch import TopologyWatch
from pycounter.coordinator.total import Total
from pycounter.coordinator.totals import Accuracy, ReadFrom, Totals
from pycounter.durations import seconds
from pycounter.errors import PyCounterError, RpcError, Unavailable
from pycounter.settings import is_loopback
from pycounter.topology import Topology, format_address
from pycounter.topology.addresses import is_path

__all__ = ["Client"]

_log = logging.getLogger(__name__)


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
        sends_increments: False: somebody else has the sessions, and tells the balancer of their connections.
        clock: time and random numbers.
    """

    def __init__(
        self,
        settings: ConnectSettings,
        *,
        topology: Topology | None = None,
        foreign: ForeignKeys | None = None,
        cache: ReadCache | None = None,
        balancer: LoadBalancer | None = None,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_serving: Callable[[list[Serving]], None] | None = None,
        sends_increments: bool = True,
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
        self._sends_increments = sends_increments
        self._clock = clock
        self._watch: TopologyWatch | None = None
        self._shards: ShardSet | None = None
        self._is_through = False
        self._counting: Increments
        self._reading: Totals
        self._removing: Removals
        self._bulk_removing: BulkRemovals
        self._listing: Listing
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
        if self._topology is None:
            self._watch = TopologyWatch(self.settings, self._clock)
            self._topology = await self._watch.ask(timeout_s)
        self._is_through = not self._is_direct(self._topology)
        await self._open_shards(self._topology, timeout_s)
        if self._watch is not None:
            self._watch.follow(self._topology.version, self.set_topology)

    def _is_direct(self, topology: Topology) -> bool:
        if _is_alone(topology) or self._watch is None:
            return True
        if self.settings.route != "auto":
            return self.settings.route == "direct"
        # A shard's loopback address means another machine than ours, if its coordinator is on another.
        address = self._watch.pool.address
        is_here = is_path(address) or is_loopback(address[0])
        return is_here or not any(shard.endpoint and is_loopback(shard.endpoint[0]) for shard in topology.shards)

    async def _open_shards(self, topology: Topology, timeout_s: float) -> None:
        settings, is_alone = self.settings, _is_alone(topology)
        if is_alone and self._watch is not None:
            # A shard alone is where the caller reached it, whatever it calls its own address.
            settings = replace(settings, addresses=(self._watch.pool.address,))
        shards = self._shards = ShardSet(
            topology,
            settings=settings,
            clock=self._clock,
            is_alone=is_alone,
            is_through=self._is_through,
            foreign=self._foreign,
            balancer=self._balancer,
            on_unknown=self.unknown.end,
            on_lost_tail=self._on_lost_tail,
            on_serving=self._on_serving,
            sends_increments=self._sends_increments,
        )
        cache = self._cache = self._cache or _new_cache(settings.coordinator)
        totals = Totals(shards, foreign=shards.foreign, cache=cache, timeout_s=settings.request_timeout_s)
        self._reading = totals
        self._removing = Removals(shards, totals, bump=cache.bump, on_removal=self._forget, clock=self._clock)
        self._listing = Listing(shards, totals, foreign=shards.foreign)
        self._bulk_removing = BulkRemovals(shards, self._removing.settling, self._listing, on_removal=self._forget)
        self._counting = Increments(shards, cache=cache, timeout_s=settings.increment_timeout_s)
        shards.start()
        if self._watch is not None:
            await shards.wait_connected(timeout_s)

    def _forget(self, key: bytes | None) -> None:
        """A counter is being removed, or was; None: all are."""
        self.shards.forget(key)
        if self._cache is not None:
            self._cache.bump_all() if key is None else self._cache.bump(key)

    async def close(self, *, timeout_s: float | None = None) -> None:
        """Waits for what is not settled, and ends every connection.

        Raises:
            SessionLost: not everything was settled in time; the message says how much is unknown.
        """
        if self._is_closed:
            return
        self._is_closed = True
        await self._end(seconds(timeout_s, self.settings.close_timeout_s))

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
        return await self._counting.incr(key, delta, level=level, detail=detail, timeout_s=timeout_s)

    async def incr_many(
        self,
        items: Items,
        *,
        level: Level | None = None,
        timeout_s: float | None = None,
    ) -> list[int | RpcError]:
        """Adds to many counters: pairs of key and delta, or a mapping.

        Returns:
            For each item, in order, its value after, or the error that `incr` would have raised.

        Raises:
            RpcError: no item counted: what a call with one item would have raised. Where items failed for different
                reasons it is one that leaves an outcome open, if there is one, and else the first.
        """
        return checked(await self._counting.incr_many(items, level=level, timeout_s=timeout_s))

    async def flush(self, *, timeout_s: float | None = None) -> None:
        """Waits until everything that is acknowledged now is durable, or reported as lost. For the level `applied`.

        Raises:
            DeadlineExceeded: it isn't yet.
        """
        sessions = [handle.session for handle in self.shards.handles]
        await asyncio.gather(*(session.flush(timeout_s=timeout_s) for session in sessions if session.unconfirmed))

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
        return await self._reading.get(key, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[int]:
        """The values of counters, in the keys' order, by one request to each shard. As `get`."""
        return await self._reading.get_many(keys, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def total(
        self,
        key: Key,
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> Total:
        """A counter's total with the part of each shard, and with what is missing from it."""
        return await self._reading.total(key, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def total_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[Total]:
        """The totals of counters, in the keys' order, by one request to each shard. As `total`."""
        return await self._reading.total_many(keys, accuracy=accuracy, read_from=read_from, timeout_s=timeout_s)

    async def scan(self, prefix: Key = b"") -> AsyncIterator[tuple[Key, int]]:
        """Every counter whose key begins with `prefix`, with its value, in no order.

        Keys that are UTF-8 come as str, others as bytes, as everywhere.
        """
        async for key, value in self._listing.scan(prefix):
            yield shown_key(key), value

    async def top(self, n: int = 10, prefix: Key = b"") -> list[tuple[Key, int]]:
        """The `n` largest counters whose keys begin with `prefix`, the largest first. Keys as in `scan`."""
        return [(shown_key(key), value) for key, value in await self._listing.top(n, prefix)]

    # --- removing --------------------------------------------------------------------------------------------------

    async def drain(self, key: Key, *, operation_id: bytes | None = None, timeout_s: float | None = None) -> int:
        """Takes a counter's whole value and leaves it at 0; no increment is lost. Gives the amount taken.

        Args:
            key: which.
            operation_id: that of an attempt of which nobody knows the outcome, to repeat it; None: a new one.
            timeout_s: for all of it.

        Raises:
            Unavailable: a shard can't be reached: nothing was taken.
            UnknownOutcome: nobody knows it of every shard; `RemovalUnsettled` has the id to repeat it under.
        """
        return await self._removing.drain(key, operation_id=operation_id, timeout_s=timeout_s)

    async def delete(self, key: Key, *, operation_id: bytes | None = None, timeout_s: float | None = None) -> int:
        """Removes a counter, and gives the amount removed. As `drain`."""
        return await self._removing.delete(key, operation_id=operation_id, timeout_s=timeout_s)

    async def delete_many(
        self, keys: Iterable[Key], *, operation_id: bytes | None = None, timeout_s: float | None = None
    ) -> list[int | RpcError]:
        """Removes the counters of a list, each on its own, by few requests to each shard.

        Args:
            keys: which. One that comes a second time is gone already: 0.
            operation_id: that of an attempt of which nobody knows the outcome, to repeat it; None: a new one.
            timeout_s: for all of it.

        Returns:
            For each key, in order, the amount removed, or the error that `delete` would have raised.
            `RemovalUnsettled` has the id to repeat the call under: what it has removed isn't removed again.

        Raises:
            Unavailable: a shard can't be reached: nothing was removed.
            RpcError: nothing was removed, as far as is known.
        """
        return await self._bulk_removing.delete_many(keys, operation_id=operation_id, timeout_s=timeout_s)

    async def delete_prefix(
        self,
        prefix: Key,
        *,
        operation_id: bytes | None = None,
        on_progress: Callable[[int], object] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Removes every counter whose key begins with `prefix`, on all shards at once, a page at a time.

        What is there throughout is removed. A counter made meanwhile, or made anew after it was removed, may go or
        stay. An increment that comes meanwhile goes with its counter or makes it anew. Cancelled, it stops where it is.

        Args:
            prefix: of the keys. Not empty: `delete_all` removes everything.
            operation_id: that of an attempt that did not get to its end, to go on with it within 2 minutes; None: a new
                one. A counter that it removed and that was made anew since stays.
            on_progress: called after each page with how many were removed so far.
            timeout_s: for all of it; None: as long as it goes on.

        Returns:
            How many counters this attempt found and removed; one that lay on two shards counts twice.

        Raises:
            Unavailable: a shard can't be reached: nothing was removed.
            RemovalUnsettled: it did not get to its end; `taken` says how many each shard has removed.
        """
        return await self._bulk_removing.delete_prefix(
            prefix, operation_id=operation_id, on_progress=on_progress, timeout_s=timeout_s
        )

    async def delete_all(self, *, operation_id: bytes | None = None, timeout_s: float | None = None) -> int:
        """Removes every counter, by one operation at each shard. As `drain`.

        Returns:
            How many counters the shards had together: one that lay on two of them counts twice.
        """
        return await self._removing.delete_all(operation_id=operation_id, timeout_s=timeout_s)

    async def set(self, key: Key, value: int, *, timeout_s: float | None = None) -> int:
        """Makes a counter's value this one, by adding the difference. Gives the value before.

        Not atomic: increments that come between reading and adding count on top.
        """
        return await self._removing.set(key, value, timeout_s=timeout_s)

    # --- the cluster -----------------------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """The shards, as the client knows them now."""
        if self._topology is None:
            raise Unavailable("the client is not connected: it knows of no shards")
        return self._topology

    def set_topology(self, topology: Topology) -> None:
        """Takes a newer topology, as its server or its supervisor tells it."""
        if self._shards is None or self._shards.update(topology):
            self._topology = topology

    @property
    def shards(self) -> ShardSet:
        """Where requests go."""
        if self._shards is None:
            raise Unavailable("the client is not connected: nothing was applied")
        return self._shards

    @property
    def route(self) -> str:
        """`direct` or `coordinator`: which way requests go."""
        return "coordinator" if self._is_through else "direct"

    @property
    def statistics(self) -> dict[str, int | float | bool]:
        """What the client has done: operations `succeeded`, `failed`, `queued`, `pending` and more.

        `healthy` is False where more than 1 % failed lately or more than 1,000 at one shard are unanswered.
        """
        sessions = [handle.session for handle in self._shards.handles] if self._shards is not None else []
        health = [session.health for session in sessions]
        done = [session.statistics for session in sessions]
        return {
            "succeeded": sum(one.operations_succeeded for one in done),
            "failed": sum(one.operations_failed for one in done),
            "queued": sum(one.queued for one in health),
            "pending": sum(one.pending for one in health),
            "success_rate": min((one.success_rate for one in health), default=1.0),
            "healthy": all(one.is_healthy for one in health),
            "batches": sum(one.batches for one in done),
            "batches_resent": sum(one.batches_resent for one in done),
            "reconnects": sum(one.reconnects for one in done),
            "sessions_renewed": sum(one.sessions_renewed for one in done),
            "unknown": sum(one.operations_unknown for one in done),
            "lost": sum(one.operations_lost for one in done),
        }

    def status(self) -> dict[str, Any]:
        """What the client knows of the cluster, as plain values: topology, shards, decisions, figures."""
        status: dict[str, Any] = {
            "route": self.route,
            "topology": self.topology.to_wire(),
            "statistics": self.statistics,
            "unknown": len(self.unknown),
        }
        if self._shards is not None:
            status["shards"] = self._shards.balancer.status()
            status["events"] = self._shards.balancer.events_status()
            done = self._reading.statistics
            status["reads"] = {
                "loaded": done.loaded,
                "requests": done.requests,
                "from_replicas": done.from_replicas,
                "incomplete": done.incomplete,
                "shared": self._reading.shared_loads,
            }
        if self._cache is not None:
            status["cache"] = self._cache.statistics()
        return status

    # --- inside ----------------------------------------------------------------------------------------------------

    def _unknown(self) -> Iterator[tuple[UnknownOperation, Watchers]]:
        if self._shards is not None:
            yield from self._shards.unknown()

    def _whereto(self) -> str:
        return " or ".join(format_address(*address) for address in self.settings.addresses)


def _new_cache(settings: TuningSettings) -> ReadCache:
    return ReadCache(
        settings.cache_l1_entries,
        settings.cache_l1_ttl_s,
        settings.cache_l2_entries,
        settings.cache_l2_ttl_s,
        settings.cache_hot_reads,
        settings.cache_hot_ttl_s,
        settings.cache_cold_reads,
        settings.cache_bytes_max,
    )


def _is_alone(topology: Topology) -> bool:
    return not topology.cluster and len(topology.shards) == 1
