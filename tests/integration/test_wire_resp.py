"""RESP on a raw socket: every command with good and bad arguments, both versions, transactions, bytes of no kind."""

import random
import socket

import pytest

from tests.support.resp_socket import RespError, RespSocket, command
from tests.support.rpc_socket import RpcSocket

LARGEST, SMALLEST = 2**63 - 1, -(2**63)


@pytest.fixture
def shard(emptied_shard):
    return emptied_shard


def exactly(connection: RespSocket, expected: bytes) -> bytes:
    """As many bytes as are expected, however they come."""
    data = b""
    while len(data) < len(expected) and (more := connection.socket.recv(len(expected) - len(data))):
        data += more
    return data


# --- commands --------------------------------------------------------------------------------------------------------


def test_increments(resp):
    assert resp.call("INCR", "hits") == 1
    assert resp.call("IncrBy", "hits", 41) == 42
    assert resp.call("decr", "hits") == 41
    assert resp.call("DECRBY", "hits", 2) == 39
    assert resp.call("INCRBY", "hits", -40) == -1
    assert resp.call("DECRBY", "hits", -1) == 0
    assert resp.call("INCR", b"\xff\x00\r\n") == 1
    assert resp.call("INCR", "k" * 1024) == 1
    with pytest.raises(RespError, match=r"^ERR a key is a string of 1 to 1024 bytes \(bad_key\)$"):
        resp.call("INCR", "k" * 1025)
    with pytest.raises(RespError, match=r"\(bad_key\)$"):
        resp.call("INCR", "")


def test_increments_at_the_edges_of_64_bits(resp):
    overflow = RespError("ERR increment or decrement would overflow (overflow)")
    assert resp.call("INCRBY", "up", LARGEST) == LARGEST
    assert resp.outcome("INCR", "up") == overflow
    assert resp.call("INCRBY", "up", SMALLEST) == -1
    assert resp.call("INCRBY", "down", SMALLEST) == SMALLEST
    assert resp.outcome("DECR", "down") == overflow
    # Its negation has no room in 64 bits.
    assert resp.outcome("DECRBY", "new", SMALLEST) == RespError("ERR decrement would overflow (overflow)")
    assert resp.call("MGET", "up", "down", "new") == [b"-1", b"%d" % SMALLEST, None]


def test_reads(resp):
    resp.call("INCRBY", "a", 5)
    resp.call("INCRBY", "b", -7)
    assert resp.call("GET", "a") == b"5"
    assert resp.call("GET", "never") is None
    assert resp.call("MGET", "b", "never", "a", "a") == [b"-7", None, b"5", b"5"]
    assert resp.call("EXISTS", "a", "never", "a") == 2
    assert resp.call("TYPE", "a") == b"string"
    assert resp.call("TYPE", "never") == b"none"
    assert resp.call("DBSIZE") == 2


def test_set_and_delete(resp):
    assert resp.call("SET", "a", 5) == b"OK"
    assert resp.call("SET", "a", SMALLEST, "GET") == b"5"
    assert resp.call("SET", "b", 0, "get") is None
    assert resp.call("GETDEL", "a") == b"%d" % SMALLEST
    assert resp.call("GETDEL", "a") is None
    assert resp.call("DEL", "a", "b", "b") == 1, "a is gone, and b is deleted once"
    assert resp.call("DBSIZE") == 0
    assert resp.call("INCR", "b") == 1, "what was deleted begins anew"
    assert resp.call("FLUSHALL") == resp.call("FLUSHALL", "async") == resp.call("flushall", "SYNC") == b"OK"
    assert resp.call("EXISTS", "b") == 0


def test_scan_gives_each_counter_once(resp):
    wanted = {b"key:%d" % number for number in range(500)}
    for key in (*wanted, b"other", b"\xfe"):
        resp.begin("INCR", key)
    resp.replies(502)
    found: list[bytes] = []
    cursor, pages = b"0", 0
    while True:
        cursor, page = resp.call("SCAN", cursor, "MATCH", "k?y:*", "COUNT", 32, "TYPE", "string")
        found += page
        pages += 1
        if cursor == b"0":
            break
    assert pages > 3
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert resp.call("SCAN", 0, "COUNT", 10**6, "MATCH", "[a-p]ther") == [b"0", [b"other"]]
    assert resp.call("SCAN", 0, "COUNT", 10**6, "TYPE", "list") == [b"0", []]
    # A cursor that the server never gave is no harm.
    assert len(resp.call("SCAN", 2**64 - 1)) == 2


