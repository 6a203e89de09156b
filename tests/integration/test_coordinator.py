"""A coordinator before real shards: raw MessagePack-RPC, redis-py, redis-cli, and what it does when shards fail."""

import asyncio
import shutil
import signal
import subprocess
import time
from functools import partial

import pytest
import redis

from pycounter.net.security import client_tls
from tests.support.credentials import TOKEN, make_certificate, over_tls, signed_in, write_token
from tests.support.resp_socket import RespError, RespSocket
from tests.support.rpc_socket import RpcError, RpcSocket, notification
from tests.support.waiting import wait_until

SHARDS = 3
KEYS = [f"key-{number}" for number in range(60)]


@pytest.fixture(scope="module")
def cluster(start_shared_cluster):
    return start_shared_cluster(shards=SHARDS)


@pytest.fixture
def rpc(cluster):
    with RpcSocket(cluster.address) as connection:
        yield connection


@pytest.fixture
def resp(cluster):
    with RespSocket(cluster.address) as connection:
        connection.call("FLUSHALL")
        yield connection


def takes(rpc, removal):
    return not isinstance(rpc.outcome(removal, "nothing"), RpcError)


def call_shard(cluster, name, *request):
    """What a shard answers, asked directly."""
    host, _, port = next(shard.address for shard in cluster.topology().shards if shard.name == name).rpartition(":")
    with RpcSocket((host, int(port))) as connection:
        return connection.call(*request)


def shard_values(cluster, key):
    """What each shard holds of a counter, asked directly."""
    return {shard.name: call_shard(cluster, shard.name, "get", key) for shard in cluster.topology().shards}


# --- MessagePack-RPC -------------------------------------------------------------------------------------------------


def test_increments_go_to_their_homes_and_are_read_back(cluster, rpc, resp):
    for key in KEYS:
        assert rpc.call("incr", key) == 1
    assert rpc.call("get_many", KEYS) == [1] * len(KEYS)
    homes = cluster.topology().ring.home_many(KEYS)
    assert len(set(homes)) == SHARDS
    for key, home in list(zip(KEYS, homes, strict=True))[:5]:
        assert shard_values(cluster, key) == {name: int(name == home) for name in set(homes)}


def test_an_id_counts_once_however_often_it_is_sent(rpc, resp):
    options = {"id": b"an id of this test", "detail": True}
    first = rpc.call("incr", "once", 5, options)
    assert first[b"value"] == 5
    assert rpc.call("incr", "once", 5, options)[b"value"] == 5
    assert rpc.call("get", "once") == 5
    with pytest.raises(RpcError, match="id_reused"):
        rpc.call("incr", "once", 6, options)


def test_many_at_once_each_with_its_outcome(rpc, resp):
    outcomes = rpc.call("incr_many", [[key, number] for number, key in enumerate(KEYS)] + [["", 1]])
    assert outcomes[:-1] == list(range(len(KEYS)))
    assert outcomes[-1].startswith(b"bad_key")


def test_totals_have_their_partials(cluster, rpc, resp):
    rpc.call("incr", "t", 7)
    home = cluster.topology().ring.home("t").encode()
    recent = rpc.call("total", "t")
    assert (recent[b"total"], recent[b"partials"][home], recent[b"missing"]) == (7, 7, [])
    exact = rpc.call("total", "t", {"accuracy": "exact"})
    assert (exact[b"total"], exact[b"exact"], len(exact[b"partials"])) == (7, True, SHARDS)
    assert [total[b"total"] for total in rpc.call("total_many", ["t", "never"])] == [7, 0]


def test_a_cached_read_is_never_older_than_this_coordinators_own_writes(rpc, resp):
    for value in range(1, 50):
        assert rpc.call("incr", "cached") == value
        assert rpc.call("get", "cached", {"accuracy": "cached"}) == value


def test_drain_and_delete_take_everything_once(rpc, resp):
    rpc.call("incr", "d", 9)
    assert rpc.call("drain", "d", {"id": b"drain of this test"}) == 9
    rpc.call("incr", "d", 1)
    assert rpc.call("drain", "d", {"id": b"drain of this test"}) == 9, "the original result"
    assert rpc.call("get", "d") == 1
    assert rpc.call("delete", "d") == 1
    assert rpc.call("get", "d", {"or_nil": True}) is None


