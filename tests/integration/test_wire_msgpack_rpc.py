"""MessagePack-RPC on a raw socket: every method with good and bad params, frames of every kind, bytes of no kind."""

import json
import random
import secrets
import socket

import msgpack
import pytest

from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket, notification, request
from tests.support.shard_process import ShardEnded

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
SESSION = bytes(range(16))


@pytest.fixture
def shard(emptied_shard):
    return emptied_shard


# --- methods ---------------------------------------------------------------------------------------------------------


def test_incr(rpc):
    assert rpc.call("incr", "hits") == 1
    assert rpc.call("incr", "hits", 41) == 42
    assert rpc.call("incr", b"hits", -2) == 40, "str and bin are one key"
    assert rpc.call(b"incr", "hits", None) == 41
    assert rpc.call("incr", "hits", {}) == 42
    assert rpc.call("incr", "hits", 0, {"detail": False}) == 42
    assert rpc.call("incr", "k" * 1024) == 1
    assert rpc.call("incr", b"\xff\x00\n", 5) == 5


def test_incr_at_the_edges_of_64_bits(rpc):
    assert rpc.call("incr", "up", LARGEST) == LARGEST
    assert rpc.outcome("incr", "up").code == "overflow"
    assert rpc.call("incr", "up", SMALLEST) == -1
    assert rpc.call("incr", "down", SMALLEST) == SMALLEST
    assert rpc.outcome("incr", "down", -1).code == "overflow"
    assert rpc.call("get_many", ["up", "down"]) == [-1, SMALLEST]


def test_incr_many(rpc):
    operation = secrets.token_bytes(16)
    items = [
        ["a", 1],
        ["a", 2, operation],
        ["b", -1],
        ["", 1],
        ["k" * 1025, 1],
        ["a", "x"],
        ["a", 2**63],
        ["a", 1.0],
        [5, 1],
    ]
    *good, bad_key, long_key, bad_delta, large_delta, float_delta, number_key = rpc.call("incr_many", items)
    assert good == [1, 3, -1]
    assert {error.partition(b":")[0] for error in (bad_key, long_key, number_key)} == {b"bad_key"}
    assert {error.partition(b":")[0] for error in (bad_delta, large_delta, float_delta)} == {b"bad_delta"}
    assert rpc.call("incr_many", [["a", 2, operation], ["a", 1]]) == [3, 4]
    assert rpc.call("incr_many", []) == []
    edge = rpc.call("incr_many", [["edge", LARGEST], ["edge", 1], ["edge", -1]])
    assert (edge[0], edge[1].partition(b":")[0], edge[2]) == (LARGEST, b"overflow", LARGEST - 1)


def test_reads(rpc):
    rpc.call("incr_many", [["a", 1], ["b", 2], ["c", -3]])
    assert rpc.call("get", "a") == 1
    assert rpc.call("get", "never") == 0
    assert rpc.call("get_many", ["c", "never", b"a"]) == [-3, 0, 1]
    assert rpc.call("get_many", []) == []
    assert rpc.call("get_many", ["c", "never"], {"or_nil": True}) == [-3, None]
    assert [rpc.call("get", "never", {"or_nil": or_nil}) for or_nil in (False, True)] == [0, None]
    for accuracy in ("cached", "recent", "exact"):
        assert rpc.call("get", "b", {"accuracy": accuracy}) == 2
    expected = {b"total": 2, b"partials": {b"shard-0": 2}, b"missing": [], b"exact": True, b"age_ms": 0}
    assert rpc.call("total", "b") == expected
    assert [total[b"total"] for total in rpc.call("total_many", ["b", "never", "c"])] == [2, 0, -3]


def test_drain_and_delete(rpc):
    rpc.call("incr_many", [["a", 5], ["b", -7]])
    assert rpc.call("drain", "a") == 5
    assert rpc.call("drain", "a") == 0
    assert rpc.call("scan", 0, 10, "a") == [0, [[b"a", 0]]], "a drained counter stays"
    assert rpc.call("delete", "b") == -7
    assert rpc.call("delete", "b") == 0
    assert rpc.call("delete", "never") == 0
    assert rpc.call("drain", "never") == 0
    assert rpc.call("scan") == [0, [[b"a", 0]]], "neither makes a counter"
    assert rpc.call("incr", "b") == 1
    assert rpc.call("incr", "lowest", SMALLEST) == SMALLEST
    assert rpc.call("drain", "lowest") == SMALLEST


