"""Clients that misbehave: they never read, never finish, come by the thousand, or ask for what costs most.

Each test has a bystander beside it, and a bound on the server's memory that follows from its settings. `--hostile N`
does N times as much.
"""

import contextlib
import resource
import socket
import struct
import threading
import time

import pytest

from tests.support.bystander import Bystander
from tests.support.resp_socket import RespError, RespSocket, command
from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket, notification, request
from tests.support.shard_process import ShardProcess

KIB, MIB = 1 << 10, 1 << 20
#: What allocators, the kernel's accounting and the interpreter add to what is counted.
SLACK = 24 * MIB
PER_CONNECTION = 16 * KIB
SMALL = {"frame_bytes_max": 64 * KIB, "reply_bytes_max": 64 * KIB, "held_bytes_max": 2 * MIB}


@pytest.fixture(scope="module", autouse=True)
def descriptors():
    """The test needs one for each connection as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reset(connection: socket.socket) -> None:
    """Ends it without a goodbye, as a machine that loses its network and comes back."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def figure(shard: ShardProcess, name: str) -> int:
    with RpcSocket(shard.address) as rpc:
        value: int = rpc.call("stats")[name.encode()]
        return value


def wait_for_connections(shard: ShardProcess, most: int) -> None:
    """Waits until at most so many connections are left, the asking one among them."""
    deadline = time.monotonic() + 60
    while figure(shard, "connections") > most:
        assert time.monotonic() < deadline, f"{figure(shard, 'connections')} connections are left"
        time.sleep(0.05)


def send_until_stuck(connection: socket.socket, data: bytes) -> int:
    """Sends it again and again until nothing more is taken for a while; gives the bytes that were."""
    connection.settimeout(0.2)
    sent = 0
    try:
        while True:
            sent += connection.send(data)
    except OSError:
        return sent


def flood(clients: list[RpcSocket], data: bytes) -> None:
    """All of them send until nothing more is taken."""
    senders = [threading.Thread(target=send_until_stuck, args=(client.socket, data)) for client in clients]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()


# --- clients that don't read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["applied", "durable"])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(command("ECHO", "x" * 50_000), id="long replies"),
        pytest.param(command("INCR", "a") * 1000, id="increments"),
        pytest.param(request(1, "total_many", ["a"] * 8000), id="much for little"),
    ],
)
def test_pipelines_whose_replies_nobody_reads(start_shard, hostile, level, data):
    shard = start_shard(settings={**SMALL, "level": level, "idle_timeout_s": 1.0})
    count = 12 * hostile
    # Each may have one read of its socket (256 KiB) and a frame waiting, and the replies to a frame.
    bound = count * 512 * KIB + 2 * 2 * MIB + SLACK
    with Bystander(shard, growth_bytes=bound), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RpcSocket(shard.address)) for _ in range(count)]
        flood(clients, data)
        # They hold nothing for ever: whoever neither reads nor sends for that long is gone.
        wait_for_connections(shard, 2)


def test_replies_that_nobody_reads_are_bounded_over_all_connections(start_shard):
    shard = start_shard(settings={**SMALL, "held_bytes_max": MIB, "level": "applied"})
    with Bystander(shard, growth_bytes=MIB + 30 * MIB // 2 + SLACK), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RpcSocket(shard.address)) for _ in range(30)]
        for client in clients:
            # Else the system takes megabytes, and nothing is left for the server.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deadline = time.monotonic() + 60
        while figure(shard, "connections") == 32:
            assert time.monotonic() < deadline, "none was dropped"
            flood(clients, request(1, "total_many", ["a"] * 8000))


def test_a_client_that_is_told_to_go_and_stays(start_shard):
    shard = start_shard(settings={"idle_timeout_s": 1.0})
    with RespSocket(shard.address) as resp:
        send_until_stuck(resp.socket, command("PING", "x" * 10_000) * 20)
        # A protocol error ends the connection, once its replies have left, which they never do.
        with contextlib.suppress(OSError):
            resp.send(b"*x\r\n")
        wait_for_connections(shard, 1)


# --- connections -----------------------------------------------------------------------------------------------------


def test_many_connections(start_shard, hostile):
    count = min(2000 * hostile, 10_000)
    shard = start_shard(settings={"connections_max": count + 8})
    with Bystander(shard, growth_bytes=count * PER_CONNECTION + SLACK), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RpcSocket(shard.address)) for _ in range(count)]
        for client in clients:
            client.begin("incr", "a")
        assert sorted(client.response()[1] for client in clients) == list(range(1, count + 1))
        assert figure(shard, "connections") == count + 2
    wait_for_connections(shard, 1)


