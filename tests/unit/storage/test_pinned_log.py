"""A pin on the log: what a replica that reads a checkpoint needs isn't dropped by the next ones."""

from pycounter._native import Shard
from pycounter.storage.checkpoint_store import CheckpointStore
from pycounter.storage.checkpointer import Checkpointer
from tests.support.rpc_socket import request
from tests.support.waiting import is_readable


class Owner:
    def attend(self) -> None: ...


def count(shard, connection, times):
    """So many commits, each durable."""
    for _ in range(times):
        connection.feed(request(1, "incr", "key-" + "x" * 900))
        shard.commit()
        while not shard.is_settled():
            is_readable(shard.wake_fd, 10.0)
            shard.release()


def first_commit(directory):
    return min(int(path.stem) for path in (directory / "log").iterdir())


def test_the_log_above_a_pin_stays_until_the_pin_is_gone(tmp_path):
    shard = Shard(tmp_path, segment_bytes=4096)
    store = CheckpointStore(tmp_path)
    shard.load_root(None)
    shard.start(lambda *_: None)
    checkpointer = Checkpointer(shard, store, log_bytes=1 << 30, interval_s=1000)
    connection = shard.connect(Owner())
    count(shard, connection, 20)
    pin = shard.pin_log(10)
    checkpointer.checkpoint()
    assert 1 < first_commit(tmp_path) <= 11
    count(shard, connection, 10)
    shard.move_pin(pin, 25)
    checkpointer.checkpoint()
    assert 11 < first_commit(tmp_path) <= 26
    shard.unpin_log(pin)
    shard.unpin_log(pin)
    count(shard, connection, 10)
    checkpointer.checkpoint()
    assert first_commit(tmp_path) > 26
    checkpointer.stop()
    shard.stop()