def test_delete_many_each_with_its_outcome_and_once_under_its_id_over_a_kill(start_shard):
    shard = start_shard()
    items = [["a", b"id of a"], "b", "never", "", ["c", b"id of c"]]
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr_many", [["a", 1], ["b", 2], ["c", 3], ["d", 4]])
        *removed, bad_key, last = rpc.call("delete_many", items)
        assert [*removed, last] == [1, 2, 0, 3]
        assert bad_key.startswith(b"bad_key: ")
        assert rpc.call("scan") == [0, [[b"d", 4]]]
        rpc.call("incr_many", [["a", 7], ["b", 8]])
    shard.kill()
    shard.start()
    with RpcSocket(shard.address) as rpc:
        detail = rpc.call("delete_many", items, {"detail": True})
        assert detail[b"level"] == b"durable"
        assert detail[b"commit"] > 0
        *again, _, last = detail[b"values"]
        assert [*again, last] == [1, 8, 0, 3]
        assert rpc.call("get_many", ["a", "b", "d"]) == [7, 0, 4]
        (reused,) = rpc.call("delete_many", [["d", b"id of a"]])
        assert reused.startswith(b"id_reused: ")


def test_delete_all_is_done_once_under_its_id_whatever_comes_between_and_a_kill(start_shard):
    shard = start_shard()
    all_of_them = ("delete_all", {"id": "flush"})
    with RpcSocket(shard.address) as rpc:
        assert rpc.call("delete_all") == 0
        rpc.call("incr_many", [["a", 1], ["b", 2], ["c", 3]])
        assert rpc.call(*all_of_them) == 3
        assert rpc.call("scan") == [0, []]
        assert rpc.call("incr", "b") == 1
        assert rpc.call(*all_of_them) == 3
        assert rpc.outcome("delete", "b", {"id": "flush"}).code == "id_reused"
        detail = rpc.call("delete_all", {"id": "flush", "detail": True})
        assert (detail[b"value"], detail[b"exact"], detail[b"level"]) == (3, True, b"durable")
    shard.kill()
    shard.start()
    with RpcSocket(shard.address) as rpc:
        assert rpc.call(*all_of_them) == 3
        assert rpc.call("scan") == [0, [[b"b", 1]]]
        assert rpc.call("delete_all") == 1
        assert rpc.call("scan") == [0, []]


def test_scan_gives_each_counter_once(rpc):
    wanted = {b"key:%d" % number: number for number in range(500)}
    rpc.call("incr_many", [[key, value] for key, value in wanted.items()])
    rpc.call("incr_many", [["other", 1], [b"\xfe", 1]])
    found: dict[bytes, int] = {}
    cursor, pages = 0, 0
    while True:
        cursor, page = rpc.call("scan", cursor, 32, "key:")
        pages += 1
        assert not found.keys() & {key for key, _ in page}
        found.update(page)
        # Inserted on the way: it may come or not, and moves nothing else.
        rpc.call("incr", f"new:{pages}")
        if cursor == 0:
            break
    assert found == wanted
    assert pages > 3


def test_a_key_comes_back_as_text_if_it_is_text(shard):
    """Many clients decode a str as they read it, and lose the connection over one that isn't text."""
    with RpcSocket(shard.address) as rpc:
        rpc._unpacker = msgpack.Unpacker(raw=False)
        rpc.call("incr_many", [[b"text", 1], [b"\xff\xfe", 2], ["gr\u00fc\u00dfe", 3]])
        found = {type(key): key for key, _ in rpc.call("top", 3)}
        assert rpc.call("top", 3) == [["gr\u00fc\u00dfe", 3], [b"\xff\xfe", 2], ["text", 1]]
        assert found.keys() == {str, bytes}


def test_top(rpc):
    rpc.call("incr_many", [["a", 3], ["b", 9], ["c", -1], ["x:d", 5], ["x:e", 7]])
    assert rpc.call("top", 2) == [[b"b", 9], [b"x:e", 7]]
    assert rpc.call("top", 10, "x:") == [[b"x:e", 7], [b"x:d", 5]]
    assert [value for _, value in rpc.call("top")] == [9, 7, 5, 3, -1]


