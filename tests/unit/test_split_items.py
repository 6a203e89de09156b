"""Lists of increments, split by the shards that are their homes."""

import asyncio
from typing import Any

import pytest

from pycounter._native import ForeignKeys, HashRing, LatestValues, ReadCache, SessionLink
from pycounter.errors import BadDelta, BadKey, BadRequest

RING = HashRing(["a", "b", "c"])
NAMES = list(RING.shards)


def test_each_item_is_in_the_part_of_its_home_in_order():
    items = [(f"key-{number % 50}", number) for number in range(500)]
    split = RING.split(items)
    assert len(split) == 500
    assert split.shards == [0, 1, 2]
    for shard in split.shards:
        places = split.places(shard)
        assert places == [place for place, (key, _) in enumerate(items) if RING.home(key) == NAMES[shard]]
        assert split.count(shard) == len(places)
    assert [split.item(place) for place in range(500)] == items
    assert split.places(3) == []


def test_a_wrong_item_has_its_error_and_no_shard():
    items: list[Any] = [("a", 1), ("", 1), ("b", 2**63), "no pair", (b"\xff", 3)]
    split = RING.split(items)
    assert sorted(place for shard in split.shards for place in split.places(shard)) == [0, 4]
    assert [type(result) for result in split.results()] == [int, BadKey, BadDelta, BadRequest, int]
    assert split.item(4) == (b"\xff", 3)
    for place in (1, 2, 3, 5):
        with pytest.raises(IndexError):
            split.item(place)
    with pytest.raises(TypeError):
        RING.split(5)  # type: ignore[arg-type]
    assert RING.split([]).shards == []


def test_a_dict_that_changes_while_it_is_read():
    items = {"a": 1}

    class Delta:
        def __index__(self) -> int:
            items.clear()
            return 2

    items["b"] = Delta()  # type: ignore[assignment]
    items["c"] = 3
    split = RING.split(items)
    assert [split.item(place) for place in range(3)] == [("a", 1), ("b", 2), ("c", 3)]


def test_foreign_keys_are_found_and_cached_values_dropped():
    split = RING.split([("a", 1), ("b", 1), ("a", 2)])
    foreign = ForeignKeys(3)
    assert foreign.foreign_places(split) == []
    foreign.note((NAMES.index(RING.home("a")) + 1) % 3, "a")
    assert sorted(foreign.foreign_places(split)) == [0, 2]
    cache = ReadCache()
    for key in ("a", "b", "other"):
        assert cache.fill(key, 5, cache.begin(key))
    cache.bump_split(split)
    assert [cache.get(key) for key in ("a", "b", "other")] == [None, None, 5]


async def test_withdrawn_items_are_named_and_others_have_their_errors():
    link = SessionLink(clock=asyncio.get_running_loop().time)
    ring = HashRing(["only"])
    split, other = ring.split([("a", 1), ("", 1), ("b", 2)]), ring.split([("c", 3)])
    withdrawn, refused = asyncio.get_running_loop().create_future(), asyncio.get_running_loop().create_future()
    link.incr_split(split, 0, withdrawn)
    assert link.withdraw(1.0, lambda: RuntimeError("never raised")) == 2
    assert await withdrawn is None
    assert split.withdrawn() == [0, 2]
    link.incr_split(other, 0, refused)
    link.give_up("gone", "overloaded: no")
    assert await refused is None
    assert other.withdrawn() == []
    assert [result.code for result in other.results()] == ["overloaded"]
    values = LatestValues(10)
    values.note_split(other, 0)
    assert len(values) == 0
    with pytest.raises(ValueError, match="no part"):
        link.incr_split(ring.split([]), 0, refused)