def test_about_the_connection_and_the_server(resp):
    assert resp.call("PING") == b"PONG"
    assert resp.call("PING", "hello") == b"hello"
    assert resp.call("ECHO", b"\x00\r\n+OK\r\n") == b"\x00\r\n+OK\r\n"
    assert resp.call("ECHO", "") == b""
    assert resp.call("SELECT", 0) == b"OK"
    assert resp.call("UNWATCH") == b"OK"
    assert resp.call("CLIENT", "GETNAME") is None
    assert resp.call("CLIENT", "SETNAME", "loader-1") == b"OK"
    assert resp.call("client", "getname") == b"loader-1"
    assert resp.call("CLIENT", "SETINFO", "LIB-NAME", "test") == b"OK"
    assert resp.call("CLIENT", "ID") >= 1
    count = resp.call("COMMAND", "COUNT")
    assert len(resp.call("COMMAND")) == len(resp.call("COMMAND", "DOCS")) // 2 == count
    assert {b"incr", b"client", b"client|id"} < set(resp.call("COMMAND", "LIST"))
    assert resp.call("CONFIG", "GET", "append*") == [b"appendonly", b"yes", b"appendfsync", b"always"]
    assert resp.call("CONFIG", "GET", "save", "databases") == [b"save", b"", b"databases", b"1"]
    assert resp.call("CONFIG", "GET", "no-such-setting") == []


def test_info(resp):
    resp.call("INCR", "a")
    info = resp.call("INFO").decode()
    assert "\r\nredis_version:7" in info
    assert "\r\ndb0:keys=1,expires=0" in info
    assert "\r\npycounter_counters:1\r\n" in info
    assert resp.call("INFO", "keyspace").startswith(b"# Keyspace\r\ndb0:keys=1")
    assert resp.call("INFO", "no such section") == b""


# --- versions --------------------------------------------------------------------------------------------------------

