"""A link's sockets: connected again after every loss, told to the router each time."""

import asyncio
import random
from typing import TYPE_CHECKING, cast

import pytest

from pycounter.coordinator.shard_links import ShardLink

if TYPE_CHECKING:
    from pycounter._native import RouterLink

pytestmark = pytest.mark.timeout(30)


class Router:
    """The router's side, as `_native.RouterLink`."""

    def __init__(self):
        self.connection = None
        self.events = []
        self.received = b""
        self.refuses = False

    def connected(self, owner):
        self.connection = owner
        self.events.append("connected")
        owner.write(b"hello")

    def feed(self, data):
        if self.refuses:
            raise ValueError("nonsense")
        self.received += data
        return [(self, data.upper())]

    def write(self, data):
        self.events.append(data)

    silent = False

    def note_error(self, error):
        self.events.append(error)

    def goodbye(self):
        return b"goodbye"

    def lost(self):
        self.connection = None
        self.events.append("lost")


class Server:
    """Says after each hello what it is told to, or hangs up."""

    def __init__(self):
        self.writers = []
        self.greetings = 0

    async def listen(self, port=0):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", port)
        return self.server.sockets[0].getsockname()[:2]

    async def serve(self, reader, writer):
        self.writers.append(writer)
        while await reader.read(100):
            self.greetings += 1
            writer.write(b"welcome")

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    def close(self):
        self.server.close()
        self.cut()


@pytest.fixture
async def ground():
    router, server = Router(), Server()
    address = await server.listen()
    told: list[bool] = []
    link = ShardLink("shard-0", cast("RouterLink", router), on_connected=told.append, chance=random.Random(1))
    yield router, server, link, address, told
    await link.close()
    server.close()


async def until(holds):
    while not holds():
        await asyncio.sleep(0.001)


async def test_replies_go_to_whom_the_router_says(ground):
    router, _, link, address, told = ground
    link.set_address(address)
    link.start()
    await until(lambda: router.events == ["connected", b"WELCOME"])
    assert told == [True]
    await link.close()
    assert router.events[-1] == "lost"
    assert told == [True, False]


async def test_closing_that_is_cancelled_says_so(ground):
    _, _, link, _, _ = ground
    link.start()
    await asyncio.sleep(0)
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_cut_connection_is_made_again(ground):
    router, server, link, address, told = ground
    link.set_address(address)
    link.start()
    for times in range(1, 4):
        await until(lambda times=times: server.greetings == times)
        server.cut()
    await until(lambda: server.greetings == 4)
    assert [event for event in router.events if event != b"WELCOME"] == ["connected", "lost"] * 3 + ["connected"]
    assert told == [True, False] * 3 + [True]


async def test_what_is_written_to_a_lost_connection_is_no_error(ground):
    router, server, link, address, _ = ground
    link.set_address(address)
    link.start()
    await until(lambda: server.greetings == 1)
    connection = router.connection
    server.cut()
    await until(connection.lost.done)
    connection.write(b"too late")
    await until(lambda: server.greetings == 2)


async def test_without_an_address_it_waits_and_a_new_one_is_tried_at_once(ground):
    router, server, link, address, _ = ground
    link.start()
    await asyncio.sleep(0.01)
    assert router.events == []
    server.close()
    link.set_address(address)
    await until(lambda: link.trouble)
    other = Server()
    link.set_address(await other.listen())
    await until(lambda: other.greetings == 1)
    other.close()


async def test_nonsense_ends_the_connection(ground):
    router, server, link, address, _ = ground
    router.refuses = True
    link.set_address(address)
    link.start()
    await until(lambda: server.greetings >= 2)
    assert router.events[:2] == ["connected", "lost"]
    assert link.trouble == "nonsense"


async def test_closing_ends_it_wherever_it_is(ground):
    _, _, link, address, _ = ground
    for turns in range(12):
        link.set_address(address if turns % 2 else None)
        link.start()
        for _ in range(turns):
            await asyncio.sleep(0)
        await link.close()
        link.set_address(None)
    tasks = {task for task in asyncio.all_tasks() if "link" in task.get_name()}
    assert not tasks
