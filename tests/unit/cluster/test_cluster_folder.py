"""The folder of a cluster: what it remembers, whom it refuses, and what a crash leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pycounter.cluster.cluster_folder import ClusterFolder, ReplicaEntry
from pycounter.errors import FolderLocked, FormatTooNew, StorageError


@pytest.fixture
def folder(tmp_path):
    """A new cluster of two shards."""
    with_two = ClusterFolder(tmp_path / "cluster", 2)
    yield with_two
    with_two.close()


def reopened(folder, shards=2):
    folder.close()
    return ClusterFolder(folder.directory, shards)


def test_a_new_cluster(folder):
    assert [shard.name for shard in folder.shards] == ["shard-0", "shard-1"]
    assert len(bytes.fromhex(folder.cluster)) == 16
    assert folder.starts == 1


def test_what_it_remembers(folder):
    first = folder.shards[0]
    changed = msgspec.structs.replace(
        first, port=4001, identity="ab", replicas=(ReplicaEntry(name="shard-0-replica-0", port=4002),)
    )
    folder.change(changed)
    again = reopened(folder)
    assert again.shards == (changed, folder.shards[1])
    assert (again.cluster, again.starts) == (folder.cluster, 2)
    again.close()


def test_nothing_is_written_where_nothing_changed(folder, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("written"))
    folder.change(folder.shards[0])


@pytest.fixture
def synced(monkeypatch):
    """What was fsynced, in this order."""
    paths = []
    real = os.fsync

    def fsync(descriptor):
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_the_file_is_on_disk_before_it_has_its_name(folder, synced):
    folder.change(msgspec.structs.replace(folder.shards[0], port=1))
    assert synced == [folder.directory / "cluster.json.new", folder.directory]
    assert not (folder.directory / "cluster.json.new").exists()


def test_a_new_folders_name_is_as_durable_as_its_content(tmp_path, synced):
    ClusterFolder(tmp_path / "a" / "b", 1).close()
    assert synced[:2] == [tmp_path, tmp_path / "a"]


def test_what_a_crash_while_writing_leaves_does_no_harm(folder):
    (folder.directory / "cluster.json.new").write_text('{"for')
    assert reopened(folder).starts == 2


@pytest.mark.parametrize("shards", [1, 3])
def test_another_number_of_shards_is_refused(folder, shards):
    with pytest.raises(StorageError, match=rf"holds a cluster of 2 shards, and --shards says {shards}.*--shards 2"):
        reopened(folder, shards)
    again = reopened(folder)
    assert again.starts == 2, "a refused start is none"
    again.close()


def test_it_is_locked_while_it_is_open(folder):
    with pytest.raises(FolderLocked, match=f"under the supervisor with process id {os.getpid()}"):
        ClusterFolder(folder.directory, 2)
    reopened(folder).close()


def test_who_was_killed_has_locked_nothing(tmp_path):
    program = "import os, sys; from pycounter.cluster.cluster_folder import ClusterFolder;"
    program += "folder = ClusterFolder(sys.argv[1], 2); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, tmp_path]).returncode == -9
    again = ClusterFolder(tmp_path, 2)
    assert again.starts == 2
    again.close()


@pytest.mark.parametrize(("mark", "what"), [("manifest.json", "a shard alone"), ("log", "a shard alone")])
def test_a_shards_folder_is_refused_and_left_as_it_was(tmp_path, mark, what):
    (tmp_path / mark).mkdir()
    with pytest.raises(StorageError, match=f"is the folder of {what}"):
        ClusterFolder(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [tmp_path / mark]


def test_a_backup_is_refused(tmp_path):
    (tmp_path / "backup.json").touch()
    with pytest.raises(StorageError, match="is a backup, not of a cluster"):
        ClusterFolder(tmp_path, 2)


def test_a_newer_format_is_refused(folder):
    path = folder.directory / "cluster.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "shards": "whatever"}))
    with pytest.raises(FormatTooNew, match="format 2, newer than 1"):
        reopened(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', '{"format": "x"}', "\x00"])
def test_a_damaged_file_is_refused_and_stays(folder, content):
    path = folder.directory / "cluster.json"
    path.write_text(content)
    with pytest.raises(StorageError, match="is damaged"):
        reopened(folder)
    assert path.read_text() == content


def test_a_lost_file_is_made_again_only_for_exactly_the_shards_that_are_there(folder):
    for number in range(2):
        (folder.directory / "shards" / f"shard-{number}").mkdir(parents=True)
    (folder.directory / "cluster.json").unlink()
    with pytest.raises(StorageError, match=r"cluster\.json is missing.*has shard-0, shard-1"):
        reopened(folder, 3)
    again = reopened(folder, 2)
    assert again.cluster != folder.cluster
    again.close()


def test_a_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't be used: Not a directory"):
        ClusterFolder(tmp_path / "file" / "cluster", 2)
