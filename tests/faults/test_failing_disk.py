"""The disk of a whole server fails, step by step: what clients and `health` are told, and that counts are exact after.

`test_failing_disk_load.py` does the same under load and by chance.
"""

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess

import pytest

from pycounter.storage.reserve import RESERVE_NAME
from tests.support.damaged_folder import start_or_end
from tests.support.faulty_disk import Call, Fate
from tests.support.log_files import check_history, segments
from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import RpcError
from tests.support.waiting import wait_until

SESSION = b"s" * 16
LOG = "/log/"
EARLY_CHECKPOINTS = {"checkpoint_log_bytes": 4096, "checkpoint_interval_s": 0.05, "segment_bytes": 4096}


def is_in_state(rpc, state):
    return lambda: (health := rpc.call("health"))[b"state"] == state and health


def assert_code(outcome, code):
    assert isinstance(outcome, RpcError), outcome
    assert outcome.code == code


class Work:
    """Three operations that the shard has acknowledged, and three that are sent while the disk fails."""

    def __init__(self, rpc):
        self.rpc = rpc
        assert self.rpc.call("apply", SESSION, 1, 0, [["a", 1], ["b", 10]])[b"results"] == [1, 10]
        assert self.rpc.call("incr", "c", 100, {"id": b"first"}) == 100

    def send(self, rpc):
        return [
            rpc.begin("apply", SESSION, 3, 0, [["a", 1], ["b", 10]]),
            rpc.begin("incr", "c", 100, {"id": b"second"}),
            rpc.begin("get", "a"),
        ]

    def check_repeated(self, rpc):
        """Each operation's retry gets one answer, and counts once, however often it is sent."""
        for _ in range(2):
            assert rpc.call("apply", SESSION, 1, 0, [["a", 1], ["b", 10], ["a", 1], ["b", 10]])[b"results"] == [
                *[1, 10],
                *[2, 20],
            ]
            assert rpc.call("incr", "c", 100, {"id": b"second"}) == 200
            assert rpc.call("incr", "c", 100, {"id": b"first"}) == 100
        assert rpc.call("get_many", ["a", "b", "c", "refused"]) == [2, 20, 200, 0]


def check_that_all_are_unknown(work, rpc):
    """What waits for a commit gets `unknown_outcome`, what is new is refused, what waits for nothing is answered."""
    *changes, read = rpc.outcomes(work.send(rpc))
    for outcome in changes:
        assert outcome.code in {"unknown_outcome", "read_only"}, outcome
    # If the disk was known to fail before anything changed, the value is on disk, and told.
    assert read == 1 or read.code == "read_only", read
    wait_until(is_in_state(rpc, b"read_only"))
    assert_code(rpc.outcome("incr", "refused"), "read_only")
    assert_code(rpc.outcome("apply", b"t" * 16, 1, 0, [["refused", 1]]), "read_only")
    assert rpc.call("get", "c", {"level": "applied"}) in {100, 200}
    assert rpc.call("ping") is not None


def test_reads_while_the_disk_fails(start_shard, connect, disk):
    """A value that is on disk is told; one with a change that may be lost isn't, unless it is asked for."""
    shard = start_shard(on=disk)
    rpc = connect(shard)
    assert rpc.call("incr_many", [["changed", 1], ["untouched", 2]]) == [1, 2]
    disk.plant(Call.SYNC, error=errno.EIO, part=LOG)
    assert_code(rpc.outcome("incr", "changed", 5), "unknown_outcome")
    wait_until(is_in_state(rpc, b"read_only"))
    assert rpc.call("get", "untouched") == 2
    assert rpc.call("get_many", ["untouched", "never"]) == [2, 0]
    assert rpc.call("total", "untouched")[b"total"] == 2
    requests = [("get", "changed"), ("get_many", ["untouched", "changed"]), ("scan", 0), ("top", 1)]
    for outcome in rpc.outcomes([rpc.begin(*request) for request in requests]):
        assert_code(outcome, "read_only")
    assert rpc.call("get", "changed", {"level": "applied"}) == 6
    with RespSocket(shard.address) as resp:
        assert resp.call("GET", "untouched") == b"2"
        assert resp.call("EXISTS", "untouched", "never") == 1
        for words in (("GET", "changed"), ("MGET", "untouched", "changed"), ("STRLEN", "changed"), ("DBSIZE",)):
            resp.begin(*words)
        assert [str(reply).split()[0] for reply in resp.replies(4)] == ["MISCONF"] * 4
    disk.lift()
    wait_until(is_in_state(rpc, b"ok"))
    assert rpc.call("get", "changed") == 6
    # After it is deleted, and that isn't on disk, no value can be told.
    disk.plant(Call.SYNC, error=errno.EIO, part=LOG)
    assert_code(rpc.outcome("delete_all"), "unknown_outcome")
    wait_until(is_in_state(rpc, b"read_only"))
    assert_code(rpc.outcome("get", "untouched"), "read_only")
    disk.lift()
    wait_until(lambda: rpc.outcome("get", "untouched") == 0)


