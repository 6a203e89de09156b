"""Bytes that no client sends, by the thousand: every connection gets answers that parse, or its end; others go on.

`--hostile N` sends N times as much.
"""

import contextlib
import random
import socket
import threading
import time

import msgpack
import pytest

from tests.support.bystander import Bystander
from tests.support.resp_socket import RespSocket, command
from tests.support.rpc_socket import RpcSocket, notification, request
from tests.support.shard_process import ShardProcess

MIB = 1 << 20
METHODS = ["incr", "incr_many", "apply", "get", "get_many", "total", "total_many", "drain", "delete", "scan", "top"]
METHODS += ["hello", "bye", "ping", "stats", "health", "topology", "watch_topology", "tail", "nothing", ""]
COMMANDS = ["INCR", "INCRBY", "DECR", "DECRBY", "GET", "MGET", "SET", "GETDEL", "DEL", "EXISTS", "SCAN", "DBSIZE"]
COMMANDS += ["TYPE", "ECHO", "PING", "HELLO", "AUTH", "SELECT", "CLIENT", "CONFIG", "INFO", "COMMAND", "MULTI", "EXEC"]
COMMANDS += ["DISCARD", "WATCH", "UNWATCH", "RESET", "NOTHING", ""]
WORDS = ["0", "1", "-1", "+1", "01", " 1", "MATCH", "COUNT", "GET", "SETNAME", "3", "a*a*a*b", "[", "\\", "x" * 1024]
WORDS += [str(2**63), str(-(2**63)), str(2**64), "9" * 40, "\0\r\n", "k", "l", "x" * 1025, ""]


def a_value(rng: random.Random, depth: int = 0) -> object:
    """Any value of MessagePack, with those that requests have among them."""
    kinds = ["number", "text", "bytes", "option", "none", "float", "ext"] + ["array", "map", "items"] * (depth < 4)
    match rng.choice(kinds):
        case "number":
            return rng.choice([0, 1, -1, 127, 128, 65_536, 2**31, 2**32, 2**63 - 1, 2**64 - 1, -(2**63)])
        case "text":
            return rng.choice(["k", "l", "", "id", "x" * 1024, "x" * 1025, "applied"])
        case "bytes":
            return rng.randbytes(rng.choice([0, 1, 16, 64, 65]))
        case "option":
            names = ["id", "born", "level", "detail", "accuracy", "min_commit", "token", "session", "x"]
            return {rng.choice(names): a_value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case "array":
            return [a_value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 3, 40]))]
        case "map":
            return {str(index): a_value(rng, depth + 1) for index in range(rng.randrange(4))}
        case "items":
            return [["k", rng.randrange(9)][: rng.choice([1, 2, 2, 2])] for _ in range(rng.randrange(9))]
        case "ext":
            return msgpack.ExtType(rng.randrange(128), rng.randbytes(rng.randrange(20)))
        case "float":
            return rng.choice([0.0, float("nan"), float("inf"), 1.5])
        case _:
            return rng.choice([None, True, False])


def rpc_frames(rng: random.Random) -> bytes:
    """Requests and notifications with any params."""
    frames = []
    for _ in range(rng.randrange(1, 8)):
        params = [a_value(rng) for _ in range(rng.randrange(5))]
        method = rng.choice(METHODS)
        frames.append(request(rng.randrange(2**32), method, *params) if rng.random() < 0.9 else notification(method))
    return b"".join(frames)


