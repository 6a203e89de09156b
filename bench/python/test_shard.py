"""One chunk through a shard's engine without a socket: parse, apply, answer. Replies leave once applied."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pycounter._native import Connection, Shard

OPERATIONS = 1_000
KEYS = 100


class Owner:
    """Stands in for the transport: the bench looks at every reply itself."""

    def attend(self) -> None:
        """Nothing to do: nothing is held back."""


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    later: list[Callable[[], object]] = []
    shard = Shard(tmp_path, name="bench", level="applied")
    shard.start(lambda callback, *_: later.append(callback))
    yield shard.connect(Owner())
    shard.stop()


def resp(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def rpc(msgid: int, method: str, key: str) -> bytes:
    """A MessagePack-RPC request of one short string."""
    name, text = method.encode(), key.encode()
    return (
        b"\x94\x00\xcd"
        + msgid.to_bytes(2)
        + bytes([0xA0 | len(name)])
        + name
        + b"\x91"
        + bytes([0xA0 | len(text)])
        + text
    )


def test_resp_incr(benchmark: BenchmarkFixture, connection: Connection) -> None:
    chunk = b"".join(resp("INCR", f"counter-{number % KEYS}") for number in range(OPERATIONS))
    replies = benchmark(connection.feed, chunk)
    assert replies.count(b":") == replies.count(b"\r\n") == OPERATIONS


def test_messagepack_rpc_incr(benchmark: BenchmarkFixture, connection: Connection) -> None:
    chunk = b"".join(rpc(number, "incr", f"counter-{number % KEYS}") for number in range(OPERATIONS))
    replies = benchmark(connection.feed, chunk)
    unpacker = msgpack.Unpacker()
    unpacker.feed(replies)
    assert [error for _, _, error, _ in unpacker] == [None] * OPERATIONS
