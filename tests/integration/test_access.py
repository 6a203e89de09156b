"""Who may talk to a server: tokens over both protocols, and TLS with a certificate made for the test."""

import contextlib
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from pycounter.client import SessionClient
from tests.support.credentials import TOKEN, make_certificate, over_tls, write_token
from tests.support.resp_socket import RespError, RespSocket, command
from tests.support.rpc_socket import RpcSocket, notification, request
from tests.support.shard_process import ShardEnded

WRONG = ["", "b1946ac92492d234", TOKEN + "5", TOKEN[:-1] + "5", TOKEN.upper(), TOKEN * 2, "x" * 1024]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(start_shared_shard, tmp_path_factory):
    token_file = write_token(tmp_path_factory.mktemp("token"))
    shard = start_shared_shard(name="guarded", arguments=["--token-file", token_file])
    yield shard
    # Whatever was sent, right or wrong, is in no line of the log.
    log = shard.output(10_000)
    assert [text for text in (TOKEN, *WRONG[1:]) if text in log] == []


@pytest.fixture
def shard(guarded):
    with RespSocket(guarded.address) as connection:
        connection.call("AUTH", TOKEN)
        connection.call("FLUSHALL")
    return guarded


def test_msgpack_rpc_takes_nothing_before_the_token(shard, rpc):
    params: dict[str, list[object]] = {
        **{method: ["a"] for method in ("incr", "get", "total", "drain", "delete")},
        **{
            method: []
            for method in ("delete_all", "scan", "top", "ping", "stats", "health", "topology", "watch_topology", "tail")
        },
        **{method: [["a"]] for method in ("get_many", "total_many")},
        "incr_many": [[["a", 1]]],
        "apply": [b"s" * 16, 1, 0, [["a", 1]]],
        "bye": [b"s" * 16],
        "backup": ["/copy"],
    }
    for method, values in params.items():
        assert rpc.outcome(method, *values).code == "unauthenticated", method
    rpc.send(notification("incr", "a"))
    assert rpc.call("hello", {"token": TOKEN})[b"server"] == b"pycounter", "and the connection goes on"
    assert rpc.call("scan") == [0, []]
    assert rpc.call("hello", {"token": TOKEN})[b"server"] == b"pycounter", "twice is no harm"


@pytest.mark.parametrize("token", [None, *WRONG])
def test_a_wrong_token_in_hello_ends_the_connection(shard, token):
    with RpcSocket(shard.address) as guesser:
        guesser.send(request(1, "hello", {"token": token, "session": b"s" * 16}) + request(2, "incr", "a"))
        messages = guesser.read_to_end()
    assert messages == [[1, 1, b"unauthenticated: the token is missing or wrong", None]]
    with RpcSocket(shard.address) as second:
        assert second.call("hello", {"token": TOKEN})
        assert second.call("get", "a") == 0


def test_resp_takes_nothing_before_the_token(shard, resp):
    refused = RespError("NOAUTH Authentication required. (unauthenticated)")
    commands = ["INCR a", "INCRBY a 1", "DECR a", "DECRBY a 1", "GET a", "MGET a", "GETDEL a", "DEL a", "EXISTS a"]
    commands += ["SET a 1", "SCAN 0", "DBSIZE", "TYPE a", "PING", "ECHO a", "SELECT 0", "FLUSHALL"]
    commands += ["CLIENT ID", "CLIENT SETNAME x", "CONFIG GET *", "INFO", "COMMAND", "MULTI", "EXEC", "DISCARD"]
    for words in [*commands, "WATCH a", "UNWATCH"]:
        assert resp.outcome(*words.split()) == refused, words
        resp.send(f"{words}\r\n".encode())
        assert resp.reply() == refused, f"{words} as a line"
    for hello in ("HELLO", "HELLO 3"):
        assert str(resp.outcome(*hello.split())).startswith("NOAUTH HELLO must be called with")
    assert resp.call("RESET") == b"RESET"
    assert resp.call("AUTH", TOKEN) == b"OK"
    assert resp.call("DBSIZE") == 0


