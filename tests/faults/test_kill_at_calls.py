"""Kill -9 at a chosen call to the system, not at a random moment: in recovery, commits, checkpoints and backups.

The process stops before the n-th call that may change the disk, or in the middle of a write, and is killed there.
`--fault-rounds 1000` takes every call there is.
"""

import contextlib
import random
import shutil

import pytest

from pycounter.storage.check import check_folder
from tests.support.damaged_folder import Started, Story, put_back, start_and_look
from tests.support.faulty_disk import Call, Fate
from tests.support.log_files import check_history, records, segments
from tests.support.rpc_socket import ConnectionClosed, RpcSocket
from tests.support.shard_process import ShardProcess

SETTINGS = {"segment_bytes": 4096, "checkpoint_log_bytes": 1 << 30, "checkpoint_interval_s": 3600.0}
OPERATIONS = 50


class Scene:
    """A killed shard with a checkpoint, several files of the log, and half a record at its end."""

    def __init__(self, folder, disk):
        self.disk = disk
        disk.watch(folder)
        self.shard = ShardProcess(folder / "shard", launcher=disk.launcher, settings=SETTINGS)
        self.backup = folder / "backup"
        story = Story()
        self.shard.start()
        story.count(self.shard, OPERATIONS // 2)
        assert self.shard.terminate() == 0
        self.shard.start()
        story.count(self.shard, OPERATIONS // 2)
        self.shard.kill()
        last = segments(self.shard.directory)[-1]
        record = records(last)[-1]
        last.write_bytes(last.read_bytes() + last.read_bytes()[record.start : record.end - 3])
        self._copy = folder / "copy"
        shutil.copytree(self.shard.directory, self._copy)

    def restore(self):
        self.disk.lift()
        put_back(self.shard.directory, self._copy)
        shutil.rmtree(self.backup, ignore_errors=True)

    def count_calls(self, act, calls):
        """How many calls `act` makes that a rule may be about."""
        self.restore()
        rule = self.prepare(act).plant(calls, Fate.SLEEP)
        act(self)
        self.shard.kill()
        return rule.seen

    def prepare(self, act):
        if act is not recover:
            self.shard.start()
        return self.disk


def recover(scene):
    scene.shard.begin()
    scene.shard.wait_ready()


def commit(scene):
    story = Story()
    story.operations = OPERATIONS
    story.count(scene.shard, 20)


def checkpoint(scene):
    """A backup begins with a checkpoint, which ends with a trim."""
    with RpcSocket(scene.shard.address) as rpc:
        rpc.call("backup", str(scene.backup))


def kill_at(scene, act, calls, fate, nth):
    """Lets the process stop at that call of `act`, kills it there. Gives how many operations may be counted."""
    scene.restore()
    rule = scene.prepare(act).plant(calls, fate, first=nth, count=1)
    shard = scene.shard
    fewest = most = OPERATIONS
    if act is recover:
        shard.begin()
        rule.wait_hit()
    else:
        with RpcSocket(shard.address) as rpc:
            if act is checkpoint:
                rpc.begin("backup", str(scene.backup))
                rule.wait_hit()
            else:
                story = Story()
                story.operations = OPERATIONS
                rpc.socket.settimeout(0.5)
                with contextlib.suppress(TimeoutError, ConnectionClosed):
                    story.count_on(rpc, 20)
                assert rule.hits
                fewest, most = story.operations, story.operations + 1
    shard.kill()
    scene.disk.lift()
    return fewest, most


PLACES = [(Call.CHANGES | Call.OPEN, Fate.STOP), (Call.WRITE, Fate.STOP_HALFWAY)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("act", [recover, commit, checkpoint])
def test_kill_9_at_a_call(tmp_path, disk, seed, fault_rounds, act):
    scene = Scene(tmp_path, disk)
    scene.restore()
    assert start_and_look(scene.shard) == Started(OPERATIONS)
    places = [(calls, fate, nth + 1) for calls, fate in PLACES for nth in range(scene.count_calls(act, calls))]
    assert len(places) > 10
    for calls, fate, nth in random.Random(seed).sample(places, min(fault_rounds, len(places))):
        fewest, most = kill_at(scene, act, calls, fate, nth)
        where = f"{act.__name__}, {fate.name} at call {nth} of {calls!r}"
        started = start_and_look(scene.shard)
        assert isinstance(started, Started), (where, started)
        assert fewest <= started.operations <= most, (where, started)
        check_history(scene.shard.directory)
        # The start after that finds the same.
        assert start_and_look(scene.shard) == started, where
        if act is checkpoint and (scene.backup / "backup.json").exists():
            # Its note is the last thing that is written.
            assert check_folder(scene.backup).is_sound, where
