"""A token or a certificate is replaced while servers run: SIGHUP has them read the files again, and ends nobody."""

import shutil
import signal
import ssl
from pathlib import Path

import pytest

from tests.support.credentials import TOKEN, make_certificate, over_tls, write_token
from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import RpcSocket
from tests.support.waiting import wait_until

NEW = "d41d8cd98f00b204e9800998ecf8427e"


def let_in(address, token):
    """Does a new client get in with this token, over both protocols?"""
    with RpcSocket(address) as rpc, RespSocket(address) as resp:
        by_rpc = rpc.outcome("hello", {"token": token})
        by_resp = resp.outcome("AUTH", token)
    return isinstance(by_rpc, dict) and by_resp == b"OK"


def wait_let_in(address, token, *, expected):
    """Waits until it is as expected: a cluster's processes read the file each at its own moment."""
    wait_until(lambda: let_in(address, token) == expected)


def reload(server, said="reloaded"):
    """Sends SIGHUP, and waits until the server has said so once more."""
    before = server.output(1000).count(said)
    server.send_signal(signal.SIGHUP)
    wait_until(lambda: server.output(1000).count(said) > before)


def test_a_shard_goes_from_one_token_to_the_next_without_a_gap(start_shard, tmp_path):
    file = Path(write_token(tmp_path))
    shard = start_shard(arguments=["--token-file", str(file)])
    with RespSocket(shard.address) as early:
        early.call("AUTH", TOKEN)
        file.write_text(f"{NEW}\n{TOKEN}\n")
        assert not let_in(shard.address, NEW), "nothing changes before the signal"
        reload(shard, "2 tokens are valid")
        assert let_in(shard.address, NEW)
        assert let_in(shard.address, TOKEN)
        assert not let_in(shard.address, f"{NEW}\n{TOKEN}")
        file.write_text(NEW)
        reload(shard, "1 token is valid")
        assert let_in(shard.address, NEW)
        assert not let_in(shard.address, TOKEN)
        assert early.call("INCR", "a") == 1, "who is in stays in"
    assert TOKEN not in shard.output(1000)
    assert NEW not in shard.output(1000)
    assert shard.terminate() == 0


def test_a_file_that_is_no_good_changes_nothing(start_shard, tmp_path):
    file = Path(write_token(tmp_path))
    shard = start_shard(arguments=["--token-file", str(file)])
    for content in ("short", ""):
        file.write_text(content)
        reload(shard, "nothing was reloaded")
        assert let_in(shard.address, TOKEN)
        assert not let_in(shard.address, content)
    file.unlink()
    reload(shard, "nothing was reloaded")
    assert "can't be read: No such file or directory" in shard.output()
    assert let_in(shard.address, TOKEN)


def test_a_shard_without_a_token_outlives_the_signal(start_shard):
    shard = start_shard()
    for _ in range(3):
        shard.send_signal(signal.SIGHUP)
    with RespSocket(shard.address) as resp:
        assert resp.call("INCR", "a") == 1
    assert shard.terminate() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_replaced(start_shard, tmp_path):
    cert, key = tmp_path / "served.crt", tmp_path / "served.key"
    made = [make_certificate(tmp_path, name) for name in ("first", "second")]
    contexts = [ssl.create_default_context(cafile=cert) for cert, _ in made]

    def serve(number):
        shutil.copy(made[number][0], cert)
        shutil.copy(made[number][1], key)

    serve(0)
    shard = start_shard(arguments=["--tls-cert", str(cert), "--tls-key", str(key)])
    with over_tls(RespSocket(shard.address), contexts[0]) as early:
        shutil.copy(made[1][0], cert)
        reload(shard, "nothing was reloaded")
        with over_tls(RespSocket(shard.address), contexts[0]) as resp:
            assert resp.call("INCR", "a") == 1, "a certificate with another's key is not taken"
        serve(1)
        reload(shard)
        with over_tls(RespSocket(shard.address), contexts[1]) as resp:
            assert resp.call("INCR", "a") == 2
        with pytest.raises(ssl.SSLCertVerificationError), RespSocket(shard.address) as distrustful:
            over_tls(distrustful, contexts[0])
        assert early.call("INCR", "a") == 3


def count(cluster, token, key):
    """Counts over a coordinator, and reads at each shard and replica, where a new connection needs the token."""
    with RpcSocket(cluster.address) as rpc:
        rpc.call("hello", {"token": token})
        value = rpc.call("incr", key)
        assert rpc.call("get", key, {"accuracy": "exact"}) == value
    return value


def test_a_cluster_is_given_another_token_and_goes_on(start_cluster, tmp_path):
    file = Path(write_token(tmp_path))
    cluster = start_cluster(shards=2, replicas=1, arguments=["--token-file", str(file)])
    cluster.wait_all_ok()
    pids = cluster.pids()
    assert count(cluster, TOKEN, "a") == 1
    file.write_text(f"{NEW}\n{TOKEN}\n")
    cluster.send_signal(signal.SIGHUP)
    topology = cluster.topology()
    everybody = [cluster.address, *(one.endpoint for shard in topology.shards for one in (shard, *shard.replicas))]
    for address in everybody:
        wait_let_in(address, NEW, expected=True)
        assert let_in(address, TOKEN)
    assert cluster.pids() == pids, "nobody was started again"
    file.write_text(NEW)
    cluster.send_signal(signal.SIGHUP)
    for address in everybody:
        wait_let_in(address, TOKEN, expected=False)
        assert let_in(address, NEW)
    for name in ("shard-0", "shard-1", "shard-0-replica-0", "coordinator-0"):
        cluster.kill_process(name)
        cluster.wait_restarted(name)
    cluster.wait_all_ok()
    assert wait_until(lambda: count(cluster, NEW, "a")) == 2
    assert cluster.terminate() == 0


def test_a_token_that_was_replaced_without_a_signal_splits_no_cluster(start_cluster, tmp_path):
    file = Path(write_token(tmp_path))
    cluster = start_cluster(shards=2, arguments=["--token-file", str(file)])
    assert count(cluster, TOKEN, "a") == 1
    file.write_text(NEW)
    cluster.kill_process("shard-0")
    cluster.kill_process("shard-1")
    cluster.wait_restarted("shard-0")
    cluster.wait_restarted("shard-1")
    cluster.wait_all_ok()
    wait_until(lambda: let_in(cluster.address, NEW))

    def are_linked():
        return all(link["ready"] for link in cluster.status()["facts"]["coordinator-0"]["links"].values())

    wait_until(are_linked)
    assert count(cluster, NEW, "a") == 2
