"""Single increments on their way into batches: when they leave, what can be taken back, and what callers are told."""

import asyncio

import pytest

from pycounter.client import ClientSettings, SessionClient
from pycounter.client.coalescer import Withdrawn
from pycounter.client.halves import Halves
from pycounter.errors import BadRequest, CounterOverflow, DeadlineExceeded, TooLarge, Unavailable
from tests.support.scripted_shard import SILENCE, ScriptedShard

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def shard():
    async with ScriptedShard() as server:
        yield server


def client_of(shard, **settings):
    quick = {"backoff_first_s": 0.001, "backoff_max_s": 0.01}
    host, port = shard.address
    return SessionClient(host, port, settings=ClientSettings(**{**quick, **settings}))


def batches_of(shard):
    """How many operations each batch had that came."""
    return [len(params[3]) for method, params in shard.requests if method == "apply"]


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


class Held:
    """Answers `apply` when the test says so."""

    def __init__(self, shard):
        self.shard = shard
        self.usual = shard.handlers["apply"]
        shard.handlers["apply"] = lambda *_: SILENCE

    def release(self):
        """The next connection is answered."""
        self.shard.handlers["apply"] = self.usual
        self.shard.cut()


async def test_what_comes_in_one_turn_leaves_together(shard):
    async with client_of(shard) as client:
        assert await asyncio.gather(*(client.incr("a") for _ in range(30))) == list(range(1, 31))
        assert batches_of(shard) == [30]


async def test_a_lone_caller_never_waits_for_company(shard):
    async with client_of(shard, coalesced_delay_s=20.0) as client:
        for number in range(1, 4):
            assert await client.incr("a") == number


async def test_others_gather_until_what_is_under_way_was_answered(shard):
    held = Held(shard)
    async with client_of(shard, coalesced_delay_s=20.0) as client:
        first = asyncio.create_task(client.incr("a"))
        await until(lambda: client.health.pending == 1)
        others = []
        for _ in range(5):
            others.append(asyncio.create_task(client.incr("a")))
            await asyncio.sleep(0)
        held.release()
        assert await first == 1
        assert await asyncio.gather(*others) == [2, 3, 4, 5, 6]
        # The first one came twice.
        assert batches_of(shard) == [1, 1, 5]


async def test_others_leave_after_the_delay_or_when_the_batch_is_full(shard):
    shard.handlers["apply"] = lambda *_: SILENCE
    async with client_of(shard, coalesced_delay_s=0.02, coalesced_operations_max=4, close_timeout_s=0.01) as client:
        tasks = [asyncio.create_task(client.incr("a"))]
        await until(lambda: batches_of(shard) == [1])
        tasks += [asyncio.create_task(client.incr("a")) for _ in range(2)]
        await until(lambda: batches_of(shard) == [1, 2])
        tasks += [asyncio.create_task(client.incr("a")) for _ in range(9)]
        await until(lambda: batches_of(shard) == [1, 2, 4, 4, 1])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        client._fail(Unavailable("the test ends"), "the test ends")


@pytest.mark.parametrize(("level", "sizes"), [("durable", {40, 20}), ("applied", {40})])
async def test_durable_ones_leave_in_halves_where_that_is_better(shard, level, sizes, monkeypatch):
    monkeypatch.setattr(Halves, "on_answer", lambda *_: 20)

    async def count(client):
        for _ in range(5):
            await client.incr("a", level=level)

    async with client_of(shard, coalesced_delay_s=20.0) as client:
        await asyncio.gather(*(count(client) for _ in range(40)))
    assert shard.totals == {"a": 200}
    first, *_, last = batches = batches_of(shard)
    assert (first, sum(batches)) == (40, 200)
    assert set(batches) == sizes
    assert last == min(sizes)


async def test_levels_go_in_batches_of_their_own(shard):
    async with client_of(shard) as client:
        details = await asyncio.gather(
            client.incr("a", level="applied", detail=True), client.incr("a", detail=True), client.incr("b")
        )
        assert {details[0].level, details[1].level} == {"applied", "durable"}
        levels = [params[4] for method, params in shard.requests if method == "apply"]
        assert sorted(levels) == ["applied", "durable"]
        with pytest.raises(BadRequest):
            await client.incr("a", level="soon")


