"""Processes that stand still, clocks that jump, memory and descriptors that run out, two processes for one folder."""

import asyncio
import contextlib
import json
import re
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from pycounter.client import ClientSettings, SessionClient
from pycounter.errors import DeadlineExceeded, Unavailable, UnknownOutcome
from tests.support.damaged_folder import start_or_end
from tests.support.log_files import check_history, segments
from tests.support.rpc_socket import ConnectionClosed, RpcError, RpcSocket
from tests.support.shard_process import ShardProcess
from tests.support.waiting import wait_until

SESSION = b"s" * 16
SMALL_FILES = {"segment_bytes": 4096, "checkpoint_log_bytes": 1 << 30, "checkpoint_interval_s": 3600.0}


async def test_a_server_that_stands_still_longer_than_every_timeout(start_shard):
    shard = start_shard()
    settings = ClientSettings(call_timeout_s=0.3, silence_timeout_s=0.2, connect_timeout_s=0.2, backoff_max_s=0.1)
    async with SessionClient(*shard.address, settings=settings) as client:
        assert await client.incr("a") == 1
        shard.send_signal(signal.SIGSTOP)
        sent = 0
        for _ in range(3):
            try:
                await client.incr("a")
            except (DeadlineExceeded, UnknownOutcome):
                sent += 1
            except Unavailable:
                pass  # between two connections: nothing was applied
        assert sent > 0
        await asyncio.sleep(0.5)
        shard.send_signal(signal.SIGCONT)
        # Each was numbered once and is settled once, however often it was sent.
        await client.flush(timeout_s=30.0)
        assert await client.incr("a", timeout_s=30.0) == 1 + sent + 1
        shard.restart()


def test_windows_do_not_run_while_the_server_stands_still(start_shard, connect, disk):
    """A client repeats in time, but the server reads it an hour later: to the server nothing has passed."""
    shard = start_shard(on=disk, settings={"session_window_s": 5.0, "id_window_s": 5.0})
    rpc, other = connect(shard), connect(shard)
    assert rpc.call("apply", SESSION, 1, 0, [["a", 1]])[b"results"] == [1]
    assert rpc.call("incr", "b", 1, {"id": b"id"}) == 1
    shard.send_signal(signal.SIGSTOP)
    disk.shift_monotonic_clock(3600.0)
    repeated = [rpc.begin("apply", SESSION, 1, 0, [["a", 1]]), rpc.begin("incr", "b", 1, {"id": b"id"})]
    shard.send_signal(signal.SIGCONT)
    results = rpc.outcomes(repeated)
    assert results[0][b"results"] == [1]
    assert results[1] == 1
    time.sleep(0.3)  # some ticks, which forget what is due
    assert other.call("incr", "b", 1, {"id": b"id"}) == 1
    assert other.call("incr", "b", 1, {"id": b"another"}) == 2
    assert other.call("stats")[b"uptime_ms"] < 60_000
    shard.kill()


@pytest.mark.parametrize("jump_s", [20 * 365 * 86400.0, -20 * 365 * 86400.0], ids=["ahead", "back"])
def test_a_wall_clock_that_jumps_changes_nothing(start_shard, connect, disk, jump_s):
    settings = {"session_window_s": 3600.0, "id_window_s": 600.0, "idle_timeout_s": 60.0, "checkpoint_interval_s": 0.05}
    shard = start_shard(on=disk, settings=settings)
    rpc = connect(shard)
    born = rpc.call("hello", {})[b"time"]
    assert rpc.call("apply", SESSION, 1, 0, [["a", 1]])[b"results"] == [1]
    assert rpc.call("incr", "b", 1, {"id": b"id", "born": born}) == 1

    def check(connection):
        assert connection.call("apply", SESSION, 1, 0, [["a", 1]])[b"results"] == [1]
        assert connection.call("incr", "b", 1, {"id": b"id", "born": born}) == 1
        assert connection.call("get_many", ["a", "b"]) == [1, 1]

    disk.shift_wall_clock(jump_s)
    time.sleep(0.3)  # some ticks, and a checkpoint
    rpc.call("incr", "c")
    check(rpc)
    assert abs(rpc.call("hello", {})[b"time"] - born) < 60_000
    assert shard.terminate() == 0
    shard.start()
    check(connect(shard))
    # The server did see the clock: a folder's date is the one thing that is taken from it.
    shard.kill()
    shutil.rmtree(shard.directory)
    shard.start()
    created = json.loads((shard.directory / "manifest.json").read_bytes())["content"]["created_at"]
    assert abs(created - (time.time() + jump_s)) < 3600


# --- what runs out -------------------------------------------------------------------------------------------------


