"""Calls that are sent again, and those that are not."""

import asyncio
from typing import Any

import pytest

from pycounter.client.caller import Caller
from pycounter.client.pool import Pool
from pycounter.client.retry import RetryPolicy
from pycounter.client.settings import PoolSettings
from pycounter.clock import Clock
from pycounter.errors import (
    BadKey,
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    IdExpired,
    Overloaded,
    SettingsError,
    TooLarge,
    Unavailable,
    UnknownMethod,
    UnknownOutcome,
)
from tests.support.scripted_coordinator import ScriptedCoordinator
from tests.support.scripted_shard import CUT, SILENCE

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def server():
    async with ScriptedCoordinator() as scripted:
        scripted.handlers["get"] = lambda key, *_: said if (said := scripted.before()) is not None else 7
        scripted.handlers["reset"] = lambda *_: scripted.before()
        yield scripted


@pytest.fixture
async def make_caller(server):
    pools = []

    def make(*, clock=None, on_sample=None, retries=3, **settings):
        pools.append(Pool(server.address, settings=PoolSettings(**{"request_timeout_s": 5.0, **settings})))
        policy = RetryPolicy(retries=retries, first_s=0.001, max_s=0.01)
        return Caller(pools[-1], policy=policy, clock=clock or Clock(), on_sample=on_sample)

    yield make
    for pool in pools:
        await pool.close()


class Aging(Clock):
    """The machine's uptime, as the test has it."""

    age_s = 1.0
    #: Passes with each look.
    tick_s = 0.0

    def running_s(self) -> float:
        self.age_s += self.tick_s
        return self.age_s


@pytest.fixture
def aging():
    return Aging()


def script(*outcomes):
    left = list(outcomes)

    def act(*_) -> Any:
        outcome = left.pop(0) if left else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return act


async def test_a_read_is_sent_again(server, make_caller):
    server.before = script(CUT, CUT, Overloaded("no"))
    samples = []
    caller = make_caller(on_sample=lambda latency_s, failure: samples.append(failure))
    assert await caller.call("get", "a") == 7
    assert [type(failure) for failure in samples] == [Unavailable, Unavailable, Overloaded, type(None)]


async def test_not_more_often_than_the_policy_says(server, make_caller):
    server.before = script(*[CUT] * 9)
    with pytest.raises(Unavailable):
        await make_caller(retries=2).call("get", "a")
    assert server.count("get") == 3


async def test_only_after_errors_that_are_named(server, make_caller):
    server.before = script(BadKey("no"))
    with pytest.raises(BadKey):
        await make_caller().call("get", "a")
    assert server.count("get") == 1


async def test_a_change_without_id_is_never_sent_again(server, make_caller):
    server.before = script(CUT)
    with pytest.raises(UnknownOutcome):
        await make_caller().call("reset", "a")
    assert server.count("reset") == 1
    server.before = script(UnknownOutcome("no"))
    with pytest.raises(UnknownOutcome):
        await make_caller().call("reset", "a")
    assert server.count("reset") == 2


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_change_under_an_id_goes_on_until_the_server_tells(server, make_caller, when):
    server.totals["a"] = 5
    setattr(server, when, script(*[CUT] * 8, UnknownOutcome("no")))
    assert await make_caller(retries=1).call("drain", "a", {"id": b"1"}) == 5
    assert server.count("drain") == 10


@pytest.mark.parametrize("refusal", [Forbidden, BadRequest, TooLarge, UnknownMethod])
async def test_a_refusal_before_the_id_says_nothing_about_the_attempt_before(server, make_caller, refusal):
    server.before = script(None, refusal("no"))
    server.after = script(CUT)
    with pytest.raises(UnknownOutcome):
        await make_caller().call("drain", "a", {"id": b"1"})
    server.before = script(refusal("no"))
    with pytest.raises(refusal):
        await make_caller().call("drain", "a", {"id": b"2"})


async def test_an_id_that_is_too_old_is_final(server, make_caller):
    server.before = script(CUT, IdExpired("no"))
    with pytest.raises(IdExpired):
        await make_caller().call("drain", "a", {"id": b"1"})


async def test_it_ends_before_the_shard_may_forget_the_id(server, make_caller, aging):
    server.after = lambda: CUT
    calling = asyncio.create_task(make_caller(clock=aging).call("drain", "a", {"id": b"1"}))
    while server.count("drain") < 2:
        await asyncio.sleep(0.001)
    aging.age_s += 111.0
    with pytest.raises(UnknownOutcome, match="longer than"):
        await calling


async def test_the_age_of_an_id_counts_from_before_its_first_sending(server, make_caller, aging):
    """Not from when it is clear that no reply comes, which may be much later."""
    server.after = script(SILENCE)
    calling = asyncio.create_task(make_caller(clock=aging).call("drain", "a", {"id": b"1"}))
    while server.count("drain") < 1:
        await asyncio.sleep(0.001)
    aging.age_s += 100.0
    server.after = lambda: CUT
    server.cut()
    while server.count("drain") < 3:
        await asyncio.sleep(0.001)
    aging.age_s += 11.0
    with pytest.raises(UnknownOutcome, match="longer than"):
        await calling


async def test_what_waits_for_a_connection_is_not_sent_once_its_id_is_too_old(server, make_caller, aging):
    server.before = script(CUT)
    caller = make_caller(clock=aging, id_window_s=0.2)
    lease = caller.pool._lease

    async def slow_lease(deadline):
        """No connection is free, as soon as the first attempt was sent."""
        if not server.count("drain"):
            return await lease(deadline)
        await asyncio.sleep(deadline - asyncio.get_running_loop().time())
        raise Unavailable("no connection in time: nothing was sent")

    caller.pool._lease = slow_lease
    aging.tick_s = 0.06
    with pytest.raises(UnknownOutcome):
        await asyncio.wait_for(caller.call("drain", "a", {"id": b"1"}, timeout_s=30.0), 5.0)
    assert server.count("drain") == 1


async def test_a_deadline_holds_for_all_attempts_together(server, make_caller):
    server.before = lambda: SILENCE
    with pytest.raises(DeadlineExceeded):
        await make_caller().call("get", "a", timeout_s=0.05)
    server.before = lambda: CUT
    # Whether it ends between two attempts or within one: it isn't known what the first did.
    with pytest.raises((UnknownOutcome, DeadlineExceeded)) as ended:
        await make_caller().call("drain", "a", {"id": b"1"}, timeout_s=0.05)
    assert ended.value.effect == "unknown"


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_at_any_turn_it_leaves_nothing_behind(server, make_caller, turns):
    server.before = script(CUT)
    caller = make_caller()
    calling = asyncio.create_task(caller.call("get", "a"))
    for _ in range(turns):
        await asyncio.sleep(0)
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)
    assert caller.pool.waiting == 0
    assert all(lane.reserved == 0 for lane in caller.pool._lanes)
    assert await caller.call("get", "a") == 7


def test_policies_that_make_no_sense():
    with pytest.raises(SettingsError):
        RetryPolicy(retries=-1)
