"""The probe: one question at a time, over one connection, whatever the other side does."""

import asyncio

import msgpack
import pytest

from pycounter.cluster.health_probe import HealthProbe

INTERVAL_S = 0.01


class Asked:
    """A server that does as the test says, and remembers what it was asked."""

    def __init__(self):
        self.requests = []
        self.connections = 0
        self.answer = lambda method: ({"state": "ok"}, None)
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.cut = False
        self.address = ("", 0)

    async def serve(self, reader, writer):
        self.connections += 1
        unpacker = msgpack.Unpacker(raw=False)
        while chunk := await reader.read(4096):
            unpacker.feed(chunk)
            for _, msgid, method, params in unpacker:
                self.requests.append((method, params))
                await self.may_answer.wait()
                if self.cut:
                    writer.close()
                    return
                result, error = self.answer(method)
                writer.write(msgpack.packb([1, msgid, error, result]))
        writer.close()


@pytest.fixture
async def asked():
    asked = Asked()
    server = await asyncio.start_server(asked.serve, "127.0.0.1", 0)
    asked.address = server.sockets[0].getsockname()
    yield asked
    server.close()


@pytest.fixture
async def probing(asked):
    """A probe of the server, and the answers that it got."""
    answers: asyncio.Queue[dict] = asyncio.Queue()
    probe = HealthProbe(asked.address, lambda: b"\xfftoken-of-bytes", INTERVAL_S, answers.put_nowait)
    yield probe, answers
    probe.close()


async def test_it_asks_again_and_again_over_one_connection(asked, probing):
    probe, answers = probing
    for _ in range(5):
        assert await answers.get() == {"state": "ok"}
    assert asked.connections == 1
    assert asked.requests[0] == ("hello", [{"client": "pycounter-supervisor", "token": b"\xfftoken-of-bytes"}])
    assert {method for method, _ in asked.requests[1:]} == {"health"}
    assert not probe.is_waiting


async def test_a_silent_one_keeps_one_question(asked, probing):
    probe, answers = probing
    await answers.get()
    asked.may_answer.clear()
    await asyncio.sleep(5 * INTERVAL_S)
    asked_before = len(asked.requests)
    await asyncio.sleep(20 * INTERVAL_S)
    assert probe.is_waiting
    assert (len(asked.requests), asked.connections) == (asked_before, 1)
    while not answers.empty():
        answers.get_nowait()
    asked.may_answer.set()
    assert await answers.get() == {"state": "ok"}


async def test_who_refuses_is_there(asked, probing):
    _, answers = probing
    asked.answer = lambda method: (None, "unauthenticated: no")
    while await answers.get() != {}:
        pass


async def test_a_cut_connection_is_made_again(asked, probing):
    _, answers = probing
    await answers.get()
    asked.cut = True
    while asked.connections < 3:
        await asyncio.sleep(INTERVAL_S)
    asked.cut = False
    while not answers.empty():
        answers.get_nowait()
    assert await answers.get() == {"state": "ok"}


async def test_nobody_there_counts_as_no_answer(asked, probing):
    probe, answers = probing
    await answers.get()
    probe.close()
    late = HealthProbe(("127.0.0.1", 1), lambda: None, INTERVAL_S, answers.put_nowait)
    await asyncio.sleep(5 * INTERVAL_S)
    assert late.is_waiting
    late.close()


async def test_nonsense_is_no_answer(asked, probing):
    probe, answers = probing
    await answers.get()
    asked.answer = lambda method: (b"x" * 10, 5)
    await asyncio.sleep(10 * INTERVAL_S)
    assert probe.is_waiting
    asked.answer = lambda method: ({"state": "read_only"}, None)
    while await answers.get() != {"state": "read_only"}:
        pass
    assert asked.connections > 1
