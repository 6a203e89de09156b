"""What a coordinator's process does beside routing: which requests it takes at a time, and how it ends them."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pycounter.coordinator import coordinator_server
from pycounter.coordinator.coordinator_server import CoordinatorServer
from pycounter.coordinator.routing import Routing
from pycounter.errors import from_wire
from pycounter.settings import CoordinatorSettings
from pycounter.topology import ShardInfo, Topology

pytestmark = pytest.mark.timeout(30)


class Connection:
    """Remembers answers, by token."""

    def __init__(self):
        self.answers = {}

    def answer(self, token, error, result):
        self.answers[token] = result if error is None else from_wire(error).code


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(coordinator_server, "REQUESTS_MAX", 2)
    made = CoordinatorServer(CoordinatorSettings(data=str(tmp_path), listen_fds=(), name="c"))

    async def answer(method, params, protocol):
        if method != "top":
            await asyncio.Event().wait()
        return b"done"

    routing: Any = SimpleNamespace(requests=SimpleNamespace(answer=answer))
    made._routing = routing
    return made


async def test_clients_that_only_wait_for_a_newer_topology_take_no_room_from_requests(server):
    connection = Connection()
    for token in range(5):
        server.answer_later(connection, token, "watch_topology", b"", "msgpack-rpc")
    server.answer_later(connection, 10, "top", b"", "msgpack-rpc")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert connection.answers == {10: b"done"}
    for token in (11, 12, 13):
        server.answer_later(connection, token, "drain", b"", "msgpack-rpc")
    assert connection.answers == {10: b"done", 13: "overloaded"}
    await server.end_requests()
    assert len(asyncio.all_tasks()) == 1


async def test_a_wall_clock_that_jumps_back_makes_no_uptime_negative(tmp_path, monkeypatch):
    topology = Topology(version=1, cluster="c1", shards=(ShardInfo(name="shard-0", state="starting"),))
    routing = Routing(topology, CoordinatorSettings(data=str(tmp_path), listen_fds=(), name="c"), ())
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert 0 <= routing.stats()["uptime_ms"] < 60_000
    await routing.close()
