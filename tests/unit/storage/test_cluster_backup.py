"""A cluster's backup as a whole: checked, restored, and refused where a part is missing or another's."""

import functools
import json
import shutil

import pytest

from pycounter._native import Shard
from pycounter.cluster.cluster_folder import ClusterFolder
from pycounter.errors import DamagedData, FormatTooNew, StorageError
from pycounter.storage.backup import write_backup
from pycounter.storage.check import check_folder
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.cluster_backup import (
    UNFINISHED_NAME,
    check_cluster_backup,
    is_cluster_backup,
    restore_cluster_backup,
    write_cluster_note,
)
from pycounter.storage.recovery import open_folder
from tests.support.folders import COUNTERS, counters_in, fingerprint, flip, stopped_folder

NAMES = ["shard-0", "shard-1", "shard-2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two backups of one cluster, one after the other."""
    folder = tmp_path_factory.mktemp("cluster")
    for name in NAMES:
        directory = stopped_folder(folder / "shards" / name)
        shard, store = open_folder(directory, functools.partial(Shard, directory, name=name))
        checkpointer = Checkpointer(shard, store, log_bytes=1 << 30, interval_s=1e9)
        shard.start(lambda call: call())
        for backup in ("monday", "tuesday"):
            write_backup(shard, checkpointer, folder / backup / name)
        checkpointer.stop()
        shard.stop()
    for backup in ("monday", "tuesday"):
        write_cluster_note(folder / backup, "c" * 32, NAMES)
    return folder


@pytest.fixture
def backup(made, tmp_path):
    return shutil.copytree(made / "monday", tmp_path / "monday")


def refusal(backup, target):
    """What is wrong, as `check` says it; a restore makes nothing and says the same."""
    problems = check_cluster_backup(backup).problems
    with pytest.raises(DamagedData) as error:
        restore_cluster_backup(backup, target)
    assert all(problem in str(error.value) for problem in problems)
    assert not target.exists()
    return problems


def test_a_whole_backup_is_restored_and_a_cluster_starts_on_it(backup, tmp_path):
    before = fingerprint(backup)
    report = check_cluster_backup(backup)
    assert report.is_sound
    assert [(shard.counters, shard.kind) for shard in report.shards] == [(len(COUNTERS), "backup")] * 3
    restored = restore_cluster_backup(backup, tmp_path / "deep" / "again")
    assert fingerprint(backup) == before
    assert [shard.counters for shard in restored] == [len(COUNTERS)] * 3
    assert len({shard.identity for shard in restored}) == 3
    shards = tmp_path / "deep/again/shards"
    assert sorted(path.name for path in shards.iterdir()) == NAMES
    for name in NAMES:
        assert counters_in(shards / name) == COUNTERS
    ClusterFolder(tmp_path / "deep/again", 3).close()
    with pytest.raises(StorageError, match="not empty"):
        restore_cluster_backup(backup, tmp_path / "deep/again")


def test_a_shard_whose_backup_is_missing_is_named(backup, tmp_path):
    shutil.rmtree(backup / "shard-1")
    (backup / "shard-2" / "backup.json").unlink()
    problems = refusal(backup, tmp_path / "new")
    assert problems == ("the backup of shard-1 is missing", "the backup of shard-2 is missing")


def test_another_time_s_or_another_shard_s_backup_is_named(made, backup, tmp_path):
    shutil.rmtree(backup / "shard-0")
    shutil.copytree(made / "tuesday" / "shard-0", backup / "shard-0")
    shutil.rmtree(backup / "shard-1")
    shutil.copytree(backup / "shard-2", backup / "shard-1")
    assert refusal(backup, tmp_path / "new") == tuple(
        f"{backup / name} has a backup of shard-0 that was not made with the rest" for name in ("shard-0", "shard-1")
    )


def test_without_the_note_it_was_not_finished(backup, tmp_path):
    (backup / "cluster-backup.json").unlink()
    assert is_cluster_backup(backup)
    for use in (check_cluster_backup, lambda folder: restore_cluster_backup(folder, tmp_path / "new")):
        with pytest.raises(DamagedData, match=r"is missing; there are backups of shard-0, shard-1, shard-2\."):
            use(backup)
    assert not (tmp_path / "new").exists()


def test_damage_in_one_shard_leaves_nothing_of_the_others(backup, tmp_path):
    for path in (backup / "shard-2" / "checkpoint").glob("*.sst"):
        flip(path, 40)
    report = check_cluster_backup(backup)
    assert not report.is_sound
    assert [shard.is_sound for shard in report.shards] == [True, True, False]
    with pytest.raises(DamagedData):
        restore_cluster_backup(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DamagedData):
        restore_cluster_backup(backup, tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_restore_that_was_killed_begins_anew_and_no_cluster_starts_before(backup, tmp_path):
    target = tmp_path / "again"
    (target / UNFINISHED_NAME / "shard-0").mkdir(parents=True)
    (target / UNFINISHED_NAME / "shard-0" / "rest").touch()
    with pytest.raises(StorageError, match="`pycounter restore` into it again begins anew"):
        ClusterFolder(target, 3)
    restore_cluster_backup(backup, target)
    assert [path.name for path in target.iterdir()] == ["shards"]
    assert check_folder(target / "shards" / "shard-0").is_sound


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "cluster": "c", "shards": {}}',
        '{"format": 1, "cluster": "c", "shards": []}',
        '{"format": 1, "cluster": "c", "shards": {"../x": {}}}',
        '{"format": 1, "cluster": 5, "shards": {"a": {}}}',
    ],
)
def test_a_note_that_is_wrong_makes_nothing(backup, tmp_path, content):
    (backup / "cluster-backup.json").write_text(content)
    with pytest.raises(DamagedData, match=r"cluster-backup\.json is damaged"):
        restore_cluster_backup(backup, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_newer_note_is_refused(backup):
    note = backup / "cluster-backup.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": 2}))
    with pytest.raises(FormatTooNew):
        check_cluster_backup(backup)


def test_a_backup_that_a_shard_did_not_write_is_not_concluded(backup):
    (backup / "cluster-backup.json").unlink()
    with pytest.raises(StorageError, match="shard-3 said so"):
        write_cluster_note(backup, "c" * 32, [*NAMES, "shard-3"])
    assert not (backup / "cluster-backup.json").exists()
