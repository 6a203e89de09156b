"""The native router as an event loop uses it: who is called when, and what goes to whom."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from pycounter._native import ForeignKeys, HashRing, Router, Shard


class Loop:
    """What of an event loop the native objects use."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[Any] = []

    def call_soon(self, callback: Any) -> None:
        self.calls.append(callback)

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


class Client:
    """The owner of a connection."""

    def __init__(self, router: Router) -> None:
        self.connection = router.connect(self)
        self.received = b""
        self.requests: list[tuple[int, str, bytes, str]] = []

    def write(self, data: bytes) -> None:
        self.received += data

    def attend(self) -> None:
        self.requests += self.connection.take_requests()
        if self.connection.crowded and not self.connection.closing:
            self.write(self.connection.feed(b"") or b"")

    def send(self, data: bytes) -> None:
        self.write(self.connection.feed(data) or b"")


class Link:
    """A link to a shard of this process."""

    def __init__(self, router: Router, number: int, shard: Shard) -> None:
        self.link = router.link(number)
        self.connection = shard.connect(self)
        self.link.connected(self)

    def attend(self) -> None:
        """The shard has nothing that waits here."""

    def write(self, data: bytes) -> None:
        replies = self.connection.feed(data)
        for owner, written in self.link.feed(replies) if replies else ():
            owner.write(written)


@pytest.fixture
def shards(tmp_path):
    made = [Shard(tmp_path / f"shard-{number}", level="applied") for number in range(2)]
    for shard in made:
        shard.start(lambda callback: None)
    yield made
    for shard in made:
        shard.stop()


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def router(loop, shards):
    ring = HashRing(["shard-0", "shard-1"])
    router = Router(ring, ForeignKeys(2), None, clock=lambda: loop.now, level="applied", strict=[b"unique:"])

    def flush() -> None:
        for owner, data in router.flush():
            owner.write(data)

    router.start(loop.call_soon, flush)
    for number, shard in enumerate(shards):
        Link(router, number, shard)
    loop.run()
    yield router
    router.stop()


def test_a_client_is_answered_at_the_end_of_the_turn(loop, router):
    client = Client(router)
    client.send(b"INCR a\r\nINCRBY b 5\r\nGET a\r\nPING\r\n")
    assert (client.received, client.connection.owed) == (b"", True)
    loop.run()
    assert client.received == b":1\r\n:5\r\n$1\r\n1\r\n+PONG\r\n"
    assert (client.connection.owed, client.connection.protocol, router.is_settled()) == (False, "resp2", True)
    samples = router.samples()
    assert samples
    assert all(ok and latency >= 0 for _, latency, ok in samples)
    assert router.stats()["increments"] == 2


def test_the_host_answers_what_is_rare(loop, router):
    client = Client(router)
    client.send(b"SCAN 0 COUNT 5\r\nINCR a\r\n")
    loop.run()
    ((token, method, params, protocol),) = client.requests
    assert (method, msgpack.unpackb(params), protocol) == ("scan", [0, 5, None, False], "resp2")
    client.write(client.connection.answer(token, None, msgpack.packb([0, []])) or b"")
    loop.run()
    assert client.received == b"*2\r\n$1\r\n0\r\n*0\r\n:1\r\n"
    assert client.connection.answer(token, None, b"\xc0") is None


def test_a_link_that_is_lost_and_an_answer_that_is_none(loop, router):
    link = router.link(0)
    assert link.ready
    assert len(link.identity or "") == 32
    with pytest.raises(ValueError, match="nonsense"):
        link.feed(b"\x93\x01\x02\x03")
    link.lost()
    assert not link.ready
    assert link.status()["losses"] == 1
    link.note_error("refused")
    client = Client(router)
    key = next(key for key in (f"k{n}" for n in range(100)) if HashRing(["shard-0", "shard-1"]).home(key) == "shard-0")
    client.send(f"INCR {key}\r\n".encode())
    loop.now += 3
    router.tick(loop.now)
    loop.run()
    assert client.received == b"-ERR the shard can't be reached (refused): nothing was applied (unavailable)\r\n"


def test_who_has_gone_gets_nothing(loop, router):
    client = Client(router)
    client.send(b"INCR a\r\n")
    client.connection.shutdown()
    client.connection.shutdown()
    loop.run()
    assert (client.received, client.connection.feed(b"PING\r\n"), client.connection.closing) == (b"", None, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "safe"},
        {"request_timeout_s": 0},
        {"batch_operations_max": 0},
        {"window_operations_max": 10},
        {"foreign": ForeignKeys(3)},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    foreign = wrong.pop("foreign", ForeignKeys(2))
    with pytest.raises(ValueError, match=r"level|request_timeout_s|batches|number of shards"):
        Router(HashRing(["a", "b"]), foreign, clock=lambda: 0.0, **wrong)


def test_serving_is_of_the_shards_that_there_are(router):
    router.set_serving([(1.0, -1), (0.5, 0)])
    for wrong in ([], [(1.0, -1)], [(1.0, -1), (0.5, 2)]):
        with pytest.raises(ValueError, match="one entry for each shard"):
            router.set_serving(wrong)
    with pytest.raises(IndexError):
        router.link(2)


def test_the_callers_session_ids_are_used(loop, shards):
    made: list[bytes] = []

    def new_id() -> bytes:
        made.append(bytes([len(made)]) * 16)
        return made[-1]

    Router(HashRing(["a", "b"]), ForeignKeys(2), clock=lambda: 0.0, new_session_id=new_id)
    assert len(made) == 3, "of each link, and of the router's own operations"
