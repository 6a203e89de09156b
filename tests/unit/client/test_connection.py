"""One connection without a network: whose reply is whose, and what comes after the end."""

import asyncio
from typing import Any

import msgpack
import pytest

from pycounter.client.connection import RpcConnection


class Wire(asyncio.Transport):
    """What was written, and whether the connection was dropped."""

    def __init__(self):
        super().__init__()
        self.written: list[Any] = []
        self.is_aborted = False

    def write(self, data):
        self.written.append(msgpack.unpackb(data))

    def abort(self):
        self.is_aborted = True


@pytest.fixture
async def ends():
    connection, wire = RpcConnection(lambda: None, 1 << 20), Wire()
    connection.connection_made(wire)
    return connection, wire


def reply(wire, place, result):
    return msgpack.packb([1, wire.written[place][1], None, result])


async def test_the_reply_of_a_cancelled_call_is_nobody_elses(ends):
    connection, wire = ends
    first = asyncio.create_task(connection.call("get", "a"))
    await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(connection.call("get", "b"))
    await asyncio.sleep(0)
    assert connection.is_waiting
    connection.data_received(reply(wire, 0, "of a"))
    connection.data_received(reply(wire, 1, "of b"))
    assert await second == "of b"
    assert first.cancelled()
    assert not connection.is_waiting
    assert not wire.is_aborted


async def test_replies_in_another_order_find_their_calls(ends):
    connection, wire = ends
    calls = [asyncio.create_task(connection.call("get", key)) for key in "abc"]
    await asyncio.sleep(0)
    connection.data_received(b"".join(reply(wire, place, place) for place in (2, 0, 1)))
    assert await asyncio.gather(*calls) == [0, 1, 2]


async def test_a_reply_that_nobody_asked_for_drops_the_connection_and_what_comes_then_is_not_read(ends):
    connection, wire = ends
    call = asyncio.create_task(connection.call("get", "a"))
    await asyncio.sleep(0)
    connection.data_received(msgpack.packb([1, 999, None, 1]))
    assert wire.is_aborted
    connection.data_received(reply(wire, 0, "too late"))
    with pytest.raises(ConnectionResetError):
        await connection.call("get", "b")
    connection.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await call
    assert "999" in str(connection.cause)
