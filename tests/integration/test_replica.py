"""A replica as a process beside its shard: what it answers, what it refuses, and how it comes back from everything."""

import asyncio
import random
import shutil
import signal
import threading
import time
from collections import Counter

import pytest

from pycounter.cli.folder_commands import restore
from tests.support.fault_proxy import FaultProxy
from tests.support.replica_process import ReplicaProcess, free_port
from tests.support.resp_socket import RespError, RespSocket
from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket
from tests.support.waiting import wait_until

CHECKPOINTS = {"checkpoint_interval_s": 0.05, "segment_bytes": 65_536, "checkpoint_log_bytes": 65_536}


@pytest.fixture
def start_replica(tmp_path, launcher):
    replicas = []

    def start(primary, *, name="replica", arguments=()):
        replica = ReplicaProcess(tmp_path / f"{name}.stderr", primary, launcher=launcher, arguments=arguments)
        replicas.append(replica)
        replica.start()
        return replica

    yield start
    for replica in replicas:
        replica.kill()
    for replica in replicas:
        assert "Traceback" not in replica.output(), replica.output()


def health(replica):
    with RpcSocket(replica.address) as rpc:
        return rpc.call("health")


def counters(address):
    with RpcSocket(address) as rpc:
        found: dict[bytes, int] = {}
        cursor = 0
        while True:
            cursor, page = rpc.call("scan", cursor, 1000)
            found |= dict(page)
            if cursor == 0:
                return found


def wait_caught_up(shard, replica):
    """Waits until the replica has what the shard has made durable by now."""
    with RpcSocket(shard.address) as rpc:
        durable = rpc.call("health")[b"commit_durable"]
    wait_until(lambda: (said := health(replica))[b"state"] == b"ok" and said[b"commit"] >= durable)


def test_a_replica_answers_reads_over_both_protocols_and_refuses_the_rest(shard, rpc, start_replica):
    rpc.call("incr_many", [["a", 5], ["b", -3], ["gone", 1], ["taken", 7]])
    rpc.call("delete", "gone")
    rpc.call("drain", "taken")
    replica = start_replica(shard.address, arguments=["--name", "second"])
    wait_caught_up(shard, replica)
    with RpcSocket(replica.address) as mine, RespSocket(replica.address) as resp:
        assert mine.call("get", "a") == 5
        assert mine.call("get_many", ["a", "b", "gone", "taken", "never"], {"or_nil": True}) == [5, -3, None, 0, None]
        total = mine.call("total", "b")
        assert total.pop(b"age_ms") >= 0
        assert total == {b"total": -3, b"partials": {b"shard-0": -3}, b"missing": [], b"exact": False}
        assert [total[b"total"] for total in mine.call("total_many", ["a", "b"])] == [5, -3]
        assert mine.call("top", 2) == [[b"a", 5], [b"taken", 0]]
        assert dict(mine.call("scan")[1]) == {b"a": 5, b"b": -3, b"taken": 0}
        assert resp.call("GET", "a") == b"5"
        assert resp.call("MGET", "b", "gone") == [b"-3", None]
        assert resp.call("DBSIZE") == 3
        assert mine.call("hello")[b"identity"] == shard.ready.identity.encode()
        for request in (
            ("incr", "a"),
            ("incr_many", [["a", 1]]),
            ("apply", b"s" * 16, 1, 0, [["a", 1]]),
            ("bye", b"s" * 16),
            ("drain", "a"),
            ("delete", "a"),
            ("delete_all",),
            ("backup", "/tmp/backup"),
            ("tail",),
        ):
            outcome = mine.outcome(*request)
            assert isinstance(outcome, RpcError), request
            assert (outcome.code, "a replica" in outcome.message) == ("forbidden", True), request
        for command in ("INCR a", "INCRBY a 3", "SET a 1", "DEL a", "GETDEL a", "FLUSHALL"):
            answer = resp.outcome(*command.split())
            assert isinstance(answer, RespError), command
            assert "(forbidden)" in str(answer), command
        assert [resp.call("MULTI"), resp.call("INCR", "a"), resp.call("GET", "a")] == [b"OK", b"QUEUED", b"QUEUED"]
        refused, value = resp.call("EXEC")
        assert "(forbidden)" in str(refused)
        assert value == b"5"
        assert mine.call("get", "a") == 5
        said = mine.call("health")
        assert (said[b"name"], said[b"of"], said[b"connected"]) == (b"second", b"shard-0", 1)
        assert said[b"lag_ms"] >= 0
        topology = mine.call("topology")
        assert topology[b"shards"][0][b"replicas"][0][b"name"] == b"second"
    assert replica.terminate() == 0


