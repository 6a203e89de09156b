"""Replay: each increment counts once, whatever fails, and is told as unknown if nobody can know."""

import asyncio
import random

import pytest

from pycounter.coordinator.replay_log import ReplayLog
from pycounter.coordinator.replayer import Replayer, ReplaySettings
from pycounter.errors import BadKey, IdExpired, Overloaded, Unavailable
from tests.support.scripted_routes import LOSE, REFUSE, ScriptedRoutes

pytestmark = pytest.mark.timeout(60)

QUICK = ReplaySettings(first_s=0.001, tries=3, scheduled_s=0.004, attempt_timeout_s=0.05)
KEY = b"\x00k"


@pytest.fixture
def routes():
    return ScriptedRoutes(2)


class Ground:
    """A replayer that can crash and start again on its file."""

    def __init__(self, routes, path, *, operations_max=1000, settings=QUICK):
        self.routes = routes
        self.path = path
        self.operations_max = operations_max
        self.settings = settings
        self.identities = ["a", "b"]
        self.serving = routes.home
        self.start()

    def start(self):
        self.log = ReplayLog.open(self.path, operations_max=self.operations_max)
        self.replayer = Replayer(
            self.log,
            self.routes,
            serving=self.serve,
            identity=lambda shard: self.identities[shard],
            bump=lambda key: None,
            settings=self.settings,
        )
        self.replayer.start()

    def serve(self, key):
        return self.serving(key)

    async def crash(self):
        """What the file has at this moment is what the next life has."""
        content = self.path.read_bytes()
        await self.replayer.close()
        self.path.write_bytes(content)
        self.start()

    async def written(self):
        """Until everything that was accepted is on disk."""
        for _ in range(3):
            await asyncio.sleep(0)
        while self.log._writer is not None:
            await asyncio.sleep(0)

    async def settle(self):
        # Accepting is a task of its own.
        for _ in range(3):
            await asyncio.sleep(0)
        while self.replayer.status()["waiting"] or self.replayer._tries:
            await asyncio.sleep(0.001)


@pytest.fixture
async def ground(routes, tmp_path):
    ground = Ground(routes, tmp_path / "replay.log")
    yield ground
    await ground.replayer.close()


async def test_what_is_accepted_is_counted_when_a_shard_is_there(ground, routes):
    def nobody(key):
        raise Unavailable("no shard")

    home, ground.serving = ground.serving, nobody
    for delta in (1, 2, 3):
        ground.replayer.accept(KEY, delta)
    while ground.replayer.status()["waiting"] < 3:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert routes.total(KEY) == 0
    ground.serving = home
    await ground.settle()
    assert routes.total(KEY) == 6
    assert ground.replayer.status() == {
        "waiting": 0, "accepted": 3, "replayed": 3, "refused": 0, "unknown": 0, "dropped": 0, "failure": "",
    }  # fmt: skip


async def test_a_lost_reply_is_repeated_at_that_shard_under_its_id(ground, routes):
    routes.shards[0].script = [LOSE, LOSE]
    ground.replayer.accept(KEY, 5)
    while not routes.shards[0].requests:
        await asyncio.sleep(0)
    ground.serving = lambda key: 1
    await ground.settle()
    assert routes.total(KEY) == 5
    assert routes.shards[1].requests == []
    options = [params[-1] for _, params in routes.shards[0].requests]
    assert len(options) == 3
    assert len({(one["id"], one["born"]) for one in options}) == 1


async def test_a_birth_is_on_the_clock_that_the_shard_shows_when_it_is_sent(ground, routes):
    routes.shards[0].stood_still_ms = 60_000
    routes.shards[0].times_untold = 1
    ground.replayer.accept(KEY, 5)
    await ground.settle()
    ((_, params),) = routes.shards[0].requests
    assert params[-1]["born"] == routes.shards[0].time_ms
    assert ground.replayer.status()["replayed"] == 1


async def test_what_was_refused_unsent_may_go_elsewhere(ground, routes):
    routes.shards[0].always = REFUSE
    ground.replayer.accept(KEY, 5)
    while not routes.shards[0].requests:
        await asyncio.sleep(0)
    ground.serving = lambda key: 1
    await ground.settle()
    assert routes.shards[1].counters == {KEY: 5}


