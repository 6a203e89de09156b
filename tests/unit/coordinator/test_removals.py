"""Removals: everything is taken once, whatever is refused, lost and repeated, and the error says who took what."""

import asyncio
import random

import pytest

from pycounter.clock import Clock
from pycounter.coordinator.removals import Removals, RemovalSettings
from pycounter.coordinator.totals import Totals
from pycounter.errors import (
    BadDelta,
    BadRequest,
    CounterOverflow,
    Forbidden,
    IdExpired,
    IdReused,
    InternalError,
    Overloaded,
    RemovalUnsettled,
    RpcError,
    Unauthenticated,
    Unavailable,
    UnknownOutcome,
    WrongShard,
)
from tests.support.scripted_routes import LOSE, REFUSE, STALL, ScriptedCache, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)

QUICK = RemovalSettings(attempt_timeout_s=0.02, backoff_first_s=0.001, backoff_max_s=0.002)
REMOVALS = ["drain", "delete"]


@pytest.fixture
def routes():
    routes = ScriptedRoutes(3)
    for number, shard in enumerate(routes.shards):
        shard.add(b"\x00k", 10**number)
    return routes


class ClockWithIds(Clock):
    """Gives these instead of random bytes."""

    def __init__(self, ids):
        super().__init__()
        self.ids = iter(ids)

    def random_bytes(self, count):
        del count
        return next(self.ids)


def removals_of(routes, *, cache=None, settings=QUICK, ids=None):
    cache = cache or ScriptedCache()
    totals = Totals(routes, foreign=routes, cache=cache)
    clock = Clock() if ids is None else ClockWithIds(ids)
    return Removals(routes, totals, bump=cache.bump, on_removal=cache.on_removal, settings=settings, clock=clock)


async def remove(removals, method, key=b"\x00k", **options):
    return await getattr(removals, method)(key, **options)


def options_of(routes, shard, method):
    """The options of each request of a method that a shard got."""
    return [params[-1] for name, params in routes.shards[shard].requests if name == method]


def born_at(time_ms, options):
    """The options but for the birth, which is then, or a moment before: what it takes to ask counts as age."""
    assert max(0, time_ms - 5000) <= options["born"] <= time_ms
    return {name: value for name, value in options.items() if name != "born"}


@pytest.mark.parametrize("change", ["drain", "delete", "set"])
async def test_a_replica_that_has_not_seen_the_change_is_not_read_after_it(change):
    routes = ScriptedRoutes(1, replicas=1)
    for holder in (routes.shards[0], routes.copies[0][0]):
        holder.add(b"\x00k", 5)
    totals = Totals(routes, foreign=routes)
    assert await totals.get(b"\x00k", read_from="replica") == 5
    if change == "set":
        await removals_of(routes).set(b"\x00k", 9)
    else:
        await remove(removals_of(routes), change)
    assert await totals.get(b"\x00k", read_from="replica") == (9 if change == "set" else 0)


# --- every shard -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", REMOVALS)
async def test_every_shard_is_asked_and_the_sum_is_answered(routes, method):
    assert await remove(removals_of(routes), method) == 111
    assert routes.total(b"\x00k") == 0
    assert (b"\x00k" in routes.shards[1].counters) == (method == "drain")


async def test_all_shards_get_the_same_id_and_its_birth_on_their_own_clocks(routes):
    for number, shard in enumerate(routes.shards):
        shard.time_ms = number * 1000
    await removals_of(routes, ids=[b"an id"]).drain("\x00k", level="applied")
    for number in range(3):
        (options,) = options_of(routes, number, "drain")
        assert born_at(number * 1000, options) == {"id": b"an id", "detail": True, "level": "applied"}


@pytest.mark.parametrize("method", [*REMOVALS, "set"])
async def test_a_birth_is_on_the_clock_that_a_shard_shows_now_though_it_stood_still_since_it_was_greeted(
    routes, method
):
    for shard in routes.shards:
        shard.stood_still_ms = 3_600_000
    await remove(removals_of(routes), method, **({"value": 5} if method == "set" else {}))
    (options,) = options_of(routes, 0, "incr" if method == "set" else method)
    assert "id" in born_at(1_000_000, options)


async def test_nothing_is_sent_to_a_shard_before_it_has_said_what_time_it_is(routes):
    routes.shards[1].times_untold = 2
    assert await removals_of(routes).drain(b"\x00k", operation_id=b"an id", age_ms=1000) == 111
    (options,) = options_of(routes, 1, "drain")
    assert born_at(999_000, options) == {"id": b"an id", "detail": True}
    routes.shards[1].times_untold = 1_000_000
    with pytest.raises(RemovalUnsettled) as caught:
        await removals_of(routes).drain(b"\x00k", timeout_s=0.05)
    assert list(caught.value.unsettled) == ["shard-1"]
    assert routes.shards[1].count("drain") == 1


