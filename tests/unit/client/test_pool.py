"""The pool against a server that answers what it likes, late or never."""

import asyncio
import contextlib
import random

import pytest

from pycounter.client.pool import TIME_AGE_S, Pool
from pycounter.client.settings import PoolSettings
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import (
    BadKey,
    DeadlineExceeded,
    Overloaded,
    SettingsError,
    Unauthenticated,
    Unavailable,
    WrongShard,
)
from tests.support.scripted_shard import CUT, SILENCE, ScriptedShard

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def server():
    async with ScriptedShard() as scripted:
        scripted.handlers["hello"] = lambda said: {"identity": scripted.identity, "epoch": 1, "time": 5}
        scripted.handlers["ping"] = lambda: "pong"
        scripted.handlers["echo"] = lambda value: value
        yield scripted


@pytest.fixture
async def make_pool(server):
    pools = []

    def make(*addresses, identity=None, token=None, clock=SYSTEM_CLOCK, **settings):
        addresses = addresses or (server.address,)
        pool = Pool(*addresses, identity=identity, token=token, clock=clock, settings=PoolSettings(**settings))
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        await pool.close()


def soon(seconds=5.0):
    return asyncio.get_running_loop().time() + seconds


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


async def test_requests_share_a_connection_and_get_their_own_replies(server, make_pool):
    pool = make_pool()
    echoes = await asyncio.gather(*(pool.request("echo", number, deadline=soon()) for number in range(30)))
    assert echoes == list(range(30))
    assert server.connections == pool.connections == 1
    assert pool.identity == server.identity
    assert pool.server_time_ms == 5


class ClockByHand(Clock):
    """Its machine runs on when the test says so."""

    now_s = 0.0

    def running_s(self):
        return self.now_s


async def test_the_servers_time_is_asked_again_when_it_is_old(server, make_pool):
    clock = ClockByHand()
    pool = make_pool(clock=clock, token="secret")
    times = iter([1000, 2000, "later"])
    server.handlers["hello"] = lambda said: {"identity": server.identity, "epoch": 1, "time": next(times)}
    assert await pool.ask_time_ms(deadline=soon()) == 2000, "the first time from the greeting"
    assert server.count("hello") == 2
    clock.now_s += TIME_AGE_S
    assert await pool.ask_time_ms(deadline=soon()) == 2000
    # The server, or this machine, may have stood still meanwhile.
    clock.now_s += TIME_AGE_S
    server.handlers["hello"] = lambda said: SILENCE
    with pytest.raises(Unavailable):
        await pool.ask_time_ms(deadline=soon(0.05))
    server.handlers["hello"] = lambda said: {"identity": server.identity, "epoch": 1, "time": 2001}
    assert await pool.ask_time_ms(deadline=soon()) == 2001
    said = [params for method, params in server.requests if method == "hello"]
    assert said == [[{"client": "pycounter", "token": "secret"}]] * 4


async def test_a_deep_pipeline_opens_more_connections_up_to_the_bound(server, make_pool):
    server.handlers["wait"] = lambda: SILENCE
    pool = make_pool(connections_max=3, pipeline_depth=2, pipeline_max=4)
    waiting = [asyncio.create_task(pool.request("wait", deadline=soon())) for _ in range(15)]
    await until(lambda: server.count("wait") == 12)
    await asyncio.sleep(0.02)
    assert (pool.connections, server.connections, pool.waiting, server.count("wait")) == (3, 3, 3, 12)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert pool.waiting == 0
    # Replies that nobody waits for keep their places until they come.
    with pytest.raises(Unavailable):
        await pool.request("echo", 1, deadline=soon(0.05))


