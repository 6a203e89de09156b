"""What a supervisor does with orders that come while it is still starting. The processes are only noted."""

import asyncio
from types import SimpleNamespace

import pytest

from pycounter.cluster import supervisor as module
from pycounter.cluster.supervisor import Supervisor
from pycounter.settings import ClusterSettings

pytestmark = pytest.mark.timeout(30)


class NotedMember:
    """Stands for a process that is there at once; a shard, once the test says so."""

    begun: list[str] = []  # noqa: RUF012

    def __init__(self, record, command, **_):
        self.record = record
        record.is_settled = record.kind != "shard"
        self.begun.append(record.name)
        self.child = SimpleNamespace(tell=lambda line: None, stop=self.stop, send_signal=lambda number: None)

    async def stop(self, timeout_s):
        return True


@pytest.fixture
def supervisor(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Member", NotedMember)
    monkeypatch.setattr(NotedMember, "begun", [])
    made = Supervisor(ClusterSettings(data=str(tmp_path), port=0, shards=1, replicas=1, coordinators=1))
    yield made
    for listener in made._sockets:
        listener.close()
    made._folder.close()


@pytest.mark.parametrize("orders", [["add"], ["add", "remove"], ["add", "add"], ["remove"]])
async def test_replicas_that_are_ordered_during_the_start(supervisor, orders):
    supervisor._remember_replica("shard-0")
    starting = asyncio.create_task(supervisor._start())
    while not NotedMember.begun:
        await asyncio.sleep(0)
    for order in orders:
        await supervisor._answer({"do": f"replica {order}", "shard": "shard-0"})
    supervisor._members["shard-0"].record.is_settled = True
    assert await starting
    replicas = [name for name in NotedMember.begun if "replica" in name]
    assert len(set(replicas)) == len(replicas), "two processes of one replica"
    kept = {replica.name for replica in supervisor._entry("shard-0").replicas}
    assert kept == {name for name in supervisor._members if "replica" in name}