def test_more_connections_than_the_setting_allows(start_shard):
    shard = start_shard(settings={"connections_max": 20})
    with Bystander(shard, growth_bytes=SLACK), contextlib.ExitStack() as stack:
        first = [stack.enter_context(RespSocket(shard.address)) for _ in range(19)]
        assert [client.call("PING") for client in first] == [b"PONG"] * 19
        for _ in range(300):
            with RespSocket(shard.address) as refused:
                assert refused.reply().word == "-ERR"[1:]
        assert [client.call("INCR", "a") for client in first] == list(range(1, 20))
        first[0].close()
        deadline = time.monotonic() + 30
        while True:
            with RespSocket(shard.address) as late, contextlib.suppress(ConnectionClosed, ConnectionResetError):
                if late.outcome("PING") == b"PONG":
                    break
            assert time.monotonic() < deadline


def test_connections_beyond_what_the_system_allows_leave_files_for_the_disk(start_shard, tmp_path):
    shard = start_shard(settings={"checkpoint_interval_s": 0.05, "segment_bytes": 4096})
    assert shard.ready is not None
    # As if the server had been started under `ulimit -n 300`; it looks at its limit when it starts.
    resource.prlimit(shard.ready.pid, resource.RLIMIT_NOFILE, (300, 300))
    with RpcSocket(shard.address) as rpc, contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(RpcSocket(shard.address))
        assert rpc.call("incr", "a") == 1
    # Whatever was lacking meanwhile: clients are served again, and the log goes on.
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(ConnectionClosed, ConnectionResetError), RpcSocket(shard.address) as rpc:
            if rpc.outcome("incr", "b") == 1:
                break
        assert time.monotonic() < deadline


@pytest.mark.parametrize("goodbye", [socket.socket.close, reset])
def test_a_storm_of_connections_that_come_and_go(shared_shard, hostile, goodbye):
    with Bystander(shared_shard, growth_bytes=SLACK):
        for number in range(1500 * hostile):
            connection = socket.create_connection(shared_shard.address)
            if number % 3 == 1:
                connection.sendall(command("INCR", "storm"))
            elif number % 3 == 2:
                connection.sendall(request(1, "incr_many", [["storm", 1]] * 50)[:-7])
            goodbye(connection)
    wait_for_connections(shared_shard, 1)


def test_clients_that_fall_silent_are_forgotten(start_shard):
    shard = start_shard(settings={"idle_timeout_s": 1.0})
    with Bystander(shard, growth_bytes=200 * PER_CONNECTION + SLACK), contextlib.ExitStack() as stack:
        for number in range(200):
            client = stack.enter_context(RpcSocket(shard.address))
            client.send(b"" if number % 2 else request(1, "get", "k" * 200)[:-9])
        # Nothing tells the server of their end: as if their machines had lost power.
        wait_for_connections(shard, 2)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_flood_of_operation_ids(start_shard):
    shard = start_shard(settings={"ids_bytes_max": MIB, "level": "applied"})
    with Bystander(shard, growth_bytes=4 * MIB + SLACK), RpcSocket(shard.address) as rpc:
        assert rpc.call("incr", "kept", 5, {"id": "the first"}) == 5
        refused = 0
        for batch in range(40):
            items = [["flood", 1, b"%08d" % (batch * 1000 + item)] for item in range(1000)]
            refused += sum(isinstance(outcome, bytes) for outcome in rpc.call("incr_many", items))
        assert 0 < refused < 40_000
        assert rpc.call("get", "flood") == 40_000 - refused
        assert rpc.outcome("incr", "a", 1, {"id": "one more"}).code == "overloaded"
        # What was there before is as it was, and who needs no id goes on.
        assert rpc.call("incr", "kept", 5, {"id": "the first"}) == 5
        assert rpc.call("incr", "kept", 1) == 6