def resp_frames(rng: random.Random) -> bytes:
    """Commands with any arguments."""
    frames = []
    for _ in range(rng.randrange(1, 12)):
        words = [rng.choice(COMMANDS), *(rng.choice(WORDS) for _ in range(rng.randrange(6)))]
        # A blank is no protocol's first byte.
        inline = words[0] != "" and rng.random() < 0.1
        frames.append(" ".join(words).encode() + b"\r\n" if inline else command(*words))
    return b"".join(frames)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few changes that parsers are sensitive to."""
    changed = bytearray(data)
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.choice([b"\r\n", b"\r", b"*", b"$", b"\x91", b"\xdd\xff\xff\xff\xff", b"\xc1"])
            case 2:
                del changed[at : at + rng.randrange(1, 9)]
            case 3:
                changed[at:at] = changed[at : at + rng.randrange(1, 40)]
            case 4:
                changed[at:at] = str(rng.choice([-1, 0, 2**31, 2**63, 2**64, 10**30])).encode()
            case _:
                changed[at : at + 4] = rng.randbytes(4)
    return bytes(changed)


def send_in_pieces(connection: RpcSocket | RespSocket, data: bytes, rng: random.Random) -> None:
    """Sends it in a few pieces, then says that no more will come. The shard may have closed before."""
    with contextlib.suppress(OSError):
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            connection.send(data[start:end])
        connection.socket.shutdown(socket.SHUT_WR)


def speaks_rpc(data: bytes) -> bool:
    """Is this a connection of MessagePack-RPC, by its first byte?"""
    return data[:1] in {b"\x93", b"\x94", b"\xdc", b"\xdd"}


def answers(shard: ShardProcess, data: bytes, rng: random.Random) -> int:
    """Sends it on a connection of its own; gives how many answers came before its end. Each has to parse."""
    if not speaks_rpc(data):
        with RespSocket(shard.address) as resp:
            send_in_pieces(resp, data, rng)
            return len(resp.read_to_end())
    with RpcSocket(shard.address) as rpc:
        send_in_pieces(rpc, data, rng)
        messages = rpc.read_to_end()
    for kind, msgid, error, result in messages:
        assert kind == 1
        assert 0 <= msgid < 2**32
        assert error is None or result is None
    return len(messages)


@pytest.mark.parametrize("frames", [rpc_frames, resp_frames])
def test_made_up_frames(shared_shard, hostile, seed, frames):
    rng = random.Random(seed)
    with Bystander(shared_shard, growth_bytes=64 * MIB):
        for _ in range(300 * hostile):
            assert answers(shared_shard, frames(rng), rng) > 0 or frames is rpc_frames, "only notifications are silent"


@pytest.mark.parametrize("frames", [rpc_frames, resp_frames])
def test_damaged_frames(shared_shard, hostile, seed, frames):
    rng = random.Random(seed)
    with Bystander(shared_shard, growth_bytes=64 * MIB):
        for _ in range(600 * hostile):
            answers(shared_shard, mutated(frames(rng), rng), rng)


# A declared size takes no memory: it is refused at once, or its bytes are waited for.
DECLARED = [
    pytest.param(b"\x94\x00\x01\xa8get_many\x91" + size + b"\xff\xff\xff\xff\x01", id=f"msgpack {name}")
    for name, size in [("array", b"\xdd"), ("map", b"\xdf"), ("str", b"\xdb"), ("bin", b"\xc6"), ("ext", b"\xc9")]
]
DECLARED += [
    pytest.param(b"\xdd\xff\xff\xff\xff", id="msgpack message"),
    pytest.param(b"\x94\x00\x01\xa4incr" + b"\x91" * 100_000, id="msgpack depth"),
    pytest.param(b"\x94\x00\x01\xa4incr\x91" + b"\x81\x01" * 50_000, id="msgpack depth of maps"),
]
DECLARED += [
    pytest.param(f"*{count}\r\n".encode(), id=f"*{count}")
    # A negative count is an empty command, as in Redis.
    for count in ["+1", "01", "-0", "65553", str(2**31), str(2**63), str(2**64), "9" * 31, "1e3", "0x10", ""]
]
DECLARED += [
    pytest.param(f"*2\r\n$4\r\nECHO\r\n${length}\r\n".encode(), id=f"${length}")
    for length in ["-1", "+3", "03", "1048577", str(2**31), str(2**63 - 1), str(2**64 + 3), "9" * 31, " 3", "3 "]
]


@pytest.mark.parametrize("data", DECLARED)
def test_a_declared_size_is_refused_before_its_bytes_come(shared_shard, data):
    with Bystander(shared_shard, growth_bytes=16 * MIB):
        for _ in range(8):
            with RpcSocket(shared_shard.address) as connection:
                connection.send(data)
                # No end of what was sent is said, and yet an answer and the end come.
                answer = b""
                with contextlib.suppress(ConnectionResetError):
                    while chunk := connection.socket.recv(4096):
                        answer += chunk
            if speaks_rpc(data):
                continue  # whether its msgid is known depends on where the size stands
            assert answer in {b"", b"\r\n"} or answer.startswith(b"-ERR Protocol error"), answer


def test_declared_sizes_within_the_limit_take_no_memory_either(shared_shard, hostile):
    almost = (1 << 20) - 64
    starts = [
        b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % almost,
        b"*65552\r\n",
        b"\x94\x00\x01\xa3get\x91\xdb" + almost.to_bytes(4, "big"),
        b"\x94\x00\x01\xa8get_many\x91\xdd" + almost.to_bytes(4, "big"),
        b"\x94\x00\x01\xa9incr_many\x91\xdd" + (65_536).to_bytes(4, "big"),
    ]
    count = 200 * hostile
    with Bystander(shared_shard, growth_bytes=count * 32 * 1024 + 8 * MIB), contextlib.ExitStack() as stack:
        connections = [stack.enter_context(RpcSocket(shared_shard.address)) for _ in range(count)]
        for index, connection in enumerate(connections):
            connection.send(starts[index % len(starts)])
        with RpcSocket(shared_shard.address) as rpc:
            assert rpc.call("stats")[b"connections"] >= count


def test_one_byte_at_a_time(shared_shard):
    key, text = "k" * 1024, "x" * 10_000
    with Bystander(shared_shard, growth_bytes=16 * MIB):
        with RpcSocket(shared_shard.address) as rpc:
            for byte in request(7, "get_many", [key] * 9):
                rpc.send(bytes([byte]))
            assert rpc.response() == (7, [0] * 9)
        with RespSocket(shared_shard.address) as resp:
            for byte in command("ECHO", text) + b"PING " + text.encode() + b"\r\n":
                resp.send(bytes([byte]))
            assert resp.replies(2) == [text.encode()] * 2


@pytest.mark.parametrize(
    ("tiny", "last"),
    [
        pytest.param(b"\r\n", b"PING\r\n", id="empty lines"),
        pytest.param(b"*0\r\n", b"PING\r\n", id="empty arrays"),
        pytest.param(notification("x"), request(1, "ping"), id="unknown notifications"),
        pytest.param(notification("ping"), request(1, "ping"), id="notifications"),
    ],
)
def test_a_million_tiny_frames(shared_shard, tiny, last):
    with Bystander(shared_shard, growth_bytes=32 * MIB), RpcSocket(shared_shard.address) as connection:
        # A line end is no protocol's first byte.
        connection.send(b"" if speaks_rpc(tiny) else b"*0\r\n")
        for _ in range(100):
            connection.send(tiny * 10_000)
        connection.send(last)
        assert b"pong" in connection.socket.recv(100).lower()


def test_a_million_tiny_requests_whose_replies_are_read_late(shared_shard):
    with Bystander(shared_shard, growth_bytes=64 * MIB), RespSocket(shared_shard.address) as resp:
        sender = threading.Thread(target=resp.send, args=(b"PING\r\n" * 1_000_000,))
        sender.start()
        time.sleep(0.2)
        received = 0
        while received < 7_000_000:
            received += len(resp.socket.recv(1 << 20))
        sender.join()
        assert received == 7_000_000
