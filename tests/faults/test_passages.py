"""Sessions through a coordinator while coordinators and shards are killed, stopped, or end in good order."""

import contextlib
import itertools
import random
import signal
import threading
import time
from functools import partial

import pytest

from tests.support.bystander import resident_bytes
from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket, request
from tests.support.waiting import wait_until

BATCH = 50
KEYS = [f"k{number}" for number in range(BATCH)]


class PassingSession(threading.Thread):
    """Counts through passages to one shard, in a session, and opens another passage whenever one breaks."""

    def __init__(self, address, shard, number):
        super().__init__(daemon=True)
        self.failure = None
        self.acknowledged = 0
        self.passages = 0
        self._address, self._shard = address, shard
        self._session = number.to_bytes(16, "big")
        self._enough = threading.Event()

    def finish(self):
        """Gives the sum that the shard has acknowledged."""
        self._enough.set()
        self.join(60)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure
        return self.acknowledged

    def run(self):
        try:
            is_settled = False
            while not is_settled:
                with contextlib.suppress(OSError, ConnectionClosed), RpcSocket(self._address) as connection:
                    is_settled = self._count(connection)
                time.sleep(0 if is_settled else 0.01)
        except Exception as failure:  # noqa: BLE001 - raised where the test waits
            self.failure = failure

    def _count(self, connection):
        """Until it is enough. False: there is no passage now."""
        hello = connection.outcome("hello", {"shard": self._shard, "session": self._session})
        if isinstance(hello, RpcError):
            assert hello.code == "unavailable", hello
            return False
        self.passages += 1
        last = hello[b"last_sequence"] or 0
        assert self.acknowledged <= last, "what was acknowledged is there"
        self.acknowledged = last
        sent = last
        msgids: list[int] = []
        while not (self._enough.is_set() and not msgids):
            while len(msgids) < 4 and not self._enough.is_set():
                items = [[key, 1] for key in KEYS]
                msgids.append(connection.begin("apply", self._session, sent + 1, self.acknowledged, items, "durable"))
                sent += BATCH
            msgid, outcome = connection.response()
            assert msgid == msgids.pop(0)
            assert len(outcome[b"results"]) == BATCH
            self.acknowledged += BATCH
        return True


def acknowledged(sessions):
    return sum(session.acknowledged for session in sessions)


def has_counted(sessions, enough):
    return acknowledged(sessions) > enough


def at_shard(cluster, name, *call):
    host, _, port = next(shard.address for shard in cluster.topology().shards if shard.name == name).rpartition(":")
    with RpcSocket((host, int(port))) as connection:
        return connection.call(*call)


def test_sessions_through_killed_coordinators_and_shards_count_once(start_cluster, seed):
    cluster = start_cluster(shards=2, coordinators=2)
    sessions = [PassingSession(cluster.address, f"shard-{number % 2}", number + 1) for number in range(4)]
    for session in sessions:
        session.start()
    victims = ["coordinator-0", "coordinator-1", "shard-0", "shard-1"]
    rng = random.Random(seed)
    for _ in range(8):
        wait_until(partial(has_counted, sessions, acknowledged(sessions) + 20 * BATCH))
        victim = rng.choice(victims)
        cluster.kill_process(victim)
        cluster.wait_restarted(victim)
    sums = [session.finish() for session in sessions]
    assert sum(session.passages for session in sessions) > len(sessions)
    for number, name in enumerate(["shard-0", "shard-1"]):
        total = sums[number] + sums[number + 2]
        assert sum(at_shard(cluster, name, "get_many", KEYS)) == total


def test_a_coordinator_that_ends_answers_what_it_has_read(start_cluster):
    cluster = start_cluster(shards=1)
    for number in range(1, 4):
        session = number.to_bytes(16, "big")
        with RpcSocket(cluster.address) as connection:
            assert connection.call("hello", {"shard": "shard-0"})[b"shard"] == b"shard-0"
            sender = threading.Thread(target=send_batches, args=(connection, session))
            sender.start()
            answers = [connection.response() for _ in range(20)]
            cluster.send_signal_to("coordinator-0", signal.SIGTERM)
            with contextlib.suppress(ConnectionClosed, ConnectionResetError):
                while True:
                    answers.append(connection.response())
            sender.join(60)
        values = [outcome[b"results"][-1] for _, outcome in answers]
        assert values == list(range(BATCH, BATCH * len(answers) + 1, BATCH))
        cluster.wait_restarted("coordinator-0")
        at_shard(cluster, "shard-0", "delete_all")
        hello = at_shard(cluster, "shard-0", "hello", {"session": session})
        assert hello[b"last_sequence"] == len(answers) * BATCH, "nothing was applied that the client wasn't told of"


def send_batches(connection, session):
    """Sends batches until the connection ends."""
    with contextlib.suppress(OSError):
        for number in itertools.count():
            sent = number * BATCH
            connection.send(request(number, "apply", session, sent + 1, sent, [["drained", 1]] * BATCH, "durable"))


# --- who doesn't read ------------------------------------------------------------------------------------------------


def send_until_full(connection, frames):
    """Sends frames until nothing goes in any more; gives how many whole ones went, and the rest of the next."""
    connection.socket.settimeout(0.5)
    for number, frame in enumerate(frames):
        left = memoryview(frame)
        while left:
            try:
                left = left[connection.socket.send(left) :]
            except TimeoutError:
                connection.socket.settimeout(30)
                return number, bytes(left)
    pytest.fail("everything was taken")


def test_a_shard_that_stands_still_fills_no_memory_of_the_coordinator(start_cluster):
    cluster = start_cluster(shards=2)
    session = b"stands still...."
    with RpcSocket(cluster.address) as connection, RpcSocket(cluster.address) as bystander:
        for one, name in ((connection, "shard-0"), (bystander, "shard-1")):
            one.call("hello", {"shard": name})
        coordinator = cluster.pids()["coordinator-0"]
        before = resident_bytes(coordinator)
        cluster.send_signal_to("shard-0", signal.SIGSTOP)
        frames = [
            request(number, "apply", session, number * 100 + 1, number * 100, [["k" * 1000, 1]] * 100)
            for number in range(1000)
        ]
        whole, left = send_until_full(connection, frames)
        assert resident_bytes(coordinator) - before < 4 << 20
        for number in range(100):
            assert bystander.call("incr", "bystander") == number + 1
        cluster.send_signal_to("shard-0", signal.SIGCONT)
        connection.send(left)
        answers = connection.responses(whole + 1)
    assert [msgid for msgid, _ in answers] == list(range(whole + 1))
    assert answers[-1][1][b"results"][-1] == (whole + 1) * 100


def test_a_client_that_reads_nothing_fills_no_memory_of_the_coordinator(start_cluster):
    cluster = start_cluster(shards=1)
    keys = [f"{number:03}" + "k" * 1000 for number in range(800)]
    with RpcSocket(cluster.address) as connection, RpcSocket(cluster.address) as bystander:
        for one in (connection, bystander):
            one.call("hello", {"shard": "shard-0"})
        bystander.call("incr_many", [[key, 1] for key in keys])
        coordinator = cluster.pids()["coordinator-0"]
        before = resident_bytes(coordinator)
        msgids = [connection.begin("top", 800) for _ in range(100)]
        for number in range(100):
            assert bystander.call("incr", "bystander", -1) == -number - 1
        assert resident_bytes(coordinator) - before < 4 << 20
        for answer in connection.outcomes(msgids):
            assert len(answer) == 800
