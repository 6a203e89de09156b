"""Clients that try to get in, to fill the memory with what they never finish, or to choose keys that cost most.

`--hostile N` does N times as much.
"""

import contextlib
import random
import shutil
import socket
import ssl
import threading
import time

import pytest

from tests.support.bystander import Bystander
from tests.support.credentials import TOKEN, make_certificate, over_tls, signed_in, write_token
from tests.support.resp_socket import RespError, RespSocket, command
from tests.support.rpc_socket import ConnectionClosed, RpcSocket, request
from tests.support.shard_process import ShardProcess

KIB, MIB = 1 << 10, 1 << 20
#: What allocators, the kernel's accounting and the interpreter add to what is counted.
SLACK = 24 * MIB
NO_TOKEN = "unauthenticated: the token is missing or wrong"
NO_AUTH = RespError("NOAUTH Authentication required. (unauthenticated)")
WRONG_PASS = RespError("WRONGPASS invalid username-password pair or user is disabled. (unauthenticated)")


def until(what, *, seconds=60.0):
    """Asks until the answer is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(start_shared_shard, tmp_path_factory):
    """A shard that wants a token; what it writes to its log has none in it, right or wrong."""
    token_file = write_token(tmp_path_factory.mktemp("token"))
    shard = start_shared_shard(name="guarded", arguments=["--token-file", token_file])
    yield shard
    assert TOKEN[:-1] not in shard.output(10_000)


@pytest.fixture
def insider(guarded):
    """A client that is in."""
    with RpcSocket(guarded.address) as rpc:
        yield signed_in(rpc)


def beside(shard: ShardProcess) -> Bystander:
    return Bystander(shard, growth_bytes=SLACK, connect=lambda address: signed_in(RpcSocket(address)))


def test_a_flood_of_wrong_tokens(guarded, insider, hostile, seed):
    rng = random.Random(seed)
    before = insider.call("stats")
    connections, pipelined = 200 * hostile, 2000
    with beside(guarded):
        for number in range(connections):
            guess = TOKEN[: number % 32] + "".join(rng.choices("0123456789abcdef", k=1 + number % 40)) + "g"
            with RpcSocket(guarded.address) as rpc:
                rpc.send(request(1, "hello", {"token": guess}) + request(2, "incr", "stolen") * 3)
                assert rpc.read_to_end() == [[1, 1, NO_TOKEN.encode(), None]]
            with RespSocket(guarded.address) as resp:
                resp.send(command("AUTH", guess) + command("INCR", "stolen") + command("HELLO", 3, "AUTH", "x", guess))
                assert resp.replies(3) == [WRONG_PASS, NO_AUTH, WRONG_PASS]
        with RespSocket(guarded.address) as resp:
            resp.send((command("AUTH", TOKEN[:-1]) + command("INCR", "stolen")) * pipelined)
            assert resp.replies(2 * pipelined) == [WRONG_PASS, NO_AUTH] * pipelined
            assert resp.call("AUTH", TOKEN) == b"OK", "who guessed wrong may still know it"
    until(lambda: insider.call("stats")[b"connections"] == before[b"connections"])
    after = insider.call("stats")
    assert after[b"refused_tokens"] - before[b"refused_tokens"] == 3 * connections + pipelined
    assert (after[b"input_bytes"], after[b"held_bytes"]) == (0, 0)
    assert insider.call("get", "stolen") == 0


def test_a_hello_counts_for_its_own_connection_only(guarded, insider):
    session = b"a session's id.."
    hello = request(1, "hello", {"token": TOKEN, "session": session})
    batch = request(2, "apply", session, 1, 0, [["replayed", 5]])
    with RpcSocket(guarded.address) as first:
        first.send(hello + batch + hello + batch)
        results = first.responses(4)
        assert [result[b"results"] for msgid, result in results if msgid == 2] == [[5], [5]]
        assert [result[b"last_sequence"] for msgid, result in results if msgid == 1] == [None, 1]
        with RpcSocket(guarded.address) as stranger:
            # Whoever saw only what came after the hello ...
            stranger.send(batch)
            assert stranger.response()[1].code == "unauthenticated"
            # ... and even who saw all of it repeats what was done, and does nothing.
            stranger.send(hello + batch)
            assert [result[b"results"] for msgid, result in stranger.responses(2) if msgid == 2] == [[5]]
        # What was asked before a wrong hello is answered, and nothing behind it is done.
        first.send(
            request(3, "incr", "replayed") + request(4, "hello", {"token": "x"}) + request(5, "incr", "replayed")
        )
        assert sorted(first.read_to_end()) == [[1, 3, None, 6], [1, 4, NO_TOKEN.encode(), None]]
    assert insider.call("get", "replayed") == 6


def test_whoever_sends_auth_in_another_shape_stays_outside(guarded, insider):
    before = insider.call("stats")[b"refused_tokens"]
    quoted = f'AUTH "{TOKEN} "\r\n'.encode()
    wrong = [
        *(command("AUTH", token) for token in ("", TOKEN.upper(), f"{TOKEN}\n", f" {TOKEN}", f"{TOKEN}\0", "x" * 1024)),
        *(command("AUTH", TOKEN, token) for token in ("", "default")),
        *(command("HELLO", 3, "AUTH", TOKEN, token) for token in ("", TOKEN[1:])),
        quoted,
    ]
    malformed = [
        *(command(*words) for words in (["AUTH"], ["AUTH", "default", TOKEN, TOKEN], ["AUTH", TOKEN + "x" * 1024])),
        *(command("HELLO", *words) for words in (["3", "AUTH", TOKEN], ["9", "AUTH", "default", TOKEN])),
        command("HELLO", "3", "SETNAME", "a b", "AUTH", "default", TOKEN),
    ]
    with RespSocket(guarded.address) as resp:
        for frame in wrong:
            resp.send(frame)
            assert resp.reply() == WRONG_PASS, frame
            assert resp.outcome("GET", "a") == NO_AUTH
        for frame in malformed:
            resp.send(frame)
            assert isinstance(resp.reply(), RespError), frame
            assert resp.outcome("GET", "a") == NO_AUTH
    assert insider.call("stats")[b"refused_tokens"] - before == len(wrong)
    # A token is no reason to take much memory.
    for data in (command("AUTH", "x" * 20_000), request(1, "hello", {"token": "x" * 20_000})):
        with RpcSocket(guarded.address) as rpc:
            rpc.send(data[:100])
            assert b"too" in rpc.socket.recv(1000)
            assert rpc.socket.recv(1) == b""


# --- TLS -------------------------------------------------------------------------------------------------------------


def first_words(context: ssl.SSLContext) -> bytes:
    """What a client of TLS sends first."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="127.0.0.1").do_handshake()
    return sent.read()


