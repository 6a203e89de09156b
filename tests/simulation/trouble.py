"""What goes wrong, when, and for how long: drawn from the seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.clients import SimulatedClient
from tests.simulation.network import Network
from tests.simulation.shard_host import DiskWeather, ShardHost
from tests.simulation.virtual_loop import VirtualLoop


@dataclass
class Plan:
    """How much goes wrong: weights of its kinds."""

    events: int = 6
    within_s: float = 6.0
    kill: float = 3
    power: float = 2
    die_in_commit: float = 2
    cut: float = 5
    stall: float = 3
    betrayal: float = 4
    hold: float = 2
    hold_one_way: float = 2
    freeze: float = 1
    slow_disk: float = 2
    failing_disk: float = 2
    kill_client: float = 0.5
    #: A process that died is started again after up to this.
    restart_s: float = 2.0
    lasts_s: float = 4.0
    #: The chance that another trouble comes soon after.
    doubled: float = 0.5


KINDS = (
    "kill",
    "power",
    "die_in_commit",
    "cut",
    "stall",
    "betrayal",
    "hold",
    "hold_one_way",
    "freeze",
    "slow_disk",
    "failing_disk",
    "kill_client",
)


class Trouble:
    """Makes a plan happen, and ends all of it."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        shards: list[ShardHost],
        clients: list[SimulatedClient],
        chance: random.Random,
        plan: Plan,
        log: Callable[..., None],
    ) -> None:
        self.loop = loop
        self.network = network
        self.shards = shards
        self.clients = clients
        self.chance = chance
        self.plan = plan
        self.log = log
        self.is_over = False
        self.counts: dict[str, int] = dict.fromkeys(KINDS, 0)

    def start(self) -> None:
        """Has it happen at times of the seed's choice; processes that died are started again."""
        weights = [getattr(self.plan, kind) for kind in KINDS]
        for _ in range(self.plan.events):
            kind = self.chance.choices(KINDS, weights)[0]
            at_s = self.plan.within_s * self.chance.random()
            self.loop.call_later(at_s, self._happen, kind)
            if self.chance.random() < self.plan.doubled:
                # One trouble seldom comes alone, and two at once are more than twice as bad.
                kind = self.chance.choices(KINDS, weights)[0]
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
            shard.disk_weather = DiskWeather()
            if shard.process is not None and shard.is_doomed:
                shard.kill("it was about to")
            if shard.process is None:
                shard.start()

    def _revive(self) -> None:
        """Looks after processes, as a supervisor does."""
        for shard in self.shards:
            if shard.process is None and not self.is_over and self.chance.random() < 0.5:
                shard.start()
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
        one, other = self.chance.choice(self.clients).name, self.chance.choice(self.shards).name
        return (one, other) if self.chance.random() < 0.5 else (other, one)

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