async def test_a_given_id_keeps_its_age_and_one_of_unknown_age_has_no_birth(routes):
    removals = removals_of(routes)
    await removals.drain(b"\x00k", operation_id=b"old", age_ms=60_000)
    await removals.drain(b"\x00k", operation_id=b"unknown")
    dated, undated = options_of(routes, 0, "drain")
    assert (born_at(940_000, dated), undated) == (
        {"id": b"old", "detail": True},
        {"id": b"unknown", "detail": True},
    )
    with pytest.raises(IdExpired):
        await removals.drain(b"\x00k", operation_id=b"too old", age_ms=110_000)
    for wrong in (b"", b"x" * 65):
        with pytest.raises(BadRequest):
            await removals.drain(b"\x00k", operation_id=wrong)


@pytest.mark.parametrize("method", [*REMOVALS, "set"])
async def test_a_shard_known_to_be_down_refuses_all_of_it_before_anything_is_sent(routes, method):
    routes.shards[2].is_down = True
    with pytest.raises(Unavailable, match=r"shard-2 .* nothing was applied"):
        await remove(removals_of(routes), method, **({"value": 5} if method == "set" else {}))
    assert not any(shard.requests for shard in routes.shards)


@pytest.mark.parametrize("method", REMOVALS)
@pytest.mark.parametrize("failure", [REFUSE, LOSE, STALL, Overloaded("full")], ids=str)
async def test_what_fails_is_repeated_at_that_shard_under_the_same_id(routes, method, failure):
    routes.shards[1].script = [failure, failure]
    assert await remove(removals_of(routes, ids=[b"an id"]), method) == 111
    assert [shard.count(method) for shard in routes.shards] == [1, 3, 1]
    assert {options["id"] for options in options_of(routes, 1, method)} == {b"an id"}
    assert routes.total(b"\x00k") == 0


async def test_a_lost_reply_takes_once_though_the_counter_goes_on(routes):
    """What comes between the first attempt and its repetition stays."""
    routes.shards[0].script = [LOSE]
    draining = asyncio.create_task(removals_of(routes).drain(b"\x00k"))
    while not routes.shards[0].handled:
        await asyncio.sleep(0)
    routes.shards[0].add(b"\x00k", 7)
    assert await draining == 111
    assert routes.total(b"\x00k") == 7


@pytest.mark.parametrize("method", REMOVALS)
async def test_unsettled_at_the_end_says_who_took_what_and_ends_when_it_is_repeated(routes, method):
    removals = removals_of(routes)
    routes.shards[1].always = LOSE
    with pytest.raises(RemovalUnsettled, match=r"shard-0 took 1, shard-2 took 100; not settled at shard-1 ") as caught:
        await remove(removals, method, timeout_s=0.05)
    error = caught.value
    assert error.taken == {"shard-0": 1, "shard-2": 100}
    assert list(error.unsettled) == ["shard-1"]
    assert error.wire_text.startswith("unknown_outcome: ")
    assert error.retryable
    assert error.operation_id.hex() in str(error)
    routes.shards[1].always = None
    routes.shards[0].add(b"\x00k", 5)
    assert await remove(removals, method, operation_id=error.operation_id) == 111
    assert routes.total(b"\x00k") == 5


async def test_one_that_never_took_it_is_unsettled_too_when_others_did(routes):
    routes.shards[1].always = REFUSE
    with pytest.raises(RemovalUnsettled) as caught:
        await removals_of(routes).drain(b"\x00k", timeout_s=0.03)
    assert isinstance(caught.value.unsettled["shard-1"], Unavailable)
    assert routes.shards[1].counters[b"\x00k"] == 10


@pytest.mark.parametrize("failure", [REFUSE, Overloaded("full"), Forbidden("no"), IdReused("another")], ids=str)
async def test_refused_by_all_nothing_was_applied(routes, failure):
    for shard in routes.shards:
        shard.always = failure
    with pytest.raises(RpcError) as caught:
        await removals_of(routes).drain(b"\x00k", timeout_s=0.03)
    assert caught.value.effect == "nothing"
    assert routes.total(b"\x00k") == 111


@pytest.mark.parametrize("said", [None, "111", {"value": 1}, {"value": 1, "commit": "x"}], ids=str)
async def test_nonsense_is_an_error(routes, said):
    routes.shards[1].handle = lambda *_: said
    with pytest.raises(InternalError, match="shard-1"):
        await removals_of(routes).drain(b"\x00k")