async def test_waiting_is_fair_and_bounded(server, make_pool):
    answers = []

    def answer_later():
        return SILENCE

    server.handlers["wait"] = answer_later
    pool = make_pool(connections_max=1, pipeline_depth=1, pipeline_max=1, waiting_max=3)
    first = asyncio.create_task(pool.request("wait", deadline=soon()))
    await until(lambda: server.count("wait") == 1)

    async def ask(number):
        answers.append(await pool.request("echo", number, deadline=soon()))

    waiting = []
    for number in range(3):
        waiting.append(asyncio.create_task(ask(number)))
        await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await pool.request("echo", 9, deadline=soon())
    server.cut()
    with pytest.raises(ConnectionResetError):
        await first
    await asyncio.gather(*waiting)
    assert answers == [0, 1, 2]


async def test_a_cancelled_request_leaves_no_reply_that_another_takes(server, make_pool):
    """At every turn of the loop: before it has a connection, before it is sent, before its reply, and in that turn."""
    pool = make_pool(connections_max=1, pipeline_depth=2, pipeline_max=2)
    for turns in range(12):
        if turns % 4 == 0:
            pool.cut()
        doomed = asyncio.create_task(pool.request("echo", "doomed", deadline=soon()))
        others = [asyncio.create_task(pool.request("echo", number, deadline=soon())) for number in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        doomed.cancel()
        assert await asyncio.gather(*others) == [0, 1, 2]
        outcome = (await asyncio.gather(doomed, return_exceptions=True))[0]
        assert outcome == "doomed" or isinstance(outcome, asyncio.CancelledError)
        # No place is lost.
        assert all(lane.reserved == 0 for lane in pool._lanes)
        assert await asyncio.gather(*(pool.request("echo", n, deadline=soon()) for n in range(5))) == list(range(5))


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_leaves_when_it_likes_takes_no_place_along(server, make_pool, seed):
    chance = random.Random(seed)
    print("seed", seed)
    pool = make_pool(connections_max=2, pipeline_depth=1, pipeline_max=2, check_after_s=0.001, idle_s=0.01)

    async def ask(number):
        with contextlib.suppress(DeadlineExceeded, Unavailable, ConnectionResetError):
            assert await pool.request("echo", number, deadline=soon(chance.choice([5.0, 5.0, 0.001]))) == number

    for _ in range(20):
        tasks = [asyncio.create_task(ask(number)) for number in range(8)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
            if chance.random() < 0.5:
                chance.choice(tasks).cancel()
            elif chance.random() < 0.2:
                server.cut()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
        assert all(lane.reserved == 0 for lane in pool._lanes)
        assert pool.waiting == 0
    assert await pool.request("echo", "still", deadline=soon()) == "still"


async def test_an_idle_connection_is_asked_before_it_is_used(server, make_pool):
    pool = make_pool(check_after_s=0.01, check_timeout_s=0.05)
    assert await pool.request("echo", 1, deadline=soon()) == 1
    await asyncio.sleep(0.02)
    assert await pool.request("echo", 2, deadline=soon()) == 2
    assert (pool.statistics.checks, pool.statistics.checks_failed) == (1, 0)
    # It is half open now: nothing comes back.
    server.handlers["ping"] = lambda: SILENCE
    await asyncio.sleep(0.02)
    assert await pool.request("echo", 3, deadline=soon()) == 3
    assert (pool.statistics.checks, pool.statistics.checks_failed) == (2, 1)
    assert server.connections == 2
    assert server.count("echo") == 3


async def test_an_unused_connection_is_closed(server, make_pool):
    pool = make_pool(idle_s=0.05)
    await pool.request("echo", 1, deadline=soon())
    await until(lambda: pool.connections == 0)
    assert pool.statistics.expired == 1
    assert await pool.request("echo", 2, deadline=soon()) == 2


async def test_a_late_reply_ends_the_request_and_a_silent_server_the_connection(server, make_pool):
    server.handlers["wait"] = lambda: SILENCE
    pool = make_pool(silence_s=0.1)
    with pytest.raises(DeadlineExceeded):
        await pool.request("wait", deadline=soon(0.02))
    assert pool.connections == 1
    with pytest.raises(DeadlineExceeded):
        await pool.request("wait", deadline=soon(0.2))
    await until(lambda: pool.connections == 0)
    assert await pool.request("echo", 1, deadline=soon()) == 1


async def test_another_identity_gets_nothing(server, make_pool):
    with pytest.raises(WrongShard):
        await make_pool(identity="b" * 32).request("echo", 1, deadline=soon())
    pool = make_pool()
    assert await pool.request("echo", 1, deadline=soon()) == 1
    server.identity = "b" * 32
    server.cut()
    await asyncio.sleep(0.01)
    with pytest.raises(WrongShard):
        await pool.request("echo", 2, deadline=soon())
    assert server.count("echo") == 1


async def test_the_token_is_sent_and_a_wrong_one_told(server, make_pool):
    def greet(said):
        if said.get("token") != "right":
            raise Unauthenticated("no")
        return {"identity": server.identity, "epoch": 1}

    server.handlers["hello"] = greet
    assert await make_pool(token="right").request("echo", 1, deadline=soon()) == 1
    with pytest.raises(Unauthenticated):
        await make_pool(token="wrong").request("echo", 1, deadline=soon())


async def test_another_address_is_tried_when_one_is_silent(server, make_pool):
    async with ScriptedShard() as gone:
        nowhere = gone.address
    pool = make_pool(nowhere, server.address)
    with pytest.raises(Unavailable):
        await pool.request("echo", 1, deadline=soon())
    assert await pool.request("echo", 1, deadline=soon()) == 1


@pytest.mark.parametrize("attempts", [1, 2, 3, 4])
async def test_several_attempts_that_fail_at_once_try_the_next_address_once(server, make_pool, attempts):
    async with ScriptedShard() as gone:
        dead = gone.address
    pool = make_pool(dead, server.address, pipeline_depth=1)
    for _ in range(2):
        with contextlib.suppress(Unavailable):
            await asyncio.gather(*(pool.request("echo", 1, deadline=soon()) for _ in range(attempts)))
    assert await asyncio.gather(*(pool.request("echo", 1, deadline=soon()) for _ in range(attempts))) == [1] * attempts


async def test_whoever_answers_at_the_address_before_says_nothing_of_the_server_that_has_moved(server, make_pool):
    async with ScriptedShard() as other:
        other.identity = "b" * 32
        other.handlers["hello"] = lambda said: {"identity": other.identity, "epoch": 1}
        pool = make_pool(other.address, identity=server.identity)
        asking = asyncio.create_task(pool.request("echo", 1, deadline=soon()))
        await asyncio.sleep(0)
        pool.address = server.address
        assert await asking == 1
        assert other.connections == 1


async def test_what_can_not_be_encoded_leaves_its_place_to_who_waits(server, make_pool):
    pool = make_pool(connections_max=1, pipeline_depth=1, pipeline_max=1)
    bad = asyncio.create_task(pool.request("echo", "\ud800", deadline=soon()))
    good = asyncio.create_task(pool.request("echo", 1, deadline=soon(1.0)))
    with pytest.raises(BadKey):
        await bad
    assert await good == 1


async def test_a_server_that_never_greets(server, make_pool):
    server.handlers["hello"] = lambda said: SILENCE
    with pytest.raises(Unavailable):
        await make_pool(connect_timeout_s=0.05).request("echo", 1, deadline=soon())
    server.handlers["hello"] = lambda said: CUT
    with pytest.raises(Unavailable):
        await make_pool().request("echo", 1, deadline=soon())


async def test_a_closed_pool_refuses_and_whoever_waits_is_told(server, make_pool):
    server.handlers["wait"] = lambda: SILENCE
    pool = make_pool(connections_max=1, pipeline_depth=1, pipeline_max=1)
    sent = asyncio.create_task(pool.request("wait", deadline=soon()))
    await until(lambda: server.count("wait") == 1)
    waiting = asyncio.create_task(pool.request("echo", 1, deadline=soon()))
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(ConnectionResetError):
        await sent
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await pool.request("echo", 1, deadline=soon())


def test_settings_that_make_no_sense():
    with pytest.raises(SettingsError):
        PoolSettings(connections_max=0)
    with pytest.raises(SettingsError):
        PoolSettings(pipeline_depth=10, pipeline_max=5)
