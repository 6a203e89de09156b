"""Passages: sessions at a shard through a coordinator, whatever of the two is killed, slow, or sends nonsense."""

import contextlib
import itertools
import random
import socket

import pytest

from pycounter.net.security import client_tls
from tests.support.credentials import TOKEN, make_certificate, over_tls, write_token
from tests.support.rpc_socket import RpcError, RpcSocket, notification, request
from tests.support.waiting import wait_until

SHARDS = 2


@pytest.fixture(scope="module")
def cluster(start_shared_cluster):
    return start_shared_cluster(shards=SHARDS)


def passage(cluster, name="shard-0", **fields):
    """A passage, and what the shard said."""
    connection = RpcSocket(cluster.address)
    hello = connection.outcome("hello", {"shard": name, **fields})
    return connection, hello


def shard_socket(cluster, name):
    """A connection to the shard itself."""
    host, _, port = next(shard.address for shard in cluster.topology().shards if shard.name == name).rpartition(":")
    return RpcSocket((host, int(port)))


def at_shard(cluster, name, *call):
    """What the shard answers when it is asked directly."""
    with shard_socket(cluster, name) as connection:
        return connection.call(*call)


_sessions = itertools.count(1)


@pytest.fixture
def session():
    return next(_sessions).to_bytes(16, "big")


def test_a_session_through_a_coordinator_is_a_session_at_the_shard(cluster, session):
    for name in ("shard-0", "shard-1"):
        connection, hello = passage(cluster, name, session=session, client="a test")
        with connection:
            direct = at_shard(cluster, name, "hello")
            assert hello.pop(b"last_sequence") is None
            assert (hello[b"shard"], hello[b"identity"]) == (name.encode(), direct[b"identity"])
            assert hello.keys() == direct.keys()
            applied = connection.call("apply", session, 1, 0, [["through", 5], ["through", -2]], "durable")
            assert applied[b"results"] == [5, 3]
            assert connection.call("get", "through") == at_shard(cluster, name, "get", "through") == 3
        connection, hello = passage(cluster, name, session=session)
        with connection:
            assert hello[b"last_sequence"] == 2
            assert connection.call("apply", session, 1, 0, [["through", 5], ["through", -2]], "durable") == applied


def test_what_is_sent_behind_the_hello_goes_to_the_shard(cluster, session):
    frames = request(1, "hello", {"shard": "shard-1"}) + request(2, "apply", session, 1, 0, [["behind", 1]] * 1000)
    with RpcSocket(cluster.address) as connection:
        connection.send(frames)
        assert len(connection.outcomes([1, 2])[1][b"results"]) == 1000
    assert at_shard(cluster, "shard-1", "get", "behind") == 1000


def test_a_hello_in_pieces(cluster):
    with RpcSocket(cluster.address) as connection:
        for byte in request(1, "hello", {"shard": "shard-1"}) + request(2, "ping"):
            connection.send(bytes([byte]))
        assert connection.outcomes([1, 2])[1] == b"pong"


def test_a_passage_after_other_requests(cluster):
    with RpcSocket(cluster.address) as connection:
        assert connection.call("incr", "before") == 1
        assert connection.call("hello", {"shard": "shard-0"})[b"shard"] == b"shard-0"
        with pytest.raises(RpcError, match="wrong_shard: this is shard-0, not shard-1"):
            connection.call("hello", {"shard": "shard-1"})
        assert connection.read_to_end() == []


def test_no_passage_while_answers_are_due(cluster):
    with RpcSocket(cluster.address) as connection:
        frames = [request(1, "incr", "due"), request(2, "hello", {"shard": "shard-0"}), request(3, "incr", "due")]
        connection.send(b"".join(frames))
        answers = {msgid: error or result for _, msgid, error, result in connection.read_to_end()}
    assert answers.pop(1) == 1
    assert answers.pop(2).startswith(b"bad_request: ")
    assert not answers
    with RpcSocket(cluster.address) as connection:
        version = connection.call("topology")[b"version"]
        connection.send(request(1, "watch_topology", version) + request(2, "hello", {"shard": "shard-0"}))
        assert connection.outcomes([2])[0].code == "bad_request"
        assert connection.is_silent()
    with RpcSocket(cluster.address) as connection:
        assert connection.call("get", "due") == 1


@pytest.mark.parametrize("name", ["shard-9", "", "coordinator-0", "shard-0-replica-0", b"\xff"])
def test_an_unknown_shard_is_said_and_nothing_behind_it_is_done(cluster, name):
    with RpcSocket(cluster.address) as connection:
        connection.send(request(1, "hello", {"shard": name}) + request(2, "incr", "unknown shard"))
        [(_, msgid, error, _)] = connection.read_to_end()
        assert msgid == 1
        assert error.startswith(b"wrong_shard: there is no shard")
    with RpcSocket(cluster.address) as connection:
        assert connection.call("get", "unknown shard") == 0


