"""The worlds that are simulated."""

import gc
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pycounter.client import ClientSettings
from pycounter.coordinator.connect_settings import ConnectSettings, Route
from pycounter.coordinator.settings import TuningSettings as Tuning
from pycounter.errors import PyCounterError
from pycounter.settings import CoordinatorSettings
from pycounter.topology import ShardInfo, Topology
from tests.simulation.callers import Callers, Work
from tests.simulation.cluster_clients import ClusterCallers
from tests.simulation.coordinator_host import PORT, CoordinatorHost
from tests.simulation.ledger import Violation
from tests.simulation.network import Weather
from tests.simulation.session_clients import SessionCallers
from tests.simulation.shard_host import DiskWeather, ShardHost
from tests.simulation.trouble import Plan
from tests.simulation.virtual_loop import Stuck
from tests.simulation.world import Report, World

#: Of a shard that soon forgets sessions.
SESSION_WINDOW_S = 6.0
#: The client gives up sooner: by more than an answer can be old when it comes, which silence bounds.
CLIENT_WINDOW_S = 2.0


def thin_out(weights: dict[str, float], chance: random.Random) -> None:
    """Leaves out some kinds: what they would bring is found sooner when others are not in the way."""
    if chance.random() < 0.7:
        kept = [kind for kind in weights if chance.random() < 0.5] or [chance.choice(list(weights))]
        keep_only(weights, *kept)


def keep_only(weights: dict[str, float], *kept: str) -> None:
    """Leaves out all other kinds."""
    for kind in weights.keys() - set(kept):
        del weights[kind]


class ShardWorld(World):
    """Session clients of one shard."""

    #: The chance of a shard that has room for few changed counters, and how many.
    route: Route = "direct"
    narrow = 0.3
    narrow_counters = 3

    def _make(self, chance: random.Random) -> None:
        self.forgets = chance.random() < 0.2
        self._make_plan(chance, SessionCallers, 20.0 if self.forgets else chance.choice([0.3, 3.0, 8.0]))
        if self.forgets:
            self.plan.lasts_s = 15.0
        self.work.may_lose_sessions = self.forgets or self.work.applied > 0
        # A shard that is often overloaded; it must have room for one batch.
        self.is_narrow = chance.random() < self.narrow
        settings: dict[str, Any] = {"dirty_counters_max": self.narrow_counters if self.is_narrow else 1_048_576}
        if self.forgets:
            settings["session_window_s"] = SESSION_WINDOW_S
        self._make_shard("shard-0", settings, chance)
        self.clients = [self._client(f"client-{number}", chance) for number in range(chance.randint(1, 3))]

    def _make_plan(self, chance: random.Random, callers: type[Callers], within_s: float) -> None:
        calls = chance.randint(2, 8)
        self.work = Work(
            callers=chance.choice([1, 2, 4, 10]),
            calls=calls,
            pause_s=within_s / calls * chance.choice([0.1, 1.0, 4.0]),
            kinds=dict(callers.KINDS),
            applied=chance.choice([0.0, 0.3, 1.0]),
            cancelled=chance.choice([0.0, 0.1, 0.4]),
            hurried=chance.choice([0.0, 0.1, 0.4]),
        )
        self.plan = Plan(events=chance.choice([0, 2, 4, 8]), within_s=within_s)
        if self.route != "coordinator":
            del self.plan.kinds["kill_coordinator"], self.plan.kinds["stop_coordinator"]
        self._narrow_down(chance)
        self.network.weather = Weather(
            latency_s=chance.choice([0.00005, 0.001, 0.02]),
            jitter_s=chance.choice([0.0001, 0.002, 0.05]),
            split=chance.choice([0.0, 0.2, 0.7]),
            loss=chance.choice([0.0, 0.02, 0.2]),
            window=chance.choice([40, 400, 64 * 1024]),
        )

    def _narrow_down(self, chance: random.Random) -> None:
        """Leaves out kinds of calls and of trouble."""
        thin_out(self.work.kinds, chance)
        thin_out(self.plan.kinds, chance)

    def _make_shard(self, name: str, settings: dict[str, Any], chance: random.Random) -> ShardHost:
        shard = ShardHost(self.loop, self.network, name, self.part(), log=self.log, settings=settings)
        shard.disk_weather = DiskWeather(slow=chance.choice([0.0, 0.1]), slow_s=chance.choice([0.1, 2.0]))
        shard.checkpoints = chance.choice([0.0, 0.02, 0.2])
        shard.settings["segment_bytes"] = chance.choice([512, 8192])
        self.shards.append(shard)
        return shard

    def _client(self, name: str, chance: random.Random) -> SessionCallers:
        sizes = [1, 3] if self.is_narrow else [1, 3, 1000]
        batch = chance.choice(sizes)
        settings = ClientSettings(
            coalesced_operations_max=chance.choice(sizes),
            batch_operations_max=batch,
            batches_in_flight_max=chance.choice([1, 2, 8]),
            window_operations_max=max(batch, chance.choice([1, 5, 9000])),
            pending_operations_max=chance.choice([2, 8, 50_000]),
            unconfirmed_operations_max=chance.choice([2, 10, 200_000]),
            session_window_s=CLIENT_WINDOW_S if self.forgets else 6 * 24 * 3600.0,
            silence_timeout_s=1.0 if self.forgets else chance.choice([1.0, 5.0, 30.0]),
            call_timeout_s=chance.choice([2.0, 60.0]),
        )
        shard = self.shards[0]
        return SessionCallers(
            self.loop, name, shard, self.part(), self.ledger, self.work, settings, self._keys.of, self.log
        )


