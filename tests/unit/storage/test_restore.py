"""`restore`: a new shard from a backup, whole or not at all."""

import json
import shutil

import pytest

import pycounter
from pycounter._native import Shard
from pycounter.errors import DamagedData, FormatTooNew, IsBackup, PyCounterError, StorageError
from pycounter.storage.backup import write_backup
from pycounter.storage.check import check_folder
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import open_folder
from pycounter.storage.restore import MARK_NAME, restore_backup
from tests.support.folders import COUNTERS, counters_in, fingerprint, flip, stopped_folder


@pytest.fixture
def backup(tmp_path):
    folder = stopped_folder(tmp_path / "shard")
    shard, store = open_folder(folder, lambda: Shard(folder))
    checkpointer = Checkpointer(shard, store, log_bytes=1 << 30, interval_s=1e9)
    shard.start(lambda call: call())
    try:
        return write_backup(shard, checkpointer, tmp_path / "backup")
    finally:
        checkpointer.stop()
        shard.stop()


def test_a_backup_is_checked_and_no_shard(backup):
    before = fingerprint(backup)
    report = check_folder(backup)
    assert (report.kind, report.is_sound, report.counters) == ("backup", True, len(COUNTERS))
    assert fingerprint(backup) == before
    with pytest.raises(PyCounterError):
        pycounter.open(backup)


@pytest.mark.parametrize("exists", [False, True])
def test_a_restored_folder_is_a_new_shard_with_the_same_counters(backup, tmp_path, exists):
    before = fingerprint(backup)
    target = tmp_path / "deep" / "restored"
    if exists:
        target.mkdir(parents=True)
    restored = restore_backup(backup, target)
    assert fingerprint(backup) == before
    assert restored.counters == len(COUNTERS)
    report = check_folder(target)
    assert report.is_sound
    assert report.identity == restored.identity != restored.backup_of
    assert counters_in(target) == COUNTERS
    for _ in range(2):
        with pycounter.open(target) as counters:
            counters.incr("later")
    assert counters_in(target) == {**COUNTERS, b"later": 2}


def test_only_an_empty_folder_is_restored_into(backup, tmp_path):
    target = stopped_folder(tmp_path / "other")
    before = fingerprint(target)
    with pytest.raises(StorageError, match="not empty"):
        restore_backup(backup, target)
    assert fingerprint(target) == before
    with pytest.raises(StorageError, match="no backup"):
        restore_backup(target, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_backup_makes_nothing(backup, tmp_path):
    for path in (backup / "checkpoint").glob("*.sst"):
        flip(path, 40)
    assert not check_folder(backup).is_sound
    with pytest.raises(DamagedData):
        restore_backup(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_note_that_is_wrong_or_newer_makes_nothing(backup, tmp_path):
    note = json.loads((backup / "backup.json").read_text())
    for content, error in (("{", DamagedData), ("{}", DamagedData), (json.dumps({**note, "format": 2}), FormatTooNew)):
        (backup / "backup.json").write_text(content)
        with pytest.raises(error):
            restore_backup(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_restore_leaves_no_folder_that_starts_and_can_be_repeated(backup, tmp_path):
    target = tmp_path / "restored"
    restore_backup(backup, target)
    # As kill -9 right before the manifest leaves it.
    (target / MARK_NAME).touch()
    (target / "manifest.json").unlink()
    shutil.rmtree(target / "log")
    with pytest.raises(DamagedData):
        pycounter.open(target)
    (target / "lock").unlink()
    restore_backup(backup, target)
    assert counters_in(target) == COUNTERS


def test_a_failure_or_an_interruption_leaves_nothing(backup, tmp_path):
    def interrupt(what, share):
        if what == "copying":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore_backup(backup, tmp_path / "new", interrupt)
    assert not (tmp_path / "new").exists()


def test_the_backup_of_a_folder_says_so(backup):
    assert issubclass(IsBackup, StorageError)
    with pytest.raises(IsBackup):
        pycounter.open(backup)
