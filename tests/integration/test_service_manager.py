"""Real servers under something that speaks systemd's protocol."""

import socket

import pytest

from tests.support.cluster_process import ClusterProcess
from tests.support.shard_process import ColdLauncher, ShardProcess
from tests.support.waiting import is_readable


@pytest.fixture
def notify(tmp_path):
    """What servers say to their manager, and what starts them under it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(60)
        yield listener, ColdLauncher(environment={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "500000"})


def heard_until(listener: socket.socket, last: bytes) -> list[bytes]:
    heard = [listener.recv(1000)]
    while heard[-1] != last:
        heard.append(listener.recv(1000))
    return heard


@pytest.mark.parametrize("kind", [ShardProcess, ClusterProcess])
def test_the_manager_hears_when_clients_are_served_and_when_they_no_longer_are(kind, notify, tmp_path):
    listener, launcher = notify
    with kind(tmp_path / "data", launcher=launcher) as server:
        assert server.ready is not None
        ready = b"READY=1\nMAINPID=%d" % server.ready.pid
        heard = heard_until(listener, ready)
        heard += heard_until(listener, b"WATCHDOG=1")
        assert server.terminate() == 0
        heard += heard_until(listener, b"STOPPING=1")
        while is_readable(listener.fileno(), 0.0):
            heard.append(listener.recv(1000))
    assert [said for said in heard if said != b"WATCHDOG=1"] == [ready, b"STOPPING=1"], "and no child says a word"
