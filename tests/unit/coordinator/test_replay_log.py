"""The replay log on disk: what it keeps through crashes, torn ends and failing disks."""

import asyncio
import os
import random

import pytest

from pycounter.coordinator.replay_log import MAGIC, Kept, ReplayLog, Sent

pytestmark = pytest.mark.timeout(30)

SENT = Sent("shard-1", "ab" * 16, 12_345)


def kept(number, *, sent=None):
    return Kept(b"id-%d" % number, b"key\xff%d" % number, number, sent)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replay.log"


async def reopened(path):
    """A log as it was read. It is closed: a test may read thousands."""
    log = ReplayLog.open(path)
    await log.close()
    return log


async def test_what_was_accepted_is_there_after_a_restart(path):
    log = ReplayLog.open(path)
    await asyncio.gather(*(log.accept(kept(number)) for number in range(10)))
    await log.note_sent(log.operations[b"id-3"], SENT)
    await log.note_sent(log.operations[b"id-4"], SENT)
    await log.note_unsent(log.operations[b"id-4"])
    await log.settle(log.operations[b"id-5"])
    # No close: as after kill -9.
    again = ReplayLog.open(path)
    assert again.operations == log.operations
    assert again.operations[b"id-3"] == kept(3, sent=SENT)
    assert again.operations[b"id-4"].sent is None
    assert b"id-5" not in again.operations


async def test_each_record_is_on_disk_before_its_caller_goes_on(path, monkeypatch):
    synced: list[int] = []
    real = os.fdatasync

    def note(file):
        real(file)
        synced.append(path.stat().st_size)

    monkeypatch.setattr(os, "fdatasync", note)
    log = ReplayLog.open(path)
    await log.accept(kept(1))
    assert synced == [path.stat().st_size]
    await asyncio.gather(*(log.accept(kept(number)) for number in range(2, 50)))
    assert len(synced) == 2, "records of one turn share an fsync"
    assert synced[-1] == path.stat().st_size


async def test_a_torn_or_changed_end_is_cut(path):
    log = ReplayLog.open(path)
    sizes = [path.stat().st_size]
    for number in range(5):
        await log.accept(kept(number))
        sizes.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(len(MAGIC), len(whole) + 1):
        path.write_bytes(whole[:length])
        survivors = sum(size <= length for size in sizes[1:])
        again = ReplayLog.open(path)
        assert len(again.operations) == survivors
        await again.accept(kept(99))
        await again.close()
        assert len((await reopened(path)).operations) == survivors + 1
    changed = bytearray(whole)
    changed[sizes[2] + 3] ^= 1
    path.write_bytes(changed)
    assert len((await reopened(path)).operations) == 2


async def test_a_file_of_somebody_else_is_put_aside(path):
    path.write_bytes(b"something else")
    assert (await reopened(path)).operations == {}
    assert path.with_name("replay.log.unreadable").read_bytes() == b"something else"


async def test_a_file_of_settled_operations_is_written_anew(path, monkeypatch):
    monkeypatch.setattr("pycounter.coordinator.replay_log.REWRITE_BYTES_MIN", 4096)
    log = ReplayLog.open(path)
    keeper = kept(1000, sent=SENT)
    await log.accept(keeper)
    await log.note_sent(keeper, SENT)
    for number in range(300):
        await log.accept(kept(number))
        await log.settle(log.operations[b"id-%d" % number])
    assert path.stat().st_size < 10_000
    assert (await reopened(path)).operations == {b"id-1000": keeper}


async def test_a_disk_that_fails_is_told_and_written_anew_when_it_works(path, monkeypatch):
    log = ReplayLog.open(path)
    await log.accept(kept(1))
    real = os.fdatasync

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", fail)
    monkeypatch.setattr(os, "fsync", fail)
    await log.accept(kept(2))
    assert "space" in log.failure
    assert not await log.note_sent(log.operations[b"id-2"], SENT), "it must not be sent"
    log.operations[b"id-2"].sent = None
    monkeypatch.undo()
    assert os.fdatasync is real
    await log.accept(kept(3))
    assert log.failure == ""
    assert (await reopened(path)).operations == {b"id-%d" % n: kept(n) for n in (1, 2, 3)}