IN_BOTH_VERSIONS = [
    (("INCRBY", "a", -5), b":-5\r\n", b":-5\r\n"),
    (("GET", "a"), b"$2\r\n-5\r\n", b"$2\r\n-5\r\n"),
    (("GET", "never"), b"$-1\r\n", b"_\r\n"),
    (("MGET", "a", "never"), b"*2\r\n$2\r\n-5\r\n$-1\r\n", b"*2\r\n$2\r\n-5\r\n_\r\n"),
    (("GETDEL", "never"), b"$-1\r\n", b"_\r\n"),
    (("SET", "b", 1, "GET"), b"$-1\r\n", b"_\r\n"),
    (("CLIENT", "GETNAME"), b"$-1\r\n", b"_\r\n"),
    (("TYPE", "a"), b"+string\r\n", b"+string\r\n"),
    (("EXISTS", "a"), b":1\r\n", b":1\r\n"),
    (("COMMAND", "DOCS", "no"), b"*0\r\n", b"%0\r\n"),
    (("COMMAND", "INFO", "no"), b"*1\r\n*-1\r\n", b"*1\r\n_\r\n"),
    (("CONFIG", "GET", "databases"), b"*2\r\n$9\r\ndatabases\r\n$1\r\n1\r\n", b"%1\r\n$9\r\ndatabases\r\n$1\r\n1\r\n"),
    (("SCAN", 0, "MATCH", "a"), b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\na\r\n"),
    (("INFO", "replication"), b"$50\r\n# Replication\r\nrole", b"=54\r\ntxt:# Replication\r\nrole"),
]


@pytest.mark.parametrize("version", [2, 3])
def test_the_types_of_each_version(shard, version):
    for arguments, resp2, resp3 in IN_BOTH_VERSIONS:
        with RespSocket(shard.address) as connection:
            if version == 3:
                assert connection.call("HELLO", 3)[b"proto"] == 3
            expected = resp2 if version == 2 else resp3
            connection.begin(*arguments)
            assert exactly(connection, expected) == expected, arguments


def test_hello(resp):
    pairs = resp.call("HELLO")
    hello = dict(zip(pairs[::2], pairs[1::2], strict=True))
    assert hello[b"server"] == b"pycounter"
    assert hello[b"role"] == b"master"
    assert (hello[b"proto"], hello[b"modules"]) == (2, [])
    assert resp.call("HELLO", 3, "SETNAME", "someone") == {**hello, b"proto": 3}
    assert resp.call("HELLO")[b"proto"] == 3, "without a number it stays"
    assert resp.call("CLIENT", "GETNAME") == b"someone"
    assert resp.outcome("HELLO", 4) == RespError("NOPROTO unsupported protocol version (bad_request)")
    assert resp.call("HELLO")[b"proto"] == 3, "a refusal changes nothing"
    assert resp.outcome("HELLO", 2, "SETNAME", "two words").word == "ERR"
    assert resp.call("HELLO")[b"proto"] == 3
    assert isinstance(resp.call("HELLO", 2), list)


def test_reset(resp):
    resp.call("HELLO", 3, "SETNAME", "someone")
    resp.call("MULTI")
    resp.call("INCR", "a")
    assert resp.call("RESET") == b"RESET"
    assert resp.outcome("EXEC").word == "ERR"
    resp.begin("CLIENT", "GETNAME")
    assert exactly(resp, b"$-1\r\n") == b"$-1\r\n", "RESP2 again, and no name"
    assert resp.call("EXISTS", "a") == 0


def test_quit_ends_the_connection(shard):
    with RespSocket(shard.address) as leaving:
        leaving.send(command("INCR", "a") + command("QUIT") + command("INCR", "a"))
        assert leaving.read_to_end() == [1, b"OK"]
    with RespSocket(shard.address) as staying:
        assert staying.call("GET", "a") == b"1"


# --- refusals --------------------------------------------------------------------------------------------------------

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
REFUSED: list[tuple[tuple[str | bytes | int, ...], str]] = [
    *(
        ((name,), f"ERR wrong number of arguments for '{name}' command (bad_request)")
        for name in (
            *("incr", "incrby", "decr", "decrby", "get", "mget", "getdel", "del", "exists", "set", "scan", "type"),
            *("echo", "auth", "select", "client", "config", "watch"),
        )
    ),
    *(
        ((name, "a", "b", "c"), f"ERR wrong number of arguments for '{name}' command (bad_request)")
        for name in (
            *("incr", "incrby", "decr", "decrby", "get", "getdel", "type", "dbsize", "ping", "echo", "select"),
            *("multi", "discard", "reset", "unwatch"),
        )
    ),
    *(
        (("INCRBY", "a", text), f"{NOT_AN_INTEGER} (bad_delta)")
        for text in (
            *("", "x", "1.0", "+1", " 1", "1 ", "01", "-0", "--1", "1e3", "0x1", "9223372036854775808"),
            *("-9223372036854775809", "\xb2", "1\0"),
        )
    ),
    (("DECRBY", "a", "x"), f"{NOT_AN_INTEGER} (bad_delta)"),
    (
        ("SET", "a", "text"),
        "ERR PyCounter stores counters: a value must be an integer of 64 bits, such as 42 (bad_delta)",
    ),
    (("SET", "", 1), "ERR a key is a string of 1 to 1024 bytes (bad_key)"),
    (
        ("SET", "a", 1, "EX", 10),
        "ERR PyCounter's counters don't expire: EX, PX, EXAT and PXAT are refused (bad_request)",
    ),
    (("SET", "a", 1, "GOT"), "ERR syntax error (bad_request)"),
    (("MGET", "a", ""), "ERR a key is a string of 1 to 1024 bytes (bad_key)"),
    (("DEL", "there", "k" * 1025), "ERR a key is a string of 1 to 1024 bytes (bad_key)"),
    (("SCAN", "x"), "ERR invalid cursor (bad_request)"),
    (("SCAN", -1), "ERR invalid cursor (bad_request)"),
    (("SCAN", 0, "COUNT"), "ERR syntax error (bad_request)"),
    (("SCAN", 0, "COUNT", 0), "ERR syntax error (bad_request)"),
    (("SCAN", 0, "COUNT", "x"), f"{NOT_AN_INTEGER} (bad_request)"),
    (("SCAN", 0, "LIMIT", 1), "ERR syntax error (bad_request)"),
    (("SCAN", 0, "MATCH", "*" * 1025), "ERR a pattern has at most 1024 bytes (too_large)"),
    (("FLUSHALL", "NOW"), "ERR syntax error (bad_request)"),
    (("SELECT", 1), "ERR DB index is out of range (bad_request)"),
    (("SELECT", "x"), f"{NOT_AN_INTEGER} (bad_request)"),
    (("HELLO", "x"), "ERR Protocol version is not an integer or out of range (bad_request)"),
    (("HELLO", 2, "AUTH", "user"), "ERR Syntax error in HELLO option 'AUTH' (bad_request)"),
    (("AUTH", "a", "b", "c"), "ERR syntax error (bad_request)"),
    (("AUTH", "x" * 1025), "ERR a name or token has at most 1024 bytes (too_large)"),
    (
        ("CLIENT", "SETNAME", "two words"),
        "ERR Client names cannot contain spaces, newlines or special characters. (bad_request)",
    ),
    (("CLIENT", "LOST"), "ERR unknown subcommand 'LOST'. Try CLIENT HELP. (unknown_method)"),
    (("CONFIG", "SET", "save", ""), "ERR unknown subcommand 'SET'. Try CONFIG HELP. (unknown_method)"),
    (("CONFIG", "GET"), "ERR wrong number of arguments for 'config|get' command (bad_request)"),
    (("WATCH", "a"), "ERR WATCH is not supported: increments need no watching (forbidden)"),
    (("EXEC",), "ERR EXEC without MULTI (bad_request)"),
    (("DISCARD",), "ERR DISCARD without MULTI (bad_request)"),
    (("LPUSH", "list", "1"), "ERR unknown command 'LPUSH', with args beginning with: 'list' '1' (unknown_method)"),
    (("", "a"), "ERR unknown command '', with args beginning with: 'a' (unknown_method)"),
    (
        ("EVAL", b"\r\n-OK\r\n"),
        "ERR unknown command 'EVAL', with args beginning with: '\\r\\n-OK\\r\\n' (unknown_method)",
    ),
]


def test_refusals_have_redis_words_and_change_nothing(resp):
    resp.call("SET", "there", 7)
    wrong = []
    for arguments, line in REFUSED:
        answer = resp.outcome(*arguments)
        if answer != RespError(line):
            wrong.append((arguments, line, answer))
    assert wrong == []
    assert resp.call("GET", "there") == b"7"
    assert resp.call("DBSIZE") == 1
    long_name = resp.outcome("X" * 10_000, "y" * 10_000)
    assert long_name.word == "ERR"
    assert len(str(long_name)) < 400, "what was sent is quoted in part"


def test_too_many_arguments(resp):
    assert resp.call("DEL", *(["a"] * 65_536)) == 0
    error = RespError("ERR a request carries at most 65536 items (too_large)")
    assert resp.outcome("MGET", *(["a"] * 65_537)) == error
    assert resp.call("PING") == b"PONG"
    resp.send(b"*65600\r\n")
    refused = resp.reply()
    assert str(refused) == "ERR Protocol error: invalid multibulk length (too_large)", "refused by what it declares"


# --- transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction(resp, shard):
    assert resp.call("MULTI") == b"OK"
    for arguments in (("INCR", "a"), ("INCRBY", "b", 5), ("GET", "a"), ("SELECT", 0), ("PING",), ("MGET", "a", "c")):
        assert resp.call(*arguments) == b"QUEUED"
    with RespSocket(shard.address) as bystander:
        assert bystander.call("DBSIZE") == 0
    assert resp.call("EXEC") == [1, 5, b"1", b"OK", b"PONG", [b"1", None]]
    assert resp.outcome("EXEC").word == "ERR", "it is over"
    resp.call("MULTI")
    assert resp.call("EXEC") == []


def test_an_error_when_it_runs_spoils_only_its_command(resp):
    resp.call("SET", "full", LARGEST)
    resp.call("MULTI")
    for arguments in (("INCR", "a"), ("INCR", "full"), ("INCR", "a")):
        resp.call(*arguments)
    overflow = RespError("ERR increment or decrement would overflow (overflow)")
    assert resp.call("EXEC") == [1, overflow, 2]


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(("INCR",), id="arity"),
        pytest.param(("LPUSH", "a", "b"), id="unknown"),
        pytest.param(("CLIENT", "LOST"), id="subcommand"),
    ],
)
def test_an_error_while_it_is_queued_spoils_all(resp, refused):
    resp.call("MULTI")
    resp.call("INCR", "a")
    assert isinstance(resp.outcome(*refused), RespError)
    assert resp.call("INCR", "a") == b"QUEUED"
    abort = "EXECABORT Transaction discarded because of previous errors. (bad_request)"
    assert resp.outcome("EXEC") == RespError(abort)
    assert resp.call("EXISTS", "a") == 0
    assert resp.call("INCR", "a") == 1, "and the connection goes on"


