"""Listings: a counter that lies on several shards comes once, with its total; memory has a bound."""

import asyncio
import random

import pytest

from pycounter.coordinator.listing import Listing, Walk
from pycounter.coordinator.totals import Totals
from pycounter.errors import BadRequest, DeadlineExceeded, InternalError, Overloaded, TooLarge, Unavailable
from tests.support.scripted_routes import REFUSE, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)


def listing_of(routes, **more):
    return Listing(routes, Totals(routes, foreign=routes), foreign=routes, **more)


async def scan(listing, prefix=b""):
    """The counters of a scan, each once."""
    found = [counter async for counter in listing.scan(prefix)]
    keys = [key for key, _ in found]
    assert len(keys) == len(set(keys)), "a counter came twice"
    return dict(found)


def truth(routes, prefix=b""):
    keys = {key for shard in routes.shards for key in shard.counters if key.startswith(prefix)}
    return {key: routes.total(key) for key in keys}


def largest(routes, n, prefix=b""):
    return sorted(truth(routes, prefix).items(), key=lambda it: (-it[1], it[0]))[:n]


def populated(chance, *, shards=3, keys=30, foreign=0.3):
    """Counters at home and abroad, some of them only abroad, with negative partials."""
    routes = ScriptedRoutes(shards)
    for number in range(keys):
        key = bytes([number % 7]) + b"key-%d" % number
        home = routes.home(key)
        if chance.random() < 0.8:
            routes.shards[home].add(key, chance.randrange(-50, 50))
        for shard in range(shards):
            if shard != home and chance.random() < foreign:
                routes.divert(shard, key, chance.randrange(-50, 50))
    return routes