def test_what_is_not_there_yet_is_unavailable(shard, start_replica):
    shard.send_signal(signal.SIGSTOP)
    replica = start_replica(shard.address)
    with RpcSocket(replica.address) as mine, RespSocket(replica.address) as resp:
        for request in (("get", "a"), ("get_many", ["a"]), ("total", "a"), ("scan",), ("top",)):
            assert mine.outcome(*request).code == "unavailable"
        assert "(unavailable)" in str(resp.outcome("GET", "a"))
        assert mine.call("health")[b"state"] == b"starting"
        assert b"lag_ms" not in mine.call("health")
        shard.send_signal(signal.SIGCONT)
        wait_until(lambda: mine.call("health")[b"state"] == b"ok")
        assert mine.call("get", "a") == 0
        asked = mine.outcome("get", "a", {"min_commit": 1_000})
        assert asked.code == "unavailable", "it may get that far"


class Load:
    """Increments in sessions, as long as it is entered: what was acknowledged, and what nobody knows."""

    def __init__(self, port, chance):
        self.acknowledged: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self._port = port
        self._chance = chance
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        number = 0
        while not self._stop.is_set():
            number += 1
            size = self._chance.choice([1, 50, 2000])
            batch = [[f"key-{self._chance.randrange(3000)}", self._chance.randrange(1, 9)] for _ in range(size)]
            into = self.acknowledged if self._send(number.to_bytes(16, "big"), batch) else self.unknown
            for key, delta in batch:
                into[key] += delta

    def _send(self, session, batch):
        """Again and again until it is answered. False: stopped before that."""
        while not self._stop.is_set():
            try:
                with RpcSocket(("127.0.0.1", self._port), timeout_s=5) as rpc:
                    rpc.call("apply", session, 1, 0, batch)
                    return True
            except (OSError, ConnectionClosed, RpcError):
                time.sleep(0.02)
        return False

    def check(self, found):
        for key, value in self.acknowledged.items():
            assert value <= found[key.encode()] <= value + self.unknown[key], key


@pytest.mark.parametrize("settings", [{}, CHECKPOINTS], ids=["log", "checkpoints"])
def test_killed_again_and_again_under_load_both_agree_in_the_end(start_shard, start_replica, settings, seed):
    chance = random.Random(seed)
    port = free_port()
    shard = start_shard(settings=settings, arguments=["--port", str(port)])
    replica = start_replica(shard.address)
    with Load(port, random.Random(seed)) as load:
        for who in ["shard", "replica", "both", *chance.choices(["shard", "replica", "both"], k=3)]:
            time.sleep(chance.uniform(0.1, 0.5))
            if who != "replica":
                shard.kill()
            if who != "shard":
                replica.kill()
                replica.start()
            if who != "replica":
                time.sleep(chance.uniform(0, 0.2))
                shard.start()
    wait_caught_up(shard, replica)
    found = counters(shard.address)
    assert counters(replica.address) == found
    assert len(found) > 100
    load.check(found)
    assert health(replica)[b"states_dropped"] == 0


def test_a_primary_restored_from_a_backup_makes_it_begin_anew(start_shard, start_replica, tmp_path):
    shard = start_shard(arguments=["--port", str(free_port())])
    backup = tmp_path / "backup"
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "kept", 3)
        rpc.call("backup", str(backup))
        rpc.call("incr", "later", 1)
    replica = start_replica(shard.address)
    wait_caught_up(shard, replica)
    identity = shard.ready.identity
    shard.kill()
    assert counters(replica.address) == {b"kept": 3, b"later": 1}
    shutil.rmtree(shard.directory)
    restore(str(backup), str(shard.directory))
    shard.start()
    assert shard.ready.identity != identity
    wait_until(lambda: health(replica)[b"identity"] == shard.ready.identity.encode())
    wait_caught_up(shard, replica)
    assert counters(replica.address) == {b"kept": 3}
    assert health(replica)[b"states_dropped"] == 1


