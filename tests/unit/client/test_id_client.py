"""Increments under ids against a coordinator that loses, refuses and repeats."""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import pytest

from pycounter.client import ClientSettings
from pycounter.client.id_client import IdClient
from pycounter.client.pool import Pool
from pycounter.client.retry import RetryPolicy
from pycounter.client.settings import PoolSettings
from pycounter.clock import Clock
from pycounter.errors import (
    CounterOverflow,
    DeadlineExceeded,
    Forbidden,
    IdExpired,
    Overloaded,
    RpcError,
    SessionLost,
    TooLarge,
    Unavailable,
    UnknownOutcome,
)
from tests.support.scripted_coordinator import ScriptedCoordinator
from tests.support.scripted_shard import CUT, SILENCE

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def server():
    async with ScriptedCoordinator() as scripted:
        yield scripted


@pytest.fixture
async def make_client(server):
    made: list[tuple[IdClient, Pool]] = []

    def make(*, clock=None, retries=3, request_timeout_s=0.2, **settings):
        pool = Pool(
            server.address, is_shard=False, settings=PoolSettings(request_timeout_s=request_timeout_s, silence_s=0.1)
        )
        quick = {"replay_first_s": 0.002, "replay_scheduled_s": 0.01}
        client = IdClient(
            pool,
            settings=ClientSettings(**{**quick, **settings}),
            policy=RetryPolicy(retries=retries, first_s=0.001, max_s=0.01),
            clock=clock or Clock(),
        )
        made.append((client, pool))
        return client

    yield make
    for client, pool in made:
        with contextlib.suppress(SessionLost):
            await client.close(timeout_s=0.0)
        await pool.close()


def first_times(*outcomes):
    """What `before` or `after` does the first times."""
    left = list(outcomes)

    def act() -> Any:
        outcome = left.pop(0) if left else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return act


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_increments_of_one_turn_travel_together(server, make_client):
    client = make_client()
    assert await asyncio.gather(*(client.incr("a") for _ in range(20))) == list(range(1, 21))
    assert server.count("incr_many") == 1
    assert await client.apply([("a", 5), ("b", 1)]) == [25, 1]
    detail = await client.incr("a", level="applied", detail=True)
    assert (detail.value, detail.level, detail.commit, detail.exact) == (26, "applied", 3, True)
    assert all(count == 1 for count in server.attempts.values())


@pytest.mark.parametrize(
    "what", [CUT, SILENCE, UnknownOutcome("no"), DeadlineExceeded("no")], ids=["cut", "silence", "unknown", "late"]
)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_what_stays_unanswered_goes_again_under_its_id(server, make_client, when, what):
    setattr(server, when, first_times(what, what))
    client = make_client()
    assert sorted(await asyncio.gather(*(client.incr("a") for _ in range(5)))) == [1, 2, 3, 4, 5]
    assert server.totals == {"a": 5}
    assert len(server.ids) == 5


async def test_after_all_retries_each_goes_on_its_own_and_then_as_a_replay(server, make_client):
    server.after = first_times(*[CUT] * 12)
    client = make_client(retries=2)
    assert sorted(await asyncio.gather(*(client.incr("a") for _ in range(4)))) == [1, 2, 3, 4]
    assert server.totals == {"a": 4}
    # Three times together, then each.
    methods = [method for method, _ in server.requests if method.startswith("incr")]
    assert methods[:3] == ["incr_many"] * 3
    assert methods[3:7] == ["incr"] * 4
    assert len(methods) > 7


async def test_a_replay_does_not_wait_for_one_that_is_due_much_later(server, make_client):
    client = make_client(retries=1, replays=1, replay_scheduled_s=1000.0)
    server.before = lambda: CUT
    late = asyncio.create_task(client.incr("late"))
    while client.unknown.list() == [] or not client._replays or not client._replays[0].replays:
        await asyncio.sleep(0.001)
    soon = asyncio.create_task(client.incr("soon"))
    while len(client._replays) < 2:
        await asyncio.sleep(0.001)
    server.before = lambda: None
    assert await asyncio.wait_for(soon, 20.0) == 1
    late.cancel()


async def test_what_certainly_never_counted_ends_after_the_retries(server, make_client):
    server.before = first_times(*[Overloaded("no")] * 4)
    client = make_client(retries=3)
    with pytest.raises(Overloaded):
        await client.incr("a")
    assert server.totals == {}
    await server.vanish()
    # What is sent before the cut is noticed may have counted.
    await asyncio.sleep(0.05)
    with pytest.raises(Unavailable):
        await client.incr("a")
    await server.listen()
    assert await client.incr("a") == 1
    assert client.unknown.list() == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([CounterOverflow("no")], [], CounterOverflow),
        ([Forbidden("no")], [], Forbidden),
        ([None, CounterOverflow("no")], [CUT], CounterOverflow),
        # It says nothing about the attempt before.
        ([None, Forbidden("no")], [CUT], SessionLost),
        ([None, TooLarge("no")], [CUT], SessionLost),
        ([None, IdExpired("no")], [CUT], SessionLost),
    ],
)
async def test_a_refusal_settles_what_it_looked_at(server, make_client, before, after, expected):
    server.before, server.after = first_times(*before), first_times(*after)
    with pytest.raises(expected):
        await make_client().incr("a")