async def test_a_shard_that_was_restored_gets_nothing_again(ground, routes):
    routes.shards[0].script = [LOSE]
    ground.replayer.accept(KEY, 5)
    while not routes.shards[0].handled:
        await asyncio.sleep(0)
    ground.identities[0] = "another"
    await ground.settle()
    assert ground.replayer.status()["unknown"] == 1
    assert routes.shards[0].count("incr") == 1


async def test_an_operation_ends_as_unknown_before_its_id_is_forgotten(ground, routes):
    routes.shards[0].always = LOSE
    ground.replayer.accept(KEY, 5)
    while not routes.shards[0].handled:
        await asyncio.sleep(0)
    routes.shards[0].time_ms += 110_001
    await ground.settle()
    assert ground.replayer.status()["unknown"] == 1


async def test_a_never_sent_one_waits_as_long_as_it_takes(ground, routes):
    routes.shards[0].always = REFUSE
    ground.replayer.accept(KEY, 5)
    for _ in range(5):
        await asyncio.sleep(0.005)
        routes.shards[0].time_ms += 60_000
    routes.shards[0].always = None
    await ground.settle()
    assert routes.total(KEY) == 5


@pytest.mark.parametrize(("refusal", "counted"), [(BadKey("no"), "refused"), (IdExpired("old"), "unknown")])
async def test_what_can_never_count_ends(ground, routes, refusal, counted):
    routes.shards[0].always = refusal
    ground.replayer.accept(KEY, 5)
    await ground.settle()
    assert ground.replayer.status()[counted] == 1
    assert routes.shards[0].count("incr") == 1


async def test_without_the_shards_time_or_identity_nothing_is_sent(ground, routes):
    ground.identities[0] = None
    ground.replayer.accept(KEY, 5)
    await asyncio.sleep(0.01)
    assert not routes.shards[0].requests
    ground.identities[0], routes.shards[0].time_ms = "a", None
    await asyncio.sleep(0.01)
    assert not routes.shards[0].requests
    routes.shards[0].time_ms = 1
    await ground.settle()
    assert routes.total(KEY) == 5


async def test_what_was_accepted_just_before_the_end_is_on_disk(ground):
    ground.replayer.accept(KEY, 1)
    await ground.replayer.close()
    assert [one.delta for one in ReplayLog.open(ground.path).operations.values()] == [1]


async def test_there_is_a_bound(routes, tmp_path):
    ground = Ground(routes, tmp_path / "replay.log", operations_max=2)
    for _ in range(5):
        ground.replayer.accept(KEY, 1)
    await ground.settle()
    assert routes.total(KEY) == 2
    assert ground.replayer.status()["dropped"] == 3
    await ground.replayer.close()


async def test_nothing_is_sent_that_the_disk_does_not_know(ground, routes, monkeypatch):
    ground.replayer.accept(KEY, 1)
    await ground.settle()

    def fail(file):
        raise OSError(5, "Input/output error")

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(f"os.{name}", fail)
    ground.replayer.accept(KEY, 10)
    await asyncio.sleep(0.02)
    assert routes.total(KEY) == 1
    assert "error" in ground.replayer.status()["failure"]
    monkeypatch.undo()
    await ground.settle()
    assert routes.total(KEY) == 11


@pytest.mark.parametrize("round_", range(20))
async def test_each_counts_once_through_crashes(seed, round_, tmp_path):
    """What was on disk counts once; what the crash took before it was on disk may be lost, and nothing counts twice."""
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = ScriptedRoutes(2)
    ground = Ground(routes, tmp_path / "replay.log")
    ground.serving = lambda key: chance.choice([0, 1])

    def fate(*_):
        return chance.choice([None, None, REFUSE, LOSE, Overloaded("full")])

    for shard in routes.shards:
        shard.always = fate
        shard.turns = chance.randrange(3)
    accepted = 0
    for number in range(30):
        # Each delta is a bit of its own, so that a sum tells what counted.
        ground.replayer.accept(KEY, 1 << number)
        accepted |= 1 << number
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        if chance.random() < 0.1:
            await ground.written()
            await ground.crash()
    await ground.settle()
    assert routes.total(KEY) == accepted
    await ground.replayer.close()
