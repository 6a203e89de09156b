"""Increments and removals under ids through a coordinator, while shards and it are killed and stopped: none is lost.

Each operation is repeated under its id until it is settled, as docs/wire.md tells raw clients to. At the end what was
drained and what is left are what was added, exactly.
"""

import asyncio
import os
import random
import signal
import threading
import time

import pytest

import pycounter
from pycounter.errors import Unavailable
from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket

pytestmark = pytest.mark.timeout(180)

KEYS = [b"a", b"b", b"c", b"d"]
#: Nothing was applied, or nobody knows: either way it is repeated.
AGAIN = {"unavailable", "unknown_outcome", "deadline", "overloaded", "read_only", "storage"}


class Client(threading.Thread):
    """One raw client: operations one after the other, each until it is settled."""

    def __init__(self, address, seed, stop):
        super().__init__(daemon=True)
        self.added = self.taken = self.operations = 0
        self.failure = None
        self._address = address
        self._random = random.Random(seed)
        self._stop_event = stop
        self._connection = None

    def run(self):
        try:
            while not self._stop_event.is_set():
                key = self._random.choice(KEYS)
                if self._random.random() < 0.3:
                    self.taken += self.settle("drain", key)
                else:
                    delta = self._random.randrange(1, 10)
                    self.settle("incr", key, delta)
                    self.added += delta
                self.operations += 1
        except Exception as error:  # noqa: BLE001 - told to the test by its thread
            self.failure = error
        finally:
            self.hang_up()

    def hang_up(self):
        """Ends its connection, if it has one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def settle(self, method, *params, operation_id=None):
        """Repeats an operation under one id until it is settled; gives its result."""
        options = {"id": operation_id or os.urandom(16)}
        while True:
            try:
                if self._connection is None:
                    self._connection = RpcSocket(self._address, timeout_s=20)
                outcome = self._connection.outcome(method, *params, options)
            except (OSError, ConnectionClosed):
                self.hang_up()
                time.sleep(0.02)
                continue
            if not isinstance(outcome, RpcError):
                return outcome
            assert outcome.code in AGAIN, outcome
            time.sleep(0.02)


def test_what_is_added_is_there_or_was_drained(start_cluster, seed):
    print(f"seed {seed}")
    chance = random.Random(seed)
    cluster = start_cluster(shards=3)
    stop = threading.Event()
    clients = [Client(cluster.address, chance.random(), stop) for _ in range(4)]
    for client in clients:
        client.start()
    for name, number in [
        ("shard-1", signal.SIGKILL),
        ("coordinator-0", signal.SIGKILL),
        ("shard-2", signal.SIGSTOP),
        ("shard-0", signal.SIGKILL),
        ("coordinator-0", signal.SIGTERM),
    ]:
        time.sleep(chance.uniform(0.2, 1.0))
        cluster.send_signal_to(name, number)
        if number == signal.SIGSTOP:
            time.sleep(chance.uniform(0.5, 3.0))
            cluster.send_signal_to(name, signal.SIGCONT)
        else:
            cluster.wait_restarted(name)
    time.sleep(1.0)
    stop.set()
    for client in clients:
        client.join(90)
        assert not client.is_alive()
        assert client.failure is None
        assert client.operations > 0
    with RpcSocket(cluster.address) as rpc:
        totals = rpc.call("total_many", KEYS, {"accuracy": "exact"})
    assert all(total[b"missing"] == [] for total in totals)
    left = sum(total[b"total"] for total in totals)
    added, taken = sum(client.added for client in clients), sum(client.taken for client in clients)
    print(f"{added} added, {taken} drained, {left} left, {sum(client.operations for client in clients)} operations")
    assert taken > 0
    assert taken + left == added


def test_all_counters_are_deleted_once_and_what_comes_after_stays(start_cluster, seed):
    print(f"seed {seed}")
    chance = random.Random(seed)
    cluster = start_cluster(shards=3)
    client = Client(cluster.address, chance.random(), threading.Event())
    keys = [b"key-%d" % number for number in range(30)]
    for round_ in range(5):
        for key in keys:
            client.settle("incr", key, 1)
        name, operation_id = chance.choice(["shard-0", "shard-1", "shard-2", "coordinator-0"]), os.urandom(16)
        killing = threading.Timer(chance.uniform(0, 0.02), cluster.kill_process, [name])
        killing.start()
        assert client.settle("delete_all", operation_id=operation_id) == len(keys), f"round {round_}, {name}"
        after = keys[: chance.randrange(1, len(keys))]
        for key in after:
            assert client.settle("incr", key, 1) == 1
        killing.join()
        assert client.settle("delete_all", operation_id=operation_id) == len(keys)
        cluster.wait_restarted(name)
        assert client.settle("delete_all") == len(after)
    client.hang_up()


async def once_reachable(ask):
    """What a call gives once nothing that it needs is known to be down: nothing was done before."""
    while True:
        try:
            return await ask()
        except Unavailable:
            await asyncio.sleep(0.02)


async def all_of(client):
    return {key: value async for key, value in client.scan()}


@pytest.mark.parametrize("route", ["direct", "coordinator"])
async def test_many_are_deleted_by_one_call_while_shards_and_coordinator_are_killed(start_cluster, route):
    cluster = start_cluster(shards=2)
    host, port = cluster.address
    going = {f"going-{number}": number + 1 for number in range(5000)}
    staying = {f"staying-{number}": number + 1 for number in range(500)}
    killed = ["shard-1", "coordinator-0", "shard-0"]

    def kill(_count):
        if killed:
            cluster.kill_process(killed.pop())

    async with pycounter.connect(f"pycounter://{host}:{port}?route={route}") as client:
        await client.incr_many({**going, **staying})
        assert await client.delete_prefix("going-", on_progress=kill) == len(going)
        assert not killed, "it ended before something was killed"
        assert await once_reachable(lambda: all_of(client)) == staying
        # Deleted and counted again at the same time: what was removed and what is left are what was added.
        deleting = asyncio.create_task(once_reachable(lambda: client.delete_many(staying, timeout_s=60)))
        counting = [asyncio.create_task(client.incr_many(dict.fromkeys(staying, 1), timeout_s=60)) for _ in range(3)]
        await asyncio.sleep(0)
        cluster.kill_process("shard-1")
        added = sum(staying.values())
        for outcomes in await asyncio.gather(*counting, return_exceptions=True):
            assert isinstance(outcomes, list | Unavailable), outcomes
            for outcome in outcomes if isinstance(outcomes, list) else []:
                assert isinstance(outcome, int | Unavailable), "what was sent is settled, what wasn't is refused"
                added += isinstance(outcome, int)
        removed = await deleting
        assert all(isinstance(amount, int) for amount in removed)
        left = sum((await once_reachable(lambda: all_of(client))).values())
        assert sum(removed) + left == added