def test_resp_may_guess_again(shard):
    wrong = RespError("WRONGPASS invalid username-password pair or user is disabled. (unauthenticated)")
    with RespSocket(shard.address) as guesser:
        for token in WRONG:
            assert guesser.outcome("AUTH", token) == wrong
            assert guesser.outcome("AUTH", "default", token) == wrong
            assert guesser.outcome("HELLO", 3, "AUTH", "default", token, "SETNAME", "x") == wrong
            assert guesser.outcome("INCR", "a").word == "NOAUTH"
        assert guesser.call("AUTH", "whoever", TOKEN) == b"OK"
        assert guesser.call("CLIENT", "GETNAME") is None, "the refused HELLO did nothing"
        assert guesser.call("INCR", "a") == 1
        assert guesser.outcome("AUTH", WRONG[1]) == wrong
        assert guesser.call("INCR", "a") == 2, "who was in stays in, as in Redis"


def test_hello_signs_in_and_reset_signs_out(resp):
    assert resp.call("HELLO", 3, "AUTH", "default", TOKEN)[b"proto"] == 3
    assert resp.call("INCR", "a") == 1
    assert resp.call("RESET") == b"RESET"
    assert resp.outcome("INCR", "a").word == "NOAUTH"
    # A whole pipeline behind AUTH is let in with it.
    resp.send(command("AUTH", TOKEN) + command("INCR", "a") * 3)
    assert resp.replies(4) == [b"OK", 2, 3, 4]


def test_wrong_tokens_are_counted(shard, rpc):
    rpc.call("hello", {"token": TOKEN})
    before = rpc.call("stats")[b"refused_tokens"]
    with RespSocket(shard.address) as guesser:
        guesser.outcome("AUTH", WRONG[1])
    with RpcSocket(shard.address) as guesser_too:
        guesser_too.outcome("hello", {"token": WRONG[1]})
    assert rpc.call("stats")[b"refused_tokens"] == before + 2


def test_auth_where_there_is_no_token(start_shard):
    with RespSocket(start_shard().address) as connection:
        assert str(connection.outcome("AUTH", "x")).startswith("ERR AUTH <password> called without any password")
        assert connection.call("HELLO", 2, "AUTH", "default", "x"), "as in Redis"


@pytest.mark.parametrize("content", ["short", None])
def test_a_token_file_that_is_no_good_ends_the_start(start_shard, tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ShardEnded) as end:
        start_shard(arguments=["--token-file", str(file)])
    said = f"the token in {file} has 5 bytes" if content else f"the token file {file} can't be read: No such file"
    assert end.value.status == 1
    assert f"pycounter: {said}" in end.value.output
    assert "short" not in end.value.output
    assert not (tmp_path / "shard" / "manifest.json").exists(), "nothing was made"


def test_a_token_file_that_others_can_read_is_warned_about(start_shard, tmp_path):
    file = Path(write_token(tmp_path))
    file.chmod(0o644)
    shard = start_shard(arguments=["--token-file", str(file)])
    assert f"the token file {file} can be read by others: chmod 600 it" in shard.output()
    assert TOKEN not in shard.output()


