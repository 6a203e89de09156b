"""Pages by cursors: complete, without repetition while the walk is remembered, and repeatable."""

import random

import pytest

from pycounter.coordinator.listing import Listing
from pycounter.coordinator.scan_cursors import ScanCursors
from pycounter.coordinator.totals import Totals
from pycounter.errors import BadRequest, Unavailable
from tests.support.scripted_routes import REFUSE, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)


def populated(chance, *, foreign=0.4):
    routes = ScriptedRoutes(3)
    for number in range(40):
        key = bytes([number % 7]) + b"key-%d" % number
        if chance.random() < 0.8:
            routes.shards[routes.home(key)].add(key, number)
        for shard in range(3):
            if shard != routes.home(key) and chance.random() < foreign:
                routes.divert(shard, key, 1)
    return routes


def cursors_of(routes, **more):
    listing = Listing(routes, Totals(routes, foreign=routes), foreign=routes)
    return ScanCursors(listing, 3, **more)


def truth(routes, prefix=b""):
    keys = {key for shard in routes.shards for key in shard.counters if key.startswith(prefix)}
    return {key: routes.total(key) for key in keys}


async def walk(cursors, prefix=b"", *, others=(), chance=None):
    """All pages, each from one of the coordinators that there are, and perhaps twice."""
    found, cursor = [], 0
    while True:
        server = chance.choice([cursors, *others]) if chance else cursors
        asked = cursor
        cursor, page = await server.page(asked, 3, prefix)
        if chance and asked and chance.random() < 0.4:
            again = await server.page(asked, 3, prefix)
            assert again == (cursor, page), "the same cursor gives the same page"
        found += page
        assert 0 <= cursor < 2**63
        if not cursor:
            return found


@pytest.mark.parametrize("foreign", [0, 0.1, 0.5])
@pytest.mark.parametrize("round_", range(20))
async def test_every_counter_comes_once_though_pages_are_asked_for_again(seed, round_, foreign):
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = populated(chance, foreign=foreign)
    prefix = chance.choice([b"", b"\x02"])
    found = await walk(cursors_of(routes), prefix, chance=chance)
    assert len(found) == len(dict(found))
    assert dict(found) == truth(routes, prefix)


@pytest.mark.parametrize("round_", range(20))
async def test_at_another_coordinator_none_is_left_out(seed, round_):
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = populated(chance)
    found = await walk(cursors_of(routes), others=[cursors_of(routes)], chance=chance)
    assert dict(found) == truth(routes)


async def test_a_walk_that_is_forgotten_may_repeat_counters_and_leaves_none_out():
    routes = populated(random.Random(1))
    found = await walk(cursors_of(routes, remembered_max=1))
    assert dict(found) == truth(routes)
    assert len(found) > len(dict(found))


async def test_a_page_that_fails_can_be_asked_for_again():
    routes = populated(random.Random(2))
    cursors = cursors_of(routes)
    cursor, first = await cursors.page(0, 3, b"")
    for shard in routes.shards:
        shard.always = REFUSE
    with pytest.raises(Unavailable):
        await cursors.page(cursor, 3, b"")
    for shard in routes.shards:
        shard.always = None
    found = dict(first)
    while cursor:
        cursor, page = await cursors.page(cursor, 3, b"")
        assert not found.keys() & dict(page).keys()
        found |= dict(page)
    assert found == truth(routes)


async def test_only_matching_keys_come():
    routes = populated(random.Random(3))
    found, cursor = [], 0
    while True:
        cursor, page = await cursors_of(routes).page(cursor, 10, b"", matches=lambda key: key.endswith(b"7"))
        found += page
        if not cursor:
            break
    assert {key for key, _ in found} == {key for key in truth(routes) if key.endswith(b"7")}


@pytest.mark.parametrize("cursor", [-1, 2**64 - 1, 6 << 32, 1 << 63])
async def test_cursors_that_nobody_gave_are_refused(cursor):
    with pytest.raises(BadRequest):
        await cursors_of(populated(random.Random(4))).page(cursor, 3, b"")
