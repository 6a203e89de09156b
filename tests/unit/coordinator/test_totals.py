"""Totals and values: whom they ask, what replaces whom, and what is neither cached nor shared."""

import asyncio
import random

import pytest

from pycounter._native import ForeignKeys, ReadCache
from pycounter.coordinator.totals import Totals
from pycounter.errors import BadKey, Unauthenticated, Unavailable
from tests.support.scripted_routes import REFUSE, STALL, ScriptedCache, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)

#: Keys by their home, of up to four shards.
KEYS = [b"\x00zero", b"\x01one", b"\x02two", b"\x03three"]


@pytest.fixture
def routes():
    return ScriptedRoutes(4)


def totals_of(routes, *, cache=None, timeout_s=2.0):
    return Totals(routes, foreign=routes, cache=cache, timeout_s=timeout_s)


# --- whom they ask ---------------------------------------------------------------------------------------------------


async def test_a_counter_that_is_foreign_nowhere_needs_its_home_only(routes):
    routes.shards[1].add(KEYS[1], 5)
    assert await totals_of(routes).get(KEYS[1]) == 5
    assert [shard.count("get", "get_many") for shard in routes.shards] == [0, 1, 0, 0]


async def test_a_foreign_counter_needs_its_holders_too(routes):
    routes.shards[1].add(KEYS[1], 5)
    routes.divert(3, KEYS[1], 4)
    total = await totals_of(routes).total(KEYS[1])
    assert total.total == 9
    assert total.partials == {"shard-1": 5, "shard-3": 4}
    assert not total.exact, "two of four were asked"


async def test_while_any_shard_may_hold_any_counter_each_is_asked_and_missed_once(routes):
    foreign = ForeignKeys(4)
    for shard in range(4):
        foreign.set_all(shard, True)
    totals = Totals(routes, foreign=foreign, cache=None)
    assert await totals.get(KEYS[1]) == 0
    assert [shard.requests for shard in routes.shards] == [[("get", (KEYS[1],))]] * 4
    routes.shards[1].always = REFUSE
    assert (await totals.total(KEYS[1])).missing == ("shard-1",)


async def test_exact_asks_every_shard(routes):
    routes.shards[1].add(KEYS[1], 5)
    routes.shards[2].add(KEYS[1], -9)  # nobody knows that it is foreign
    totals = totals_of(routes)
    assert await totals.get(KEYS[1]) == 5
    total = await totals.total(KEYS[1], accuracy="exact")
    assert total.total == -4
    assert total.exact
    assert total.missing == ()
    assert routes.shards[0].requests[-1] == ("get", (KEYS[1], {"level": "durable"}))


async def test_many_totals_are_one_request_to_each_shard(routes):
    for key in KEYS:
        routes.shards[routes.home(key)].add(key, key[0] + 1)
    routes.divert(0, KEYS[3], 10)
    keys = [*KEYS, KEYS[0], b"absent"]
    assert await totals_of(routes).get_many(keys) == [1, 2, 3, 14, 1, 0]
    assert [shard.count("get", "get_many") for shard in routes.shards] == [1, 1, 1, 1]
    await totals_of(routes).get_many(keys, accuracy="exact")
    assert [shard.count("get", "get_many") for shard in routes.shards] == [2, 2, 2, 2]


async def test_sums_have_more_than_64_bits(routes):
    for shard in routes.shards:
        shard.add(b"k", 2**63 - 1)
    total = await totals_of(routes).total("k", accuracy="exact")
    assert total.total == 4 * (2**63 - 1)
    assert total.to_wire()["total"] == str(4 * (2**63 - 1))
    assert total.to_wire()["partials"] == {f"shard-{n}": 2**63 - 1 for n in range(4)}


async def test_long_lists_are_cut_into_requests_that_the_server_takes(routes):
    keys = [b"\x00%1000d" % number for number in range(2000)]
    await totals_of(routes).get_many(keys)
    sizes = [sum(map(len, params[0])) for method, params in routes.shards[0].requests if method == "get_many"]
    assert len(sizes) > 1
    assert max(sizes) <= 512 * 1024
    assert sum(sizes) == sum(map(len, keys))