class IdWorld(ShardWorld):
    """Callers that repeat operations under ids, a shard that often refuses, and requests that arrive late."""

    narrow = 0.8
    narrow_counters = 1

    def _narrow_down(self, chance: random.Random) -> None:
        keep_only(self.work.kinds, "incr_with_id", "drain_with_id", "get")
        self.plan.kinds = {"betrayal": 12, "failing_disk": 4, "slow_disk": 6, "die_in_commit": 1}
        self.plan.events, self.work.calls, self.work.hurried = chance.choice([8, 16]), 12, 0.0


class ClusterWorld(ShardWorld):
    """Clients that go straight to the shards of a cluster."""

    def _make(self, chance: random.Random) -> None:
        self._make_plan(chance, ClusterCallers, chance.choice([0.5, 3.0, 8.0]))
        self.work.may_lose_sessions = self.work.applied > 0
        names = [f"shard-{number}" for number in range(chance.choice([2, 2, 3]))]
        infos = []
        for name in names:
            shard = self._make_shard(name, {}, chance)
            infos.append(ShardInfo(name=name, address=f"{name}:{PORT}", identity=shard.make(), state="ok"))
        self.topology = Topology(version=1, cluster="c1", shards=tuple(infos))
        for shard in self.shards:
            shard.settings["ring"] = self.topology.ring
        self._make_coordinators(chance)
        self.clients = [self._cluster_client(f"client-{number}", chance) for number in range(chance.randint(1, 3))]

    def _make_coordinators(self, chance: random.Random) -> None:
        """There are none."""

    def _cluster_client(self, name: str, chance: random.Random) -> ClusterCallers:
        direct = self.route == "direct"
        settings = ConnectSettings(
            addresses=tuple(host.address for host in self.coordinators) or (("nowhere", 1),),
            route=self.route,
            increment_timeout_s=chance.choice([1.0, 10.0]),
            request_timeout_s=chance.choice([0.5, 2.0]),
            close_timeout_s=60.0,
            batch_operations_max=chance.choice([1, 3, 100]),
            pending_operations_max=chance.choice([4, 50_000]),
            coordinator=Tuning(
                health_samples_min=chance.choice([2, 10]),
                health_latency_max_s=chance.choice([0.01, 0.05, 1.0]),
                breaker_failures=chance.choice([1, 5]),
                breaker_open_s=chance.choice([0.2, 1.0]),
                disconnected_grace_s=chance.choice([0.01, 0.25]),
                recovery_s=chance.choice([0.2, 2.0]),
            ),
        )
        return ClusterCallers(
            self.loop,
            name,
            self.topology if direct else None,
            self.part(),
            self.ledger,
            self.work,
            settings,
            self._keys.of,
            self.log,
        )


class CoordinatorWorld(ClusterWorld):
    """Clients of a cluster's coordinators."""

    route: Route = "coordinator"

    def _make_coordinators(self, chance: random.Random) -> None:
        memory = Path("/dev/shm")  # a RAM disk, where there is one
        self._folder = Path(tempfile.mkdtemp(prefix="pycounter-", dir=memory if memory.is_dir() else None))
        for number in range(chance.randint(1, 2)):
            name = f"coordinator-{number}"
            settings = CoordinatorSettings(
                data=str(self._folder / name),
                listen_fds=(),
                name=name,
                request_timeout_s=chance.choice([0.5, 2.0]),
            )
            host = CoordinatorHost(self.loop, self.network, name, self.topology, settings, self.part(), self.log)
            self.coordinators.append(host)

    def _abandon(self) -> None:
        super()._abandon()
        shutil.rmtree(self._folder, ignore_errors=True)


SCENARIOS: dict[str, type[World]] = {
    "shard": ShardWorld,
    "ids": IdWorld,
    "cluster": ClusterWorld,
    "coordinator": CoordinatorWorld,
}


def simulate(scenario: str, seed: int) -> Report:
    """Runs one seed. A failure says how to see it again."""
    world = SCENARIOS[scenario](seed)
    try:
        return world.run()
    except (Violation, Stuck, PyCounterError) as error:
        command = f"python -m tests.simulation {scenario} {seed}"
        raise Violation(f"seed {seed}: {error}\n\nThe history of this seed: {command}") from error
    finally:
        if seed % 50 == 0:
            gc.collect()
