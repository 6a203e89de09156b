"""The client against a server that answers what it likes, hangs up, or becomes another."""

import asyncio
import random
from typing import Any

import msgpack
import pytest

from pycounter.client import ClientSettings, SessionClient
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import (
    BadKey,
    CounterOverflow,
    DeadlineExceeded,
    Forbidden,
    Overloaded,
    SessionLost,
    TooLarge,
    Unavailable,
    UnknownOutcome,
    WrongShard,
)
from tests.support.scripted_shard import CUT, SILENCE, Raw, ScriptedShard

pytestmark = pytest.mark.timeout(30)

QUICK = {"backoff_first_s": 0.001, "backoff_max_s": 0.01}


@pytest.fixture
async def shard():
    async with ScriptedShard() as server:
        yield server


def client_of(shard, *, level="durable", on_lost_tail=None, identity=None, clock=SYSTEM_CLOCK, **settings):
    host, port = shard.address
    return SessionClient(
        host,
        port,
        level=level,
        settings=ClientSettings(**{**QUICK, **settings}),
        on_lost_tail=on_lost_tail,
        identity=identity,
        clock=clock,
    )


def first_times(shard, method, *answers):
    """Has the first requests of a method answered so, and only then as usual."""
    usual, first = shard.handlers[method], list(answers)

    def answer(*params):
        if not first:
            return usual(*params)
        said = first.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    shard.handlers[method] = answer


def sessions_of(shard):
    """The sessions of the batches that came, in order."""
    return list(dict.fromkeys(params[0] for method, params in shard.requests if method == "apply"))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


# --- nonsense --------------------------------------------------------------------------------------------------------