async def test_random_histories_survive_a_crash_at_any_moment(path, seed):
    """A crash is a copy of the file: all that was acknowledged then is in it, and nothing that was settled before."""
    chance = random.Random(seed)
    print(f"seed {seed}")
    log = ReplayLog.open(path)
    acknowledged, settled = {}, set()
    for number in range(200):
        one = kept(number)
        await log.accept(one)
        acknowledged[one.id] = one
        for other in chance.sample(sorted(log.operations), min(2, len(log.operations))):
            if chance.random() < 0.4:
                await log.settle(log.operations[other])
                settled.add(other)
            elif other in log.operations:
                await log.note_sent(log.operations[other], SENT)
        if chance.random() < 0.1:
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            assert (await reopened(copy)).operations == {k: v for k, v in acknowledged.items() if k not in settled}
        if chance.random() < 0.05:
            await log.close()
            log = ReplayLog.open(path)
            acknowledged = {**acknowledged, **log.operations}


# --- damage --------------------------------------------------------------------------------------------------------

ELSEWHERE = Sent("shard-2", "cd" * 16, 54_321)


async def written(path):
    """A log with operations in each state, and the true states, after each record."""
    log = ReplayLog.open(path)
    states: list[dict[bytes, Kept]] = []
    ends = []

    def note():
        states.append({number: Kept(one.id, one.key, one.delta, one.sent) for number, one in log.operations.items()})
        ends.append(path.stat().st_size)

    note()
    for number in range(6):
        await log.accept(kept(number))
        note()
    for step in (
        lambda: log.note_sent(log.operations[b"id-1"], SENT),
        lambda: log.note_sent(log.operations[b"id-2"], SENT),
        lambda: log.note_unsent(log.operations[b"id-2"]),
        lambda: log.note_sent(log.operations[b"id-3"], SENT),
        lambda: log.note_unsent(log.operations[b"id-3"]),
        lambda: log.note_sent(log.operations[b"id-3"], ELSEWHERE),
        lambda: log.note_sent(log.operations[b"id-4"], SENT),
        lambda: log.settle(log.operations[b"id-4"]),
        lambda: log.accept(kept(7)),
        lambda: log.note_sent(log.operations[b"id-7"], SENT),
    ):
        await step()
        note()
    await log.close()
    return states, ends


async def check(path, states, ends, start, stop):
    """Reads a log whose bytes from `start` to `stop` were damaged; nothing in it is told wrongly."""
    log = await reopened(path)
    truth = states[-1]
    # Nothing readable behind it: the same as an end that was never finished.
    is_torn = stop > ends[-2]
    if is_torn:
        truth = states[max(at for at, end in enumerate(ends) if end <= start)]
    lost = {one.id for one in log.lost}
    assert not lost & log.operations.keys()
    for number, operation in log.operations.items():
        assert operation == truth[number], "it would be sent where it must not be"
    for number in truth.keys() - log.operations.keys() - lost:
        # Its first record is gone, and no later one named it.
        accepted = next(at for at, state in enumerate(states) if number in state)
        assert ends[accepted - 1] - stop < 0 < ends[accepted] - start, f"{number!r} vanished"
    damaged = path.with_name(f"{path.name}.damaged")
    assert damaged.exists() == (not is_torn)
    # What was read is a whole file again.
    assert (await reopened(path)).operations == log.operations
    damaged.unlink(missing_ok=True)


async def test_a_flipped_bit_is_damage_and_later_records_survive(path):
    states, ends = await written(path)
    whole = path.read_bytes()
    for at in range(len(MAGIC), len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        await check(path, states, ends, at, at + 1)


@pytest.mark.parametrize("length", [2, 30, 100, 200])
@pytest.mark.parametrize("fill", [b"\0", b"\xff", b"\x05"])
async def test_an_overwritten_range_is_damage(path, length, fill):
    states, ends = await written(path)
    whole = path.read_bytes()
    for at in range(len(MAGIC), len(whole) - length, 3):
        path.write_bytes(whole[:at] + fill * length + whole[at + length :])
        if path.read_bytes() != whole:
            await check(path, states, ends, at, at + length)


async def test_a_range_that_was_cut_out_is_damage(path):
    states, ends = await written(path)
    whole = path.read_bytes()
    for at in range(len(MAGIC), ends[-3], 5):
        path.write_bytes(whole[:at] + whole[at + 7 :])
        await check(path, states, ends, at, at + 7)


async def test_damage_is_called_damage_and_a_torn_end_is_not(path, caplog):
    await written(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"?" + whole[101:])
    ReplayLog.open(path)
    assert "is damaged at bytes" in caplog.text
    assert "not finished" not in caplog.text
    caplog.clear()
    path.write_bytes(whole[:-1])
    ReplayLog.open(path)
    assert "a write that was not finished" in caplog.text


async def test_a_long_range_of_zeros_takes_no_long_time(path):
    states, _ = await written(path)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(50_000_000) + whole[len(MAGIC) :])
    assert (await reopened(path)).operations == states[-1]