async def test_without_foreign_counters_every_shard_is_walked_once():
    routes = populated(random.Random(1), foreign=0)
    listing = listing_of(routes)
    assert await scan(listing) == truth(routes)
    assert routes.requests("get", "get_many") == 0
    assert routes.requests("scan") == sum(-(-len(shard.counters) // shard.page) for shard in routes.shards)


@pytest.mark.parametrize("round_", range(60))
async def test_every_counter_comes_once_with_its_total(seed, round_):
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = populated(chance, shards=chance.choice([1, 2, 3, 5]), foreign=chance.choice([0, 0.1, 0.6]))
    prefix = chance.choice([b"", b"\x01", b"\x03key-1"])
    # The client may know of none of them yet: shards know, and say so when the scan begins.
    if chance.random() < 0.5:
        routes.known = {known for known in routes.known if chance.random() < 0.5}
    listing = listing_of(routes, remembered_max=chance.choice([1, 2, 5, 1000]))
    assert await scan(listing, prefix) == truth(routes, prefix)


async def test_a_counter_that_only_another_shard_than_its_home_has_comes_too():
    routes = ScriptedRoutes(2)
    routes.divert(1, b"\x00k", 5)
    assert await scan(listing_of(routes)) == {b"\x00k": 5}


async def test_a_counter_that_becomes_foreign_meanwhile_comes_once():
    routes = ScriptedRoutes(3)
    for number in range(30):
        routes.shards[number % 3].add(bytes([number]), 1)
    routes.divert(1, b"\x00first", 1)
    keys = truth(routes).keys()
    for moment in range(12):
        found = []
        counters = listing_of(routes).scan()
        async for counter in counters:
            found.append(counter[0])
            if len(found) == 3 * moment:
                routes.divert((moment + 1) % 3, bytes([moment]), 1)
                routes.divert((moment + 2) % 3, bytes([moment]), 1)
        assert keys <= set(found)
        known = [key for key in found if key in keys]
        assert len(known) == len(set(known))


async def test_a_shard_that_cannot_be_asked_ends_the_scan_with_an_error():
    routes = populated(random.Random(2))
    routes.shards[1].always = REFUSE
    with pytest.raises(Unavailable):
        await scan(listing_of(routes))
    routes.shards[1].always = DeadlineExceeded("late")
    with pytest.raises(Unavailable, match="shard-1"):
        await scan(listing_of(routes))


async def test_a_scan_that_would_remember_too_much_ends():
    routes = ScriptedRoutes(2)
    routes.divert(1, b"\x00a", 1)
    routes.shards[1].page = 500
    for number in range(2500):
        routes.shards[1].add(b"\x00%d" % number, 1)  # they came after the shard was asked
    with pytest.raises(Overloaded):
        await scan(listing_of(routes, remembered_max=10))


async def test_a_shard_that_lost_count_has_as_many_foreign_counters_as_counters():
    routes = populated(random.Random(3))
    routes.shards[1].foreign_all = True
    shards, count = await listing_of(routes).foreign_shards()
    assert 1 in shards
    assert count == len(routes.shards[1].counters) + sum(len(routes.shards[n].foreign) for n in (0, 2))


async def test_nonsense_is_an_error():
    routes = populated(random.Random(4), foreign=0)
    for nonsense in (7, [0], [0, [["key"]]], ["x", []]):
        routes.shards[0].handle = lambda method, params, said=nonsense: (
            said if method == "scan" else {"foreign": {"count": 0, "all": False}}
        )
        with pytest.raises(InternalError):
            await scan(listing_of(routes))


# --- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(60))
async def test_a_counter_counts_once_on_however_many_shards_it_lies(seed, round_):
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = populated(chance, shards=chance.choice([1, 2, 3, 5]), foreign=chance.choice([0, 0.1, 0.6]))
    # What this client knows of foreign counters makes no difference: shards are asked.
    routes.known = {known for known in routes.known if chance.random() < 0.5}
    assert await listing_of(routes).count() == len(truth(routes))


async def test_without_foreign_counters_no_shard_is_walked_to_count_them():
    routes = populated(random.Random(5), foreign=0)
    assert await listing_of(routes).count() == len(truth(routes))
    assert not routes.requests("scan", "scan_foreign")
    reads = [params for shard in routes.shards for method, params in shard.requests if method == "get_many"]
    assert reads == [([],)] * 3, "after which nothing is told that a crash could take"


async def test_counters_are_not_counted_without_every_shard():
    routes = populated(random.Random(6))
    for fate in (REFUSE, DeadlineExceeded("late")):
        routes.shards[1].always = fate
        with pytest.raises(Unavailable, match="shard-1"):
            await listing_of(routes).count()
    routes.shards[1].always = None
    nothing_foreign = {"foreign": {"count": 0, "all": False}}
    routes.shards[1].handle = lambda method, params: [] if method == "stats" else nothing_foreign
    with pytest.raises(InternalError):
        await listing_of(routes).count()


# --- the largest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_", range(80))
async def test_top_is_what_sorting_everything_gives(seed, round_):
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = populated(chance, shards=chance.choice([1, 2, 4]), foreign=chance.choice([0, 0.2, 0.9]))
    n = chance.choice([0, 1, 2, 5, 1000])
    prefix = chance.choice([b"", b"\x01"])
    listing = listing_of(routes, remembered_max=chance.choice([1, 1000]))
    assert await listing.top(n, prefix) == largest(routes, n, prefix)


async def test_top_sees_a_counter_whose_partials_are_small_everywhere():
    routes = ScriptedRoutes(3)
    for number in range(9):
        routes.shards[number % 3].add(bytes([number]), 10)
    for shard in (1, 2):
        routes.divert(shard, b"\x00spread", 6)
    routes.divert(1, b"\x00lost", 100)
    routes.divert(2, b"\x00lost", -100)
    assert (await listing_of(routes).top(1)) == [(b"\x00spread", 12)]


async def test_top_looks_at_everything_where_a_shard_cannot_list_its_largest():
    routes = populated(random.Random(5))
    for shard in routes.shards:
        shard.always = lambda method, _: TooLarge("long keys") if method == "top" else None
    assert await listing_of(routes).top(4) == largest(routes, 4)


@pytest.mark.parametrize("n", [-1, 65_537])
async def test_top_has_bounds(n):
    with pytest.raises(BadRequest):
        await listing_of(ScriptedRoutes(2)).top(n)


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_a_visit_that_is_cancelled_anywhere_leaves_the_walk_where_it_was():
    for turns in range(40):
        routes = populated(random.Random(6))
        listing = listing_of(routes)
        shards, _ = await listing.foreign_shards()
        walk = Walk(shards)
        found: dict[bytes, int] = {}
        visits = 0
        while not listing.is_over(walk):
            visiting = asyncio.create_task(listing.visit(walk, b"", 3))
            if visits == turns // 8:
                for _ in range(turns % 8):
                    await asyncio.sleep(0)
                if visiting.cancel():
                    await asyncio.wait([visiting])
                    assert asyncio.all_tasks() == {asyncio.current_task()}
                    visiting = asyncio.create_task(listing.visit(walk, b"", 3))
            page = await visiting
            assert not found.keys() & dict(page).keys()
            found |= dict(page)
            visits += 1
        assert found == truth(routes)


async def test_a_counter_diverted_after_the_first_round_comes_with_its_total():
    routes = ScriptedRoutes(2)
    routes.divert(1, b"\x00early", 1)
    routes.shards[0].add(b"\x00late", 5)
    listing = listing_of(routes)
    walk = Walk(frozenset({1}))
    assert await listing.visit(walk, b"", 10) == [(b"\x00early", 1)]
    routes.divert(1, b"\x00late", 2)
    assert await listing.visit(walk, b"", 10) == [(b"\x00late", 7)]
