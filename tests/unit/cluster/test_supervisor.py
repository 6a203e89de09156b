"""What a supervisor does with orders that come while it is still starting. The processes are only noted."""

import asyncio
from types import SimpleNamespace

import pytest

from pycounter.cluster import supervisor as module
from pycounter.cluster.supervisor import Supervisor
from pycounter.errors import PyCounterError
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


def close(supervisor):
    for listener in supervisor._sockets:
        listener.close()
    supervisor._folder.close()


@pytest.fixture
def make_supervisor(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Member", NotedMember)
    monkeypatch.setattr(NotedMember, "begun", [])
    made = []

    def make():
        made.append(Supervisor(ClusterSettings(data=str(tmp_path), port=0, shards=1, replicas=1, coordinators=1)))
        return made[-1]

    yield make
    for supervisor in made:
        close(supervisor)


@pytest.fixture
def supervisor(make_supervisor):
    return make_supervisor()


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


async def test_a_folder_that_the_last_run_still_holds_is_waited_for(make_supervisor):
    """Its process was killed, and ends once the disk lets it."""
    close(make_supervisor())
    supervisor = make_supervisor()
    starting = asyncio.create_task(supervisor._start())
    while not NotedMember.begun:
        await asyncio.sleep(0)
    record = supervisor._members["shard-0"].record
    record.failed("ended with exit code 1: the folder is locked")
    await asyncio.sleep(0.1)
    assert not starting.done()
    record.ready(1.0, address="127.0.0.1:1", identity="ab")
    assert await starting


async def test_a_first_start_is_refused_at_once_where_no_shard_can_start(supervisor):
    starting = asyncio.create_task(supervisor._start())
    while not NotedMember.begun:
        await asyncio.sleep(0)
    supervisor._members["shard-0"].record.failed("ended with exit code 1: no such file")
    with pytest.raises(PyCounterError, match="no such file"):
        await starting
