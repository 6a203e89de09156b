"""A client's request through a socket to a server process and back, at both levels. The client's time is in it."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
import uvloop
from pytest_benchmark.fixture import BenchmarkFixture

from bench.peers.peers import shard
from bench.peers.servers import Server, Servers
from pycounter.client import SessionClient

INCR = b"*2\r\n$4\r\nINCR\r\n$4\r\nhits\r\n"
GET = b"*2\r\n$3\r\nGET\r\n$4\r\nhits\r\n"
PIPELINE = 100
BATCH = [(f"key-{number}", 1) for number in range(PIPELINE)]


@pytest.fixture(scope="module", params=["applied", "durable"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Servers(None) as servers:
        yield servers.fresh(shard(request.param))


@pytest.fixture
def connection(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def call(connection: socket.socket, requests: bytes, lines: int) -> bytes:
    """Sends requests and reads replies of so many lines."""
    connection.sendall(requests)
    replies = b""
    while replies.count(b"\n") < lines:
        received = connection.recv(65_536)
        assert received, "the server closed the connection"
        replies += received
    return replies


def test_incr(benchmark: BenchmarkFixture, connection: socket.socket) -> None:
    assert benchmark(call, connection, INCR, 1).startswith(b":")


def test_get(benchmark: BenchmarkFixture, connection: socket.socket) -> None:
    call(connection, INCR, 1)
    assert benchmark(call, connection, GET, 2).startswith(b"$")


def test_pipeline_of_100(benchmark: BenchmarkFixture, connection: socket.socket) -> None:
    replies = benchmark(call, connection, INCR * PIPELINE, PIPELINE)
    assert replies.count(b":") == PIPELINE


def test_session_client_apply_100(benchmark: BenchmarkFixture, server: Server) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        client = SessionClient("127.0.0.1", server.port)
        runner.run(client.__aenter__())
        try:
            results = benchmark(lambda: runner.run(_apply(client)))
        finally:
            runner.run(client.__aexit__(None, None, None))
    assert len(results) == PIPELINE


async def _apply(client: SessionClient) -> list[object]:
    return list(await client.apply(BATCH))