async def test_without_any_time_nothing_is_sent(routes):
    with pytest.raises(Unavailable, match="nothing was applied"):
        await removals_of(routes).drain(b"\x00k", timeout_s=0)
    assert not routes.requests("drain")


@pytest.mark.parametrize(
    "door", [Unauthenticated("the token"), Forbidden("no"), WrongShard("restored from a backup")], ids=str
)
async def test_a_refusal_at_the_door_does_not_settle_an_earlier_attempt(door):
    routes = ScriptedRoutes(1)
    routes.shards[0].add(b"k", 5)
    routes.shards[0].script = [LOSE, door]
    with pytest.raises(RemovalUnsettled):
        await removals_of(routes).drain(b"k")
    routes.shards[0].script = [REFUSE, door]
    with pytest.raises(type(door)):
        await removals_of(routes).drain(b"k")


async def test_a_forgotten_id_is_never_sent_again(routes):
    routes.shards[1].always = IdExpired("too old")
    with pytest.raises(RemovalUnsettled):
        await removals_of(routes).drain(b"\x00k")
    assert routes.shards[1].count("drain") == 1


async def test_repeating_ends_with_the_window_of_the_id(routes):
    settings = RemovalSettings(id_window_s=0.03, backoff_first_s=0.001, backoff_max_s=0.002)
    routes.shards[1].always = LOSE
    with pytest.raises(RemovalUnsettled):
        await removals_of(routes, settings=settings).drain(b"\x00k", timeout_s=60)


@pytest.mark.parametrize("method", [*REMOVALS, "set"])
async def test_the_version_changes_when_it_is_sent_and_when_it_is_settled(routes, method):
    cache = ScriptedCache()
    versions = []
    wanted = "incr" if method == "set" else method

    def look(name, _):
        if name == wanted:
            versions.append(cache.begin(b"\x00k"))

    routes.shards[0].always = look
    await remove(removals_of(routes, cache=cache), method, **({"value": 5} if method == "set" else {}))
    assert versions == [1]
    assert cache.begin(b"\x00k") == 2


async def test_delete_all_is_one_operation_at_each_shard_and_once_under_its_id(routes):
    for shard in routes.shards:
        shard.add(b"\x00other", 1)
    routes.shards[1].script = [LOSE, STALL]
    removals = removals_of(routes, ids=[b"made"])
    assert await removals.delete_all() == 6
    assert not any(shard.counters for shard in routes.shards)
    assert [shard.count("delete_all") for shard in routes.shards] == [1, 3, 1]
    assert {options["id"] for shard in range(3) for options in options_of(routes, shard, "delete_all")} == {b"made"}
    routes.shards[2].add(b"\x00k", 5)
    assert await removals.delete_all(operation_id=b"made") == 6
    assert routes.total(b"\x00k") == 5, "it came after"


@pytest.mark.parametrize(
    ("fate", "state"), [(REFUSE, "nothing was applied: shard-1 can't be reached"), (LOSE, "nobody knows: shard-1 was")]
)
async def test_delete_all_says_what_was_and_what_was_not_applied(routes, fate, state):
    routes.shards[2].add(b"\x00other", 1)
    routes.shards[1].always = fate
    said = rf"^shard-0 deleted 1 counters, shard-2 deleted 2 counters; not settled at shard-1 \({state}"
    with pytest.raises(RemovalUnsettled, match=said) as caught:
        await removals_of(routes).delete_all(timeout_s=0.03)
    routes.shards[1].always = None
    routes.shards[0].add(b"\x00k", 7)
    assert await removals_of(routes).delete_all(operation_id=caught.value.operation_id) == 4
    assert routes.total(b"\x00k") == 7
    routes.shards[1].is_down = True
    with pytest.raises(Unavailable, match="nothing was applied"):
        await removals_of(routes).delete_all()


async def test_delete_all_makes_every_key_a_new_version_when_it_is_sent_and_when_it_is_settled(routes):
    cache = ScriptedCache()
    cache.fill(b"\x00k", 111, cache.begin(b"\x00k"))
    begun = []
    routes.shards[0].always = lambda *_: begun.append(cache.begin(b"\x00k"))
    await removals_of(routes, cache=cache).delete_all()
    assert not cache.fill(b"\x00k", 1, begun[0]), "a load that began before it was settled"
    assert cache.get(b"\x00k") is None


# --- set -------------------------------------------------------------------------------------------------------------