FAILURES = {
    "fsync": (lambda disk: disk.plant(Call.SYNC, error=errno.EIO, part=LOG), errno.EIO),
    "write": (lambda disk: disk.plant(Call.WRITE, error=errno.EIO, part=LOG), errno.EIO),
    "full": (lambda disk: disk.plant(Call.WRITE, error=errno.ENOSPC, part=LOG), errno.ENOSPC),
    "full in the middle of a write": (
        lambda disk: (
            disk.plant(Call.WRITE, Fate.SHORT, count=1, part=LOG),
            disk.plant(Call.WRITE, error=errno.ENOSPC, part=LOG),
        ),
        errno.ENOSPC,
    ),
    "fsync, then the file can't be cut": (
        lambda disk: (
            disk.plant(Call.SYNC, error=errno.EIO, count=1, part=LOG),
            disk.plant(Call.TRUNCATE, error=errno.EROFS),
        ),
        errno.EROFS,
    ),
    "fsync, then no file can be begun": (
        lambda disk: (
            disk.plant(Call.SYNC, error=errno.EIO, count=1, part=LOG),
            disk.plant(Call.RENAME, error=errno.EDQUOT, part=LOG),
        ),
        errno.EDQUOT,
    ),
    "fsync, then the manifest can't be replaced": (
        lambda disk: (
            disk.plant(Call.SYNC, error=errno.EIO, count=1, part=LOG),
            disk.plant(Call.RENAME, error=errno.EIO, part="manifest"),
        ),
        errno.EIO,
    ),
    "everything": (lambda disk: disk.plant(Call.CHANGES | Call.OPEN, error=errno.EIO), errno.EIO),
}


@pytest.mark.parametrize("killed", [False, True], ids=["heals", "is killed"])
@pytest.mark.parametrize("name", FAILURES)
def test_what_clients_are_told_and_what_counts_after(start_shard, connect, disk, name, killed):
    plant, error = FAILURES[name]
    shard = start_shard(on=disk)
    work = Work(connect(shard))
    plant(disk)
    check_that_all_are_unknown(work, work.rpc)
    pattern = re.compile(rf"cannot [a-z ]+ {re.escape(str(shard.directory))}\S*: {os.strerror(error)}")
    wait_until(lambda: pattern.search(work.rpc.call("health").get(b"reason", b"").decode()))
    assert work.rpc.call("stats")[b"commits_failed"] >= 1
    if killed:
        shard.kill()
        disk.lift()
        shard.start()
        rpc = connect(shard)
        # What was acknowledged is there; what was not is whole or not there at all.
        assert rpc.call("get_many", ["a", "b", "c"]) in [[1, 10, 100], [2, 20, 100], [2, 20, 200]]
    else:
        disk.lift()
        rpc = work.rpc
        assert b"reason" not in wait_until(is_in_state(rpc, b"ok"))
    work.check_repeated(rpc)
    shard.kill()
    check_history(shard.directory)
    shard.start()
    work.check_repeated(connect(shard))
    shard.kill()


def test_resp_clients_are_told_too(start_shard, connect, disk):
    shard = start_shard(on=disk)
    rpc = connect(shard)
    with RespSocket(shard.address) as resp:
        assert resp.call("INCR", "a") == 1
        disk.plant(Call.SYNC, error=errno.EIO, part=LOG)
        assert "(unknown_outcome)" in str(resp.outcome("INCR", "a"))
        wait_until(is_in_state(rpc, b"read_only"))
        told = [str(resp.outcome("INCR", "a")) for _ in range(3)]
        assert all(re.search(r"\((unknown_outcome|read_only)\)", text) for text in told), told
        disk.lift()
        wait_until(is_in_state(rpc, b"ok"))
        assert resp.call("GET", "a") == b"2"
        assert resp.call("INCR", "a") == 3


def test_a_slow_disk_delays_what_is_durable_and_nothing_else(start_shard, connect, disk):
    shard = start_shard(on=disk)
    work = Work(connect(shard))
    slow = disk.plant(Call.SYNC, Fate.SLEEP, sleep_s=30.0, part=LOG)
    waiting = work.send(work.rpc)
    slow.wait_hit()
    with connect(shard) as other:
        assert other.call("ping") is not None
        assert other.call("incr", "d", 1, {"level": "applied"}) == 1
        assert other.call("get", "a", {"level": "applied"}) == 2
        assert other.call("health")[b"state"] == b"ok"
        figures = other.call("stats")
        assert figures[b"commit"] > figures[b"commit_durable"]
        assert work.rpc.is_silent()
        disk.lift()
        results = work.rpc.outcomes(waiting)
        assert (results[0][b"results"], results[1:]) == ([2, 20], [200, 2])
    work.check_repeated(work.rpc)