def test_discard_and_what_runs_inside_a_transaction(resp):
    resp.call("MULTI")
    resp.call("INCR", "a")
    assert resp.call("DISCARD") == b"OK"
    assert resp.call("EXISTS", "a") == 0
    resp.call("MULTI")
    assert resp.outcome("MULTI") == RespError("ERR MULTI calls can not be nested (bad_request)")
    assert resp.outcome("WATCH", "a") == RespError("ERR WATCH inside MULTI is not allowed (bad_request)")
    resp.call("DISCARD")
    resp.call("MULTI")
    resp.call("INCR", "a")
    resp.send(command("QUIT"))
    assert resp.read_to_end() == [b"OK"]


def test_a_connection_that_ends_within_a_transaction_did_nothing(shard):
    with RespSocket(shard.address) as leaving:
        leaving.call("MULTI")
        assert leaving.call("INCR", "a") == b"QUEUED"
    with RespSocket(shard.address) as staying:
        assert staying.call("EXISTS", "a") == 0


@pytest.mark.parametrize(
    ("count", "arguments"),
    [pytest.param(65_536, ("INCR", "a"), id="commands"), pytest.param(41, ("ECHO", "x" * 102_000), id="bytes")],
)
def test_the_bounds_of_a_transaction(resp, count, arguments):
    resp.call("MULTI")
    resp.call("INCR", "b")
    # 41 of the long ones are just below 4 MiB.
    resp.send(command(*arguments) * (count - 1) + command("PING"))
    assert set(resp.replies(count - 1)) == {b"QUEUED"}
    if arguments[0] == "ECHO":
        assert resp.reply() == b"QUEUED"
    else:
        assert str(resp.reply()).endswith("(too_large)")
    resp.begin(*arguments)
    resp.begin(*arguments)
    # One error says enough: what follows is answered as in Redis, where the transaction is lost already.
    assert [str(answer).endswith("(too_large)") for answer in resp.replies(2)] == [False, arguments[0] == "ECHO"]
    assert resp.outcome("EXEC").word == "EXECABORT"
    assert resp.call("EXISTS", "a", "b") == 0
    resp.call("MULTI")
    resp.call("INCR", "b")
    assert resp.call("EXEC") == [1], "the next one is a new one"


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_inline_commands(resp):
    resp.send(b"INCR hits\r\nincrby  hits\t41 \n\r\n\nget \"hits\"\r\necho 'two words'\r\nINCR 'a\"b'\r\nPING\n")
    assert resp.replies(6) == [1, 42, b"42", b"two words", 1, b"PONG"]
    resp.send(command("INCR", "hits") + b"INCR hits\r\n*0\r\n" + command("INCR", "hits"))
    assert resp.replies(3) == [43, 44, 45]