async def test_a_counter_that_no_shard_has_is_told_from_one_at_0(routes):
    routes.shards[0].add(KEYS[0], 0)
    routes.divert(2, KEYS[1], 0)
    assert await totals_of(routes).find_many([*KEYS[:3], KEYS[0]]) == [0, 0, None, 0]
    routes.shards[2].always = REFUSE
    with pytest.raises(Unavailable):
        await totals_of(routes).find_many([KEYS[2]])


@pytest.mark.parametrize("key", ["", "x" * 1025, "\ud800", 7], ids=["empty", "long", "surrogate", "number"])
async def test_bad_keys_are_refused_before_anybody_is_asked(routes, key):
    with pytest.raises(BadKey):
        await totals_of(routes).get(key)
    with pytest.raises(BadKey):
        await totals_of(routes).total_many(["good", key])
    assert not routes.requests("get", "get_many")


# --- replicas, and what is missing -----------------------------------------------------------------------------------


async def test_a_shard_that_cannot_answer_is_named_as_missing(routes):
    for shard in routes.shards:
        shard.add(b"k", 1)
    routes.shards[2].always = REFUSE
    totals = totals_of(routes)
    total = await totals.total("k", accuracy="exact")
    assert (total.total, total.missing, total.exact) == (3, ("shard-2",), False)
    with pytest.raises(Unavailable, match="shard-2"):
        await totals.get("k", accuracy="exact")


async def test_a_stalled_shard_costs_the_time_of_the_read_and_no_more(routes):
    routes.shards[2].always = STALL
    total = await totals_of(routes).total("k", accuracy="exact", timeout_s=0.05)
    assert total.missing == ("shard-2",)


async def test_a_refusal_of_the_question_is_raised_and_not_taken_for_a_missing_shard(routes):
    routes.shards[2].always = Unauthenticated("the token is wrong")
    with pytest.raises(Unauthenticated):
        await totals_of(routes).total("k", accuracy="exact")


@pytest.fixture
def mirrored():
    """Two shards with a replica each, which lag a little."""
    routes = ScriptedRoutes(2, replicas=1)
    for shard, (copy,) in zip(routes.shards, routes.copies, strict=True):
        shard.add(b"\x00k", 10)
        copy.counters[b"\x00k"] = 9
        copy.lag_ms = 30
    return routes


@pytest.mark.parametrize("failure", [REFUSE, STALL])
async def test_a_replica_replaces_its_shard_and_says_so(mirrored, failure):
    mirrored.shards[0].always = failure
    total = await totals_of(mirrored).total(b"\x00k", timeout_s=0.2)
    assert total.total == 9
    assert total.replicas == {"shard-0": 30}
    assert (total.age_ms, total.missing, total.exact) == (30, (), False)
    assert total.to_wire()["replicas"] == {"shard-0": 30}


async def test_a_replica_never_counts_for_an_exact_total(mirrored):
    mirrored.shards[0].always = REFUSE
    total = await totals_of(mirrored).total(b"\x00k", accuracy="exact")
    assert (total.total, total.missing) == (10, ("shard-0",))
    assert not mirrored.copies[0][0].requests


async def test_a_replica_that_fails_too_leaves_the_shard_missing(mirrored):
    mirrored.shards[0].always = REFUSE
    mirrored.copies[0][0].always = REFUSE
    assert (await totals_of(mirrored).total(b"\x00k")).missing == ("shard-0",)


@pytest.mark.parametrize("trouble", ["is_down", "is_unwell"])
async def test_a_shard_known_to_be_in_trouble_is_asked_after_its_replica(mirrored, trouble):
    setattr(mirrored.shards[0], trouble, True)
    assert await totals_of(mirrored).get(b"\x00k") == 9
    assert not mirrored.shards[0].requests


async def test_read_from_chooses_whom_to_ask_first(mirrored):
    totals = totals_of(mirrored)
    assert await totals.get(b"\x00k", read_from="replica") == 9
    assert {await totals.get(b"\x00k", read_from="any") for _ in range(4)} == {9, 10}
    mirrored.copies[0][0].always = REFUSE
    assert await totals.get(b"\x00k", read_from="replica") == 10


