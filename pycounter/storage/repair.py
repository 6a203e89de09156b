"""Repairing: a folder that starts, made of what can still be read of a damaged one.

Each counter keeps the last value that can be read: the checkpoint's, or a later one of the log, in front of the damage
or behind it. Since commits may be missing, a retry could count twice; so the result is a new shard, as after a restore.

The new state is made in a folder of its own within the shard's. Then names are exchanged: the manifest goes first, and
from there on no server starts; the new manifest comes last. A crash before that leaves the old state, a crash after it
the new one; in between, a second repair goes on with the exchange.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pycounter.errors import StorageError
from pycounter.storage.backup import sync_folder
from pycounter.storage.check import FolderReport, report_of
from pycounter.storage.checkpoint_store import FOLDER_NAME
from pycounter.storage.folder_making import make_folder
from pycounter.storage.folder_reading import REPAIR_NAME, FolderContents, OnProgress, ignore_progress, read_folder

__all__ = ["Repair", "plan_repair"]

_MANIFEST = "manifest.json"
#: In the new state's folder: where the old files go.
_KEPT_IN = "old-files-in"
#: `nothing`: it is sound. `finish`: a repair was interrupted while it exchanged names. `move`: files that no shard made
#: are in the way, and nothing is lost. `rebuild`: everything else.
Action = Literal["nothing", "finish", "move", "rebuild"]


class Repair:
    """What a repair would do, and the doing of it. The folder stays locked as long as `plan_repair` isn't left.

    Attributes:
        report: what is there and what is wrong.
        action: what would be done.
    """

    def __init__(self, contents: FolderContents, report: FolderReport) -> None:
        self.report = report
        self._contents = contents
        self._directory = contents.directory
        self._foreign = contents.reader.only_foreign_files
        self.action: Action = "rebuild"
        if _is_exchanging(self._directory):
            self.action = "finish"
        elif report.is_sound:
            self.action = "nothing"
        elif self._foreign is not None:
            self.action = "move"

    def carry_out(self, on_progress: OnProgress = ignore_progress) -> Path | None:
        """Does it. Gives the folder that the old files are in now; None where there was nothing to do.

        Raises:
            StorageError: the disk failed. The old state is there, or another repair finishes this one.
        """
        try:
            match self.action:
                case "nothing":
                    return None
                case "finish":
                    return _exchange(self._directory)
                case "move":
                    return self._move()
                case "rebuild":
                    return self._rebuild(on_progress)
        except OSError as error:
            raise StorageError(
                f"the repair of {self._directory} failed: {error}; run it again, nothing more is lost by that",
                self._directory,
            ) from error

    def _new_name(self) -> Path:
        at = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        names = (f"before-repair-{at}{more}" for more in ("", *(f"-{number}" for number in range(2, 1000))))
        return next(path for name in names if not (path := self._directory / name).exists())

    def _move(self) -> Path:
        kept = self._new_name()
        kept.mkdir()
        for path in self._foreign or []:
            path.rename(kept / path.name)
        sync_folder(kept)
        sync_folder(self._directory / "log")
        sync_folder(self._directory)
        return kept

    def _rebuild(self, on_progress: OnProgress) -> Path:
        staging = self._directory / REPAIR_NAME
        if staging.exists():
            # Of a repair that was interrupted before it exchanged anything.
            shutil.rmtree(staging)
        staging.mkdir()
        (staging / _KEPT_IN).write_text(self._new_name().name)
        make_folder(self._contents, staging, on_progress)
        return _exchange(self._directory)


@contextlib.contextmanager
def plan_repair(directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress) -> Iterator[Repair]:
    """Reads a shard's folder and says what a repair would do. Nothing is changed before `carry_out`.

    Raises:
        FolderLocked: a process has it open.
        FormatTooNew: a newer version wrote it, which is no damage.
        StorageError: it is no shard's folder, or the disk failed.
    """
    with read_folder(directory, on_progress) as contents:
        if contents.is_backup:
            raise StorageError(
                f"{directory} is a backup, which is not repaired: nothing was changed; take another one", directory
            )
        yield Repair(contents, report_of(contents, on_progress))


def _is_exchanging(directory: Path) -> bool:
    return not (directory / _MANIFEST).exists() and (directory / REPAIR_NAME / _MANIFEST).exists()


def _exchange(directory: Path) -> Path:
    """Puts the new state in the place of the old one; begins, or goes on where a crash came."""
    staging = directory / REPAIR_NAME
    kept = directory / (staging / _KEPT_IN).read_text()
    kept.mkdir(exist_ok=True)
    if (directory / _MANIFEST).exists():
        (directory / _MANIFEST).rename(kept / _MANIFEST)
    sync_folder(kept)
    sync_folder(directory)
    for name in ("log", FOLDER_NAME):
        new, here = staging / name, directory / name
        if new.exists():
            if here.exists():
                here.rename(kept / name)
            new.rename(here)
    for folder in (kept, staging, directory):
        sync_folder(folder)
    (staging / _MANIFEST).rename(directory / _MANIFEST)
    sync_folder(directory)
    shutil.rmtree(staging)
    return kept