def test_without_memory_counts_stay_right(tmp_path, launcher):
    """The server refuses or dies, as the system decides; what it acknowledged is there afterwards."""
    shard = ShardProcess(tmp_path / "shard", launcher=launcher)
    pid = shard.start().pid
    address_space = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space + (16 << 20), resource.RLIM_INFINITY))
    batches = 0
    refused = 0
    with RpcSocket(shard.address) as rpc, contextlib.suppress(ConnectionClosed, ConnectionError):
        for batch in range(400):
            items = [[f"{batch}:{number}" + "k" * 400, 1] for number in range(1000)]
            outcome = rpc.outcome("apply", SESSION, batch * 1000 + 1, batch * 1000, items)
            if isinstance(outcome, RpcError):
                refused += 1
                break
            batches = batch + 1
    shard.kill()
    assert 0 < batches < 400, "the limit was never met"
    shard.start()
    with RpcSocket(shard.address) as rpc:
        for batch in range(batches):
            keys = [f"{batch}:{number}" + "k" * 400 for number in range(1000)]
            assert rpc.call("get_many", keys) == [1] * 1000
        # The one that was not answered is whole or not there, and a retry counts it once.
        keys = [f"{batches}:{number}" + "k" * 400 for number in range(1000)]
        assert rpc.call("get_many", keys) in ([0] * 1000, [1] * 1000)
        first = batches * 1000 + 1
        result = rpc.call("apply", SESSION, first, first - 1, [[key, 1] for key in keys])
        assert result[b"results"] == [1] * 1000
    shard.kill()


def test_without_file_descriptors(start_shard, connect):
    """Whoever is connected goes on until the log needs a new file; then the shard is read-only until there is one."""
    shard = start_shard(settings=SMALL_FILES)
    rpc, health = connect(shard), connect(shard)
    pid = shard.ready.pid
    counted = rpc.call("incr", "a")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    in_use = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use, limits[1]))
    try:
        with contextlib.closing(RpcSocket(shard.address, timeout_s=1.0)) as late:
            with pytest.raises((ConnectionClosed, ConnectionError, TimeoutError)):
                late.call("ping")
            while not isinstance(outcome := rpc.outcome("incr", "a", 1, {"id": b"%d" % (counted + 1)}), RpcError):
                counted += 1
            assert outcome.code == "unknown_outcome"
            reason = wait_until(lambda: health.call("health").get(b"reason"))
            assert b"Too many open files" in reason
            assert str(shard.directory).encode() in reason
            assert isinstance(rpc.outcome("incr", "a"), RpcError)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    wait_until(lambda: health.call("health")[b"state"] == b"ok")
    assert rpc.call("incr", "a", 1, {"id": b"%d" % (counted + 1)}) == counted + 1
    assert connect(shard).call("get", "a") == counted + 1
    shard.restart()
    assert connect(shard).call("get", "a") == counted + 1
    shard.kill()
    check_history(shard.directory)


# --- one folder, two processes -------------------------------------------------------------------------------------


def test_a_folder_is_locked_for_as_long_as_its_process_lives(start_shard, connect, launcher):
    shard = start_shard()
    connect(shard).call("incr", "a")
    second = ShardProcess(shard.directory, launcher=launcher)
    for state in (signal.SIGCONT, signal.SIGSTOP):
        shard.send_signal(state)
        end = start_or_end(second)
        assert end is not None
        assert end.status == 1
        assert "is locked: another process has the folder open" in end.output
    # Without its lock file it is still protected by the store's.
    (shard.directory / "lock").unlink()
    end = start_or_end(second)
    assert end is not None
    assert "is open elsewhere" in end.output
    # The process that stood still all the while goes on as if nothing had been.
    shard.send_signal(signal.SIGCONT)
    assert connect(shard).call("incr", "a") == 2
    shard.kill()
    second.start()
    assert connect(second).call("incr", "a") == 3
    second.kill()


#: Whichever it sees first: the newer epoch, or that its log isn't under its name any more.
NO_MORE = re.compile("has taken over|was removed, moved or replaced")


@pytest.mark.parametrize("files", ["small", "large"])
def test_a_process_that_wakes_up_when_a_copy_has_taken_its_place(start_shard, connect, launcher, files):
    """It may have the path of its folder, but not what is there now: it stops, and the newer shard loses nothing."""
    settings = SMALL_FILES if files == "small" else {"checkpoint_interval_s": 0.1, "checkpoint_log_bytes": 4096}
    shard = start_shard(settings=settings)
    older = connect(shard)
    count = older.call("incr", "a")
    while files == "small" and segments(shard.directory)[-1].stat().st_size < 4096:
        # Until the next commit needs a new file: of the name that the newer shard's first file gets.
        count = older.call("incr", "a")
    shard.send_signal(signal.SIGSTOP)
    aside = shard.directory.with_name("aside")
    shard.directory.rename(aside)
    shutil.copytree(aside, shard.directory)
    newer = ShardProcess(shard.directory, launcher=launcher, settings=settings)
    newer.start()
    newer_rpc = connect(newer)
    for expected in range(count + 1, count + 4):
        assert newer_rpc.call("incr", "a") == expected
    shard.send_signal(signal.SIGCONT)
    # What it had open it still has; the first file that it needs by name tells it.
    outcomes = [older.outcome("incr", "a") for _ in range(100)]
    if files == "small":
        assert isinstance(outcomes[-1], RpcError)
        assert outcomes[-1].code in {"unknown_outcome", "read_only"}
        reason = wait_until(lambda: older.call("health").get(b"reason"))
        assert NO_MORE.search(reason.decode())
    else:
        wait_until(lambda: NO_MORE.search(shard.output()))
    shard.kill()
    for expected in range(count + 4, count + 7):
        assert newer_rpc.call("incr", "a") == expected
    newer.restart()
    assert connect(newer).call("get", "a") == count + 6
    newer.kill()
    check_history(newer.directory)