def test_a_removal_told_in_full_has_the_commits_of_its_shards(cluster, rpc, resp):
    first = rpc.call("incr", "d", 9, {"detail": True})
    detail = rpc.call("drain", "d", {"detail": True})
    commits = detail.pop(b"commits")
    assert detail == {b"value": 9, b"exact": True, b"level": b"durable", b"commit": detail[b"commit"]}
    assert detail[b"commit"] > first[b"commit"]
    assert set(commits) == {b"shard-0", b"shard-1", b"shard-2"}
    home = cluster.topology().ring.home("d").encode()
    assert commits[home] == detail[b"commit"]
    assert rpc.call("get", "d", {"min_commit": detail[b"commit"]}) == 0
    assert rpc.outcome("get", "d", {"min_commit": detail[b"commit"] + 1000}).code == "bad_request"
    detail = rpc.call("delete_all", {"detail": True})
    assert (detail[b"value"], detail[b"commit"], set(detail[b"commits"])) == (1, None, set(commits))


def test_delete_many_takes_every_part_of_each_counter(cluster, rpc, resp):
    rpc.call("incr_many", [[key, 1] for key in KEYS])
    for name in ("shard-0", "shard-1"):
        call_shard(cluster, name, "incr", "key-7", 10)
    *removed, bad_key, never = rpc.call("delete_many", [*KEYS, "", "never"])
    assert removed == [21 if key == "key-7" else 1 for key in KEYS]
    assert bad_key.startswith(b"bad_key: ")
    assert never == 0
    assert shard_values(cluster, "key-7") == dict.fromkeys(["shard-0", "shard-1", "shard-2"], 0)
    assert resp.call("EXISTS", *KEYS) == 0
    rpc.call("incr", "once", 5)
    for _ in range(2):
        assert rpc.call("delete_many", [["once", b"deleted by this id"]], {"level": "applied"}) == [5]
        rpc.call("incr", "once", 1)
    assert rpc.call("get", "once") == 2


def test_any_value_is_set_after_any_other(resp):
    for value in (-(2**63), 2**63 - 1, -(2**63), 0):
        assert resp.call("SET", "o", str(value)) == b"OK"
        assert int(resp.call("GET", "o")) == value


def test_scan_and_top_over_all_shards(rpc, resp):
    for number, key in enumerate(KEYS):
        rpc.call("incr", key, number)
    found, cursor = [], 0
    while True:
        cursor, page = rpc.call("scan", cursor, 7)
        found += page
        if not cursor:
            break
    assert sorted(map(tuple, found)) == sorted((key.encode(), number) for number, key in enumerate(KEYS))
    assert rpc.call("top", 3) == [[b"key-59", 59], [b"key-58", 58], [b"key-57", 57]]
    assert rpc.call("top", 3, "key-1")[0] == [b"key-19", 19]


def test_what_a_coordinator_says_of_itself(cluster, rpc):
    assert rpc.call("ping") == b"pong"
    assert rpc.call("health")[b"state"] == b"ok"
    stats = rpc.call("stats")
    assert stats[b"level"] == b"durable"
    topology = rpc.call("topology")
    assert topology[b"version"] == cluster.topology().version
    assert [shard[b"name"] for shard in topology[b"shards"]] == [b"shard-0", b"shard-1", b"shard-2"]
    assert rpc.call("watch_topology", 0)[b"version"] == topology[b"version"]
    hello = rpc.call("hello", {"client": "a test"})
    assert hello[b"server"] == b"pycounter"


def test_sessions_are_refused(rpc):
    with pytest.raises(RpcError, match="forbidden"):
        rpc.call("apply", b"x" * 16, 1, 0, [["a", 1]], "durable")


def test_notifications_count(rpc, resp):
    for _ in range(10):
        rpc.send(notification("incr", "notified", 2))
    wait_until(lambda: rpc.call("get", "notified") == 20)


# --- RESP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(cluster, resp, protocol):
    with redis.Redis("127.0.0.1", cluster.address[1], protocol=protocol, decode_responses=True) as client:
        assert client.ping()
        assert client.incr("hits") == 1
        assert client.incr("hits", 41) == 42
        assert client.decr("hits", 2) == 40
        assert client.get("hits") == "40"
        assert client.get("never") is None
        assert client.set("other", 5)
        assert client.set("other", 6, get=True) == "5"
        assert client.mget("hits", "other", "never") == ["40", "6", None]
        assert client.exists("hits", "never") == 1
        assert client.type("hits") == "string"
        assert client.getdel("other") == "6"
        assert client.dbsize() == 1
        assert set(client.scan_iter(match="h*")) == {"hits"}
        assert client.info()["redis_version"]
        with pytest.raises(redis.ResponseError, match="overflow"):
            client.incr("hits", 2**63 - 1)
        assert client.delete("hits", "never") == 1
        client.incr("x")
        assert client.flushall()
        assert client.dbsize() == 0


