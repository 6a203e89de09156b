"""Deletion of many counters by one call: each once, whatever is refused, lost and repeated."""

import msgpack
import pytest

from pycounter.clock import Clock
from pycounter.coordinator.bulk_removals import BulkRemovals
from pycounter.coordinator.listing import Listing
from pycounter.coordinator.settling import RemovalSettings, Settling
from pycounter.coordinator.totals import REQUEST_BYTES_MAX, Totals
from pycounter.errors import BadKey, BadRequest, Overloaded, RemovalUnsettled, TooLarge, Unavailable
from tests.support.scripted_routes import LOSE, REFUSE, STALL, ScriptedCache, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)

QUICK = RemovalSettings(attempt_timeout_s=0.02, backoff_first_s=0.001, backoff_max_s=0.002)
#: Of every shard.
HELD = {b"a-%d" % number: 10 + number for number in range(8)} | {b"b-%d" % number: 1 for number in range(3)}


@pytest.fixture
def routes():
    routes = ScriptedRoutes(3)
    for shard in routes.shards:
        shard.counters.update(HELD)
    return routes


def bulk_of(routes, cache=None, settings=QUICK):
    cache = cache or ScriptedCache()
    listing = Listing(routes, Totals(routes, foreign=routes, cache=cache), foreign=routes, timeout_s=0.02)
    return BulkRemovals(routes, Settling(routes, settings, Clock()), listing, on_removal=cache.on_removal)


def left(routes):
    return [sorted(shard.counters) for shard in routes.shards]


# --- a list ----------------------------------------------------------------------------------------------------------


async def test_a_list_is_one_request_to_each_shard(routes):
    assert await bulk_of(routes).delete_many(["a-1", b"b-0", "never"]) == [33, 3, 0]
    assert [shard.count("delete_many") for shard in routes.shards] == [1, 1, 1]
    assert left(routes) == [sorted(HELD.keys() - {b"a-1", b"b-0"})] * 3
    assert await bulk_of(routes).delete_many([]) == []


async def test_a_key_that_comes_again_is_deleted_already(routes):
    assert await bulk_of(routes).delete_many(["a-1", b"a-1", "a-2"]) == [33, 0, 36]


async def test_a_bad_key_spoils_itself_only(routes):
    outcomes = await bulk_of(routes).delete_many(["a-1", "", 7, "a-2"])
    assert [type(outcome) for outcome in outcomes] == [int, BadKey, BadKey, int]
    with pytest.raises(BadKey):
        await bulk_of(routes).delete_many(["", 7])


@pytest.mark.parametrize("keys", ["a-1", b"a-1", bytearray(b"a-1")], ids=["str", "bytes", "bytearray"])
async def test_one_key_is_no_list(routes, keys):
    with pytest.raises(TypeError, match="for one counter there is delete"):
        await bulk_of(routes).delete_many(keys)
    assert not routes.requests("delete_many")


@pytest.mark.parametrize(("count", "length", "requests"), [(1000, 1000, 2), (16_000, 15, 2), (500, 1000, 1)])
async def test_a_list_is_cut_where_a_request_would_be_too_large(routes, count, length, requests):
    await bulk_of(routes).delete_many([b"%d" % number + b"x" * (length - 5) for number in range(count)])
    sent = [params[0] for name, params in routes.shards[0].requests if name == "delete_many"]
    assert [len(msgpack.packb(items)) <= REQUEST_BYTES_MAX for items in sent] == [True] * requests
    assert sum(len(items) for items in sent) == count


async def test_a_list_is_repeated_under_its_ids(routes):
    routes.shards[1].script = [LOSE, REFUSE, STALL]
    assert await bulk_of(routes).delete_many(["a-1", "a-2"]) == [33, 36]
    assert [shard.count("delete_many") for shard in routes.shards] == [1, 4, 1]
    assert len({str(params[0]) for name, params in routes.shards[1].requests if name == "delete_many"}) == 1


async def test_only_what_is_not_settled_is_sent_again(routes):
    shard = routes.shards[1]
    shard.refused = {b"a-2": "overloaded: later"}
    shard.script = [None, lambda *_: shard.refused.clear()]
    assert await bulk_of(routes).delete_many(["a-1", "a-2", "a-3"]) == [33, 36, 39]
    sent = [[key for key, _ in params[0]] for name, params in shard.requests if name == "delete_many"]
    assert sent == [[b"a-1", b"a-2", b"a-3"], [b"a-2"]]


async def test_each_counter_has_its_own_outcome(routes):
    for shard in routes.shards:
        shard.refused = {b"a-2": "too_large: really"}
    routes.shards[2].refused[b"a-3"] = "overloaded: for ever"
    removed, refused, unsettled = await bulk_of(routes).delete_many(["a-1", "a-2", "a-3"], timeout_s=0.05)
    assert (removed, type(refused)) == (33, TooLarge)
    assert unsettled.taken == {"shard-0": 13, "shard-1": 13}
    assert isinstance(unsettled.unsettled["shard-2"], Overloaded)
    routes.shards[2].refused.clear()
    for shard in routes.shards:
        shard.add(b"a-1", 5)
    repeat = await bulk_of(routes).delete_many(["a-3", "a-1"], operation_id=unsettled.operation_id)
    assert repeat == [39, 33], "what was taken then and now, and nothing of what came since"
    assert routes.total(b"a-1") == 15


