"""Each limit of docs/operations.md with a small setting: the answer that it promises, nothing applied, and afterwards.

Those of one request (items, MULTI) are with the wire's tests.
"""

import contextlib
import itertools
import secrets
import threading
import time

import pytest

from tests.support.resp_socket import RespError, RespSocket, command
from tests.support.rpc_socket import TIMEOUT_S, ConnectionClosed, RpcError, RpcSocket, request

OVERLOADED = "overloaded: a bound is reached; try again later"
OOM = RespError("OOM a bound is reached; try again later (overloaded)")
DEADLINE_S = 60.0


def until(what):
    """Asks until the answer is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def keys(prefix, count):
    """So many keys of one length."""
    return [f"{prefix}:{number:011}" for number in range(count)]


def is_overloaded(answer):
    return isinstance(answer, bytes) and answer.decode() == OVERLOADED


def fill(rpc, prefix):
    """Makes counters of value 1 until one is refused; gives the keys of those that were made."""
    made: list[str] = []
    names_left = iter(keys(prefix, 100_000))
    while names := list(itertools.islice(names_left, 1000)):
        answers = rpc.call("incr_many", [[name, 1] for name in names])
        made += [name for name, answer in zip(names, answers, strict=True) if answer == 1]
        if any(map(is_overloaded, answers)):
            assert all(answer == 1 or is_overloaded(answer) for answer in answers)
            return made
    raise AssertionError("there is no bound")


# --- connections, frames, replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [command("INCR", "a"), request(1, "incr", "a")], ids=["resp", "msgpack-rpc"])
def test_connections_max(start_shard, data):
    shard = start_shard(settings={"connections_max": 2})
    with RpcSocket(shard.address) as first, RespSocket(shard.address) as second:
        assert (first.call("ping"), second.call("PING")) == (b"pong", b"PONG")
        with RespSocket(shard.address) as third:
            with contextlib.suppress(ConnectionError):
                third.send(data)
            refusal = RespError("ERR max number of clients reached (overloaded)")
            assert third.read_to_end() == [refusal]
        assert (first.call("get", "a"), second.call("EXISTS", "a")) == (0, 0)
        second.close()

        def is_let_in():
            with RespSocket(shard.address) as another, contextlib.suppress(ConnectionClosed, ConnectionError):
                return another.outcome("PING") == b"PONG"

        until(is_let_in)


@pytest.fixture(scope="module")
def narrow(start_shared_shard):
    settings = {"frame_bytes_max": 4096, "reply_bytes_max": 65_536, "held_bytes_max": 65_536}
    return start_shared_shard(name="narrow", settings=settings)


def test_frame_bytes_max_of_msgpack_rpc(narrow):
    with RpcSocket(narrow.address) as rpc:
        longest = request(1, "ping", "x" * 4084)
        assert len(longest) == 4096
        rpc.send(longest)
        assert rpc.response()[1].code == "bad_request", "a frame, though ping takes nothing"
        rpc.send(request(2, "incr", "a"))
        # Four bytes of a key that would lead over the limit, and the answer is there.
        rpc.send(b"\x94\x00\x07\xa4incr\x92\xc5\x10\x00")
        messages = rpc.read_to_end()
        assert sorted(messages)[0] == [1, 2, None, 1]
        assert sorted(messages)[1:] == [[1, 7, b"too_large: the frame is over the size limit", None]]


def test_input_bytes_max(start_shard):
    """Who fills the memory with half requests is sent away; who sends small ones in pieces isn't."""
    limits = {"frame_bytes_max": 4096, "input_bytes_max": 65_536, "connections_max": 20}
    shard = start_shard(settings=limits)
    half_frame = request(7, "get_many", ["k" * 1000] * 4)[:-1]
    with contextlib.ExitStack() as stack:
        careful = stack.enter_context(RpcSocket(shard.address))
        whole = request(1, "incr", "a")
        told = []
        for _ in range(16):
            rpc = stack.enter_context(RpcSocket(shard.address))
            rpc.send(half_frame)
            careful.send(whole[:5])
            assert careful.is_silent(0.01)
            careful.send(whole[5:])
            assert careful.response()[0] == 1
            assert careful.call("stats")[b"input_bytes"] <= 65_536
            told.append(rpc)
        answers = [rpc.read_to_end() for rpc in told[8:]]
        sentence = b"overloaded: unfinished requests of all connections fill their bound, and this one's are large"
        assert answers == [[[1, 7, sentence, None]]] * len(answers)
        assert all(rpc.is_silent(0.01) for rpc in told[:8])
    with RpcSocket(shard.address) as rpc:
        until(lambda: rpc.call("stats")[b"input_bytes"] == 0)
        assert rpc.call("get", "a") == 16


