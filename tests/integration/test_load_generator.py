"""The load generator tells the truth: what it counts is what the server has, and what went wrong it says."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pycounter._native import ConstantReplies, LoadGenerator
from tests.support.fixtures import StartShard
from tests.support.resp_socket import RespSocket
from tests.support.shard_process import ShardProcess

KEYS = 300
OPERATIONS = 12_345
KEY_NAMES = [f"key:{number:012}" for number in range(KEYS)]
MODES = [("resp", "incr"), ("msgpack-rpc", "incr"), ("msgpack-rpc", "incr-with-id"), ("msgpack-rpc", "apply")]


@pytest.fixture(scope="module", params=["applied", "durable"])
def level_shard(start_shared_shard: StartShard, request: pytest.FixtureRequest) -> ShardProcess:
    return start_shared_shard(arguments=["--level", request.param], name=request.param)


@pytest.fixture
def shard(level_shard: ShardProcess) -> ShardProcess:
    """Empty, at both levels."""
    with RespSocket(level_shard.address) as connection:
        connection.call("FLUSHALL")
    return level_shard


def values(shard: ShardProcess) -> list[int]:
    with RespSocket(shard.address) as connection:
        return [int(value or 0) for value in connection.call("MGET", *KEY_NAMES)]


@pytest.mark.parametrize(("connections", "pipeline"), [(1, 1), (7, 5), (20, 64)])
@pytest.mark.parametrize(("protocol", "operation"), MODES)
def test_server_has_what_was_counted(shard, protocol, operation, connections, pipeline, seed):
    count = OPERATIONS if connections * pipeline > 1 or operation == "apply" else 200
    load: dict[str, Any] = {
        "protocol": protocol,
        "operation": operation,
        "connections": connections,
        "pipeline": pipeline,
    }
    report = LoadGenerator(*shard.address, **load, batch=13, keys=KEYS, operations=count, seed=seed).run()
    assert (report.operations, report.errors, report.unanswered, report.first_error) == (count, 0, 0, None)
    assert sum(values(shard)) == count
    assert 0 < report.p50_us <= report.p99_us <= report.p999_us <= report.max_us
    assert report.max_us <= report.seconds * 1e6 * 1.01
    assert 0 < report.cpu_seconds <= report.seconds * 1.01


@pytest.mark.parametrize(("protocol", "operation"), MODES)
def test_run_for_a_time_counts_as_exactly(shard, protocol, operation):
    load = LoadGenerator(*shard.address, protocol=protocol, operation=operation, pipeline=8, keys=KEYS, seconds=0.1)
    report = load.run()
    assert (report.errors, report.unanswered) == (0, 0)
    assert sum(values(shard)) == report.operations > 0


def test_stop_ends_a_run_whose_counts_stay_exact(shard):
    load = LoadGenerator(*shard.address, pipeline=4, keys=KEYS, seconds=60)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(load.run)
        while not sum(values(shard)):
            assert not running.done()
        load.stop()
        report = running.result(30)
    assert report.unanswered == 0
    assert sum(values(shard)) == report.operations


def test_in_order_each_key_comes_once(shard):
    LoadGenerator(*shard.address, connections=3, pipeline=7, keys=KEYS, order="sequential", operations=KEYS).run()
    assert values(shard) == [1] * KEYS


@pytest.mark.parametrize("protocol", ["resp", "msgpack-rpc"])
def test_reads_change_nothing(shard, protocol):
    with RespSocket(shard.address) as connection:
        connection.call("INCRBY", KEY_NAMES[1], 41)
    load = LoadGenerator(*shard.address, protocol=protocol, operation="get", pipeline=16, keys=KEYS, operations=5_000)
    report = load.run()
    assert (report.operations, report.errors) == (5_000, 0)
    assert sum(values(shard)) == 41


@pytest.mark.parametrize(("protocol", "operation"), MODES)
def test_refusals_are_errors(shard, protocol, operation):
    with RespSocket(shard.address) as connection:
        connection.call("SET", KEY_NAMES[0], 2**63 - 11)
    load: dict[str, Any] = {"protocol": protocol, "operation": operation, "connections": 2, "pipeline": 3, "batch": 5}
    report = LoadGenerator(*shard.address, **load, keys=1, operations=100).run()
    assert (report.operations, report.errors, report.unanswered) == (10, 90, 0)
    assert report.first_error is not None


@contextlib.contextmanager
def pretending(answer: Callable[[bytes], bytes], *, once: bool = False) -> Iterator[int]:
    """A server that sends `answer(chunk)` to one connection, and closes it after an empty answer, or the first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while chunk := connection.recv(1 << 16):
                    if not (replies := answer(chunk)):
                        return
                    connection.sendall(replies)
                    if once:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)


