"""Restoring: a shard's folder from a backup."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pycounter.errors import StorageError
from pycounter.storage.backup import sync_folder
from pycounter.storage.checkpoint_store import FOLDER_NAME
from pycounter.storage.folder_making import make_folder
from pycounter.storage.folder_reading import OnProgress, ignore_progress, read_folder

__all__ = ["Restored", "restore_backup"]

#: In a folder whose restoring isn't finished. A server refuses it: it has data and no manifest.
MARK_NAME = "restore.unfinished"
#: What a restore makes, besides the manifest, which ends it.
_MADE = (FOLDER_NAME, "log", "manifest.json.new", MARK_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was made, and what it was made from."""

    directory: str
    counters: int
    identity: str
    backup_of: str
    #: Sessions and operation ids that were in the backup and aren't in the folder.
    sessions_dropped: int
    ids_dropped: int


def restore_backup(
    backup: str | os.PathLike[str], directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress
) -> Restored:
    """Makes a shard's folder from a backup, once every page of it was checked.

    The folder is a new shard: it has an identity of its own and neither sessions nor operation ids, because a retry
    that they would answer may be about an operation that came after the backup. A crash on the way leaves a folder that
    no server starts on; restoring into it again begins anew.

    Args:
        backup: the backup's folder; it is not changed.
        directory: the folder to make; it must not exist, or be empty.
        on_progress: told what is being done.

    Raises:
        DamagedData: the backup is damaged; nothing was made.
        StorageError: it is no backup, `directory` isn't empty, or the disk failed; what was begun is removed.
    """
    target = Path(directory)
    with read_folder(backup, on_progress) as contents:
        if not contents.is_backup:
            raise StorageError(
                f"{backup} is a shard's own folder and no backup: nothing was made; `pycounter serve --data` opens it",
                backup,
            )
        contents.refuse_damage()
        with _new_folder(target):
            counters = contents.count(on_progress)
            identity = make_folder(contents, target, on_progress)
        figures = contents.reader.figures
        return Restored(
            directory=str(target),
            counters=counters,
            identity=identity,
            backup_of=contents.reader.identity,
            sessions_dropped=figures["sessions"],
            ids_dropped=figures["ids"],
        )


@contextlib.contextmanager
def _new_folder(target: Path) -> Iterator[None]:
    """An empty folder, marked as unfinished until the end. After an error nothing is left of it."""
    try:
        existed = target.exists()
        target.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in target.iterdir()}
        if names and not (MARK_NAME in names and names <= set(_MADE)):
            raise StorageError(f"{target} is not empty: nothing was made; name a new folder", target)
        _remove(target)
        (target / MARK_NAME).touch()
        sync_folder(target)
        try:
            yield
        except BaseException:
            if not (target / "manifest.json").exists():
                _remove(target)
                if not existed:
                    target.rmdir()
            raise
        (target / MARK_NAME).unlink()
        sync_folder(target)
    except OSError as error:
        raise StorageError(f"restoring into {target} failed: {error}", target) from error


def _remove(target: Path) -> None:
    for name in _MADE:
        path = target / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