async def test_a_replica_behind_what_this_client_wrote_is_not_believed(mirrored):
    mirrored.shards[0].commit_seen = 8
    mirrored.copies[0][0].commit_seen = 7
    totals = totals_of(mirrored)
    assert await totals.get(b"\x00k", read_from="replica") == 10
    mirrored.shards[0].always = REFUSE
    assert (await totals.total(b"\x00k")).missing == ("shard-0",)
    mirrored.copies[0][0].commit_seen = 8
    assert await totals.get(b"\x00k") == 9


# --- the cache -------------------------------------------------------------------------------------------------------


async def test_cached_reads_ask_once(routes):
    routes.shards[0].add(KEYS[0], 3)
    cache = ScriptedCache()
    totals = totals_of(routes, cache=cache)
    assert [await totals.get(KEYS[0], accuracy="cached") for _ in range(3)] == [3, 3, 3]
    cache.age_s = 0.25
    total = await totals.total(KEYS[0], accuracy="cached")
    assert (total.total, total.age_ms, total.exact) == (3, 250, False)
    assert routes.requests("get", "get_many") == 1


async def test_a_read_is_one_hit_or_one_miss(routes):
    cache = ReadCache()
    totals = totals_of(routes, cache=cache)
    for _ in range(3):
        await totals.get(KEYS[0], accuracy="cached")
    statistics = cache.statistics()
    assert (statistics["misses"], statistics["l1_hits"]) == (1, 2)


async def test_a_total_that_may_have_been_loaded_for_somebody_else_is_not_called_exact():
    routes = ScriptedRoutes(1)
    totals = totals_of(routes, cache=ScriptedCache())
    assert (await totals.total(KEYS[0])).exact
    first, second = await asyncio.gather(*(totals.total(KEYS[1], accuracy="cached") for _ in range(2)))
    assert totals.shared_loads == 1
    assert not first.exact
    assert not second.exact


async def test_recent_reads_always_ask_and_leave_the_value_for_cached_ones(routes):
    totals = totals_of(routes, cache=ScriptedCache())
    for value in (1, 2):
        routes.shards[0].add(KEYS[0], 1)
        assert await totals.get(KEYS[0]) == value
    assert await totals.get(KEYS[0], accuracy="cached") == 2
    assert routes.requests("get", "get_many") == 2


async def test_readers_at_the_same_time_share_one_load(routes):
    routes.shards[0].add(KEYS[0], 3)
    totals = totals_of(routes, cache=ScriptedCache())
    values = await asyncio.gather(*(totals.get(KEYS[0], accuracy="cached") for _ in range(50)))
    assert values == [3] * 50
    assert routes.requests("get", "get_many") == 1
    assert totals.shared_loads == 49


async def test_a_load_begun_before_a_write_is_neither_shared_nor_cached(routes):
    cache = ScriptedCache()
    totals = totals_of(routes, cache=cache)
    home = routes.shards[0]
    home.turns = 5
    late = asyncio.create_task(totals.get(KEYS[0], accuracy="cached"))
    while not home.handled:
        await asyncio.sleep(0)
    # The reply is on its way, with the old value.
    cache.bump(KEYS[0])
    home.add(KEYS[0], 7)
    cache.bump(KEYS[0])
    assert not late.done()
    assert await totals.get(KEYS[0], accuracy="cached") == 7
    assert home.count("get") == 2, "the second read began its own load"
    assert await late == 0
    assert await totals.get(KEYS[0], accuracy="cached") == 7


async def test_an_incomplete_total_and_a_replicas_are_not_cached(mirrored):
    cache = ScriptedCache()
    totals = totals_of(mirrored, cache=cache)
    mirrored.shards[0].script = [REFUSE]
    assert await totals.get(b"\x00k") == 9
    mirrored.shards[1].script = [REFUSE]
    assert (await totals.total(b"\x00k", accuracy="exact")).missing == ("shard-1",)
    assert cache.values == {}
    assert await totals.get(b"\x00k") == 10
    assert cache.get(b"\x00k") == 10


