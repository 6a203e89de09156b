"""All shards of a cluster, as one client sees them: where a key is at home, who is well, and who serves what.

Every shard is asked each second for its health and for the counters that it holds though their home is elsewhere.
Samples of every request go to the balancer; what it decides is acted upon at once: operations that were never sent
leave a shard that fell ill. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pycounter._native import ForeignKeys
from pycounter.client import LostTail
from pycounter.client.unknown_operations import UnknownOperation, Watchers
from pycounter.clock import Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.load_balancer import LoadBalancer, Serving
from pycounter.coordinator.shard_handle import HandleOwner, ReplicaHandle, ShardHandle
from pycounter.coordinator.shard_health import is_shard_failure
from pycounter.errors import RpcError, Unavailable, WrongShard
from pycounter.topology import ShardInfo, Topology

__all__ = ["ShardSet"]

_log = logging.getLogger(__name__)

#: How often time passes for the balancer.
_TICK_S = 0.1
#: Once one shard is connected, the others are waited for so long: one that is down must not hold up the rest.
_OTHERS_S = 0.5


class ShardSet:
    """The shards, in the ring's order.

    Args:
        topology: of now; `update` takes newer ones.
        settings: the client's.
        clock: time and random numbers.
        is_alone: it is one shard without cluster, reached as the client's address is.
        is_through: all are reached through coordinators, at the client's addresses.
        foreign: which counters other shards than the home may hold; shared with a router, or made here.
        balancer: shared with a router, or made here.
        on_unknown: told of operations that stay unknown for ever and whose callers wait no longer.
        on_lost_tail: told of operations that were acknowledged at `applied` and lost in a crash.
        on_serving: told when the balancer has changed who serves what.
        sends_increments: False: there are no sessions, as somebody else has them.
        router_commit: the newest commit with which a shard answered whoever has the sessions then.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        settings: ConnectSettings,
        clock: Clock,
        is_alone: bool,
        is_through: bool = False,
        foreign: ForeignKeys | None = None,
        balancer: LoadBalancer | None = None,
        on_unknown: Callable[[list[UnknownOperation]], None],
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_serving: Callable[[list[Serving]], None] | None = None,
        sends_increments: bool = True,
        router_commit: Callable[[int], int] = lambda shard: 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.topology = topology
        self.ring = topology.ring
        names = list(self.ring.shards)
        self.foreign = foreign or ForeignKeys(len(names))
        self.balancer = balancer or LoadBalancer(names, settings.coordinator, loop.time)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._settings = settings
        self._loop = loop
        self._on_serving = on_serving
        self._sends_increments = sends_increments
        self._router_commit = router_commit
        self._is_alone = is_alone
        self._strict = topology.strict_prefixes
        owner = HandleOwner(
            on_sample=self._note_sample,
            on_replica_sample=self._note_replica_sample,
            on_connection=self._note_connection,
            on_unknown=on_unknown,
            on_lost_tail=on_lost_tail,
        )
        self.handles = [
            ShardHandle(
                number, info, settings=settings, is_alone=is_alone, is_through=is_through, clock=clock, owner=owner
            )
            for number, info in enumerate(self._in_order(topology))
        ]
        #: By name: the hot path's look-up.
        self.by_name = {handle.name: handle for handle in self.handles}
        #: Are all shards there, and serve all their operations?
        self.is_calm = True
        self._away: set[int] = set()
        self._serving = self.balancer.serving
        self._followed = self.balancer.version
        #: What to ask each shard for next, of its foreign counters; None: it knows of no such question.
        self._foreign_from: list[int | None] = [0] * len(names)
        self._asked_at = [-settings.coordinator.probe_interval_s] * len(names)
        self._asking: dict[int, asyncio.Task[None]] = {}
        self._ticker: asyncio.TimerHandle | None = None
        self._withdrawing = False
        if len(names) > 1:
            for number in range(len(names)):
                self.foreign.set_all(number, True)
        self._update_balancer()

    def _in_order(self, topology: Topology) -> list[ShardInfo]:
        by_name = {shard.name: shard for shard in topology.shards}
        return [by_name[name] for name in self._numbers]

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to connect and to ask for health, in the background."""
        if self._sends_increments:
            for handle in self.handles:
                handle.start()
        self._tick()

    async def wait_connected(self, timeout_s: float) -> None:
        """Waits until the shards are connected: for the first one as long as it takes, for the others a moment more.

        Raises:
            RpcError: none can be reached in time, or none lets us in.
        """
        wanted = [handle for handle in self.handles if handle.info.endpoint is not None]
        if not wanted:
            raise Unavailable("no shard has an address yet: nothing was applied")
        waiting = {self._loop.create_task(handle.session.connect(timeout_s=timeout_s)) for handle in wanted}
        try:
            done: set[asyncio.Task[None]] = set()
            while waiting and not any(task.exception() is None for task in done):
                newly, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done |= newly
            if waiting:
                newly, waiting = await asyncio.wait(waiting, timeout=min(timeout_s, _OTHERS_S))
                done |= newly
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        failures = [failure for task in done if (failure := task.exception()) is not None]
        if len(failures) == len(done):
            raise failures[0]
        for failure in failures:
            _log.warning("connecting: %s", failure)
        for handle in self.handles:
            if not handle.is_connected:
                self._note_connection(handle.number, False)

    def set_token(self, token: bytes | None) -> None:
        """What new connections to shards and replicas are sent; sessions keep what they have."""
        for handle in self.handles:
            handle.set_token(token)

    def update(self, topology: Topology) -> bool:
        """Takes a newer topology. False: it is of other shards, or isn't newer."""
        if topology.version <= self.topology.version and topology.cluster == self.topology.cluster:
            return False
        if topology.ring.shards != self.ring.shards or topology.cluster != self.topology.cluster:
            _log.error("the topology has other shards than before, which this client can't follow: connect again")
            return False
        self.topology = topology
        self._strict = topology.strict_prefixes
        for handle, info in zip(self.handles, self._in_order(topology), strict=True):
            if handle.info.identity and info.identity and handle.info.identity != info.identity:
                self._foreign_from[handle.number] = 0
            was_stalled = handle.info.state == "stalled"
            handle.update(info)
            if self._sends_increments and was_stalled != (info.state == "stalled"):
                self._note_connection(handle.number, handle.is_connected)
        self._update_balancer()
        return True

    def _update_balancer(self) -> None:
        for handle in self.handles:
            self.balancer.set_replicas(handle.number, list(handle.replicas))

    async def close(self, *, timeout_s: float) -> None:
        """Waits for what is not settled, and closes every connection. Raises SessionLost."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        closing = [handle.close(timeout_s=timeout_s) for handle in self.handles]
        outcomes = await asyncio.gather(*closing, return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome

    # --- where to --------------------------------------------------------------------------------------------------

    def is_strict(self, key: bytes) -> bool:
        """May only its home serve this counter?"""
        return bool(self._strict) and key.startswith(self._strict)

    def server_of(self, key: bytes) -> ShardHandle:
        """Who takes the next never-sent operation without id on this counter.

        Raises:
            Unavailable: nobody can.
        """
        home = self.by_name[self.ring.home(key)]
        if self.is_calm or len(self.handles) == 1 or self.is_strict(key):
            return home
        other = self.balancer.divert(home.number)
        if other is None:
            return home
        # Before it is sent: whoever reads from now on asks there too.
        self.foreign.note(other, key)
        return self.handles[other]

    # --- what reads ask (`ShardRoutes`) ----------------------------------------------------------------------------

    @property
    def shards(self) -> Sequence[ShardHandle]:
        """Every shard's primary, in the ring's order."""
        return self.handles

    def home(self, key: bytes) -> int:
        """The number of the key's home."""
        return self._numbers[self.ring.home(key)]

    def replicas(self, shard: int) -> Sequence[ReplicaHandle]:
        """The shard's replicas that may be read, the best first."""
        handles = self.handles[shard].replicas
        best = self.balancer.decide_read(shard, list(handles), "replica") if handles else None
        if best is None:
            # None of them is well. While their shard is away they are better than nothing: answers tell their age.
            return sorted(handles.values(), key=lambda handle: handle.lag_ms) if self.is_down(shard) else ()
        others = [handle for name, handle in handles.items() if name != best]
        return [handles[best], *sorted(others, key=lambda handle: handle.lag_ms)]

    def is_down(self, shard: int) -> bool:
        """Is it known that the shard doesn't answer now? A stalled one may be connected all the same."""
        handle = self.handles[shard]
        if not handle.info.address or self._serving[shard].state == "dead":
            return True
        return handle.info.state == "stalled" or (handle.info.state == "down" and not handle.is_connected)

    def is_unwell(self, shard: int) -> bool:
        """Is a replica of the shard better to read than the shard, which is slow or fails?"""
        replicas = self.handles[shard].replicas
        return bool(replicas) and self.balancer.decide_read(shard, list(replicas)) is not None

    def time_ms(self, shard: int) -> int | None:
        """The shard's clock, at the latest; None where it never answered."""
        return self.handles[shard].time_ms

    async def ask_time_ms(self, shard: int, *, timeout_s: float) -> int | None:
        """The shard's clock a moment ago. Raises RpcError."""
        return await self.handles[shard].ask_time_ms(timeout_s=timeout_s)

    def commit_seen(self, shard: int) -> int:
        """The newest commit with which the shard answered a change of this client; 0: none."""
        return max(self.handles[shard].commit_seen, self._router_commit(shard))

    def note_commit(self, shard: int, commit: int) -> None:
        """A change of this client was answered with this commit."""
        self.handles[shard].note_commit(commit)

    def forget(self, key: bytes | None) -> None:
        """A counter is being removed, or was, and what shards were known to hold of it is gone; None: all are."""
        for handle in self.handles:
            handle.forget(key)

    # --- health ----------------------------------------------------------------------------------------------------

    def _note_sample(self, shard: int, latency_s: float, failure: RpcError | None) -> None:
        if len(self.handles) == 1:
            return
        self.balancer.record(shard, latency_s, failure is None or not is_shard_failure(failure))
        self._follow()

    def _note_replica_sample(self, shard: int, replica: str, latency_s: float, failure: RpcError | None) -> None:
        ok = failure is None or not is_shard_failure(failure)
        self.balancer.record_replica(shard, replica, latency_s, ok)

    def _note_connection(self, shard: int, is_there: bool) -> None:
        # A stalled shard keeps its connections; its supervisor sees it first.
        is_there = is_there and self.handles[shard].info.state != "stalled"
        self.balancer.set_connected(shard, is_there)
        if is_there:
            self._away.discard(shard)
        else:
            # From now on each operation asks the balancer: it decides as time passes, with nobody to tell.
            self._away.add(shard)
        self._look_around()
        self._follow()

    def _look_around(self) -> None:
        self.is_calm = not self._away and all(one.weight >= 1.0 for one in self._serving)

    def _follow(self) -> None:
        """Acts upon what the balancer has decided, if that is anything new."""
        version = self.balancer.version
        if version == self._followed:
            return
        self._followed = version
        serving = self.balancer.serving
        before, self._serving = self._serving, serving
        self._look_around()
        if self._on_serving is not None:
            self._on_serving(serving)
        for handle, old, new in zip(self.handles, before, serving, strict=True):
            if new.divert_to is not None and (new.weight < old.weight or old.divert_to is None):
                # Not in this turn: a session may just be at work, as this was called from it.
                self._loop.call_soon(handle.session.withdraw, 1.0 - new.weight)

    def _tick(self) -> None:
        now = self._loop.time()
        self._note_stalls(now)
        if self._is_alone and isinstance(self.handles[0].session.failure, WrongShard):
            self.handles[0].accept_another()
        self.balancer.tick()
        self._follow()
        due = set(self.balancer.probes_due())
        # Of a shard alone nothing follows: nobody else could serve.
        for handle in self.handles if len(self.handles) > 1 or self.handles[0].replicas else ():
            number = handle.number
            is_late = now - self._asked_at[number] >= self._settings.coordinator.probe_interval_s
            if (number in due or is_late) and number not in self._asking and handle.info.endpoint is not None:
                self._asked_at[number] = now
                task = self._loop.create_task(self._probe(handle, is_probe=number in due), name="pycounter probe")
                self._asking[number] = task
                task.add_done_callback(lambda _, number=number: self._asking.pop(number, None))  # type: ignore[misc]
        self._ticker = self._loop.call_later(_TICK_S, self._tick)

    def _note_stalls(self, now: float) -> None:
        """A shard that answers nothing gives no samples: each look at a request that waits is one."""
        for handle in self.handles if len(self.handles) > 1 else ():
            since = handle.session.in_flight_since
            if since is not None and now - since > _TICK_S:
                ok = now - since < self._settings.coordinator.probe_timeout_s
                self.balancer.record(handle.number, now - since, ok)

    async def _probe(self, handle: ShardHandle, *, is_probe: bool) -> None:
        begun = self._loop.time()
        failure: Exception | None = None
        try:
            said = await handle.ask_health(
                self._foreign_from[handle.number], timeout_s=self._settings.coordinator.probe_timeout_s
            )
            self._take_health(handle, said)
        except (OSError, RpcError) as error:
            failure = error
        ok = failure is None or (isinstance(failure, RpcError) and not is_shard_failure(failure))
        if is_probe:
            self.balancer.record_probe(handle.number, self._loop.time() - begun, ok)
        else:
            self.balancer.record(handle.number, self._loop.time() - begun, ok)
        self._follow()
        for replica in list(handle.replicas.values()):
            try:
                await replica.ask_lag(timeout_s=self._settings.coordinator.probe_timeout_s)
            except (OSError, RpcError) as error:
                _log.debug("%s: %s", replica.name, error)

    def _take_health(self, handle: ShardHandle, said: Any) -> None:
        """What a shard says of itself: whether it can write, and the counters whose home is elsewhere."""
        number = handle.number
        if not isinstance(said, dict):
            return
        self.balancer.set_writable(number, said.get("state") != "read_only")
        match said.get("foreign"):
            case {"count": int() as count, "from": int() as from_, "hashes": bytes() as hashes, "all": bool() as every}:
                self._foreign_from[number] = self.foreign.absorb(
                    number,
                    identity=str(said.get("identity", handle.identity or "")),
                    epoch=int(said.get("epoch", 0)),
                    count=count,
                    from_=from_,
                    hashes=hashes,
                    full=every,
                )
            case _:
                # A shard alone holds nothing whose home is elsewhere.
                self.foreign.set_all(number, len(self.handles) > 1)

    # --- to be shown -----------------------------------------------------------------------------------------------

    def unknown(self) -> Iterator[tuple[UnknownOperation, Watchers]]:
        """The operations of which nobody knows the outcome yet."""
        for handle in self.handles:
            yield from handle.session.pending_unknown()
