"""The follower against a scripted shard: what it asks, and what it makes of answers that make no sense."""

import asyncio
import contextlib
from typing import Any

import msgpack
import pytest

from pycounter.errors import DamagedData
from pycounter.replica import ReplicaSettings
from pycounter.replica.follower import Follower

IDENTITY = "0" * 31 + "1"
SHARD = {"identity": IDENTITY, "shard": "shard-0", "epoch": 3}


class RecordingReplica:
    """Notes what it is told, and takes everything unless `fault` says otherwise."""

    def __init__(self):
        self.told: list[tuple[Any, ...]] = []
        self.place = (None, 0, 0, 0, 0)
        self.fault: Exception | None = None

    def records(self, records):
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.told.append(("records", records))
        return 0

    def heard(self, durable, age_s):
        assert age_s >= 0
        self.told.append(("heard", durable))

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))

    def names(self):
        return [told[0] for told in self.told if told[0] != "primary"]


class ScriptedPrimary:
    """Answers `hello`, and `tail` with one scripted answer after the other; then with nothing new."""

    def __init__(self, answers):
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.connections = 0
        self._serving: set[Any] = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self._server.close()
        # Whoever serves sees the end of its connection.
        await asyncio.gather(*self._serving)

    @property
    def address(self):
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _serve(self, reader, writer):
        self.connections += 1
        self._serving.add(asyncio.current_task())
        unpacker = msgpack.Unpacker()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                unpacker.feed(data)
                for _, msgid, method, params in unpacker:
                    answer, error = (SHARD, None) if method == "hello" else self._answer(params)
                    if answer == "close":
                        writer.close()
                        return
                    writer.write(msgpack.packb([1, msgid, error, answer]))
        writer.close()

    def _answer(self, params):
        self.asked.append(params)
        answer = self.answers.pop(0) if self.answers else {"durable": 1, "waited_ms": 0, "records": b""}
        if isinstance(answer, str) and ": " in answer:
            return None, answer
        return ({**SHARD, **answer} if isinstance(answer, dict) else answer), None


@contextlib.asynccontextmanager
async def following(answers):
    replica = RecordingReplica()
    async with ScriptedPrimary(answers) as primary:
        settings = ReplicaSettings(primary=primary.address, poll_interval_s=0.001, wait_s=0.001, timeout_s=5.0)
        task = asyncio.create_task(Follower(replica, settings, None).run())  # type: ignore[arg-type]
        try:
            yield primary, replica
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def pages(fold, page, rows, total=3):
    checkpoint = {"fold": fold, "commit": 40, "hash": 7, "pages": total, "page": page, "rows": rows}
    return {"checkpoint": checkpoint}


async def test_it_asks_from_where_it_is_and_tells_what_it_heard():
    async with following([{"durable": 9, "waited_ms": 0, "records": b"abc"}]) as (primary, replica):
        replica.place = (IDENTITY, 5, 3, 77, 2)
        await until(lambda: len(primary.asked) >= 2)
        after, epoch, identity, options = primary.asked[0]
        assert (after, epoch, identity) == (5, 3, IDENTITY)
        assert (options["hash"], options["index"]) == (77, 2)
        assert replica.told[0] == ("primary", IDENTITY, "shard-0", 3)
        assert replica.told[1:3] == [("records", b"abc"), ("heard", 9)]


async def test_a_checkpoint_is_read_page_by_page_over_cuts_and_begun_again_where_it_is_another_one():
    answers = [pages(4, 0, [b"a"]), "close", pages(4, 1, [b"b"]), pages(5, 0, [b"A", b"B"]), pages(5, 2, [b"C"])]
    async with following(answers) as (primary, replica):
        await until(lambda: ("end_checkpoint", 40, 7) in replica.told)
        taken = [told for told in replica.told if told[0] in {"begin_checkpoint", "page", "end_checkpoint"}]
        assert taken == [
            ("begin_checkpoint",),
            ("page", b"a"),
            ("page", b"b"),
            ("begin_checkpoint",),
            ("page", b"A"),
            ("page", b"B"),
            ("page", b"C"),
            ("end_checkpoint", 40, 7),
        ]
        await until(lambda: len(primary.asked) > 5)
        wanted = [(options.get("fold"), options.get("page")) for *_, options in primary.asked]
        assert wanted[:6] == [(None, None), (4, 1), (4, 1), (4, 2), (5, 2), (None, None)]


async def test_a_place_that_the_shard_does_not_know_drops_the_state():
    async with following([{"anew": "another history"}]) as (_, replica):
        await until(lambda: "heard" in replica.names())
        assert replica.names()[0] == "anew"
        assert "lost" not in replica.names()


async def test_what_does_not_continue_the_state_drops_it_and_connects_again():
    async with following([{"durable": 9, "waited_ms": 0, "records": b"x"}]) as (primary, replica):
        replica.fault = DamagedData("it has another history")
        await until(lambda: "heard" in replica.names())
        assert replica.names()[:2] == ["anew", "lost"]
        assert primary.connections == 2


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        ("close", True),
        ("overloaded: too many", False),
        ("unauthenticated: no", False),
        ({}, False),
        ({"records": "text", "durable": 1, "waited_ms": 0}, False),
        ({"checkpoint": {"fold": 1}}, False),
        (pages(4, 2, [b"a"]), False),
        (pages(4, 0, []), False),
        (5, False),
        (None, False),
    ],
    ids=str,
)
async def test_answers_that_make_no_sense_cost_the_connection_and_nothing_else(answer, ended):
    async with following([answer]) as (primary, replica):
        await until(lambda: "heard" in replica.names())
        assert "anew" not in replica.names()
        assert "page" not in replica.names()
        (lost,) = [told for told in replica.told if told[0] == "lost"]
        assert lost[2] is ended
        assert primary.connections == 2