NONSENSE: dict[str, Any] = {
    "nil": None,
    "a list": [1],
    "no results": {},
    "results that are text": {"results": "1"},
    "a map of results": {"results": {1: 1}},
    "too few": {"results": []},
    "too many": {"results": [1, 2]},
    "a result that is nil": {"results": [None]},
    "a result that is true": {"results": [True]},
    "a float": {"results": [1.0]},
    "no message": Raw(b"\xc1"),
    "a number": Raw(b"\x07"),
    "a request": Raw(msgpack.packb([0, 1, "ping", []])),
    "no msgid": Raw(msgpack.packb([1, None, None, {"results": [1]}])),
    "a msgid that was not asked": Raw(msgpack.packb([1, 999, None, {"results": [1]}])),
    "the msgid of hello again": Raw(msgpack.packb([1, 1, None, {"results": [1]}])),
    "an error that is no text": Raw(msgpack.packb([1, 2, 7, None])),
    "a key that can't be one": Raw(b"\x94\x01\x02\xc0\x81\x90\x01"),
    "too deep": Raw(b"\x91" * 2000),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_nonsense_ends_the_connection_and_the_batch_goes_again(shard, what):
    first_times(shard, "apply", NONSENSE[what], NONSENSE[what])
    async with client_of(shard) as client:
        assert await client.apply([("a", 1)]) == [1]
        assert shard.connections == 3
        assert shard.totals == {"a": 1}


HELLO_NONSENSE: list[Any] = [
    None,
    [],
    {},
    {"identity": "a" * 32},
    {"identity": None, "epoch": 1},
    {"identity": b"\xff", "epoch": 1},
    {"identity": "a" * 32, "epoch": "1"},
    {"identity": "a" * 32, "epoch": 1, "last_sequence": "1"},
    {"identity": "a" * 32, "epoch": 1, "last_sequence": -1},
    {"identity": "a" * 32, "epoch": 1, "last_sequence": True},
]


async def test_nonsense_for_a_greeting_is_no_shard(shard):
    first_times(shard, "hello", *HELLO_NONSENSE)
    async with client_of(shard) as client:
        assert client.identity == shard.identity
        assert await client.incr("a") == 1
    assert shard.connections == len(HELLO_NONSENSE) + 1


async def test_nonsense_for_a_barrier_ends_the_connection(shard):
    async with client_of(shard, level="applied") as client:
        assert await client.incr("a") == 1
        first_times(shard, "hello", *HELLO_NONSENSE)
        await client.flush()
        assert client.statistics.reconnects >= 1


async def test_an_unknown_error_settles_nothing(shard):
    first_times(shard, "apply", Raw(msgpack.packb([1, 2, "whatever", None])), Forbidden("no"))
    async with client_of(shard) as client:
        with pytest.raises(SessionLost, match="the next was refused"):
            await client.apply([("a", 1)])


@pytest.mark.parametrize("hangs_up_at", ["hello", "apply"])
async def test_a_shard_that_hangs_up_is_not_called_in_a_tight_circle(shard, hangs_up_at):
    if hangs_up_at == "hello":
        usual = shard.handlers["hello"]

        def greet_and_hang_up(said):
            asyncio.get_running_loop().call_soon(shard.cut)
            return usual(said)

        shard.handlers["hello"] = greet_and_hang_up
    else:
        shard.handlers["apply"] = lambda *_: CUT
    client = client_of(shard, backoff_first_s=0.02, backoff_max_s=0.04)
    await client.connect()
    counting = asyncio.create_task(client.apply([("a", 1)]))
    await asyncio.sleep(0.4)
    # Each pause is 0.01 s or more.
    assert 1 < shard.connections <= 41
    counting.cancel()
    await asyncio.gather(counting, client.close(timeout_s=0.0), return_exceptions=True)


async def test_a_silent_connection_is_given_up(shard):
    first_times(shard, "apply", SILENCE)
    async with client_of(shard, silence_timeout_s=0.05) as client:
        assert await client.apply([("a", 1)]) == [1]
        assert shard.connections == 2


async def test_a_name_that_is_none_fails_at_once():
    client = SessionClient("a" * 64 + ".example", 7400)
    with pytest.raises(Unavailable):
        await client.connect()
    with pytest.raises(Unavailable):
        await client.incr("a")
    await client.close()


# --- another shard, another time -------------------------------------------------------------------------------------


async def test_another_identity_under_the_address_gets_nothing(shard):
    client = client_of(shard, batches_in_flight_max=1, identity=shard.identity)
    await client.connect()
    shard.handlers["apply"] = lambda *_: SILENCE
    sent = asyncio.create_task(client.apply([("a", 1)]))
    await until(lambda: shard.count("apply"))
    queued = asyncio.create_task(client.apply([("b", 1)]))
    called = asyncio.create_task(client.call("incr", "c", 1, {"id": b"1"}))
    shard.handlers["incr"] = lambda *_: SILENCE
    await until(lambda: shard.count("apply") and shard.count("incr"))
    shard.identity = "b" * 32
    shard.cut()
    with pytest.raises(SessionLost):
        await sent
    with pytest.raises(WrongShard):
        await queued
    with pytest.raises(UnknownOutcome):
        await called
    for attempt in (client.incr("d"), client.call("get", "a"), client.flush()):
        with pytest.raises(WrongShard):
            await attempt
    assert client.unsettled == 0
    await client.close()
    assert (shard.count("apply"), shard.count("incr")) == (1, 1)


async def test_another_shard_takes_over_where_no_identity_was_asked_for(shard):
    client = client_of(shard, batches_in_flight_max=1)
    await client.connect()
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    sent = asyncio.create_task(client.apply([("a", 1)]))
    await until(lambda: shard.count("apply"))
    queued = asyncio.create_task(client.apply([("b", 1)]))
    await asyncio.sleep(0)
    shard.identity, shard.handlers["apply"] = "b" * 32, usual
    shard.cut()
    with pytest.raises(SessionLost, match="is another"):
        await sent
    assert await queued == [1]
    assert (client.identity, shard.totals) == ("b" * 32, {"b": 1})
    await client.close()
    assert len(sessions_of(shard)) == 2


class SleepyClock(Clock):
    """The machine's, which sleeps when it is told to: the loop's time doesn't see that."""

    slept_s = 0.0

    def running_s(self) -> float:
        return super().running_s() + self.slept_s


async def test_a_session_that_nobody_asked_for_too_long_is_not_used_again(shard):
    clock = SleepyClock()
    async with client_of(shard, clock=clock, call_timeout_s=1e7) as client:
        shard.handlers["apply"] = lambda *_: CUT
        counting = asyncio.create_task(client.apply([("a", 1)]))
        await until(lambda: shard.count("apply"))
        clock.slept_s = 7 * 24 * 3600.0
        with pytest.raises(SessionLost):
            await counting
        shard.handlers["apply"] = shard.apply
        assert await client.apply([("b", 1)]) == [1]
        first, second = sessions_of(shard)
        assert first != second


async def test_an_operation_with_an_id_is_not_repeated_after_the_window(shard):
    shard.handlers["incr"] = lambda *_: CUT
    async with client_of(shard, id_window_s=0.05) as client:
        with pytest.raises(UnknownOutcome, match="keeps its id"):
            await client.call("incr", "a", 1, {"id": b"1"})


async def test_an_operation_with_an_id_goes_again_until_it_is_answered(shard):
    first_times(shard, "incr", CUT, Overloaded("later"), CounterOverflow("no"))
    async with client_of(shard) as client:
        with pytest.raises(CounterOverflow):
            await client.call("incr", "a", 1, {"id": b"1"})
        first_times(shard, "incr", CUT, Forbidden("not any more"))
        with pytest.raises(UnknownOutcome):
            await client.call("incr", "a", 1, {"id": b"1"})
        first_times(shard, "incr", CUT)
        with pytest.raises(UnknownOutcome):
            await client.call("incr", "a", 1)


# --- room, deadlines, cancellation -----------------------------------------------------------------------------------


async def test_thousands_of_callers_share_little_room(shard):
    async with client_of(shard, pending_operations_max=50, coalesced_operations_max=20) as client:
        most = 0
        usual = shard.handlers["apply"]

        def watch(*params):
            nonlocal most
            most = max(most, client.unsettled)
            return usual(*params)

        shard.handlers["apply"] = watch
        values = await asyncio.gather(*(client.incr("a") for _ in range(3000)))
        assert values == sorted(range(1, 3001)), "first come, first served"
        assert 20 <= most <= 50
        assert client.unsettled == 0


async def test_a_deadline_that_passes_while_waiting_for_room_says_that_nothing_was_applied(shard):
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    async with client_of(shard, pending_operations_max=2, batch_operations_max=2, window_operations_max=4) as client:
        first = asyncio.create_task(client.apply([("a", 1)] * 2))
        await until(lambda: shard.count("apply"))
        for attempt in (client.incr("b", timeout_s=0.02), client.apply([("b", 1)] * 3, timeout_s=0.02)):
            with pytest.raises(Unavailable, match="nothing was applied"):
                await attempt
        shard.handlers["apply"] = usual
        shard.cut()
        assert await first == [1, 2]
        assert (client.unsettled, shard.totals["b"]) == (0, 0)


async def test_a_list_of_which_a_part_was_sent_is_unknown_when_its_time_is_over(shard):
    shard.handlers["apply"] = lambda *_: SILENCE
    client = client_of(shard, pending_operations_max=2, batch_operations_max=2, window_operations_max=4)
    await client.connect()
    with pytest.raises(DeadlineExceeded):
        await client.apply([("a", 1)] * 4, timeout_s=0.05)
    assert client.unsettled == 4
    with pytest.raises(SessionLost):
        await client.close(timeout_s=0.0)


async def test_a_large_batch_that_is_cancelled_lets_those_behind_it_in(shard):
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    async with client_of(shard, pending_operations_max=10) as client:
        first = asyncio.create_task(client.apply([("a", 1)] * 5))
        large = asyncio.create_task(client.apply([("b", 1)] * 8))
        small = asyncio.create_task(client.apply([("c", 1)]))
        await until(lambda: shard.count("apply") == 1)
        large.cancel()
        await until(lambda: shard.count("apply") == 2)
        shard.handlers["apply"] = usual
        shard.cut()
        assert (await first, await small) == ([1, 2, 3, 4, 5], [1])


async def test_cancelled_callers_leave_no_reply_for_others_and_no_room_taken(shard, seed):
    """Callers are cancelled wherever they happen to wait; the connection breaks now and then."""
    chance = random.Random(seed)
    usual = shard.handlers["apply"]
    shard.handlers["get"] = lambda key, *_: CUT if chance.random() < 0.02 else f"value of {key}"
    shard.handlers["apply"] = lambda *params: CUT if chance.random() < 0.03 else usual(*params)
    counted = {"sure": 0, "attempted": 0}
    async with client_of(shard, pending_operations_max=30, batch_operations_max=5, window_operations_max=20) as client:

        async def caller(number):
            for turn in range(10):
                size = chance.randint(1, 12)
                kind = chance.choice(["incr", "apply", "get"])
                work: Any
                match kind:
                    case "incr":
                        work = client.incr("a")
                    case "apply":
                        work = client.apply([("a", 1)] * size)
                    case _:
                        work = client.call("get", f"{number}.{turn}")
                counted["attempted"] += {"incr": 1, "apply": size, "get": 0}[kind]
                task = asyncio.create_task(work)
                if chance.random() < 0.4:
                    await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
                    task.cancel()
                said: Any = (await asyncio.gather(task, return_exceptions=True))[0]
                if isinstance(said, asyncio.CancelledError):
                    continue
                if kind == "get":
                    assert said == f"value of {number}.{turn}"
                else:
                    assert isinstance(said, int | list), said
                    counted["sure"] += {"incr": 1, "apply": size}[kind]

        await asyncio.gather(*(caller(number) for number in range(30)))
        await until(lambda: client.unsettled == 0)
        assert counted["sure"] <= shard.totals["a"] <= counted["attempted"]
        assert client.statistics.operations_settled == shard.totals["a"]
        assert client.statistics.operations_unknown == 0


async def test_an_item_that_cannot_be_sent_spoils_no_other(shard):
    async with client_of(shard) as client:
        said = await asyncio.gather(
            client.incr("a"), client.incr("\udcff"), client.incr("b"), client.incr("c", 2**64), return_exceptions=True
        )
        assert (said[0], said[2]) == (1, 1)
        assert isinstance(said[1], BadKey)
        assert client.unsettled == 0


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_while_the_shard_is_away(shard):
    client = client_of(shard)
    await client.connect()
    shard.handlers["apply"] = lambda *_: SILENCE
    sent = asyncio.create_task(client.apply([("a", 1)]))
    await until(lambda: shard.count("apply"))
    await shard.vanish()
    await until(lambda: not client.is_connected)
    queued = asyncio.create_task(client.apply([("b", 1)]))
    await asyncio.sleep(0)
    with pytest.raises(SessionLost, match="1 operations"):
        await client.close(timeout_s=0.02)
    with pytest.raises(SessionLost):
        await sent
    with pytest.raises(Unavailable, match="closed"):
        await queued
    assert client.unsettled == 0
    await client.close()
    with pytest.raises(Unavailable, match="closed"):
        await client.connect()


async def test_closing_takes_nothing_new_and_settles_what_it_has(shard):
    client = client_of(shard, pending_operations_max=2, batch_operations_max=2, window_operations_max=4)
    await client.connect()
    usual, shard.handlers["apply"] = shard.handlers["apply"], lambda *_: SILENCE
    sent = asyncio.create_task(client.apply([("a", 1)] * 2))
    await until(lambda: shard.count("apply"))
    waiting = asyncio.create_task(client.apply([("b", 1)]))
    await asyncio.sleep(0)
    closing = [asyncio.create_task(client.close()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await client.incr("c")
    shard.handlers["apply"] = usual
    shard.cut()
    await asyncio.gather(*closing)
    # The second waited for room already.
    assert (await sent, await waiting) == ([1, 2], [1])
    assert shard.totals == {"a": 2, "b": 1}
    assert set(shard.ended) == set(sessions_of(shard)), "each close may say goodbye"


async def test_closing_that_cannot_confirm_says_so_and_sends_no_goodbye(shard):
    client = client_of(shard, level="applied")
    await client.connect()
    assert await client.apply([("a", 1)] * 3) == [1, 2, 3]
    shard.handlers["hello"] = lambda _: SILENCE
    with pytest.raises(SessionLost, match="3 operations"):
        await client.close(timeout_s=0.05)
    assert shard.ended == []


# --- applied and lost ------------------------------------------------------------------------------------------------


async def retire_sessions(client, shard, keys):
    """Has operations acknowledged in as many sessions that are refused for good afterwards."""
    hello, shard.handlers["hello"] = shard.handlers["hello"], lambda _: SILENCE
    for key in keys:
        await client.apply([(key, 1)])
        first_times(shard, "apply", TooLarge("no"))
        with pytest.raises(TooLarge):
            await client.apply([("refused", 1)])
        shard.handlers["apply"] = shard.apply
    shard.handlers["hello"] = hello


async def test_sessions_that_ended_are_asked_for_after_a_crash_even_if_the_connection_ends_meanwhile(shard):
    tails = []

    def report(tail):
        tails.append(tail)
        raise ZeroDivisionError("what users do")

    async with client_of(shard, level="applied", on_lost_tail=report) as client:
        await retire_sessions(client, shard, "abc")
        assert shard.ended == []
        lost = [session for session, results in shard.sessions.items()][1:]
        for session in lost:
            del shard.sessions[session]
        shard.totals.subtract("bc")
        shard.epoch += 1
        usual, greeted = shard.handlers["hello"], 0

        def greet_and_cut_once(said):
            nonlocal greeted
            greeted += 1
            return CUT if greeted == 3 else usual(said)

        shard.handlers["hello"] = greet_and_cut_once
        shard.cut()
        assert await client.apply([("d", 1)]) == [1]
        assert [tail.operations for tail in tails] == [[("b", 1)], [("c", 1)]]
        assert client.statistics.operations_lost == 2
        await until(lambda: len(shard.ended) == 3)
    assert +shard.totals == {"a": 1, "d": 1}


async def test_a_barrier_confirms_sessions_that_ended_and_only_then_says_goodbye(shard):
    async with client_of(shard, level="applied", silence_timeout_s=0.05) as client:
        await retire_sessions(client, shard, "ab")
        assert (client.unconfirmed, shard.ended) == (2, [])
        retired = list(shard.sessions)
        await until(lambda: not client.unconfirmed)
        await until(lambda: len(shard.ended) == 2)
        assert sorted(shard.ended) == sorted(retired[:2])


async def test_with_too_much_unconfirmed_nothing_is_sent_until_it_is(shard):
    async with client_of(shard, level="applied", unconfirmed_operations_max=10, silence_timeout_s=0.1) as client:
        usual, shard.handlers["hello"] = shard.handlers["hello"], lambda _: SILENCE
        assert await client.apply([("a", 1)] * 10) == list(range(1, 11))
        waiting = asyncio.create_task(client.apply([("a", 1)]))
        await asyncio.sleep(0.02)
        assert (waiting.done(), shard.count("apply")) == (False, 1)
        shard.handlers["hello"] = usual
        assert await waiting == [11]