def test_about_the_server(rpc, shard):
    said = rpc.call("hello")
    assert said[b"server"] == b"pycounter"
    assert said[b"shard"] == b"shard-0"
    assert said[b"identity"].decode() == shard.ready.identity
    assert said[b"epoch"] == shard.ready.epoch == 1
    assert isinstance(said[b"time"], int)
    assert b"last_sequence" not in said
    assert rpc.call("hello", {"client": "test", "session": SESSION})[b"last_sequence"] is None
    assert rpc.call("hello", {"token": "not needed", "client": None}).keys() == said.keys()
    assert rpc.call("ping") == b"pong"
    assert rpc.call("health")[b"state"] == b"ok"
    rpc.call("incr", "a")
    stats = rpc.call("stats")
    assert stats[b"counters"] == 1
    assert stats[b"commit_durable"] >= 1
    host, port = shard.address
    assert f"{host}:{port}".encode() in msgpack.packb(rpc.call("topology"))


def test_backup(rpc, shard, tmp_path, start_shard):
    rpc.call("incr", "a", 5)
    rpc.call("apply", secrets.token_bytes(16), 1, 0, [["a", 1]])
    target = tmp_path / "copy"
    assert rpc.call("backup", str(target)) == str(target).encode()
    assert rpc.outcome("backup", str(target)).code in {"storage", "bad_request"}, "it is there already"
    assert json.loads((target / "backup.json").read_text())["identity"] == shard.ready.identity
    with pytest.raises(ShardEnded, match="is a backup"):
        start_shard(name="copy")  # two shards of one identity could count an operation twice


# --- refusals --------------------------------------------------------------------------------------------------------

