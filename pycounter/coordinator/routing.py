"""What a coordinator's process has behind its listening sockets: the router, its links to the shards, Python's part.

The router (Rust) counts and reads for raw clients. Beside it stand the same parts that a client in a user's process
has: shards with their health, totals, removals, listings; for requests that take all shards. They share what is known
of foreign counters, the read cache, and who serves what. One event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack

from pycounter._native import VERSION, ForeignKeys, ReadCache, Router
from pycounter.client.session_client import SESSION_BYTES
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.cache_warming import CacheWarming
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.host_requests import HostRequests
from pycounter.coordinator.listing import Listing
from pycounter.coordinator.load_balancer import LoadBalancer, Serving
from pycounter.coordinator.removals import Removals
from pycounter.coordinator.replay_log import ReplayLog
from pycounter.coordinator.replayer import Replayer
from pycounter.coordinator.settings import TuningSettings
from pycounter.coordinator.shard_links import ShardLink
from pycounter.coordinator.shard_set import ShardSet
from pycounter.coordinator.totals import Totals
from pycounter.errors import PyCounterError, WrongShard
from pycounter.settings import CoordinatorSettings
from pycounter.storage.cluster_backup import write_cluster_note
from pycounter.topology import Address, Topology

__all__ = ["Routing"]

_log = logging.getLogger(__name__)

TICK_S = 0.05
CLOSE_TIMEOUT_S = 1.0
WARM_FILE = "hottest-keys"
REPLAY_FILE = "replay.log"
#: So long a shard may take for a backup.
BACKUP_TIMEOUT_S = 3600.0


class Routing:
    """Routes the requests of raw clients to the shards of a topology.

    Raises (constructor):
        OSError: the replay log can't be read or written.

    Args:
        topology: the first; its shards stay, whatever else of it changes.
        settings: the process's.
        tokens: any of them lets a client in; shards are sent the first.
        clock: time and random numbers.
    """

    def __init__(
        self, topology: Topology, settings: CoordinatorSettings, tokens: Sequence[bytes], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._topology = topology
        tuning = TuningSettings.from_table(settings.tuning)
        sent = next(iter(tokens), None)
        connect = ConnectSettings(
            token=sent, level=settings.level, request_timeout_s=settings.request_timeout_s, coordinator=tuning
        )
        names = list(topology.ring.shards)
        self.cache = ReadCache(
            tuning.cache_l1_entries,
            tuning.cache_l1_ttl_s,
            tuning.cache_l2_entries,
            tuning.cache_l2_ttl_s,
            tuning.cache_hot_reads,
            tuning.cache_hot_ttl_s,
            tuning.cache_cold_reads,
            tuning.cache_bytes_max,
            clock=None if clock is SYSTEM_CLOCK else loop.time,
        )
        self.foreign = ForeignKeys(len(names))
        self.balancer = LoadBalancer(names, tuning, loop.time)
        #: As the router has it.
        self._serving: list[Serving] = []
        self.router = Router(
            topology.ring,
            self.foreign,
            self.cache,
            clock=loop.time,
            level=settings.level,
            server_version=VERSION,
            name=settings.name,
            identity=topology.cluster,
            tokens=tokens,
            strict=list(topology.strict_prefixes),
            frame_bytes_max=settings.frame_bytes_max,
            input_bytes_max=settings.input_bytes_max,
            connections_max=settings.connections_max,
            reply_bytes_max=settings.reply_bytes_max,
            held_bytes_max=settings.held_bytes_max,
            request_timeout_s=settings.request_timeout_s,
            new_session_id=None if clock is SYSTEM_CLOCK else lambda: clock.random_bytes(SESSION_BYTES),
        )
        self.shards = ShardSet(
            topology,
            settings=connect,
            clock=clock,
            is_alone=False,
            foreign=self.foreign,
            balancer=self.balancer,
            on_unknown=lambda operations: None,
            on_serving=self._follow,
            sends_increments=False,
            router_commit=lambda shard: self._links[shard].link.commit_seen,
        )
        self._links = [
            ShardLink(
                name,
                self.router.link(number),
                on_connected=lambda there, number=number: self.balancer.set_connected(number, there),  # type: ignore[misc]
                chance=clock.random(),
            )
            for number, name in enumerate(names)
        ]
        self.totals = Totals(self.shards, foreign=self.foreign, cache=self.cache, timeout_s=settings.request_timeout_s)
        self.removals = Removals(self.shards, self.totals, bump=self.cache.bump, on_removal=self._forget, clock=clock)
        self.replayer = Replayer(
            ReplayLog.open(Path(settings.data) / REPLAY_FILE),
            self.shards,
            serving=lambda key: self.shards.server_of(key).number,
            identity=lambda shard: self.shards.handles[shard].identity,
            bump=self.cache.bump,
            clock=clock,
        )
        self.requests = HostRequests(
            self.shards,
            totals=self.totals,
            removals=self.removals,
            listing=Listing(self.shards, self.totals, foreign=self.foreign),
            stats=self.stats,
            health=self.health,
            info=self.router.info,
            backup=lambda shard, folder: self.shards.handles[shard].order_backup(folder, timeout_s=BACKUP_TIMEOUT_S),
            end_backup=lambda folder: write_cluster_note(folder, topology.cluster, names),
            now_ms=lambda: int(loop.time() * 1000),
            timeout_s=settings.request_timeout_s,
        )
        self._warming = CacheWarming(
            self.cache,
            Path(settings.data) / WARM_FILE,
            lambda keys: self.totals.get_many(keys, accuracy="cached"),
            keys_max=tuning.cache_warm_keys,
            batch=tuning.cache_warm_batch,
        )
        self._ticker: asyncio.TimerHandle | None = None
        self._started_at = loop.time()

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to connect to the shards."""
        self.router.start(self._loop.call_soon, self._flush)
        self.update(self._topology)
        for link in self._links:
            link.start()
        self.shards.start()
        self._follow(self.balancer.serving)
        self._warming.start()
        self.replayer.start()
        self._tick()

    def set_tokens(self, tokens: Sequence[bytes]) -> None:
        """Replaces the tokens: of clients who connect from now on, and what new connections to shards are sent."""
        self.router.set_tokens(tokens)
        self.shards.set_token(next(iter(tokens), None))

    def update(self, topology: Topology) -> None:
        """Takes a newer topology."""
        if topology is not self._topology and not self.shards.update(topology):
            return
        self._topology = topology
        by_name = {shard.name: shard for shard in topology.shards}
        for link in self._links:
            link.set_address(by_name[link.name].endpoint)
        self.router.set_topology(msgpack.packb(topology.to_wire()))
        self.requests.set_topology(topology)

    def place_of(self, name: str) -> Address | None:
        """Where a shard or replica is; None: nobody knows.

        Raises:
            WrongShard: there is none of this name.
        """
        for shard in self._topology.shards:
            for one in (shard, *shard.replicas):
                if one.name == name:
                    return one.endpoint
        raise WrongShard(f"there is no shard {name} here: nothing was applied")

    async def wait_linked(self, timeout_s: float) -> None:
        """Waits until there is a link to each shard that has an address, or the time is over."""
        deadline = self._loop.time() + timeout_s
        with_address = {shard.name for shard in self._topology.shards if shard.endpoint is not None}
        wanted = [link for link in self._links if link.name in with_address]
        while not all(link.link.ready for link in wanted) and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def wait_settled(self, deadline: float) -> bool:
        """Waits until every client has its replies and every shard has answered. False: the time ran out."""
        while not self.router.is_settled():
            if self._loop.time() >= deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    async def close(self) -> None:
        """Ends all connections to shards. What was accepted without a waiting caller and never sent goes to disk."""
        if self._ticker is not None:
            self._ticker.cancel()
        self._keep_unserved(unsent=True)
        await self._warming.close()
        await self.replayer.close()
        for link in self._links:
            await link.close()
        try:
            await self.shards.close(timeout_s=CLOSE_TIMEOUT_S)
        except PyCounterError as error:
            _log.warning("closing: %s", error)
        self.router.stop()

    # --- the loop's turns --------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for owner, data in self.router.flush():
            owner.write(data)

    def _tick(self) -> None:
        self.router.tick(self._loop.time())
        for shard, latency_s, ok in self.router.samples():
            self.balancer.record(shard, latency_s, ok)
        self._follow(self.balancer.serving)
        self._keep_unserved()
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    def _keep_unserved(self, *, unsent: bool = False) -> None:
        """Notifications that no shard takes go to disk."""
        for key, delta in self.router.take_unserved(unsent=unsent):
            self.replayer.accept(key, delta)

    def _follow(self, serving: list[Serving]) -> None:
        """Copies what the balancer has decided into the router, if it is anything new."""
        if serving == self._serving:
            return
        self._serving = serving
        self.router.set_serving([(one.weight, -1 if one.divert_to is None else one.divert_to) for one in serving])

    def _forget(self, key: bytes | None) -> None:
        """A counter is being removed, or was; None: all are."""
        self.router.forget(key)
        self.cache.bump_all() if key is None else self.cache.bump(key)

    # --- to be shown -------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures by name, plain numbers and texts."""
        reads = self.totals.statistics
        return {
            "shard": self._settings.name,
            "version": VERSION,
            "level": self._settings.level,
            "uptime_ms": int((self._loop.time() - self._started_at) * 1000),
            **self.router.stats(),
            "totals_loaded": reads.loaded,
            "totals_from_replicas": reads.from_replicas,
            "totals_incomplete": reads.incomplete,
            "loads_shared": self.totals.shared_loads,
            **{f"cache_{name}": value for name, value in self.cache.statistics().items()},
        }

    def health(self) -> dict[str, Any]:
        """`state` is "ok", "degraded" (a shard isn't healthy) or "unavailable" (none is); and each shard's own."""
        states = [one.state for one in self._serving]
        if all(state == "healthy" for state in states):
            state = "ok"
        else:
            state = "unavailable" if all(state == "dead" for state in states) else "degraded"
        shards = self.balancer.status()
        for shard, link in zip(shards, self._links, strict=True):
            # The router diverts what passes through it, and the balancer has counted the others.
            shard["diverted"] += link.link.status()["diverted"]
        return {"state": state, "topology": self._topology.version, "shards": shards}

    def facts(self) -> dict[str, Any]:
        """What the supervisor is told for `pycounter status`."""
        return {
            **self.health(),
            "events": self.balancer.events_status(),
            "links": {link.name: link.link.status() for link in self._links},
            "stats": self.stats(),
            "cache_warming": self._warming.status(),
            "replay": self.replayer.status(),
        }