def test_a_server_killed_while_fsync_hangs(start_shard, connect, disk):
    shard = start_shard(on=disk)
    work = Work(connect(shard))
    slow = disk.plant(Call.SYNC, Fate.SLEEP, sleep_s=30.0, part=LOG)
    work.send(work.rpc)
    slow.wait_hit()
    shard.kill()
    disk.lift()
    shard.start()
    work.check_repeated(connect(shard))


def test_an_orderly_stop_with_a_failing_disk_ends_and_loses_nothing(start_shard, connect, disk):
    shard = start_shard(on=disk, settings={"stop_timeout_s": 0.5})
    work = Work(connect(shard))
    disk.plant(Call.CHANGES | Call.OPEN, error=errno.EIO)
    check_that_all_are_unknown(work, work.rpc)
    assert shard.terminate() == 1, "changes that it had applied are not on disk"
    assert re.search(r"stopped with changes of \d counters that the disk didn't take", shard.output())
    disk.lift()
    shard.start()
    work.check_repeated(connect(shard))


# --- disks that are really full ------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, size="2m"):
    """A disk of two mebibytes, mounted there. Raises CalledProcessError where this isn't allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def filled_disk(shard, *, removed=True):
    filler = shard.directory.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    if removed:
        filler.unlink()


@contextlib.contextmanager
def limited_files(shard):
    """No file may grow beyond what the log's has now, and some bytes."""
    limit = segments(shard.directory)[-1].stat().st_size + 10
    unlimited = resource.prlimit(shard.ready.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(shard.ready.pid, resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    yield
    resource.prlimit(shard.ready.pid, resource.RLIMIT_FSIZE, unlimited)


def check_a_full_disk(shard, connect, full, reason):
    work = Work(connect(shard))
    rpc = work.rpc
    with full(shard):
        # Operations are acknowledged as long as there is room, and not one longer.
        counted = 0
        while not isinstance(outcome := rpc.outcome("incr", "n"), RpcError):
            counted += 1
        assert outcome.code == "unknown_outcome"
        check_that_all_are_unknown(work, rpc)
        assert reason in wait_until(is_in_state(rpc, b"read_only"))[b"reason"].decode()
    wait_until(is_in_state(rpc, b"ok"))
    work.check_repeated(rpc)
    assert rpc.call("get", "n") == counted + 1
    shard.restart()
    assert connect(shard).call("get", "n") == counted + 1
    work.check_repeated(connect(shard))
    shard.kill()
    check_history(shard.directory)


def test_files_that_may_not_grow(start_shard, connect):
    check_a_full_disk(start_shard(), connect, limited_files, "File too large")


def test_a_full_disk(start_shard, connect, tmp_path):
    """A real one where this process may mount it; the limit above goes the same way everywhere."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(tmp_path / "disk"))
        except (subprocess.CalledProcessError, FileNotFoundError):
            return
        shard = start_shard(name="disk/shard")
        try:
            check_a_full_disk(shard, connect, filled_disk, "No space left on device")
        finally:
            shard.kill()


def test_a_start_on_a_full_disk_lives_on_the_reserve(start_shard, connect, tmp_path):
    """Nothing is free but what the shard itself has kept."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(tmp_path / "disk", "8m"))
        except (subprocess.CalledProcessError, FileNotFoundError):
            return
        shard = start_shard(name="disk/shard", settings={"checkpoint_interval_s": 1e6})
        try:
            rpc = connect(shard)
            assert (shard.directory / RESERVE_NAME).stat().st_size > 256 * 1024
            assert rpc.call("incr", "kept", 5) == 5
            shard.kill()
            with filled_disk(shard, removed=False):
                shard.start()
                assert connect(shard).call("get", "kept") == 5
        finally:
            shard.kill()


def test_the_log_is_dropped_before_it_fills_the_disk(start_shard, connect, tmp_path):
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(tmp_path / "disk", "40m"))
        except (subprocess.CalledProcessError, FileNotFoundError):
            return
        shard = start_shard(name="disk/shard")
        try:
            rpc = connect(shard)
            keys = [f"key {number}" for number in range(3_500)]
            written = 0
            # Several times what the disk holds, of few counters: far below the bounds that make checkpoints elsewhere.
            while written < 100 << 20:
                for _ in range(20):
                    for outcome in rpc.outcomes([rpc.begin("incr_many", [[key, 1] for key in keys])]):
                        assert not isinstance(outcome, RpcError), outcome
                written = rpc.call("stats")[b"commit_bytes"]
            value = rpc.call("get", keys[0])
            shard.restart()
            assert connect(shard).call("get_many", keys) == [value] * len(keys)
        finally:
            shard.kill()


# --- starting and checkpointing on a disk that fails ---------------------------------------------------------------


def test_a_checkpoint_store_that_fails_is_opened_again(start_shard, connect, disk, tmp_path):
    """RocksDB takes no write after one that failed, for as long as it is open."""
    shard = start_shard(on=disk, settings=EARLY_CHECKPOINTS)
    work = Work(connect(shard))
    rpc = work.rpc
    failures = [(Call.SYNC, errno.EIO), (Call.WRITE, errno.ENOSPC), (Call.CHANGES | Call.OPEN, errno.EIO)]
    for number, (calls, error) in enumerate(failures):
        failing = disk.plant(calls, error=error, part="/checkpoint/")
        for _ in range(50):
            rpc.call("incr_many", [[f"{number}:{key}", 1] for key in range(100)])
        assert_code(rpc.outcome("backup", str(tmp_path / f"failed {number}")), "storage")
        assert failing.hits
        # Counting goes on, the log stays, and the server's log says why.
        assert rpc.call("health")[b"state"] == b"ok"
        assert len(segments(shard.directory)) > 5
        wait_until(lambda: "the checkpoint failed" in shard.output())
        disk.lift()
        rpc.call("backup", str(tmp_path / f"backup {number}"))
        assert len(segments(shard.directory)) <= 2
    counted = [f"{number}:{key}" for number in range(len(failures)) for key in range(100)]
    for _ in range(2):
        shard.restart()
        rpc = connect(shard)
        assert rpc.call("get_many", counted) == [50] * len(counted)
    rpc.outcomes(work.send(rpc))
    work.check_repeated(rpc)


@pytest.mark.timeout(300)
def test_every_call_of_a_start_fails_once(start_shard, connect, disk, fault_rounds, seed):
    """A start either works or is refused with one sentence; the next one finds everything."""
    shard = start_shard(on=disk, settings=EARLY_CHECKPOINTS)
    work = Work(connect(shard))
    work.rpc.outcomes(work.send(work.rpc))
    shard.kill()
    refused = 0
    for nth in sampled(fault_rounds, seed, 90):
        failing = disk.plant(~Call(0), error=errno.EIO, first=nth, count=1)
        end = start_or_end(shard)
        disk.lift()
        if end is None:
            assert connect(shard).call("get_many", ["a", "b"]) == [2, 20]
            shard.kill()
        else:
            refused += 1
            assert failing.hits
            assert end.status == 1, end
            assert re.match(rf"pycounter: .*{shard.directory}", end.output.splitlines()[-1]), end
    assert refused
    shard.start()
    work.check_repeated(connect(shard))
    shard.send_signal(signal.SIGTERM)
    assert shard.wait() == 0


def sampled(rounds, seed, calls):
    """Which of so many calls are tried: all of them, where `--fault-rounds` asks for as many."""
    step = max(1, calls // rounds)
    return range(1 + seed % step, calls + 1, step)


# --- what is told meanwhile ----------------------------------------------------------------------------------------


def test_a_client_that_waits_for_the_disk_is_not_idle(start_shard, connect, disk):
    shard = start_shard(on=disk, settings={"idle_timeout_s": 0.2})
    rpc = connect(shard)
    slow = disk.plant(Call.SYNC, Fate.SLEEP, sleep_s=30.0, part=LOG)
    msgid = rpc.begin("incr", "a")
    slow.wait_hit()
    assert rpc.is_silent(1.0)
    disk.lift()
    assert rpc.response() == (msgid, 1)


def test_a_checkpoint_that_fails_is_told_by_health_and_stats(start_shard, connect, disk):
    shard = start_shard(on=disk, settings=EARLY_CHECKPOINTS)
    rpc = connect(shard)
    disk.plant(Call.SYNC, error=errno.EIO, part="/checkpoint/")
    rpc.call("incr", "a")
    health = wait_until(lambda: b"checkpoint_failure" in (health := rpc.call("health")) and health)
    assert health[b"state"] == b"ok"
    assert b"/checkpoint" in health[b"checkpoint_failure"]
    assert rpc.call("stats")[b"checkpoints_failed"] >= 1
    disk.lift()
    wait_until(lambda: b"checkpoint_failure" not in rpc.call("health"))