@pytest.mark.parametrize(
    ("replies", "operations", "errors", "unanswered", "text"),
    [
        (b":1\r\n" * 4, 20, 0, 0, None),
        (b":1\r\n:0\r\n:1\r\n:-1\r\n", 10, 10, 0, "a value that can't be"),
        (b":1\r\n-ERR full\r\n:1\r\n:1\r\n", 15, 5, 0, "ERR full"),
        (b":1\r\n+OK\r\n:1\r\n:1\r\n", 1, 0, 3, "what the server sent is no reply"),
        (b":1\r\n" * 5, 4, 0, 0, "more replies than requests"),
        (b"", 0, 0, 4, "the server closed the connection"),
    ],
)
def test_wrong_replies_of_resp(replies, operations, errors, unanswered, text):
    with pretending(lambda _: replies) as port:
        report = LoadGenerator("127.0.0.1", port, connections=1, pipeline=4, operations=20).run()
    assert (report.operations, report.errors, report.unanswered) == (operations, errors, unanswered)
    assert report.first_error == text


@pytest.mark.timeout(20)
def test_server_that_closes_with_its_last_replies():
    with pretending(lambda _: b":1\r\n:2\r\n", once=True) as port:
        report = LoadGenerator("127.0.0.1", port, connections=1, pipeline=4, operations=20).run()
    assert (report.operations, report.errors, report.unanswered) == (2, 0, 2)
    assert report.first_error == "the server closed the connection"


@pytest.mark.parametrize(
    ("msgids", "operations", "text"),
    [
        ([3, 0, 2, 1], 4, None),
        ([0, 1, 1, 2], 2, "a second reply to one request"),
        ([0, 9, 2, 3], 1, "a reply to no request"),
    ],
)
def test_message_numbers_are_checked(msgids, operations, text):
    replies = b"".join(b"\x94\x01%c\xc0\x01" % msgid for msgid in msgids)
    with pretending(lambda _: replies) as port:
        load = LoadGenerator("127.0.0.1", port, protocol="msgpack-rpc", connections=1, pipeline=4, operations=4)
        report = load.run()
    assert (report.operations, report.unanswered, report.first_error) == (operations, 4 - operations, text)


def test_session_ends_with_a_refused_batch():
    with pretending(lambda _: b"\x94\x01\x00\xa4busy\xc0") as port:
        load: dict[str, Any] = {
            "protocol": "msgpack-rpc",
            "operation": "apply",
            "connections": 1,
            "pipeline": 2,
            "batch": 10,
        }
        report = LoadGenerator("127.0.0.1", port, **load, operations=100).run()
    assert (report.operations, report.errors, report.unanswered, report.first_error) == (0, 10, 10, "busy")


@pytest.mark.parametrize("protocol", ["resp", "msgpack-rpc"])
def test_constant_replies_answer_increments(protocol):
    constant = ConstantReplies()
    with pretending(constant.feed) as port:
        load = LoadGenerator("127.0.0.1", port, protocol=protocol, connections=1, pipeline=100, operations=5_000)
        report = load.run()
    assert (report.operations, report.errors) == (5_000, 0)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        LoadGenerator("127.0.0.1", port, operations=1).run()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({}, "operations or seconds"),
        ({"operations": 1, "connections": 0}, "connections must be"),
        ({"operations": 1, "pipeline": 65_537}, "pipeline must be"),
        ({"operations": 1, "keys": 0}, "keys must be"),
        ({"operations": 1, "operation": "apply"}, "no such operation"),
        ({"operations": 1, "protocol": "http"}, "no protocol"),
        ({"seconds": -1.0}, "seconds"),
        ({"operations": 1, "connections": 65_536, "pipeline": 65_536}, "1 GiB"),
    ],
)
def test_what_cannot_be_run(wrong, text):
    with pytest.raises(ValueError, match=text):
        LoadGenerator("127.0.0.1", 1, **wrong)