async def test_set_adds_the_difference_at_home(routes):
    assert await removals_of(routes).set(b"\x00k", 5) == 111
    assert routes.total(b"\x00k") == 5
    assert [shard.count("incr") for shard in routes.shards] == [1, 0, 0]
    assert await removals_of(routes).set(b"\x01new", 0) == 0
    assert routes.shards[1].counters[b"\x01new"] == 0, "it exists now"
    assert await removals_of(routes).exchange(b"\x01new", 7) == 0
    assert await removals_of(routes).exchange(b"\x02new", 7) is None


async def test_set_is_repeated_under_its_id_at_home(routes):
    routes.shards[0].script = [None, LOSE, REFUSE, STALL]
    assert await removals_of(routes).set(b"\x00k", 5) == 111
    assert routes.total(b"\x00k") == 5


async def test_set_needs_every_shard_for_its_total(routes):
    routes.shards[2].always = REFUSE
    with pytest.raises(Unavailable, match="shard-2"):
        await removals_of(routes).set(b"\x00k", 5)
    assert not routes.requests("incr")


async def test_set_that_is_sent_and_not_settled_is_unknown(routes):
    routes.shards[0].always = lambda name, _: LOSE if name == "incr" else None
    with pytest.raises(UnknownOutcome):
        await removals_of(routes).set(b"\x00k", 5, timeout_s=0.03)


async def test_set_takes_what_a_step_of_64_bits_can_reach(routes):
    removals = removals_of(routes)
    for wrong in (2**63, -(2**63) - 1, 1.5, True, "5"):
        with pytest.raises(BadDelta):
            await removals.set(b"\x00k", wrong)
    assert not routes.requests("incr")
    routes.shards[0].counters = {b"\x00k": 2**63 - 1 - 110}
    assert await removals.set(b"\x00k", -(2**63)) == 2**63 - 1
    assert routes.total(b"\x00k") == -(2**63), "in several steps"
    for shard in routes.shards:
        shard.counters.clear()
    for value in (-(2**63), 2**63 - 1, -(2**63), 2**63 - 2, -1):
        await removals.set(b"\x00k", value)
        assert routes.total(b"\x00k") == value
    for shard in routes.shards:
        shard.counters[b"\x00k"] = 2**63 - 1
    with pytest.raises(CounterOverflow):
        await removals.set(b"\x00k", -(2**63))


# --- cancellation, and at random -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", REMOVALS)
async def test_cancelled_anywhere_it_can_be_finished_under_its_id(method):
    done = False
    for turns in range(80):
        routes = ScriptedRoutes(3)
        cache = ScriptedCache()
        for shard in routes.shards:
            shard.add(b"\x00k", 5)
            shard.turns = 2
        routes.shards[1].script = [LOSE]
        settings = RemovalSettings(backoff_first_s=1e-9, backoff_max_s=1e-9)
        removals = removals_of(routes, cache=cache, settings=settings)
        removing = asyncio.create_task(remove(removals, method, operation_id=b"an id"))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = not removing.cancel()
        await asyncio.wait([removing])
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert cache.begin(b"\x00k") in {0, 2}, "what was sent is also settled, for the cache"
        assert await remove(removals, method, operation_id=b"an id") == 15
        assert routes.total(b"\x00k") == 0
        if done:
            break
    assert done


@pytest.mark.parametrize("round_", range(60))
async def test_nothing_is_lost_or_taken_twice_at_random(seed, round_):
    """Increments, diversions and removals through shards that fail at random: what was added is there or was taken."""
    chance = random.Random(f"{seed}:{round_}")
    print(f"seed {seed}, round {round_}")
    routes = ScriptedRoutes(3)
    removals = removals_of(routes)
    added = taken = 0

    def fate(method, _):
        return chance.choice([None, None, None, REFUSE, LOSE, Overloaded("full")]) if method != "incr" else None

    for shard in routes.shards:
        shard.always = fate
        shard.turns = chance.randrange(3)

    async def add() -> None:
        nonlocal added
        for _ in range(20):
            routes.shards[chance.randrange(3)].add(b"\x00k", 1)
            added += 1
            await asyncio.sleep(0)

    async def take() -> None:
        nonlocal taken
        for _ in range(5):
            number = None
            while True:
                try:
                    amount = await removals.drain(b"\x00k", operation_id=number, timeout_s=chance.choice([0.003, 5]))
                    taken += amount
                    break
                except RemovalUnsettled as error:
                    number = error.operation_id
                except (Unavailable, Overloaded):
                    pass  # this attempt did nothing: again, under the same id if there is one

    await asyncio.gather(add(), take(), take())
    assert taken + routes.total(b"\x00k") == added