def is_ended(connection: socket.socket) -> bool:
    """Has the server ended it? TLS may say why first."""
    connection.settimeout(0.01)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_handshakes_that_nobody_finishes(start_shard, tmp_path, hostile):
    cert, key = make_certificate(tmp_path, "ours")
    context = ssl.create_default_context(cafile=cert)
    room, inside = 30, 2
    settings = {"connections_max": room, "handshake_timeout_s": 2.0}
    shard = start_shard(settings=settings, arguments=["--tls-cert", cert, "--tls-key", key])
    hello = first_words(context)
    beginnings = [b"", hello[:1], hello[: len(hello) // 2], hello[:-1], hello]

    def connect(address):
        return over_tls(RpcSocket(address), context)

    def is_let_in():
        with contextlib.suppress(OSError, ConnectionClosed), connect(shard.address) as rpc:
            return rpc.call("ping") == b"pong"

    with (
        Bystander(shard, growth_bytes=room * 256 * KIB + SLACK, connect=connect) as bystander,
        connect(shard.address) as watcher,
        contextlib.ExitStack() as stack,
    ):
        others: list[socket.socket] = []
        # Bytes of a protocol that isn't TLS: an alert at most, and the end.
        plain = [command("INCR", "a"), request(1, "incr", "a"), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff\xff"]
        for data in plain * (25 * hostile):
            connection = stack.enter_context(socket.create_connection(shard.address, timeout=30))
            with contextlib.suppress(OSError):
                connection.sendall(data)
            others.append(connection)
        until(lambda: all(map(is_ended, others)))
        before = watcher.call("stats")
        unfinished = []
        for number in range(4 * room * hostile):
            connection = stack.enter_context(socket.create_connection(shard.address, timeout=30))
            with contextlib.suppress(OSError):
                connection.sendall(beginnings[number % len(beginnings)])
            unfinished.append(connection)
        # They fill the room that is left, and no more; whoever is in goes on.
        until(lambda: watcher.call("stats")[b"connections_refused"] > before[b"connections_refused"])
        answered = len(bystander.latencies_s)
        until(lambda: len(bystander.latencies_s) > answered + 5)
        left = [connection for connection in unfinished if not is_ended(connection)]
        assert len(left) <= room - inside
        # Their time ends by itself, and then others come in.
        until(lambda: all(map(is_ended, unfinished)))
        until(is_let_in)
        assert watcher.call("get", "a") == 0


# --- requests that nobody finishes -----------------------------------------------------------------------------------

INPUT = {"input_bytes_max": 8 * MIB, "connections_max": 100}
ALMOST = MIB - 64
OVERLOADED = "unfinished requests of all connections fill their bound, and this one's are large"


def trickle(shard: ShardProcess, ended: threading.Event, counted: list[int]) -> None:
    """A well-behaved client with a bad line: each request comes in three pieces."""
    with RpcSocket(shard.address) as rpc:
        while not ended.is_set():
            data = request(1, "incr", "trickled" + "x" * 200)
            for piece in (data[:5], data[5:100], data[100:]):
                rpc.send(piece)
                time.sleep(0.005)
            counted.append(rpc.response()[1])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request(7, "get", "k" * ALMOST)[:-1], id="msgpack-rpc"),
        pytest.param(command("ECHO", "x" * ALMOST)[:-1], id="resp"),
        pytest.param(command("MULTI") + command("ECHO", "x" * (250 * KIB)) * 12, id="transaction"),
        pytest.param(command("MULTI") + command("INCR", "k") * 60_000, id="transaction of small ones"),
    ],
)
def test_memory_for_what_is_never_finished_is_bounded(start_shard, hostile, data):
    shard = start_shard(settings=INPUT)
    ended, counted = threading.Event(), list[int]()
    slow = threading.Thread(target=trickle, args=(shard, ended, counted))
    # While it is appended to, one connection's input may be there twice, and what the loop has read in one go besides.
    bound = 8 * MIB + 2 * 5 * MIB + SLACK
    slow.start()
    try:
        with Bystander(shard, growth_bytes=bound), contextlib.ExitStack() as stack, RpcSocket(shard.address) as watcher:
            clients = [stack.enter_context(RespSocket(shard.address)) for _ in range(80)]
            assert len(data) * len(clients) > bound, "all of it would have room"
            for client in clients * hostile:
                # It may be sent away in the middle.
                with contextlib.suppress(OSError):
                    client.send(data)
                assert watcher.call("stats")[b"input_bytes"] <= INPUT["input_bytes_max"]
            # Those who came last have their answer and their end.
            told = b""
            for client in clients[-10:]:
                # A reset, because it went on sending, may have overtaken the answer to one of them.
                with contextlib.suppress(ConnectionResetError):
                    while more := client.socket.recv(MIB):
                        told += more
            assert OVERLOADED.encode() in told
            # Nobody else was sent away, and the half that is anybody's is still theirs.
            assert watcher.call("stats")[b"input_bytes"] > 0
            until(lambda: len(counted) > 3)
            stack.close()
            until(lambda: watcher.call("stats")[b"input_bytes"] < 4 * KIB)
            until(lambda: watcher.call("stats")[b"connections"] == 3)
    finally:
        ended.set()
        slow.join()
    assert counted == list(range(1, len(counted) + 1))


