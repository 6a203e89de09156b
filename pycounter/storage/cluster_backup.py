"""A cluster's backup: one of each shard in a folder of its name, and a note that says which belong together.

The note comes last. Checked and restored as a whole; a backup that lacks a shard's, or has another time's, is refused.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycounter._native import VERSION
from pycounter.errors import DamagedData, FormatTooNew, StorageError
from pycounter.storage.backup import sync_folder, write_note
from pycounter.storage.check import FolderReport, check_folder
from pycounter.storage.folder_reading import OnProgress, ignore_progress, read_note
from pycounter.storage.recovery import NOTE_NAME
from pycounter.storage.restore import Restored, restore_backup

__all__ = [
    "UNFINISHED_NAME",
    "ClusterBackupReport",
    "check_cluster_backup",
    "is_cluster_backup",
    "restore_cluster_backup",
    "write_cluster_note",
]

CLUSTER_NOTE_NAME = "cluster-backup.json"
CLUSTER_NOTE_FORMAT = 1
#: Where shards are restored until all are there. No cluster starts beside it.
UNFINISHED_NAME = "shards.unfinished"
SHARDS_NAME = "shards"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterBackupReport:
    """What a cluster's backup holds and what is wrong with it."""

    directory: str
    kind: str
    cluster: str
    #: Those that are there and can be read, in the order of the note.
    shards: tuple[FolderReport, ...]
    #: What is missing, another's, or can't be read.
    problems: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Would a restore take it?"""
        return not self.problems and all(report.is_sound for report in self.shards)


def is_cluster_backup(directory: str | os.PathLike[str]) -> bool:
    """Is it a cluster's backup, whole or not?"""
    folder = Path(directory)
    return (folder / CLUSTER_NOTE_NAME).exists() or any(folder.glob(f"*/{NOTE_NAME}"))


def write_cluster_note(directory: str | os.PathLike[str], cluster: str, names: Sequence[str]) -> None:
    """Ends a cluster's backup, of which each shard has written its own into a folder of its name.

    Raises:
        StorageError: one isn't there, or the disk failed: this is no backup.
    """
    folder = Path(directory)
    shards: dict[str, Any] = {}
    for name in names:
        note = read_note(folder / name)
        if note is None:
            raise StorageError(f"{folder / name} has no backup, though {name} said so", folder)
        shards[name] = note
    try:
        write_note(
            folder / CLUSTER_NOTE_NAME,
            {
                "format": CLUSTER_NOTE_FORMAT,
                "cluster": cluster,
                "version": VERSION,
                "created_at": int(time.time()),
                "shards": shards,
            },
        )
    except OSError as error:
        raise StorageError(f"the note of the backup in {folder} can't be written: {error}", folder) from error


def check_cluster_backup(
    directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress
) -> ClusterBackupReport:
    """Reads everything in a cluster's backup. Nothing is made or changed.

    Raises:
        FormatTooNew: a newer version wrote it.
        StorageError: its note is missing or damaged, or the disk failed.
    """
    folder = Path(directory)
    note = _read_cluster_note(folder)
    problems = _mismatches(folder, note["shards"])
    reports = []
    for name in note["shards"]:
        if (folder / name / NOTE_NAME).exists():
            try:
                reports.append(check_folder(folder / name, on_progress))
            except DamagedData as error:
                problems.append(str(error))
    return ClusterBackupReport(
        directory=str(folder),
        kind="cluster backup",
        cluster=note["cluster"],
        shards=tuple(reports),
        problems=tuple(dict.fromkeys(problems)),
    )


def restore_cluster_backup(
    backup: str | os.PathLike[str], directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress
) -> list[Restored]:
    """Makes a cluster's folder from a backup: each shard as `restore_backup` makes it.

    A crash on the way leaves a folder that no cluster starts on; restoring into it again begins anew.

    Args:
        backup: the backup's folder; it is not changed.
        directory: the folder to make; it must not exist, or be empty.
        on_progress: told what is being done.

    Raises:
        DamagedData: the backup is incomplete, mixed or damaged; nothing was made.
        StorageError: `directory` isn't empty, or the disk failed; what was begun is removed.
    """
    folder, target = Path(backup), Path(directory)
    shards = _read_cluster_note(folder)["shards"]
    problems = _mismatches(folder, shards)
    if problems:
        raise DamagedData(f"{folder} is no whole backup of a cluster: {'; '.join(problems)}; nothing was made", folder)
    unfinished = target / UNFINISHED_NAME
    try:
        existed = target.exists()
        if existed and any(path.name != UNFINISHED_NAME for path in target.iterdir()):
            raise StorageError(f"{target} is not empty: nothing was made; name a new folder", target)
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        sync_folder(target)
        try:
            restored = [restore_backup(folder / name, unfinished / name, on_progress) for name in shards]
            sync_folder(unfinished)
            unfinished.rename(target / SHARDS_NAME)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            if not existed:
                target.rmdir()
            raise
        sync_folder(target)
    except OSError as error:
        raise StorageError(f"restoring into {target} failed: {error}", target) from error
    return restored


def _mismatches(folder: Path, shards: dict[str, Any]) -> list[str]:
    """Which shards' backups are missing, or of another time or cluster than the note says."""
    found = []
    for name, expected in shards.items():
        try:
            note = read_note(folder / name)
        except DamagedData as error:
            found.append(str(error))
            continue
        if note is None:
            found.append(f"the backup of {name} is missing")
        elif note != expected:
            found.append(f"{folder / name} has a backup of {note['shard']} that was not made with the rest")
    return found


def _read_cluster_note(folder: Path) -> dict[str, Any]:
    """What a cluster's backup says of itself: `cluster` and `shards`."""
    path = folder / CLUSTER_NOTE_NAME
    try:
        note = json.loads(path.read_bytes())
        if note["format"] > CLUSTER_NOTE_FORMAT:
            raise FormatTooNew(f"{path} has format {note['format']}: use a newer version", path)
        shards = note["shards"]
        names_are_names = all(name not in {"", ".", ".."} and "/" not in name for name in shards)
        if not (isinstance(shards, dict) and shards and names_are_names and isinstance(note["cluster"], str)):
            raise ValueError("it names no shards")
    except FileNotFoundError as error:
        there = sorted(path.parent.name for path in folder.glob(f"*/{NOTE_NAME}"))
        raise DamagedData(
            f"{folder} is no whole backup of a cluster: {CLUSTER_NOTE_NAME}, which is written last, is missing; there "
            f"are backups of {', '.join(there) or 'no shard'}. Use another backup",
            folder,
        ) from error
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}", path) from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{path} is damaged: {error}; use another backup", path) from error
    return {"cluster": note["cluster"], "shards": shards}