async def test_one_that_spoils_a_batch_spoils_only_itself(server, make_client):
    usual = server.handlers["incr_many"]

    def refuse_the_fat(items, options):
        if any(key == "fat" for key, *_ in items):
            raise TooLarge("no")
        return usual(items, options)

    server.handlers["incr_many"] = refuse_the_fat
    once = server.incr_once

    def refuse_one(key, delta, options):
        if key == "fat":
            raise TooLarge("no")
        return once(key, delta, options)

    server.handlers["incr"] = refuse_one
    client = make_client()
    outcomes = await asyncio.gather(*(client.incr(key) for key in ("a", "fat", "b")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, TooLarge, int]


async def test_the_time_runs_out_and_the_operation_goes_on(server, make_client):
    server.after = first_times(SILENCE)
    client = make_client()
    with pytest.raises(DeadlineExceeded):
        await client.incr("a", 3, timeout_s=0.05)
    (unknown,) = client.unknown.list()
    assert (unknown.key, unknown.delta) == ("a", 3)
    assert await client.unknown.wait(timeout_s=10) == []
    assert client.unknown.list() == []
    assert server.totals == {"a": 3}


class AgingClock(Clock):
    """The machine's uptime as the test says."""

    def __init__(self) -> None:
        self.age_s = 0.0

    def running_s(self) -> float:
        return self.age_s + 1.0


async def test_an_operation_ends_before_its_id_may_be_forgotten(server, make_client):
    clock = AgingClock()
    server.after = lambda: CUT
    client = make_client(clock=clock, id_window_s=110.0)
    abandoned = asyncio.create_task(client.incr("abandoned"))
    with_caller = asyncio.create_task(client.incr("with caller"))
    await until(lambda: len(client.unknown) == 2)
    abandoned.cancel()
    waiting = asyncio.create_task(client.unknown.wait(timeout_s=20))
    await asyncio.sleep(0.02)
    clock.age_s = 111.0
    with pytest.raises(SessionLost):
        await with_caller
    assert [each.key for each in await waiting] == ["abandoned"]
    before = sum(server.attempts.values())
    await asyncio.sleep(0.05)
    assert sum(server.attempts.values()) == before
    assert client.statistics.operations_unknown == 2


async def test_a_cancelled_increment_that_was_never_sent_never_is(server, make_client):
    client = make_client()
    doomed = asyncio.create_task(client.incr("doomed"))
    kept = asyncio.create_task(client.incr("kept"))
    await asyncio.sleep(0)
    doomed.cancel()
    assert await kept == 1
    assert server.totals == {"kept": 1}
    assert client.health.queued == client.health.pending == 0


async def test_a_full_client_waits_and_then_refuses(server, make_client):
    server.before = lambda: SILENCE
    client = make_client(pending_operations_max=2, request_timeout_s=5.0)
    sent = [asyncio.create_task(client.incr("a")) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(Unavailable):
        await client.incr("a", timeout_s=0.02)
    for task in sent:
        task.cancel()
    await asyncio.gather(*sent, return_exceptions=True)


async def test_closing_tells_what_is_unknown(server, make_client):
    server.after = lambda: CUT
    client = make_client()
    counting = asyncio.create_task(client.incr("a"))
    await until(lambda: len(client.unknown) == 1)
    with pytest.raises(SessionLost, match="whether 1 operations"):
        await client.close(timeout_s=0.02)
    with pytest.raises(SessionLost):
        await counting
    with pytest.raises(Unavailable):
        await client.incr("a")


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_each_counts_as_its_outcome_says(server, make_client, seed):
    chance = random.Random(seed)
    print("seed", seed)
    misfortunes = [CUT, SILENCE, UnknownOutcome("no"), Overloaded("no"), Unavailable("no")]

    def before() -> Any:
        outcome = chance.choice(misfortunes) if chance.random() < 0.25 else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    server.before = before
    server.after = lambda: chance.choice([CUT, SILENCE]) if chance.random() < 0.2 else None
    client = make_client(request_timeout_s=0.03, coalesced_operations_max=chance.choice([1, 3, 100]), retries=2)
    most: Counter[str] = Counter()
    least: Counter[str] = Counter()

    async def count(number):
        key, delta = f"key-{number % 5}", number + 1
        task = asyncio.create_task(client.incr(key, delta, timeout_s=chance.choice([0.01, 5.0])))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.choice([0, 0.005]))
            task.cancel()
        try:
            await task
        except (asyncio.CancelledError, DeadlineExceeded):
            most[key] += delta
        except RpcError as error:
            # Anything else is to say that it didn't count.
            if error.effect != "nothing":
                raise
        else:
            most[key] += delta
            least[key] += delta

    await asyncio.gather(*(count(number) for number in range(60)))
    assert await client.unknown.wait(timeout_s=20) == []
    for key, total in server.totals.items():
        assert least[key] <= total <= most[key]
    for key in {f"key-{number}" for number in range(5)}:
        assert server.totals[key] == sum(delta for known, delta, _ in server.ids.values() if known == key)