BAD_PARAMS: list[tuple[str, list[object], str]] = [
    ("incr", [], "bad_request"),
    ("incr", [""], "bad_key"),
    ("incr", ["k" * 1025], "bad_key"),
    ("incr", [5], "bad_key"),
    ("incr", [None], "bad_key"),
    ("incr", [["a"]], "bad_key"),
    ("incr", ["a", "1"], "bad_delta"),
    ("incr", ["a", 1.0], "bad_delta"),
    ("incr", ["a", True], "bad_delta"),
    ("incr", ["a", LARGEST + 1], "bad_delta"),
    ("incr", ["a", [1]], "bad_delta"),
    ("incr", ["a", 1, 5], "bad_request"),
    ("incr", ["a", 1, {}, 1], "bad_request"),
    ("incr", ["a", 1, {"idd": "x"}], "bad_request"),
    ("incr", ["a", 1, {"id": ""}], "bad_request"),
    ("incr", ["a", 1, {"id": "i" * 65}], "bad_request"),
    ("incr", ["a", 1, {"id": 5}], "bad_request"),
    ("incr", ["a", 1, {"level": "safe"}], "bad_request"),
    ("incr", ["a", 1, {"level": 1}], "bad_request"),
    ("incr", ["a", 1, {"detail": 1}], "bad_request"),
    ("incr", ["a", 1, {"born": -1}], "bad_request"),
    ("incr", ["a", 1, {"born": "now"}], "bad_request"),
    ("incr", ["a", 1, {"min_commit": 1}], "bad_request"),
    ("incr", ["a", 1, {1: 1}], "bad_request"),
    ("incr_many", [], "bad_request"),
    ("incr_many", ["a"], "bad_request"),
    ("incr_many", [["a", 1]], "bad_request"),
    ("incr_many", [[["a"]]], "bad_request"),
    ("incr_many", [[["a", 1, "id", 2]]], "bad_request"),
    ("incr_many", [[["a", 1, ""]]], "bad_request"),
    ("incr_many", [[["a", 1]], {"id": "x"}], "bad_request"),
    ("apply", [SESSION, 1, 0], "bad_request"),
    ("apply", [SESSION[:15], 1, 0, []], "bad_request"),
    ("apply", [5, 1, 0, []], "bad_request"),
    ("apply", [SESSION, 0, 0, [["a", 1]]], "bad_request"),
    ("apply", [SESSION, -1, 0, [["a", 1]]], "bad_request"),
    ("apply", [SESSION, 1, -1, [["a", 1]]], "bad_request"),
    ("apply", [SESSION, 1, 1, [["a", 1]]], "bad_request"),
    ("apply", [SESSION, 2**64 - 1, 0, [["a", 1]]], "bad_request"),
    ("apply", [SESSION, 1, 0, [["a", 1, "id"]]], "bad_request"),
    ("apply", [SESSION, 1, 0, [["a", 1]], "safe"], "bad_request"),
    ("apply", [SESSION, 1, 0, [["a", 1]], "durable", 1], "bad_request"),
    ("apply", [SESSION, 2, 0, [["a", 1]]], "session_unknown"),
    ("get", [], "bad_request"),
    ("get", [""], "bad_key"),
    ("get", ["a", {"level": "x"}], "bad_request"),
    ("get", ["a", {"accuracy": "roughly"}], "bad_request"),
    ("get", ["a", {"id": "x"}], "bad_request"),
    ("get", ["a", {"or_nil": 1}], "bad_request"),
    ("get", ["a", {"min_commit": 10**9}], "bad_request"),
    ("get_many", ["a"], "bad_request"),
    ("get_many", [["a", ""]], "bad_key"),
    ("total", [1], "bad_key"),
    ("total_many", [["a"], {"accuracy": 1}], "bad_request"),
    ("drain", [""], "bad_key"),
    ("drain", ["a", 1], "bad_request"),
    ("delete", ["a", {"min_commit": 1}], "bad_request"),
    ("scan", [-1], "bad_request"),
    ("scan", ["a"], "bad_request"),
    ("scan", [0, 0], "bad_request"),
    ("scan", [0, 65_537], "too_large"),
    ("scan", [0, 1, 5], "bad_request"),
    ("scan", [0, 1, "p" * 1025], "bad_request"),
    ("top", [0], "bad_request"),
    ("top", [65_537], "too_large"),
    ("hello", [5], "bad_request"),
    ("hello", [{"tokens": "x"}], "bad_request"),
    ("hello", [{"session": b"short"}], "bad_request"),
    ("hello", [{"client": "c" * 1025}], "too_large"),
    ("bye", [], "bad_request"),
    ("bye", [b"short"], "bad_request"),
    ("bye", [SESSION], "session_unknown"),
    ("ping", [1], "bad_request"),
    ("backup", [], "bad_request"),
    ("backup", [""], "bad_request"),
    ("backup", ["relative/path"], "bad_request"),
    ("backup", ["nul\0"], "bad_request"),
    ("tail", [0, 0, "ff"], "bad_request"),
    ("watch_topology", ["1"], "bad_request"),
    ("health", [{"foreign_from": -1}], "bad_request"),
    ("INCR", ["a"], "unknown_method"),
    ("", [], "unknown_method"),
    ("no such method", [], "unknown_method"),
]


def test_bad_params_are_refused_and_change_nothing(rpc):
    sessions = rpc.call("stats")[b"sessions"]
    wrong = []
    for method, params, code in BAD_PARAMS:
        answer = rpc.outcome(method, *params)
        if not isinstance(answer, RpcError) or answer.code != code or not answer.message:
            wrong.append((method, params, code, answer))
    assert wrong == []
    assert rpc.call("scan") == [0, []]
    assert rpc.call("stats")[b"sessions"] == sessions


def test_more_items_than_a_request_may_have(rpc):
    items, names = [["a", 1]] * 65_537, ["a"] * 65_537
    requests: dict[str, list[object]] = {
        "incr_many": [items],
        "apply": [SESSION, 1, 0, items],
        "get_many": [names],
        "total_many": [names],
    }
    for method, params in requests.items():
        assert rpc.outcome(method, *params).code == "too_large", method
    assert rpc.call("scan") == [0, []]
    assert rpc.call("incr_many", items[:-1])[-1] == 65_536
    assert rpc.call("get_many", names[:-1]) == [65_536] * 65_536


def test_options_given_twice_are_refused(rpc):
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(4)
    packer.pack(0)
    packer.pack(9)
    packer.pack("incr")
    packer.pack_array_header(2)
    packer.pack("a")
    packer.pack_map_pairs([("id", "one"), ("id", "two")])
    rpc.send(packer.bytes())
    assert rpc.response()[1].code == "bad_request"
    assert rpc.call("get", "a") == 0