async def test_a_list_needs_every_shard(routes):
    routes.shards[1].is_down = True
    with pytest.raises(Unavailable, match="delete_many needs every shard, and shard-1 can't be reached"):
        await bulk_of(routes).delete_many(["a-1"])
    assert not routes.requests("delete_many")


async def test_each_key_is_a_new_version_when_it_is_sent_and_when_it_is_settled(routes):
    cache, seen = ScriptedCache(), []
    routes.shards[0].always = lambda *_: seen.append(cache.begin(b"a-1"))
    await bulk_of(routes, cache).delete_many(["a-1"])
    assert seen[0] > 0
    assert cache.begin(b"a-1") > seen[0]


# --- a prefix --------------------------------------------------------------------------------------------------------


async def test_a_prefix_goes_page_by_page(routes):
    told: list[int] = []
    assert await bulk_of(routes).delete_prefix("a-", on_progress=told.append) == 3 * 8
    assert left(routes) == [sorted(key for key in HELD if key.startswith(b"b"))] * 3
    assert told == sorted(told)
    assert told[-1] == 24
    assert len(told) > 3, "several pages of each shard"
    assert await bulk_of(routes).delete_prefix(b"a-") == 0


@pytest.mark.parametrize("prefix", ["", b""], ids=["str", "bytes"])
async def test_an_empty_prefix_is_refused(routes, prefix):
    with pytest.raises(BadRequest, match="delete_all deletes everything"):
        await bulk_of(routes).delete_prefix(prefix)
    assert left(routes) == [sorted(HELD)] * 3


@pytest.mark.parametrize("prefix", [5, True, None, 1.5, ("a",), bytearray(b"a"), "\ud800"], ids=repr)
async def test_what_no_key_begins_with(routes, prefix):
    listing = Listing(routes, Totals(routes, foreign=routes, cache=ScriptedCache()), foreign=routes)
    for call in (bulk_of(routes).delete_prefix(prefix), listing.top(3, prefix), anext(listing.scan(prefix))):
        with pytest.raises(BadKey, match="nothing was sent"):
            await call
    assert not routes.requests("scan", "top", "delete_many")


async def test_a_prefix_goes_on_whatever_is_lost(routes):
    routes.shards[0].script = [LOSE, REFUSE, STALL, LOSE, None, LOSE]
    routes.shards[2].script = [REFUSE, LOSE, LOSE]
    assert await bulk_of(routes).delete_prefix("a-") == 24


async def test_a_counter_made_anew_is_not_deleted_again_under_the_id(routes):
    bulk = bulk_of(routes)
    assert await bulk.delete_prefix("a-", operation_id=b"mine") == 24
    routes.shards[1].add(b"a-1", 5)
    routes.shards[1].add(b"a-new", 6)
    await bulk.delete_prefix("a-", operation_id=b"mine")
    assert routes.shards[1].counters.keys() - HELD.keys() == set(), "it was not there the first time"
    assert routes.total(b"a-1") == 5
    assert await bulk.delete_prefix("a-") == 1, "under another id it is another deletion"


async def test_a_prefix_that_does_not_get_to_its_end_says_how_far_it_came(routes):
    shard = routes.shards[1]
    shard.refused = {b"a-5": "too_large: really"}
    with pytest.raises(RemovalUnsettled, match=r"shard-0 deleted 8 counters") as caught:
        await bulk_of(routes).delete_prefix("a-", operation_id=b"mine")
    assert caught.value.operation_id == b"mine"
    assert isinstance(caught.value.unsettled["shard-1"], TooLarge)
    taken = caught.value.taken.get("shard-1", 0)
    assert taken == 8 - len([key for key in shard.counters if key.startswith(b"a")])
    shard.refused.clear()
    assert await bulk_of(routes).delete_prefix("a-", operation_id=b"mine") == 8 - taken


async def test_a_prefix_ends_with_its_time(routes):
    routes.shards[1].always = REFUSE
    with pytest.raises(RemovalUnsettled, match=r"not settled at shard-1 \(nothing was applied: shard-1 can't"):
        await bulk_of(routes).delete_prefix("a-", timeout_s=0.05)
    for shard in routes.shards:
        shard.always = REFUSE
    with pytest.raises(Unavailable, match="can't be reached"):
        await bulk_of(routes).delete_prefix("b-", timeout_s=0.02)


async def test_a_prefix_needs_every_shard(routes):
    routes.shards[1].is_down = True
    with pytest.raises(Unavailable, match="delete_prefix needs every shard"):
        await bulk_of(routes).delete_prefix("a-")
    assert not routes.requests("scan")