async def test_one_reader_that_leaves_does_not_take_the_load_from_the_others(routes):
    routes.shards[0].add(KEYS[0], 3)
    routes.shards[0].turns = 5
    totals = totals_of(routes, cache=ScriptedCache())
    first = asyncio.create_task(totals.get(KEYS[0], accuracy="cached"))
    await asyncio.sleep(0)
    second = asyncio.create_task(totals.get(KEYS[0], accuracy="cached"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 3
    assert first.cancelled()
    assert routes.requests("get") == 1


async def test_the_last_reader_to_leave_ends_the_load(routes):
    routes.shards[0].always = STALL
    totals = totals_of(routes, cache=ScriptedCache(), timeout_s=60)
    readers = [asyncio.create_task(totals.get(KEYS[0], accuracy="cached")) for _ in range(3)]
    await asyncio.sleep(0)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others
    routes.shards[0].always = None
    assert await totals.get(KEYS[0], accuracy="cached") == 0


async def test_a_shared_load_that_fails_fails_for_all_who_wait(routes):
    routes.shards[0].always = REFUSE
    totals = totals_of(routes, cache=ScriptedCache())
    outcomes = await asyncio.gather(*(totals.get(KEYS[0], accuracy="cached") for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
    routes.shards[0].always = None
    assert await totals.get(KEYS[0], accuracy="cached") == 0, "a failure isn't kept"


async def test_a_reader_with_less_time_leaves_earlier(routes):
    routes.shards[0].always = STALL
    totals = totals_of(routes, cache=ScriptedCache(), timeout_s=0.3)
    patient = asyncio.create_task(totals.total(KEYS[0], accuracy="cached"))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="in time"):
        await totals.get(KEYS[0], accuracy="cached", timeout_s=0.01)
    assert not patient.done()
    assert (await patient).missing == ("shard-0",)


# --- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", ["cached", "recent", "exact"])
async def test_a_read_that_is_cancelled_anywhere_leaves_nothing_behind(accuracy):
    done = False
    for turns in range(60):
        routes = ScriptedRoutes(3, replicas=1)
        routes.shards[1].always = REFUSE
        for shard in routes.shards:
            shard.add(b"\x00k", 1)
        routes.divert(2, b"\x00k", 1)
        routes.divert(1, b"\x00k", 1)
        totals = totals_of(routes, cache=ScriptedCache())
        reading = asyncio.create_task(totals.total_many([b"\x00k", b"\x01k"], accuracy=accuracy))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = not reading.cancel()
        await asyncio.wait([reading])
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert done or reading.cancelled()
        # And the next one is as if it had never been.
        assert (await totals.total(b"\x00k", accuracy=accuracy)).total in {3, 4}
    assert done, "it was never cancelled late enough to be done"


# --- as a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(40))
async def test_a_client_reads_what_it_wrote_whatever_is_cached_and_shared(seed, round_):
    """Random writers and readers of one client: no read gives less than was settled when it began."""
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = ScriptedRoutes(3)
    cache = ScriptedCache()
    totals = totals_of(routes, cache=cache)
    keys = [b"\x00a", b"\x01b"]
    settled = dict.fromkeys(keys, 0)
    sent = dict.fromkeys(keys, 0)

    for shard in routes.shards:
        shard.turns = chance.randrange(3)

    async def write() -> None:
        for _ in range(10):
            key = chance.choice(keys)
            home = routes.home(key)
            shard = chance.choice([home, home, (home + 1) % 3])
            if shard != home:
                routes.note(shard, key)
            cache.bump(key)
            sent[key] += 1
            await routes.shards[shard].call("incr", key, 1, timeout_s=1)
            cache.bump(key)
            settled[key] += 1
            await asyncio.sleep(0)

    async def read() -> None:
        for _ in range(20):
            wanted = chance.sample(keys, chance.randint(1, 2))
            least = {key: settled[key] for key in wanted}
            accuracy = chance.choice(["cached", "cached", "recent", "exact"])
            values = await totals.get_many(wanted, accuracy=accuracy)
            for key, value in zip(wanted, values, strict=True):
                assert least[key] <= value <= sent[key], (accuracy, key)
            if chance.random() < 0.3:
                await asyncio.sleep(0)

    await asyncio.gather(write(), write(), read(), read(), read())
    assert await totals.get_many(keys, accuracy="cached") == [settled[key] for key in keys]
