"""What goes wrong, when, and for how long: drawn from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.shard_host import DiskWeather, ShardHost

if TYPE_CHECKING:
    from tests.simulation.coordinator_host import CoordinatorHost
    from tests.simulation.world import World


def _kinds() -> dict[str, float]:
    return {
        "kill": 3,
        "power": 2,
        "die_in_commit": 2,
        "cut": 5,
        "stall": 3,
        "betrayal": 4,
        "hold": 2,
        "hold_one_way": 2,
        "freeze": 1,
        "slow_disk": 2,
        "failing_disk": 2,
        "kill_client": 0.5,
        "kill_coordinator": 1,
        "stop_coordinator": 1,
    }


@dataclass
class Plan:
    """How much goes wrong."""

    events: int = 6
    within_s: float = 6.0
    #: Weights of the kinds.
    kinds: dict[str, float] = field(default_factory=_kinds)
    #: A process that died is started again after up to this.
    restart_s: float = 2.0
    lasts_s: float = 4.0
    #: The chance that another trouble comes soon after.
    doubled: float = 0.5


class Trouble:
    """Makes a plan happen, and ends all of it."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.loop, self.network, self.log = world.loop, world.network, world.log
        self.shards, self.coordinators, self.clients = world.shards, world.coordinators, world.clients
        self.plan = world.plan
        self.chance = chance
        self.is_over = False
        self.counts: dict[str, int] = dict.fromkeys(self.plan.kinds, 0)

    def start(self) -> None:
        """Has it happen at times of the seed's choice; processes that died are started again."""
        kinds, weights = list(self.plan.kinds), list(self.plan.kinds.values())
        for _ in range(self.plan.events):
            kind = self.chance.choices(kinds, weights)[0]
            at_s = self.plan.within_s * self.chance.random()
            self.loop.call_later(at_s, self._happen, kind)
            if self.chance.random() < self.plan.doubled:
                # One trouble seldom comes alone, and two at once are more than twice as bad.
                kind = self.chance.choices(kinds, weights)[0]
                self.loop.call_later(at_s + self.chance.random() ** 3, self._happen, kind)
        self._revive()

    def end(self) -> None:
        """Everything works from now on."""
        self.is_over = True
        self.log("all trouble ends")
        self.network.heal()
        for shard in self.shards:
            while shard.freezes:
                shard.thaw()
            shard.disk.fail_next(0)
            shard.dies_in_checkpoint = 0.0
            shard.disk_weather = DiskWeather()
            if shard.process is not None and shard.is_doomed:
                shard.kill("it was about to")
            if shard.process is None:
                shard.start()
        for coordinator in self.coordinators:
            self._revive_coordinator(coordinator)

    def _revive_coordinator(self, coordinator: CoordinatorHost) -> None:
        """Once: one that was just killed may need a moment to let go of its folder; one that ran may end for good."""
        coordinator.start()
        if not coordinator.is_running:
            self.loop.call_later(0.1, self._revive_coordinator, coordinator)

    def _revive(self) -> None:
        """Looks after processes, as a supervisor does."""
        for shard in self.shards:
            if shard.process is None and not self.is_over and self.chance.random() < 0.5:
                shard.start()
        for coordinator in self.coordinators:
            if not coordinator.is_running and not self.is_over and self.chance.random() < 0.5:
                coordinator.start()
        if not self.is_over:
            self.loop.call_later(self.plan.restart_s * self.chance.random(), self._revive)

    def _happen(self, kind: str) -> None:
        if not self.is_over:
            self.counts[kind] += 1
            getattr(self, f"_{kind}")()

    def _lasts_s(self) -> float:
        return self.plan.lasts_s * self.chance.random() ** 2

    def _kill(self) -> None:
        self.chance.choice(self.shards).kill("as the plan says")

    def _power(self) -> None:
        self.chance.choice(self.shards).kill("as the plan says", power=True)

    def _die_in_commit(self) -> None:
        shard = self.chance.choice(self.shards)
        if shard.process is not None:
            shard.is_doomed = True
            shard.disk.die_after(self.chance.randrange(3))

    def _cut(self) -> None:
        endpoints = self.network.endpoints()
        if endpoints:
            endpoint = self.chance.choice(endpoints)
            endpoint.cut_after = self.chance.choice([1, self.chance.randint(1, 20), self.chance.randint(1, 400)])
            endpoint.cut_is_half_open = self.chance.random() < 0.3

    def _stall(self) -> None:
        endpoints = self.network.endpoints()
        if endpoints:
            endpoint = self.chance.choice(endpoints)
            seconds = self._lasts_s()
            self.log(
                "%s: connection %d to %s stalls for %g s", endpoint.host, endpoint.number, endpoint.peer_host, seconds
            )
            endpoint.stall(seconds)

    def _betrayal(self) -> None:
        endpoints = self.network.endpoints()
        if self.chance.random() < 0.8:
            # Requests that come late do more harm than replies.
            endpoints = [endpoint for endpoint in endpoints if endpoint.calls]
        if endpoints:
            self.chance.choice(endpoints).betrayed_s = self._lasts_s()

    def _pair(self) -> tuple[str, str]:
        """Two hosts that have connections, in any order."""
        chance = self.chance
        if self.coordinators and chance.random() < 0.5:
            one, other = chance.choice(self.clients).name, chance.choice(self.coordinators).name
        elif self.coordinators:
            one, other = chance.choice(self.coordinators).calling_name, chance.choice(self.shards).name
        else:
            one, other = chance.choice(self.clients).name, chance.choice(self.shards).name
        return (one, other) if chance.random() < 0.5 else (other, one)

    def _hold(self) -> None:
        one, other = self._pair()
        self._hold_for(one, other)
        self._hold_for(other, one)

    def _hold_one_way(self) -> None:
        self._hold_for(*self._pair())

    def _hold_for(self, one: str, other: str) -> None:
        self.log("nothing moves from %s to %s", one, other)
        self.network.hold(one, other)
        self.loop.call_later(self._lasts_s(), self.network.release, one, other)

    def _freeze(self) -> None:
        shard = self.chance.choice(self.shards)
        self.log("%s: stopped", shard.name)
        shard.freeze()
        self.loop.call_later(self._lasts_s(), shard.thaw)

    def _slow_disk(self) -> None:
        shard = self.chance.choice(self.shards)
        slow_s = self.chance.choice([0.05, 0.5, 3.0])
        self.log("%s: commits take %g s", shard.name, slow_s)
        shard.disk_weather = DiskWeather(commit_s=slow_s)
        self.loop.call_later(self._lasts_s(), self._heal_disk, shard)

    @staticmethod
    def _heal_disk(shard: ShardHost) -> None:
        shard.disk_weather = DiskWeather()
        shard.disk.fail_next(0)

    def _failing_disk(self) -> None:
        shard = self.chance.choice(self.shards)
        count = self.chance.choice([1, 2, self.chance.randint(1, 8), 1_000_000])
        self.log("%s: %d operations of the disk fail", shard.name, count)
        shard.disk.fail_next(count)
        self.loop.call_later(self._lasts_s(), self._heal_disk, shard)

    def _kill_client(self) -> None:
        alive = [client for client in self.clients if not client.is_killed]
        if len(alive) > 1:
            client = self.chance.choice(alive)
            self.log("%s: killed", client.name)
            self.network.gone.add(client.name)
            for endpoint in self.network.endpoints(client.name):
                endpoint.vanish()
            client.kill()

    def _kill_coordinator(self) -> None:
        if self.coordinators:
            self.chance.choice(self.coordinators).kill("as the plan says")

    def _stop_coordinator(self) -> None:
        if self.coordinators:
            self.chance.choice(self.coordinators).stop()
