"""Passages before a shard that does what a test says: refuses, falls silent, closes, or doesn't read."""

import asyncio
import socket
from dataclasses import dataclass, field

import msgpack
import pytest

from pycounter.coordinator.coordinator_protocol import CoordinatorProtocol
from pycounter.coordinator.coordinator_server import CoordinatorServer
from pycounter.coordinator.passage import WAITING_BYTES_MAX, connect_passage
from pycounter.coordinator.routing import Routing
from pycounter.settings import CoordinatorSettings
from pycounter.topology import ShardInfo, Topology

pytestmark = pytest.mark.timeout(60)

HELLO = msgpack.packb([0, 1, "hello", [{"shard": "shard-0"}]])
READY = b"the shard's first words"


class Shard(asyncio.Protocol):
    """The shard's side of a connection. It keeps what came."""

    def __init__(self, shards):
        self.shards = shards
        self.received = bytearray()
        self.came = asyncio.Event()
        self.has_ended = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.shards.append(self)

    def data_received(self, data):
        if not self.received:
            self.transport.write(READY)
        self.received += data
        self.came.set()

    def eof_received(self):
        self.has_ended.set()
        return True

    def connection_lost(self, exc):
        self.has_ended.set()

    async def wait_for(self, size):
        while len(self.received) < size:
            self.came.clear()
            await self.came.wait()


@dataclass
class World:
    """A coordinator, before a shard."""

    server: CoordinatorServer
    routing: Routing
    address: tuple[str, int]
    shards: list[Shard]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, data=HELLO):
        reader, writer = await asyncio.open_connection(*self.address)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer

    async def passage(self):
        """A client's two streams, and the shard's side."""
        reader, writer = await self.connect()
        assert await reader.readexactly(len(READY)) == READY
        shard = self.shards[-1]
        assert bytes(shard.received) == HELLO
        return reader, writer, shard

    async def end(self):
        """Drops every connection."""
        for transport in [end.transport for end in self.writers] + [end.transport for end in self.shards]:
            transport.abort()
        for client in self.server.clients:
            client.abort()
        await until(lambda: not len(self.server.clients) and not self.server.clients.passages)
        await self.routing.close()

    async def refusal(self, data=HELLO):
        """The error that a client gets before its connection ends."""
        reader, _ = await self.connect(data)
        (_, msgid, error, _) = msgpack.unpackb(await reader.read(), raw=False)
        assert msgid == 1
        return error


def address_of(listener):
    return "{}:{}".format(*listener.getsockname())


def settings(tmp_path, **more):
    return CoordinatorSettings(data=str(tmp_path), listen_fds=(), name="coordinator-0", **more)


def topology(address):
    shard = ShardInfo(name="shard-0", state="ok" if address else "starting", address=address)
    return Topology(version=1, cluster="c1", shards=(shard,))