# --- keys ------------------------------------------------------------------------------------------------------------


def chosen_keys(rng: random.Random) -> list[bytes]:
    """Keys that a table, a format or a protocol might trip over. Which hashes collide, nobody outside can know."""
    prefix = b"p" * 1000
    keys = [bytes([byte]) for byte in range(256)]
    keys += [bytes([byte]) * length for byte in (0, 10, 13, 34, 36, 42, 92, 128, 255) for length in (2, 16, 1023, 1024)]
    keys += [prefix + b"%024d" % number for number in range(3000)]
    keys += [b"%08d" % number + prefix for number in range(500)]
    keys += [b"user:1:visits:%d" % number for number in range(5000)]
    keys += [b"\r\n$3\r\nGET\r\n", b"*1\r\n", b"\x94\x00\x01\xa4incr\x91\xa1k", b"\xed\xa0\x80", "ü🦀".encode()]
    keys += [rng.randbytes(1024) for _ in range(300)] + [rng.randbytes(rng.randrange(1, 64)) for _ in range(300)]
    return sorted(set(keys))


def scanned(shard: ShardProcess) -> dict[bytes, int]:
    """All counters, each once."""
    with RpcSocket(shard.address) as rpc:
        found: dict[bytes, int] = {}
        cursor = 0
        while True:
            cursor, page = rpc.call("scan", cursor, 700)
            assert found.keys().isdisjoint(key for key, _ in page)
            found.update(page)
            if cursor == 0:
                return found


def test_keys_chosen_for_harm(start_shard, seed):
    keys = chosen_keys(random.Random(seed))
    shard = start_shard(settings={"level": "applied"})
    model = {key: 2 * number - len(keys) for number, key in enumerate(keys)}
    # The keys themselves, an index, and what is on its way to the disk.
    with Bystander(shard, growth_bytes=3 * sum(map(len, keys)) + SLACK), RespSocket(shard.address) as resp:
        with RpcSocket(shard.address) as rpc:
            for start in range(0, len(keys), 1000):
                part = keys[start : start + 1000]
                # Both protocols name the same counters, as text or as bytes.
                rpc.call("incr_many", [[key, model[key] - 1] for key in part])
                resp.send(b"".join(command("INCR", key) for key in part))
                assert resp.replies(len(part)) == [model[key] for key in part]
                assert rpc.call("get_many", part) == [model[key] for key in part]
            beginning = b"p" * 1000
            best = sorted(
                ((key, value) for key, value in model.items() if key[:1000] == beginning), key=lambda one: -one[1]
            )
            assert rpc.call("top", 50, beginning) == [list(one) for one in best[:50]]
            gone = keys[::3]
            assert sum(resp.call("DEL", *gone[start : start + 500]) for start in range(0, len(gone), 500)) == len(gone)
        model = {key: value for key, value in model.items() if key not in set(gone)}
    with RpcSocket(shard.address) as rpc:
        model[b"bystander"] = rpc.call("get", "bystander")
        for key in (b"", b"k" * 1025):
            assert rpc.outcome("incr", key).code == "bad_key"
        # What came before this is on the disk too.
        rpc.call("incr", "last", 1, {"level": "durable"})
    model[b"last"] = 1
    assert scanned(shard) == model
    shard.restart()
    assert scanned(shard) == model