@pytest.mark.parametrize("transaction", [True, False])
def test_redis_py_pipelines_keep_their_order(cluster, resp, transaction):
    with redis.Redis("127.0.0.1", cluster.address[1]) as client:
        pipeline = client.pipeline(transaction=transaction)
        for number in range(100):
            pipeline.incr("a").set(f"b{number}", number).incr(f"b{number}").get(f"b{number}")
        results = pipeline.execute()
        assert results[::4] == list(range(1, 101))
        assert results[3::4] == [b"%d" % (number + 1) for number in range(100)]


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="redis-tools are not installed")
def test_redis_cli(cluster, resp):
    def cli(*words):
        command = ["redis-cli", "-p", str(cluster.address[1]), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()

    assert cli("INCRBY", "a", "5") == "5"
    assert cli("GET", "a") == "5"
    assert cli("SET", "a", "1") == "OK"
    assert cli("DEL", "a", "b") == "1"
    assert cli("--scan") == ""


def test_many_clients_at_once(cluster, resp):
    async def client(number):
        reader, writer = await asyncio.open_connection(*cluster.address)
        for _ in range(20):
            writer.write(b"INCR together\r\n" * 10)
            for _ in range(10):
                assert (await reader.readline()).startswith(b":")
        writer.close()

    async def run():
        await asyncio.gather(*(client(number) for number in range(50)))

    asyncio.run(run())
    assert resp.call("GET", "together") == b"10000"


def test_flushall_is_ordered_with_the_commands_around_it(cluster, rpc, resp):
    before = [f"INCR {key}\r\n" for key in KEYS]
    with redis.Redis("127.0.0.1", cluster.address[1]) as client:
        for transaction in (True, False):
            pipeline = client.pipeline(transaction=transaction)
            for key in KEYS:
                pipeline.incr(key)
            pipeline.flushall().dbsize()
            for key in KEYS:
                pipeline.incr(key)
            results = pipeline.execute()
            assert results[len(KEYS) :] == [True, 0] + [1] * len(KEYS)
            assert client.flushdb()
            assert client.dbsize() == 0
    resp.send("".join(before).encode())
    for _ in before:
        resp.reply()
    for key in KEYS:
        assert rpc.call("get", key, {"accuracy": "cached"}) == 1
    assert resp.call("FLUSHALL") == b"OK"
    for key in KEYS:
        assert rpc.call("get", key, {"accuracy": "cached"}) == 0
        assert rpc.call("incr", key) == 1


def test_what_is_counted_while_all_counters_are_deleted_is_deleted_or_there(cluster, resp):
    """Of each client's increments of a counter of its own, those behind the last deletion are there, and no others."""

    async def client(number, deleting):
        reader, writer = await asyncio.open_connection(*cluster.address)
        values: list[int] = []
        while not deleting.done() or len(values) < 10:
            writer.write(f"INCR own-{number}\r\n".encode())
            values.append(int((await reader.readline())[1:]))
        writer.close()
        return values

    async def delete():
        reader, writer = await asyncio.open_connection(*cluster.address)
        for _ in range(20):
            await asyncio.sleep(0.005)
            writer.write(b"FLUSHALL\r\n")
            assert await reader.readline() == b"+OK\r\n"
        writer.close()

    async def run():
        deleting = asyncio.create_task(delete())
        return await asyncio.gather(*(client(number, deleting) for number in range(20)))

    for number, values in enumerate(asyncio.run(run())):
        restarts = sum(after != before + 1 for before, after in zip([0, *values], values, strict=False))
        assert all(after in (before + 1, 1) for before, after in zip([0, *values], values, strict=False)), values
        assert restarts <= 20
        assert resp.call("GET", f"own-{number}") in (b"%d" % values[-1], None)


def test_delete_all_is_done_once_under_its_id(cluster, rpc, resp):
    options = {"id": b"all of this test", "born": rpc.call("hello")[b"time"]}
    for key in KEYS:
        rpc.call("incr", key)
    assert rpc.call("delete_all", options) == len(KEYS)
    for key in KEYS:
        assert rpc.call("incr", key) == 1
    assert rpc.call("delete_all", options) == len(KEYS), "the original result"
    assert sum(rpc.call("get_many", KEYS)) == len(KEYS)
    assert rpc.call("delete_all") == len(KEYS)
    assert resp.call("DBSIZE") == 0


def test_a_counter_on_several_shards_counts_once(cluster, rpc, resp):
    home = cluster.topology().ring.home
    for key in KEYS[:40]:
        rpc.call("incr", key)
    assert resp.call("DBSIZE") == 40
    # Some at home and elsewhere, one on all shards, some that their home doesn't have.
    abroad = [key for key in KEYS[20:] if home(key) != "shard-0"]
    call_shard(cluster, "shard-0", "incr_many", [[key, 1] for key in abroad])
    both = next(key for key in abroad if home(key) == "shard-1")
    call_shard(cluster, "shard-2", "incr", both)
    assert call_shard(cluster, "shard-0", "scan_foreign", 0, 1000)[0] == 0
    listed = call_shard(cluster, "shard-0", "scan_foreign", 0, 1000)[1]
    assert sorted(listed) == sorted([key.encode(), 1] for key in abroad)
    assert resp.call("DBSIZE") == len({*KEYS[:40], *abroad})
    assert rpc.outcome("scan_foreign").code == "forbidden"
    held = 40 + len(abroad) + 1
    assert b"\r\ndb0:keys=%d,expires=0,avg_ttl=0\r\n" % held in resp.call("INFO")
    with redis.Redis("127.0.0.1", cluster.address[1]) as client:
        assert client.info("keyspace") == {"db0": {"keys": held, "expires": 0, "avg_ttl": 0}}
        assert client.info()["redis_mode"] == "standalone"
        pipeline = client.pipeline().incr("one more").info("keyspace").flushall().info("keyspace").info("server")
        _, info, _, empty, server = pipeline.execute()
        assert (info["db0"]["keys"], empty) == (held + 1, {})
        assert server["redis_version"]


# --- when shards fail ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_cluster(start_cluster):
    return start_cluster(shards=SHARDS)


def key_at(cluster, shard):
    return next(key for key in KEYS if cluster.topology().ring.home(key) == shard)


def test_new_increments_go_elsewhere_while_a_shard_is_away_and_totals_are_exact_at_the_end(own_cluster):
    key = key_at(own_cluster, "shard-1")
    acknowledged = unknown = 0
    with RpcSocket(own_cluster.address) as rpc:
        assert rpc.call("incr", key) == 1
        acknowledged += 1
        own_cluster.kill_process("shard-1")
        deadline = time.monotonic() + 60
        while not (own_cluster.process("shard-1").state == "ok" and own_cluster.process("shard-1").restarts):
            assert time.monotonic() < deadline
            outcome = rpc.outcome("incr", key)
            if not isinstance(outcome, RpcError):
                acknowledged += 1
            elif outcome.code in {"unknown_outcome", "deadline"}:
                unknown += 1
            else:
                assert outcome.code == "unavailable"
        own_cluster.wait_restarted("shard-1")
        for removal in ("drain", "delete"):
            # Every shard is needed; right after the start one may not be linked yet.
            wait_until(partial(takes, rpc, removal))
        total = rpc.call("total", key, {"accuracy": "exact"})
        assert total[b"missing"] == []
        assert acknowledged <= total[b"total"] <= acknowledged + unknown
        assert rpc.call("get", key) == total[b"total"]


def test_a_removal_is_refused_while_a_shard_is_known_to_be_down(own_cluster):
    own_cluster.send_signal_to("shard-2", signal.SIGSTOP)
    try:
        with RpcSocket(own_cluster.address) as rpc:
            rpc.call("incr", key_at(own_cluster, "shard-0"), 3)

            def refused():
                outcome = rpc.outcome("delete", "nothing")
                return isinstance(outcome, RpcError) and outcome.code == "unavailable" and "shard-2" in outcome.message

            wait_until(refused)
            with RespSocket(own_cluster.address) as resp:
                assert b"\r\ndb0:keys=1,expires=0,avg_ttl=0\r\nmissing_shards:shard-2\r\n" in resp.call("INFO")
                assert resp.outcome("DBSIZE").word == "ERR"
            total = rpc.call("total", key_at(own_cluster, "shard-0"), {"accuracy": "exact"})
            assert total[b"missing"] == [b"shard-2"]
            assert total[b"total"] == 3
    finally:
        own_cluster.send_signal_to("shard-2", signal.SIGCONT)


def test_flushall_says_which_shards_are_empty_and_is_done_once_at_the_others(own_cluster):
    away = key_at(own_cluster, "shard-1")
    with RpcSocket(own_cluster.address) as rpc, RespSocket(own_cluster.address) as resp:
        rpc.call("incr_many", [[key, 1] for key in KEYS])
        own_cluster.send_signal_to("shard-1", signal.SIGSTOP)
        try:
            said = resp.outcome("FLUSHALL")
        finally:
            own_cluster.send_signal_to("shard-1", signal.SIGCONT)
        assert isinstance(said, RespError), said
        parts = ["shard-0 deleted", "shard-2 deleted", "not settled at shard-1 (nobody knows", "(unknown_outcome)"]
        assert [part for part in parts if part not in str(said)] == [], said
        # It is in the shard's socket, once or several times under one id: nothing counted from its return on goes.
        wait_until(lambda: rpc.call("get", away) == 0)
        assert sum(rpc.call("get_many", KEYS)) == 0
        assert rpc.call("incr", away) == 1
        time.sleep(0.5)
        assert rpc.call("get", away) == 1


def test_a_stopping_coordinator_answers_what_is_in(own_cluster):
    with RpcSocket(own_cluster.address) as rpc:
        rpc.call("ping")
        msgids = [rpc.begin("incr", key) for key in KEYS]
        own_cluster.send_signal_to("coordinator-0", signal.SIGTERM)
        answered = [message[1] for message in rpc.read_to_end() if message[2] is None]
    # Those that had arrived are answered, in whatever order; none is lost among them.
    assert sorted(answered) == msgids[: len(answered)]
    own_cluster.wait_restarted("coordinator-0")
    with RpcSocket(own_cluster.address) as rpc:
        counted = sum(rpc.call("get_many", KEYS))
        assert counted == len(answered)


def test_notifications_are_kept_while_no_shard_is_there_through_a_restart(own_cluster):
    with RpcSocket(own_cluster.address) as rpc:
        rpc.call("incr", "kept")
        for shard in ("shard-0", "shard-1", "shard-2"):
            own_cluster.send_signal_to(shard, signal.SIGSTOP)
        wait_until(lambda: rpc.call("health")[b"state"] == b"unavailable")
        for _ in range(10):
            rpc.send(notification("incr", "kept", 2))
        wait_until(lambda: own_cluster.status()["facts"]["coordinator-0"]["replay"]["waiting"] == 10)
    own_cluster.kill_process("coordinator-0")
    for shard in ("shard-0", "shard-1", "shard-2"):
        own_cluster.send_signal_to(shard, signal.SIGCONT)
    own_cluster.wait_restarted("coordinator-0")
    with RpcSocket(own_cluster.address) as rpc:
        wait_until(lambda: rpc.outcome("get", "kept") == 21)
        time.sleep(0.1)
        assert rpc.call("total", "kept", {"accuracy": "exact"})[b"total"] == 21


# --- who may come in -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tokens_and_tls(start_cluster, tmp_path):
    certificate, key = make_certificate(tmp_path, "coordinator")
    guards = ["--token-file", write_token(tmp_path), "--tls-cert", certificate, "--tls-key", key]
    guarded = start_cluster(shards=2, arguments=guards)
    context = client_tls(certificate)
    with over_tls(RpcSocket(guarded.address), context) as rpc:
        assert rpc.outcome("incr", "a").code == "unauthenticated"
        assert rpc.outcome("hello", {"token": TOKEN[:-1] + "5", "session": b"s" * 16}).code == "unauthenticated"
        assert rpc.read_to_end() == []
    with over_tls(RpcSocket(guarded.address), context) as rpc:
        assert signed_in(rpc).call("incr", "a") == 1
        assert rpc.call("total", "a", {"accuracy": "exact"})[b"total"] == 1
    with over_tls(RespSocket(guarded.address), context) as resp:
        resp.call("AUTH", TOKEN)
        assert resp.call("INCR", "a") == 2
        assert resp.call("DEL", "a") == 1


def test_a_replica_reads_for_a_shard_that_is_away(start_cluster):
    cluster = start_cluster(shards=2, replicas=1)
    cluster.wait_all_ok()
    key = key_at(cluster, "shard-1")
    with RpcSocket(cluster.address) as rpc:
        assert rpc.call("incr", key, 7) == 7

        def replica_has_it():
            total = rpc.call("total", key, {"accuracy": "recent"})
            return total[b"total"] == 7

        wait_until(replica_has_it)
        time.sleep(1.0)  # so that the replica has it too, and its health is known
        cluster.send_signal_to("shard-1", signal.SIGSTOP)
        try:

            def from_replica():
                total = rpc.call("total", key)
                return total if b"replicas" in total else None

            total = wait_until(from_replica)
            assert (total[b"total"], total[b"missing"], total[b"exact"]) == (7, [], False)
            assert list(total[b"replicas"]) == [b"shard-1"]
            assert rpc.call("total", key, {"accuracy": "exact"})[b"missing"] == [b"shard-1"]
        finally:
            cluster.send_signal_to("shard-1", signal.SIGCONT)