def stream(prefix: str) -> tuple[bytes, list[object]]:
    """Commands of all forms and their replies."""
    a, b = f"{prefix}:a", f"{prefix}:b\r\n"
    rows: list[tuple[bytes, object]] = [
        (command("INCR", a), 1),
        (command("incrby", b, -41), -41),
        (b"INCR %s\r\n" % a.encode(), 2),
        (command("GET", b), b"-41"),
        (command("INCRBY", a, "x"), RespError(f"{NOT_AN_INTEGER} (bad_delta)")),
        (command("MULTI"), b"OK"),
        (command("INCR", a), b"QUEUED"),
        (command("GET", a), b"QUEUED"),
        (command("EXEC"), [3, b"3"]),
        (command("MGET", a, b, "never"), [b"3", b"-41", None]),
        (command("DEL", a, b), 2),
        (command("ECHO", "*1\r\n$4\r\nPING\r\n"), b"*1\r\n$4\r\nPING\r\n"),
        (command("PING"), b"PONG"),
    ]
    return b"".join(frame for frame, _ in rows), [reply for _, reply in rows]


def test_any_split_of_the_bytes_gives_the_same(shard, seed):
    source = random.Random(seed)
    for turn in range(30):
        data, expected = stream(f"turn {turn}".replace(" ", "-"))
        with RespSocket(shard.address) as connection:
            start = 0
            while start < len(data):
                end = start + (turn + 1 if turn < 3 else source.randint(1, 60))
                connection.send(data[start:end])
                start = end
            assert connection.replies(len(expected)) == expected