@pytest.mark.parametrize("params", [{}, "a", 5, None])
def test_params_that_are_no_array(rpc, params):
    rpc.send(msgpack.packb([0, 3, "ping", params]))
    msgid, error = rpc.response()
    assert (msgid, error.code) == (3, "bad_request")
    assert rpc.call("ping") == b"pong"


# --- frames ----------------------------------------------------------------------------------------------------------


def test_any_split_of_the_bytes_gives_the_same(shard):
    session, operation = secrets.token_bytes(16), secrets.token_bytes(16)
    frames = b"".join(
        [
            request(1, "incr", "a", 5),
            notification("incr", "a", 2),
            request(2, "incr_many", [["b", 1], ["c", 2, operation]]),
            request(3, "apply", session, 1, 0, [["a", 1], ["d", 4]], "durable"),
            request(4, "get_many", ["a", "b", "c", "d"]),
            request(5, "no such method"),
        ]
    )
    for turn, size in enumerate((1, 2, 3, 7, 50, len(frames)), 1):
        with RpcSocket(shard.address) as rpc:
            for start in range(0, len(frames), size):
                rpc.send(frames[start : start + size])
            incr, incr_many, apply, get_many, error = rpc.outcomes(range(1, 6))
        # The plain increments count in each turn, those under an id or a sequence in the first one only.
        assert incr == 7 * turn - 2 + (turn > 1)
        assert incr_many == [turn, 2]
        assert apply[b"results"] == [8, 4]
        assert get_many == [7 * turn + 1, turn, 2, 4]
        assert error.code == "unknown_method"


MSGIDS = [b"\x07", b"\xcc\x07", b"\xcd\x00\x07", b"\xce\x00\x00\x00\x07", b"\xcf" + b"\0" * 7 + b"\x07"]
ONES = [
    b"\x01",
    b"\xcc\x01",
    b"\xd0\x01",
    b"\xd1\x00\x01",
    b"\xd3" + b"\0" * 7 + b"\x01",
    b"\xcf" + b"\0" * 7 + b"\x01",
]


def test_every_encoding_of_an_integer(rpc):
    for msgid in MSGIDS:
        for delta in ONES:
            rpc.send(b"\x94\x00" + msgid + b"\xa4incr\x92\xa1a" + delta)
            assert rpc.response()[0] == 7
    assert rpc.call("get", "a") == 30
    # Longer headers than needed, for arrays and strings.
    rpc.send(b"\xdc\x00\x04\x00\x08\xd9\x04incr\xdd\x00\x00\x00\x02\xc5\x00\x01a\x01")
    assert rpc.response() == (8, 31)


def test_the_largest_msgid(rpc):
    rpc.send(request(2**32 - 1, "ping"))
    assert rpc.response() == (2**32 - 1, b"pong")


def test_responses_begin_as_strict_clients_want_them(shard):
    """The header byte 94 and one string for an error: a Go codec decodes nothing else."""
    with socket.create_connection(shard.address) as raw:
        raw.sendall(request(1, "incr", "a"))
        assert raw.recv(100) == b"\x94\x01\x01\xc0\x01"
        raw.sendall(request(2, "incr", ""))
        assert raw.recv(100).startswith(b"\x94\x01\x02\xd9")