def test_a_shard_asked_for_itself(cluster):
    with shard_socket(cluster, "shard-0") as connection:
        assert connection.call("hello", {"shard": "shard-0"})[b"shard"] == b"shard-0"
        connection.send(request(1, "hello", {"shard": "shard-1"}) + request(2, "incr", "unknown shard"))
        [(_, _, error, _)] = connection.read_to_end()
        assert error.startswith(b"wrong_shard: this is shard-0, not shard-1")
    assert at_shard(cluster, "shard-0", "get", "unknown shard") == 0


def test_a_hello_that_nobody_is_told_of(cluster):
    with RpcSocket(cluster.address) as connection:
        connection.send(notification("hello", {"shard": "shard-1"}) + request(1, "hello"))
        assert connection.outcomes([1])[0][b"shard"] == b"shard-1"
    with RpcSocket(cluster.address) as connection:
        connection.send(notification("hello", {"shard": "shard-9"}))
        assert connection.read_to_end() == []


def test_who_has_finished_gets_all_answers(cluster, session):
    connection, _ = passage(cluster)
    with connection:
        for number in range(200):
            connection.send(request(number, "apply", session, number + 1, 0, [["finished", 1]], "durable"))
        connection.socket.shutdown(socket.SHUT_WR)
        answers = connection.read_to_end()
    assert [message[3][b"results"] for message in answers] == [[number + 1] for number in range(200)]
    with RpcSocket(cluster.address) as connection:
        connection.send(request(1, "hello", {"shard": "shard-0"}) + request(2, "ping"))
        connection.socket.shutdown(socket.SHUT_WR)
        assert len(connection.read_to_end()) == 2


def test_a_shard_that_closes_ends_the_passage(cluster):
    connection, _ = passage(cluster)
    with connection:
        connection.send(b"\xc1")
        assert connection.read_to_end() == []


def test_bytes_of_any_kind(cluster, seed, hostile):
    rng = random.Random(seed)
    before = cluster.pids()
    bystander, _ = passage(cluster, "shard-1")
    with bystander:
        for number in range(100 * hostile):
            # Where the end of the connection comes back sooner than all is sent, a send fails.
            with RpcSocket(cluster.address) as connection, contextlib.suppress(OSError):
                data = request(1, "hello", {"shard": rng.choice(["shard-0", "shard-1"])}) + request(2, "incr", "x")
                if rng.random() < 0.5:
                    place = rng.randrange(len(data))
                    data = data[:place] + rng.randbytes(rng.randrange(3)) + data[place + rng.randrange(3) :]
                connection.send(data)
                if rng.random() < 0.5:
                    connection.send(rng.randbytes(rng.randrange(1, 10_000)))
                if rng.random() < 0.5:
                    connection.socket.shutdown(socket.SHUT_WR)
            assert bystander.call("incr", "a bystander's") == number + 1
    assert cluster.pids() == before, "no process ended"
    wait_until(lambda: facts(cluster)["passages"] == 0)


def facts(cluster, name="coordinator-0"):
    """What a coordinator says of itself."""
    return cluster.status()["facts"][name]


# --- token and TLS ---------------------------------------------------------------------------------------------------


def test_token_and_tls(start_cluster, tmp_path, session):
    certificate, key = make_certificate(tmp_path, "cluster")
    guards = ["--token-file", write_token(tmp_path), "--tls-cert", certificate, "--tls-key", key]
    cluster = start_cluster(shards=2, arguments=guards)
    context = client_tls(certificate)
    for token in (None, "wrong"):
        with over_tls(RpcSocket(cluster.address), context) as connection:
            assert connection.outcome("hello", {"shard": "shard-0", "token": token}).code == "unauthenticated"
            assert connection.read_to_end() == []
    with over_tls(RpcSocket(cluster.address), context) as connection:
        connection.call("hello", {"token": TOKEN})
        assert connection.outcome("hello", {"shard": "shard-0"}).code == "unauthenticated", "each hello brings it"
    for name in ("shard-0", "shard-1"):
        with over_tls(RpcSocket(cluster.address), context) as connection:
            assert connection.call("hello", {"shard": name, "token": TOKEN})[b"shard"] == name.encode()
            items = [["k" * 1000, 1]] * 900
            for number in range(20):
                sent = number * len(items)
                connection.begin("apply", session, sent + 1, sent, items)
            assert connection.responses(20)[-1][1][b"results"][-1] == 20 * len(items)