def test_a_flood_of_sessions(start_shard):
    shard = start_shard(settings={"sessions_max": 200, "results_per_session_max": 100, "level": "applied"})
    with Bystander(shard, growth_bytes=SLACK), RpcSocket(shard.address) as rpc:
        sessions = [b"%016d" % number for number in range(2000)]
        outcomes = [rpc.outcome("apply", session, 1, 0, [["a", 1]] * 3) for session in sessions]
        taken = [outcome for outcome in outcomes if not isinstance(outcome, RpcError)]
        assert len(taken) == 200
        assert {outcome.code for outcome in outcomes if isinstance(outcome, RpcError)} == {"overloaded"}
        assert rpc.call("get", "a") == 600
        for session, outcome in zip(sessions, outcomes[:200], strict=False):
            assert rpc.call("apply", session, 1, 0, [["a", 1]] * 3)[b"results"] == outcome[b"results"]
        # One that acknowledges nothing is stopped at its bound and repeats what it had.
        for sequence in range(4, 98, 3):
            rpc.call("apply", sessions[0], sequence, 0, [["a", 1]] * 3)
        assert rpc.outcome("apply", sessions[0], 100, 0, [["a", 1]] * 3).code == "overloaded"
        assert rpc.call("apply", sessions[0], 1, 0, [["a", 1]] * 3)[b"results"] == outcomes[0][b"results"]


def test_a_flood_of_keys(start_shard):
    shard = start_shard(settings={"counters_bytes_max": MIB, "level": "applied"})
    with Bystander(shard, growth_bytes=4 * MIB + SLACK), RpcSocket(shard.address) as rpc:
        refused = 0
        for batch in range(20):
            items = [[b"key-%d-%d" % (batch, item), 1] for item in range(3000)]
            refused += sum(isinstance(outcome, bytes) for outcome in rpc.call("incr_many", items))
        assert 0 < refused < 60_000
        assert rpc.outcome("incr", "one more").code == "overloaded"
        assert rpc.call("incr", "key-0-0") == 2


# --- requests that cost much -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(start_shared_shard):
    """60,000 counters, some of them with long keys that patterns nearly match."""
    shard = start_shared_shard(name="filled", settings={"level": "applied"})
    with RpcSocket(shard.address) as rpc:
        for batch in range(12):
            rpc.call("incr_many", [[f"key-{batch}-{item}", item] for item in range(5000)])
        rpc.call("incr_many", [["a" * 900 + str(item), 1] for item in range(1000)])
    return shard


@pytest.mark.parametrize(
    ("data", "replies"),
    [
        pytest.param(request(1, "top", 1) * 400, 400, id="top"),
        pytest.param(notification("top", 65_536) * 60, 0, id="top unanswered"),
        pytest.param(request(1, "scan", 0, 65_536, "nothing") * 1000, 1000, id="scan"),
    ],
)
def test_costly_requests_take_turns(filled, data, replies):
    with Bystander(filled, growth_bytes=64 * MIB) as bystander, RpcSocket(filled.address, timeout_s=60) as rpc:
        before = len(bystander.latencies_s)
        rpc.send(data + request(2, "ping"))
        assert rpc.responses(replies + 1)[-1] == (2, b"pong")
        assert len(bystander.latencies_s) - before > 5, "the others waited until all of it was done"


def test_patterns_that_nearly_match(filled):
    pattern = "a*" * 500 + "b"
    with Bystander(filled, growth_bytes=64 * MIB) as bystander, RespSocket(filled.address) as resp:
        before = len(bystander.latencies_s)
        # However fast the machine: the others are served between two pages.
        while len(bystander.latencies_s) - before <= 5:
            cursor, pages = b"0", 0
            while pages == 0 or cursor != b"0":
                cursor, found = resp.call("SCAN", cursor, "MATCH", pattern, "COUNT", 65_536)
                assert found == []
                pages += 1
            assert pages > 20
        resp.send(command("MULTI") + command("SCAN", 0, "MATCH", pattern, "COUNT", 65_536) * 500 + command("EXEC"))
        results = resp.replies(502)[-1]
        assert len(results) == 500
        assert sum(isinstance(result, RespError) and "(too_large)" in str(result) for result in results) > 300


def test_a_flood_of_backups(shared_shard, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with Bystander(shared_shard, growth_bytes=SLACK), RpcSocket(shared_shard.address) as rpc:
        rpc.send(b"".join(request(msgid, "backup", str(tmp_path / "full")) for msgid in range(3000)))
        outcomes = [outcome.code for _, outcome in rpc.responses(3000)]
        assert set(outcomes) == {"overloaded", "storage"}
        assert rpc.call("backup", str(tmp_path / "empty")) == str(tmp_path / "empty").encode()