def test_an_address_that_others_can_reach_needs_a_token(start_shard, tmp_path):
    with pytest.raises(ShardEnded) as end:
        start_shard(arguments=["--host", "0.0.0.0"])
    assert end.value.status == 1
    assert "pycounter: 0.0.0.0 can be reached from other machines, and no token is set" in end.value.output
    # The address is the loopback one in truth: what counts is that it starts.
    for number, arguments in enumerate((["--insecure"], ["--token-file", write_token(tmp_path)])):
        shard = start_shard(name=f"shard-{number}", arguments=["--host", "0.0.0.0", *arguments])
        assert shard.ready.host == "0.0.0.0"


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two certificates with their keys, each its own authority."""
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificate(folder, "ours"), make_certificate(folder, "other")


@pytest.fixture(scope="module")
def tls_shard(start_shared_shard, certificates, tmp_path_factory):
    cert, key = certificates[0]
    token_file = write_token(tmp_path_factory.mktemp("token"))
    arguments = ["--tls-cert", cert, "--tls-key", key, "--token-file", token_file]
    return start_shared_shard(name="tls", arguments=arguments)


@pytest.fixture
def trusting(certificates):
    return ssl.create_default_context(cafile=certificates[0][0])


@needs_openssl
async def test_both_protocols_over_tls(tls_shard, trusting):
    with over_tls(RespSocket(tls_shard.address), trusting) as resp:
        assert isinstance(resp.socket, ssl.SSLSocket)
        assert resp.socket.version() in {"TLSv1.2", "TLSv1.3"}
        assert resp.outcome("INCR", "a").word == "NOAUTH"
        resp.send(command("AUTH", TOKEN) + command("FLUSHALL") + command("INCR", "a") * 10_000)
        assert resp.replies(10_002)[-1] == 10_000
    with over_tls(RpcSocket(tls_shard.address), trusting) as rpc:
        rpc.call("hello", {"token": TOKEN})
        assert rpc.call("incr", "a") == 10_001
    host, port = tls_shard.address
    async with SessionClient(host, port, token=TOKEN, tls=trusting) as client:
        assert await client.apply([("a", 1), ("a", 1)]) == [10_002, 10_003]
    assert "WARNING" not in tls_shard.output(), "clients that leave are nothing to tell"


@needs_openssl
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(command("INCR", "a"), id="resp"),
        pytest.param(request(1, "incr", "a"), id="msgpack-rpc"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(b"\x16\x03\x01", id="cut short"),
    ],
)
def test_plain_bytes_on_a_tls_port_get_nothing(tls_shard, trusting, data):
    with socket.create_connection(tls_shard.address, timeout=30) as plain:
        plain.sendall(data)
        plain.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := plain.recv(4096):
                answer += chunk
    # An alert of TLS at most, and none of our words.
    assert len(answer) < 16
    assert answer[:1] in {b"", b"\x15"}
    with over_tls(RespSocket(tls_shard.address), trusting) as resp:
        assert resp.call("AUTH", TOKEN) == b"OK"


@needs_openssl
def test_a_client_that_trusts_somebody_else_leaves(tls_shard, trusting, certificates):
    stranger = ssl.create_default_context(cafile=certificates[1][0])
    with RespSocket(tls_shard.address) as resp, pytest.raises(ssl.SSLCertVerificationError):
        over_tls(resp, stranger)
    with over_tls(RespSocket(tls_shard.address), trusting) as resp:
        assert resp.call("AUTH", TOKEN) == b"OK"


@needs_openssl
def test_a_cut_in_the_middle_of_tls_harms_nobody(tls_shard, trusting):
    with over_tls(RespSocket(tls_shard.address), trusting) as leaving:
        assert leaving.call("AUTH", TOKEN) == b"OK"
        leaving.send(command("INCR", "cut"))
        # No goodbye of TLS: the TCP connection ends under it.
        socket.socket(fileno=leaving.socket.detach()).close()
    with over_tls(RespSocket(tls_shard.address), trusting) as resp:
        assert resp.call("AUTH", TOKEN) == b"OK"


@needs_openssl
def test_a_key_of_another_certificate_ends_the_start(start_shard, certificates):
    (cert, _), (_, key) = certificates
    with pytest.raises(ShardEnded) as end:
        start_shard(arguments=["--tls-cert", cert, "--tls-key", key])
    assert end.value.status == 1
    assert f"pycounter: TLS certificate {cert} with key {key} can't be used: " in end.value.output