def test_replies_come_in_the_order_of_the_requests(shard):
    """Errors, reads, and what waits for no commit too: clients tell replies apart by nothing else."""
    with RespSocket(shard.address) as connection:
        round_trip = (
            command("INCR", "n") + command("PING") + command("INCR") + command("GET", "n") + command("ECHO", "x")
        )
        connection.send(round_trip * 500)
        for number in range(1, 501):
            incr, ping, error, get, echo = connection.replies(5)
            assert (incr, ping, get, echo) == (number, b"PONG", b"%d" % number, b"x")
            assert isinstance(error, RespError)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"*x\r\n", "Protocol error: invalid multibulk length"),
        (b"*4294967296\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$4294967296\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$1048577\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n:1\r\n", "Protocol error: expected '$', got ':'"),
        (b"*1\r\n$4\r\nPINGPING\r\n", "Protocol error: expected CRLF after a bulk string"),
        (b"*" + b"1" * 40, "Protocol error: too big mbulk count string"),
        (b'GET "a\r\n', "Protocol error: unbalanced quotes in request"),
        (b"P" * 65_537, "Protocol error: too big inline request"),
        (b"POST / HTTP/1.1\r\n", "Protocol error: this is HTTP"),
        (b"Host: counters.example\r\n", "Protocol error: this is HTTP"),
        (b"\x00", "Protocol error: expected '*' or a command, got '\\x00'"),
        (b"\x94\x00\x01\xa4ping\x90", "Protocol error: expected '*' or a command, got '\\x94'"),
    ],
)
def test_what_no_client_sends_ends_only_its_connection(shard, data, line):
    with RespSocket(shard.address) as bystander, RespSocket(shard.address) as hostile:
        assert bystander.call("INCR", "a") == 1
        hostile.send(command("INCR", "a") + data + command("INCR", "a"))
        before, error = hostile.read_to_end()
        assert before == 2, "what came before is answered"
        assert str(error).rpartition(" (")[0] == f"ERR {line}"
        assert bystander.call("INCR", "a") == 3, "what came behind is not looked at"


def test_a_request_of_http_does_nothing(shard):
    """A web page can make its visitor's browser send this."""
    with RespSocket(shard.address) as browser:
        body = b"INCR a\r\n" * 3
        browser.send(b"POST / HTTP/1.1\r\nHost: localhost:7400\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        replies = browser.read_to_end()
        assert len(replies) == 1
        assert replies[0].word == "ERR"
    with RespSocket(shard.address) as connection:
        assert connection.call("EXISTS", "a") == 0


def test_half_a_request_and_goodbye(shard):
    with RespSocket(shard.address) as rude:
        rude.send(command("INCR", "a")[:-1])
    with RespSocket(shard.address) as rude:
        rude.send(command("INCR", "a") + command("INCR", "a")[:-1])
        rude.socket.shutdown(socket.SHUT_WR)
        assert rude.read_to_end() == [1], "who stops sending still gets what it is owed"
    with RespSocket(shard.address) as bystander:
        assert bystander.call("GET", "a") == b"1"


def test_random_bytes(shard, seed):
    source = random.Random(seed)
    with RespSocket(shard.address) as bystander:
        for _ in range(200):
            with RespSocket(shard.address) as hostile:
                data = bytearray(b"*3\r\n" + stream("mutant")[0] + b"echo 'a b' \"c\"\r\n")
                for _ in range(source.randint(0, 6)):
                    data[source.randrange(4, len(data))] = source.choice((source.randrange(256), *b"*$\r\n0123456789"))
                start = source.choice((0, 4))
                hostile.send(bytes(data[start : source.randint(start + 1, len(data))]))
        assert bystander.call("PING") == b"PONG"


def test_both_protocols_see_the_same_counters(shard, resp):
    with RpcSocket(shard.address) as rpc:
        assert resp.call("INCRBY", b"\xffkey", 5) == 5
        assert rpc.call("incr", b"\xffkey", -2) == 3
        assert resp.call("GET", b"\xffkey") == b"3"
        assert rpc.call("drain", b"\xffkey") == 3
        assert resp.call("GET", b"\xffkey") == b"0", "drained is there still"
        rpc.call("delete", b"\xffkey")
        assert resp.call("GET", b"\xffkey") is None
