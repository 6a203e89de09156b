"""The rule for keys and deltas at clients: the same table as in a process."""

import pytest

import pycounter
from pycounter.client import SessionClient
from pycounter.errors import BadDelta, BadKey
from tests.support.values import BAD_DELTAS, BAD_KEYS, DELTAS, FORMS, KEYS

from .test_blocking_client import url_of


async def test_the_client(shard):
    async with pycounter.connect(url_of(shard)) as client:
        for number, (delta, amount) in enumerate(DELTAS):
            assert await client.incr(f"one {number}", delta) == amount
        items = [(f"many {number}", delta) for number, (delta, _) in enumerate(DELTAS)]
        assert await client.incr_many(items) == [amount for _, amount in DELTAS]
        for key, held in KEYS:
            before = await client.get(held)
            assert await client.incr(key) == before + 1
            assert await client.incr_many([(key, 1)]) == [before + 2]
        for delta in BAD_DELTAS:
            with pytest.raises(BadDelta):
                await client.incr("bad", delta)
        outcomes = await client.incr_many([("good", 1), *(("bad", delta) for delta in BAD_DELTAS)])
        assert [type(outcome) for outcome in outcomes] == [int, *[BadDelta] * len(BAD_DELTAS)]
        for key in BAD_KEYS:
            with pytest.raises(BadKey):
                await client.incr(key)
        outcomes = await client.incr_many([("good", 1), *((key, 1) for key in BAD_KEYS)])
        assert [type(outcome) for outcome in outcomes] == [int, *[BadKey] * len(BAD_KEYS)]
        assert await client.get("bad") == 0


def test_the_blocking_client(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        for number, (delta, amount) in enumerate(DELTAS):
            assert client.incr(f"one {number}", delta) == amount
        for delta in BAD_DELTAS:
            with pytest.raises(BadDelta):
                client.incr("bad", delta)
        for key in BAD_KEYS:
            with pytest.raises(BadKey):
                client.incr(key)
        outcomes = client.incr_many([("good", 1), *((key, 1) for key in BAD_KEYS)])
        assert [type(outcome) for outcome in outcomes] == [int, *[BadKey] * len(BAD_KEYS)]


async def test_forms_of_many_increments(shard):
    async with pycounter.connect(url_of(shard)) as client, SessionClient(*shard.address) as session:
        for form in FORMS.values():
            await client.delete_all()
            assert sorted(await client.incr_many(form()), key=int) == [1, 2]  # type: ignore[arg-type]
            assert sorted(await session.apply(form()), key=int) == [2, 4]  # type: ignore[arg-type]
            assert await client.get_many(["a", "b"]) == [2, 4]


def test_forms_of_many_increments_for_the_blocking_client(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        for form in FORMS.values():
            client.delete_all()
            client.incr_many(form())
            assert client.get_many(["a", "b"]) == [1, 2]