def test_a_folder_that_was_put_back_makes_it_begin_anew(start_shard, start_replica, tmp_path):
    shard = start_shard(arguments=["--port", str(free_port())])
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "kept", 3)
    shard.terminate()
    shutil.copytree(shard.directory, tmp_path / "copy")
    shard.start()
    with RpcSocket(shard.address) as rpc:
        for _ in range(20):
            rpc.call("incr", "lost")
    replica = start_replica(shard.address)
    wait_caught_up(shard, replica)
    shard.kill()
    shutil.rmtree(shard.directory)
    shutil.copytree(tmp_path / "copy", shard.directory)
    shard.start()
    with RpcSocket(shard.address) as rpc:
        # As many commits as the replica has, and more: of another history.
        for _ in range(40):
            rpc.call("incr", "other")
    wait_until(lambda: health(replica)[b"states_dropped"] == 1)
    wait_caught_up(shard, replica)
    assert counters(replica.address) == {b"kept": 3, b"other": 40}


def test_a_replica_that_stood_still_too_long_goes_on_from_a_checkpoint(start_shard, start_replica):
    shard = start_shard(settings=CHECKPOINTS)
    replica = start_replica(shard.address)
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr_many", [["early", 1], ["gone", 1]])
        wait_caught_up(shard, replica)
        had = health(replica)[b"commit"]
        replica.send_signal(signal.SIGSTOP)
        rpc.call("delete", "gone")
        added = 0

        def is_trimmed():
            nonlocal added
            rpc.call("incr_many", [[f"key-{added + item}", 1] for item in range(500)])
            added += 500
            return min(int(path.stem) for path in (shard.directory / "log").iterdir()) > had + 20

        wait_until(is_trimmed)
    replica.send_signal(signal.SIGCONT)
    wait_caught_up(shard, replica)
    found = counters(replica.address)
    assert found == counters(shard.address)
    assert len(found) == 1 + added
    assert "taking in the checkpoint" in replica.output()
    assert health(replica)[b"states_dropped"] == 0


async def test_cut_at_any_byte_and_left_without_an_answer_it_catches_up(start_shard, start_replica, seed):
    chance = random.Random(seed)
    shard = start_shard(settings=CHECKPOINTS)
    async with FaultProxy(shard.address) as proxy:
        replica = await asyncio.to_thread(start_replica, proxy.address)
        with Load(shard.ready.port, random.Random(seed)) as load:
            for _ in range(12):
                proxy.to_client.cut_after = chance.choice([50, 1_000, 20_000, 300_000]) + chance.randrange(1000)
                proxy.to_server.cut_after = chance.choice([None, 100 + chance.randrange(2000)])
                proxy.to_client.reset = chance.random() < 0.5
                await asyncio.sleep(0.15)
            assert proxy.connections > 5
            proxy.restore()
            await asyncio.to_thread(wait_caught_up, shard, replica)
            proxy.blackhole()
            # It can't know whether the shard counts on, so its lag grows.
            await asyncio.to_thread(wait_until, lambda: health(replica)[b"lag_ms"] > 300)
            proxy.restore()
        await asyncio.to_thread(wait_caught_up, shard, replica)
        found = await asyncio.to_thread(counters, shard.address)
        assert await asyncio.to_thread(counters, replica.address) == found
        load.check(found)
        assert (await asyncio.to_thread(health, replica))[b"states_dropped"] == 0


def test_the_lag_stays_what_it_was_when_the_shard_ended(shard, rpc, start_replica):
    rpc.call("incr", "a")
    replica = start_replica(shard.address)
    wait_caught_up(shard, replica)
    shard.kill()
    wait_until(lambda: health(replica)[b"connected"] == 0)
    said = set()
    for _ in range(20):
        said.add(health(replica)[b"lag_ms"])
        time.sleep(0.02)
    assert len(said) == 1
    assert counters(replica.address) == {b"a": 1}