async def test_what_was_never_sent_can_be_taken_back(shard):
    held = Held(shard)
    async with client_of(shard, batches_in_flight_max=1) as client:
        sent = asyncio.create_task(client.incr("sent"))
        await until(lambda: client.health.pending == 1)
        waiting = [asyncio.create_task(client.incr(f"waiting-{number}")) for number in range(10)]
        listed = asyncio.create_task(client.apply([("listed", 1), ("listed", 2)]))
        await asyncio.sleep(0)
        assert client.withdraw(0.5) == 5
        assert client.withdraw() == 7
        assert client.withdraw() == 0
        for task in [*waiting, listed]:
            with pytest.raises(Withdrawn):
                await task
        assert not sent.done()
        held.release()
        assert await sent == 1
        assert client.unsettled == 0
        assert shard.totals == {"sent": 1}


async def test_a_cancelled_increment_that_was_never_sent_never_is(shard):
    held = Held(shard)
    async with client_of(shard, batches_in_flight_max=1) as client:
        sent = asyncio.create_task(client.incr("sent"))
        await until(lambda: client.health.pending == 1)
        waiting = [asyncio.create_task(client.incr(f"waiting-{number}")) for number in range(200)]
        await asyncio.sleep(0)
        for number, task in enumerate(waiting):
            if number % 4:
                task.cancel()
        await asyncio.sleep(0)
        # Those that were cancelled don't take room for long.
        assert client.unsettled <= 1 + 100
        held.release()
        await asyncio.gather(sent, *waiting[::4])
        assert client.unsettled == 0
        assert set(shard.totals) == {"sent", *(f"waiting-{number}" for number in range(0, 200, 4))}


async def test_the_time_of_a_full_batch_that_could_not_leave_runs_out(shard):
    Held(shard)
    settings = {"call_timeout_s": 0.2, "coalesced_operations_max": 1, "batches_in_flight_max": 1}
    async with client_of(shard, close_timeout_s=0.01, **settings) as client:
        sent = asyncio.create_task(client.incr("sent"))
        await until(lambda: client.health.pending == 1)
        with pytest.raises(Unavailable, match="before it was sent: nothing was applied"):
            await asyncio.wait_for(client.incr("waiting"), 20)
        with pytest.raises(DeadlineExceeded):
            await sent
        client._fail(Unavailable("the test ends"), "the test ends")


@pytest.mark.parametrize("named", [False, True], ids=["the client's time", "the call's time"])
async def test_the_time_runs_out(shard, named):
    Held(shard)
    times = {} if named else {"call_timeout_s": 0.05}
    async with client_of(shard, batches_in_flight_max=1, close_timeout_s=0.01, **times) as client:
        call = {"timeout_s": 0.05} if named else {}
        sent = asyncio.create_task(client.incr("sent", **call))
        await until(lambda: client.health.pending == 1)
        waiting = asyncio.create_task(client.incr("waiting", **call))
        with pytest.raises(DeadlineExceeded):
            await sent
        with pytest.raises(Unavailable):
            await waiting
        assert [(operation.key, operation.delta) for operation in client.unknown] == [("sent", 1)]
        client._fail(Unavailable("the test ends"), "the test ends")


async def test_one_that_spoils_a_batch_spoils_only_itself(shard):
    usual = shard.handlers["apply"]

    def refuse_the_fat(session, first, acked_through, items, level):
        if any(key == "fat" for key, _ in items):
            raise TooLarge("no")
        return usual(session, first, acked_through, items, level)

    shard.handlers["apply"] = refuse_the_fat
    async with client_of(shard) as client:
        outcomes = await asyncio.gather(*(client.incr(key) for key in ("a", "fat", "b")), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [int, TooLarge, int]
        assert shard.totals == {"a": 1, "b": 1}
        assert client.unsettled == 0


async def test_figures_and_health(shard):
    def overflow(session, first, acked_through, items, level):
        return {"results": ["overflow: no" for _ in items], "level": level, "commit": 1}

    async with client_of(shard, healthy_pending_max=3) as client:
        await client.incr("a")
        usual, shard.handlers["apply"] = shard.handlers["apply"], overflow
        with pytest.raises(CounterOverflow):
            await client.incr("a")
        # That is an answer, not a failure of the batch.
        assert client.health.is_healthy
        assert client.health.success_rate == 1.0
        assert (client.statistics.operations_succeeded, client.statistics.operations_failed) == (1, 1)
        shard.handlers["apply"] = lambda *_: SILENCE
        tasks = [asyncio.create_task(client.incr("a")) for _ in range(4)]
        await until(lambda: client.health.pending == 4)
        assert not client.health.is_healthy
        # Sequence 2 is the overflow, which the scripted shard never applied.
        shard.sessions[client.session_id].append(0)
        shard.handlers["apply"] = usual
        shard.cut()
        await asyncio.gather(*tasks)
        assert client.health.is_healthy
        for _ in range(20):
            client.statistics.record(failed=1)
        assert not client.health.is_healthy
