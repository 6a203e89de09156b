"""A client of a coordinator: what it sends together spoils nothing for others, what it can't know it can repeat."""

import asyncio

import pytest

from pycounter.client.caller import Caller
from pycounter.client.id_client import IdClient
from pycounter.client.pool import Pool
from pycounter.clock import Clock
from pycounter.coordinator.coordinator_route import CoordinatorRoute
from pycounter.errors import BadDelta, BadKey, BadRequest, IdExpired, RemovalUnsettled
from tests.support.scripted_coordinator import ScriptedCoordinator
from tests.support.scripted_shard import SILENCE

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
async def server():
    async with ScriptedCoordinator() as scripted:
        yield scripted


@pytest.fixture
async def route(server):
    pool = Pool(server.address, is_shard=False)
    made = CoordinatorRoute(Caller(pool), IdClient(pool), clock=Clock(), timeout_s=5.0)
    yield made
    await made.ids.close(timeout_s=0.0)
    await pool.close()


def incr(route, key, delta=1):
    return route.incr(key, delta, level=None, detail=False, timeout_s=5.0)


@pytest.mark.parametrize(
    ("bad", "error"),
    [(("\ud800", 1), BadKey), (("", 1), BadKey), ((5, 1), BadKey), (("a", 2**63), BadDelta), (("a", 1.0), BadDelta)],
)
async def test_an_increment_that_can_not_be_sent_spoils_no_other_that_leaves_with_it(route, bad, error):
    together = [asyncio.create_task(incr(route, *item)) for item in (("a", 2), bad, ("b", 3))]
    with pytest.raises(error):
        await together[1]
    assert (await together[0], await together[2]) == (2, 3)
    good, spoiled, other = await route.incr_many([("a", 2), bad, ("b", 3)], level=None, timeout_s=5.0)
    assert (good, type(spoiled), other) == (4, error, 6)


async def test_each_item_has_its_outcome(route):
    (error,) = await route.incr_many(["no item"], level=None, timeout_s=5.0)
    assert isinstance(error, BadRequest)
    assert await route.incr_many([], level=None, timeout_s=5.0) == []
    assert route.ids.health.queued == 0


async def test_a_removal_that_is_not_answered_names_the_id_to_repeat_it_under(server, route):
    server.totals[b"a"] = 5
    server.after = lambda: SILENCE
    with pytest.raises(RemovalUnsettled) as unsettled:
        await route.drain("a", operation_id=None, timeout_s=0.1)
    server.after = lambda: None
    number = unsettled.value.operation_id
    assert number.hex() in str(unsettled.value)
    assert await route.drain("a", operation_id=number, timeout_s=5.0) == 5


async def test_an_id_that_is_too_old_is_not_to_be_repeated(server, route):
    server.handlers["drain"] = lambda *_: raise_expired()
    with pytest.raises(IdExpired):
        await route.drain("a", operation_id=b"old", timeout_s=5.0)


def raise_expired():
    raise IdExpired("no")