def test_notifications_are_carried_out_and_never_answered(rpc):
    rpc.send(notification("nvim_set_client_info", "first", {}, "as pynvim does"))
    rpc.send(notification(b"incr", "a", 5))
    rpc.send(notification("incr", ""))
    rpc.send(notification("incr", "a", "bad"))
    assert rpc.call("get", "a") == 5
    assert rpc.is_silent()


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(msgpack.packb([0, 7]), id="cut short"),
        pytest.param(msgpack.packb([0, 7, "ping"]), id="without params"),
        pytest.param(msgpack.packb([0, 7, "ping", [], 1]), id="too long"),
        pytest.param(msgpack.packb([0, 7, 5, []]), id="method of a number"),
        pytest.param(msgpack.packb([0, 7, ["ping"], []]), id="method of an array"),
    ],
)
def test_what_begins_like_a_request_is_answered(rpc, frame):
    # A connection's first byte says which protocol it speaks, and only an array of 3 or 4 says this one.
    assert rpc.call("ping") == b"pong"
    rpc.send(frame)
    msgid, error = rpc.response()
    assert (msgid, error.code) == (7, "bad_request")
    assert rpc.call("ping") == b"pong"


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        pytest.param(msgpack.packb([1, 7, None, 5]), None, id="a response"),
        pytest.param(msgpack.packb([2, "incr"]), None, id="half a notification"),
        pytest.param(msgpack.packb([3, 7, "ping", []]), None, id="a type that isn't one"),
        pytest.param(msgpack.packb([0, -1, "ping", []]), None, id="a negative msgid"),
        pytest.param(msgpack.packb([0, 2**32, "ping", []]), None, id="a msgid that is too large"),
        pytest.param(msgpack.packb([0, "7", "ping", []]), None, id="a msgid of text"),
        pytest.param(msgpack.packb([]), None, id="an empty array"),
        pytest.param(b"*1\r\n$4\r\nPING\r\n", None, id="the other protocol"),
        pytest.param(b"\xdd\xff\xff\xff\xff", None, id="a message of four billion"),
        # Where the msgid is known, its request is told why.
        pytest.param(b"\x94\x00\x07\xc1", "bad_request", id="the byte that MessagePack never uses"),
        pytest.param(msgpack.packb([0, 7, "ping", [[[[[[[[[1]]]]]]]]]]), "bad_request", id="too deep"),
        pytest.param(b"\x94\x00\x07\xa4ping\xdd\xff\xff\xff\xff", "too_large", id="an array of four billion"),
        pytest.param(b"\x94\x00\x07\xdb\xff\xff\xff\xff", "too_large", id="a string of four billion bytes"),
    ],
)
def test_what_no_client_sends_ends_only_its_connection(shard, data, answer):
    with RpcSocket(shard.address) as bystander, RpcSocket(shard.address) as hostile:
        assert bystander.call("incr", "a") == 1
        hostile.send(request(1, "incr", "a") + data + request(2, "incr", "a"))
        # A refusal that waits for no commit may overtake the increment's reply.
        outcomes = {msgid: error or result for _, msgid, error, result in hostile.read_to_end()}
        assert outcomes.pop(1) == 2, "what came before is answered"
        assert {msgid: error.decode().partition(":")[0] for msgid, error in outcomes.items()} == (
            {7: answer} if answer else {}
        )
        assert bystander.call("incr", "a") == 3, "what came behind is not looked at"


@pytest.mark.parametrize("first", [b"\x00", b"\x80", b"\xc0", b"\xff", b"\x16", b"\x95"])
def test_a_first_byte_of_no_protocol(shard, first):
    with RpcSocket(shard.address) as hostile:
        hostile.send(first * 3)
        with pytest.raises((ConnectionClosed, ConnectionResetError)):
            hostile.message()
    with RpcSocket(shard.address) as bystander:
        assert bystander.call("ping") == b"pong"


def test_half_a_frame_and_goodbye(shard):
    with RpcSocket(shard.address) as rude:
        rude.send(request(1, "incr", "a")[:-1])
    with RpcSocket(shard.address) as rude:
        rude.send(request(1, "incr", "a") + request(2, "incr", "a")[:5])
        rude.socket.shutdown(socket.SHUT_WR)
        assert rude.read_to_end() == [[1, 1, None, 1]], "who stops sending still gets what it is owed"
    with RpcSocket(shard.address) as bystander:
        assert bystander.call("get", "a") == 1


def test_random_bytes(shard, seed):
    source = random.Random(seed)
    with RpcSocket(shard.address) as bystander:
        for _ in range(200):
            with RpcSocket(shard.address) as hostile:
                data = bytearray(request(1, "incr_many", [["a", 0, "of a mutant"]] * 3, {"level": "applied"}) * 2)
                for _ in range(source.randint(0, 6)):
                    data[source.randrange(len(data))] = source.randrange(256)
                hostile.send(bytes(data[: source.randint(1, len(data))]))
        assert bystander.call("ping") == b"pong"
        assert bystander.call("health")[b"state"] == b"ok"