def test_frame_bytes_max_of_resp(narrow):
    with RespSocket(narrow.address) as resp:
        text = "x" * 4073
        assert len(command("ECHO", text)) == 4096
        assert resp.call("ECHO", text) == text.encode()
        resp.send(b"*2\r\n$4\r\nECHO\r\n$4074\r\n")
        assert [str(reply) for reply in resp.read_to_end()] == ["ERR Protocol error: invalid bulk length (too_large)"]


#: More than the system keeps for a connection on its own.
UNREAD_BYTES = 96 << 20


@pytest.mark.parametrize(
    ("kind", "frame"),
    [
        pytest.param(RespSocket, command("ECHO", "x" * 1000), id="resp"),
        pytest.param(RpcSocket, request(7, "total", "x" * 100), id="msgpack-rpc"),
    ],
)
def test_reply_bytes_max(narrow, kind, frame):
    """Who writes and doesn't read is not read from any more, and loses nothing."""
    frames = memoryview(frame * 1000)
    with kind(narrow.address) as lazy, RespSocket(narrow.address) as bystander:
        lazy.socket.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < UNREAD_BYTES:
                sent += lazy.socket.send(frames[sent % len(frames) :])
        assert sent < UNREAD_BYTES, "the server takes whatever comes"
        assert bystander.call("PING") == b"PONG"
        lazy.socket.settimeout(TIMEOUT_S)
        for _ in range(sent // len(frame)):
            if isinstance(lazy, RespSocket):
                assert lazy.reply() == b"x" * 1000
            else:
                msgid, total = lazy.response()
                assert (msgid, total[b"total"]) == (7, 0)


def test_held_bytes_max(narrow):
    """More replies than may wait for the disk: all clients are stopped now and then, and all are answered."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RespSocket(narrow.address)) for _ in range(8)]
        watcher = stack.enter_context(RpcSocket(narrow.address))
        threads = [
            threading.Thread(target=client.send, args=(command("INCR", f"held:{number}") * 20_000,))
            for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        # Itself one of those that are stopped, it is answered between.
        held = [watcher.call("stats")[b"held_bytes"] for _ in range(50)]
        for client in clients:
            assert client.replies(20_000) == list(range(1, 20_001))
        for thread in threads:
            thread.join()
        # The bound, and what one connection added before it was looked at.
        assert max(held) < 65_536 * 2 + 8192
        assert watcher.call("stats")[b"held_bytes"] == 0


def test_replies_of_a_transaction_are_bounded_too(narrow):
    with RespSocket(narrow.address) as resp:
        resp.call("MULTI")
        for _ in range(40):
            resp.call("ECHO", "x" * 4000)
        resp.call("INCR", "behind")
        answers = resp.call("EXEC")
        assert answers[0] == b"x" * 4000
        assert str(answers[-1]).endswith("(too_large)")
        assert resp.call("EXISTS", "behind") == 0, "refused, so not done"


# --- counters --------------------------------------------------------------------------------------------------------


def test_counters_bytes_max(start_shard):
    shard = start_shard(settings={"counters_bytes_max": "1MiB"})
    session, operation = secrets.token_bytes(16), secrets.token_bytes(16)
    new, later = keys("new", 2)
    with RpcSocket(shard.address) as rpc, RespSocket(shard.address) as resp:
        made = fill(rpc, "key")
        stats = rpc.call("stats")
        assert stats[b"counters_bytes"] <= stats[b"counters_bytes_max"] == 1 << 20
        assert resp.call("DBSIZE") == len(made) > 10_000
        # A new key is refused in every way to name one; nothing of the whole was done.
        assert str(rpc.outcome("incr", new)) == str(rpc.outcome("incr", new, 1, {"id": operation})) == OVERLOADED
        assert str(rpc.outcome("apply", session, 1, 0, [[made[0], 1], [new, 1]])) == OVERLOADED
        assert resp.outcome("INCR", new) == resp.outcome("SET", new, 5) == OOM
        # Those that exist go on.
        assert rpc.call("incr", made[0]) == 2
        assert resp.call("INCR", made[0]) == 3
        assert rpc.call("apply", session, 1, 0, [[made[0], 1]])[b"results"] == [4], "its number was still free"
        assert resp.call("SET", made[1], 7) == b"OK"
        assert rpc.call("get_many", [new, made[0], made[1], made[-1]]) == [0, 4, 7, 1]
        # Room that is made is found.
        assert rpc.call("delete", made[2]) == 1
        assert resp.call("DEL", *made[3:5000]) == 4997
        until(lambda: not isinstance(rpc.outcome("incr", later), RpcError))
        assert rpc.call("incr", new, 1, {"id": operation}) == 1, "its id was still free"
        assert resp.call("FLUSHALL") == b"OK"
        assert len(fill(rpc, "again")) > 10_000


def test_dirty_counters_max(start_shard):
    shard = start_shard(settings={"dirty_counters_max": 1024, "level": "applied", "flush_interval_s": 1.0})
    session = secrets.token_bytes(16)
    with RpcSocket(shard.address) as rpc, RespSocket(shard.address) as resp:
        names = keys("key", 1030)
        answers = rpc.call("incr_many", [[name, 1] for name in names])
        done = [answer == 1 for answer in answers]
        assert done.count(True) >= 1024
        assert all(one or is_overloaded(answer) for one, answer in zip(done, answers, strict=True))
        # A batch larger than the bound can never be done, and none of it is.
        assert str(rpc.outcome("apply", session, 1, 0, [[name, 1] for name in names])) == OVERLOADED
        assert resp.outcome("DEL", *names) == OOM
        assert rpc.call("get_many", names) == [int(one) for one in done]
        # More room comes with the next commit.
        until(lambda: rpc.call("stats")[b"pending"] == 0)
        assert rpc.call("apply", session, 1, 0, [["a", 1]])[b"results"] == [1]
        assert resp.call("DEL", *names[:1000]) == 1000


# --- sessions and ids ------------------------------------------------------------------------------------------------


def test_sessions_max_and_results_per_session_max(start_shard):
    shard = start_shard(settings={"sessions_max": 2, "results_per_session_max": 100})
    first, second, third = (secrets.token_bytes(16) for _ in range(3))
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("apply", first, 1, 0, [["a", 1]])[b"results"] == [1]
        assert rpc.call("apply", second, 1, 0, [["a", 1]])[b"results"] == [2]
        assert str(rpc.outcome("apply", third, 1, 0, [["a", 1]])) == OVERLOADED
        assert rpc.call("apply", first, 1, 0, [["a", 1]])[b"results"] == [1], "a repeated one is answered"
        assert rpc.call("apply", first, 2, 0, [["a", 1]])[b"results"] == [3], "and those that are in go on"
        assert rpc.call("bye", second) is None
        assert rpc.call("apply", third, 1, 0, [["a", 1]])[b"results"] == [4]

        too_large = rpc.outcome("apply", third, 2, 0, [["b", 1]] * 101)
        assert too_large.code == "too_large"
        assert rpc.call("apply", third, 2, 0, [["b", 1]] * 99)[b"results"] == list(range(1, 100))
        assert str(rpc.outcome("apply", third, 101, 0, [["b", 1]])) == OVERLOADED
        assert rpc.call("apply", third, 100, 0, [["b", 1]])[b"results"] == [99]
        assert rpc.call("apply", third, 101, 1, [["b", 1]])[b"results"] == [100], "what is acknowledged makes room"
        assert rpc.call("get_many", ["a", "b"]) == [4, 100]


def test_session_bytes_max(start_shard):
    shard = start_shard(settings={"session_bytes_max": "64KiB"})
    with RpcSocket(shard.address) as rpc:
        sessions = []
        while True:
            session = secrets.token_bytes(16)
            answer = rpc.outcome("apply", session, 1, 0, [["a", 1]])
            if isinstance(answer, RpcError):
                break
            sessions.append(session)
        assert str(answer) == OVERLOADED
        assert rpc.call("stats")[b"session_bytes"] <= 65_536
        assert rpc.call("get", "a") == len(sessions) > 300
        assert rpc.call("apply", sessions[0], 1, 0, [["a", 1]])[b"results"] == [1]
        many = [["a", 1]] * 100
        assert str(rpc.outcome("apply", sessions[0], 2, 0, many)) == OVERLOADED
        for ended in sessions[100:]:
            rpc.call("bye", ended)
        assert rpc.call("apply", sessions[0], 2, 1, many)[b"results"][-1] == len(sessions) + 100
        assert rpc.call("apply", session, 1, 0, [["a", 1]])[b"results"] == [len(sessions) + 101]


def test_ids_bytes_max(start_shard):
    shard = start_shard(settings={"ids_bytes_max": "1MiB", "id_window_s": 0.01})
    with RpcSocket(shard.address) as rpc:
        done = 0
        while True:
            items = [["a", 1, secrets.token_bytes(64)] for _ in range(1000)]
            answers = rpc.call("incr_many", items)
            accepted = [item for item, answer in zip(items, answers, strict=True) if isinstance(answer, int)]
            done += len(accepted)
            if len(accepted) < len(items):
                break
            first = items[0], answers[0]
        assert done > 5000
        assert all(isinstance(answer, int) or is_overloaded(answer) for answer in answers)
        assert rpc.call("stats")[b"operation_id_bytes"] <= 1 << 20
        (key, delta, known), answer = first
        assert rpc.call("incr", key, delta, {"id": known}) == answer, "a repeated one is answered"
        assert rpc.call("incr", "a") == done + 1, "one without an id goes on"
        new = secrets.token_bytes(64)
        assert str(rpc.outcome("incr", "a", 1, {"id": new})) == OVERLOADED
        # Ids leave when their window is over, and five seconds.
        until(lambda: not isinstance(rpc.outcome("incr", "a", 1, {"id": new}), RpcError))
        assert rpc.call("get", "a") == done + 2