@pytest.fixture
async def begin(tmp_path):
    """Starts a coordinator: `await begin(shard="127.0.0.1:1", ...)`; without an address before a `Shard`."""
    loop = asyncio.get_running_loop()
    listeners: list[asyncio.Server] = []
    worlds: list[World] = []

    async def begin_one(*, shard=None, **more):
        made = settings(tmp_path, **more)
        shards: list[Shard] = []
        if shard is None:
            listener = await loop.create_server(lambda: Shard(shards), "127.0.0.1", 0)
            shard = address_of(listener.sockets[0])
            listeners.append(listener)
        server = CoordinatorServer(made)
        routing = Routing(topology(shard), made, ())
        server._routing, server.router = routing, routing.router
        # Without its own links, so that every connection at the shard is a passage.
        routing.router.start(loop.call_soon, routing._flush)
        public = await loop.create_server(lambda: CoordinatorProtocol(server), "127.0.0.1", 0)
        world = World(server, routing, public.sockets[0].getsockname(), shards)
        listeners.append(public)
        worlds.append(world)
        return world

    yield begin_one
    for listener in listeners:
        listener.close()
    for world in worlds:
        await world.end()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_bytes_go_both_ways_unchanged(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    writer.write(b"\x00\xffno protocol at all")
    await shard.wait_for(len(HELLO) + 20)
    assert shard.received[len(HELLO) :] == b"\x00\xffno protocol at all"
    shard.transport.write(b"*nor this")
    assert await reader.readexactly(9) == b"*nor this"
    assert world.server.clients.passages == 1
    writer.close()
    await until(shard.has_ended.is_set)
    shard.transport.close()
    await until(lambda: world.server.clients.passages == 0 and not len(world.server.clients))


async def test_a_shard_of_which_nobody_knows_where_it_is(begin):
    world = await begin(shard="")
    error = await world.refusal(HELLO + msgpack.packb([0, 2, "incr", ["behind"]]))
    assert error == "unavailable: shard-0 is not running now: nothing was applied"
    assert world.server.clients.passages == 0


async def test_a_shard_that_refuses_the_connection(begin):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        world = await begin(shard=address_of(unused))
        error = await world.refusal()
    assert error.startswith("unavailable: shard-0 at 127.0.0.1:")
    assert error.endswith(": nothing was applied")
    assert world.server.clients.passages == 0


async def test_a_shard_whose_machine_answers_nothing(begin):
    # A queue of connections that is full answers none.
    with socket.socket() as listener, socket.socket() as one, socket.socket() as another:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for waiting in (one, another):
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        world = await begin(shard=address_of(listener), request_timeout_s=0.05)
        error = await world.refusal()
    assert error.startswith("unavailable: shard-0 at 127.0.0.1:")
    assert "it does not answer" in error
    assert world.server.clients.passages == 0


@pytest.fixture
def may_connect(monkeypatch):
    """Coordinators wait for it before they connect to a shard."""
    event = asyncio.Event()

    async def connect_later(*arguments, **more):
        await event.wait()
        return await connect_passage(*arguments, **more)

    monkeypatch.setattr("pycounter.coordinator.coordinator_server.connect_passage", connect_later)
    return event


async def test_a_client_that_leaves_while_the_shard_is_being_connected_to(begin, may_connect):
    world = await begin()
    _, writer = await world.connect()
    await until(lambda: world.server._requests)
    writer.transport.abort()
    may_connect.set()
    await until(lambda: world.shards)
    await until(world.shards[0].has_ended.is_set)
    world.shards[0].transport.close()
    await until(lambda: not len(world.server.clients) and world.server.clients.passages == 0)


async def test_a_client_that_finishes_while_the_shard_is_being_connected_to(begin, may_connect):
    world = await begin()
    reader, _ = await world.connect(HELLO + b"more")
    await until(lambda: world.server._requests)
    # As the loop calls it where the end comes in one turn with the last bytes.
    [client] = world.server.clients
    assert client.eof_received()
    may_connect.set()
    assert await reader.readexactly(len(READY)) == READY
    shard = world.shards[-1]
    await until(shard.has_ended.is_set)
    assert bytes(shard.received) == HELLO + b"more"
    shard.transport.write(b"the last answer")
    shard.transport.close()
    assert await reader.read() == b"the last answer"


async def test_a_shard_that_dies_ends_the_clients_connection_behind_its_last_answers(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    shard.transport.write(b"x" * 500_000)
    shard.transport.close()
    assert await reader.read() == b"x" * 500_000
    writer.close()
    await until(lambda: world.server.clients.passages == 0)


async def test_a_client_that_goes_on_sending_gets_the_last_answers(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    [client] = world.server.clients
    # More than the client takes in before it reads: the rest waits in the kernels.
    size = 4 << 20
    shard.transport.write(bytes(size))
    shard.transport.close()
    await until(lambda: client._passage.closing)
    for _ in range(10):
        writer.write(bytes(100_000))
        await asyncio.sleep(0.001)
    received = 0
    while data := await reader.read(1 << 16):
        received += len(data)
    assert received == size


async def test_a_passage_is_one_more_connection(begin):
    world = await begin(connections_max=3)
    _, writer, _ = await world.passage()
    error = await world.refusal()
    assert error == "overloaded: the coordinator has as many connections as it may have: nothing was applied"
    assert world.server.clients.passages == 1
    writer.close()
    world.shards[0].transport.close()
    await until(lambda: world.server.clients.passages == 0)
    _, writer, _ = await world.passage()


async def test_a_passage_through_which_nothing_passes_is_closed(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    [client] = world.server.clients
    for _ in range(2):
        client.close_if_idle()
        client.close_if_idle()
        shard.transport.write(b"1")
        assert await reader.readexactly(1) == b"1"
        client.close_if_idle()
        client.close_if_idle()
        writer.write(b"2")
        size = len(shard.received)
        await shard.wait_for(size + 1)
    for _ in range(3):
        client.close_if_idle()
    assert await reader.read() == b""
    await until(shard.has_ended.is_set)


async def send_until(transport, condition):
    """Writes, as fast as it can, until this comes true; gives how many bytes. 100 MB are too many."""
    sent = 0
    async with asyncio.timeout(30):
        while not condition():
            assert sent < 100 << 20
            if not is_full(transport):
                transport.write(bytes(1 << 18))
                sent += 1 << 18
            await asyncio.sleep(0)
    return sent


def is_full(transport):
    """Does nothing go out of it for now?"""
    return transport.get_write_buffer_size() >= 1 << 20


async def test_a_shard_that_does_not_read(begin):
    world = await begin()
    _, writer, shard = await world.passage()
    shard.transport.pause_reading()
    [client] = world.server.clients
    passage = client._passage
    sent = await send_until(writer.transport, lambda: passage.crowded and is_full(writer.transport))
    assert not client._reading
    assert passage._transport.get_write_buffer_size() <= WAITING_BYTES_MAX + (1 << 18)
    assert world.server.clients._unsent_bytes > WAITING_BYTES_MAX
    shard.transport.resume_reading()
    await shard.wait_for(len(HELLO) + sent)
    await until(lambda: world.server.clients._unsent_bytes == 0)
    assert client._reading


async def test_a_client_that_does_not_read(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    writer.transport.pause_reading()
    [client] = world.server.clients
    sent = await send_until(shard.transport, lambda: client._writing_paused and is_full(shard.transport))
    assert client._transport.get_write_buffer_size() <= WAITING_BYTES_MAX + (1 << 18)
    writer.transport.resume_reading()
    left = sent
    while left:
        left -= len(await reader.read(1 << 18))
    assert await reader_is_silent(reader)


async def reader_is_silent(reader):
    try:
        async with asyncio.timeout(0.01):
            return not await reader.read(1)
    except TimeoutError:
        return True


async def test_who_leaves_most_unread_is_dropped_first(begin):
    world = await begin(held_bytes_max=65_536)
    _, first, slow = await world.passage()
    _, second, slower = await world.passage()
    unsent = world.server.clients._unsent
    slow.transport.pause_reading()
    slower.transport.pause_reading()
    await send_until(first.transport, lambda: len(unsent) == 1)
    await send_until(second.transport, lambda: any(client._passage.closing for client in world.server.clients))
    await until(lambda: len(world.server.clients) == 1)
    [left] = world.server.clients
    assert not left._passage.closing


async def test_an_orderly_stop_lets_the_shard_answer(begin):
    world = await begin()
    reader, writer, shard = await world.passage()
    writer.write(b"the last request")
    await shard.wait_for(len(HELLO) + 16)
    drain = asyncio.get_running_loop().create_task(world.server._drain(world.routing))
    await until(shard.has_ended.is_set)
    assert not drain.done()
    shard.transport.write(b"the last answer")
    shard.transport.close()
    assert await reader.read() == b"the last answer"
    await drain


async def test_an_orderly_stop_lets_a_passage_begin_and_be_answered(begin, may_connect):
    world = await begin()
    reader, _ = await world.connect(HELLO + b"the last request")
    await until(lambda: world.server._requests)
    drain = asyncio.get_running_loop().create_task(world.server._drain(world.routing))
    await asyncio.sleep(0)
    may_connect.set()
    await until(lambda: world.shards)
    [shard] = world.shards
    await until(shard.has_ended.is_set)
    assert bytes(shard.received) == HELLO + b"the last request"
    shard.transport.write(b"the last answer")
    shard.transport.close()
    assert await reader.read() == READY + b"the last answer"
    await drain


async def test_an_orderly_stop_ends_although_a_shard_answers_nothing(begin):
    world = await begin(request_timeout_s=0.05, stop_timeout_s=1.0)
    reader, _, _ = await world.passage()
    await world.server._drain(world.routing)
    assert await reader.read() == b""
    assert world.server.clients.passages <= 1
