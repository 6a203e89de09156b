"""Checking a folder: everything is read, nothing is changed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pycounter.storage.checkpoint_store import FOLDER_NAME
from pycounter.storage.folder_reading import (
    REPAIR_NAME,
    Damage,
    FolderContents,
    OnProgress,
    ignore_progress,
    read_folder,
)

__all__ = ["FolderReport", "TornTail", "check_folder", "report_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TornTail:
    """A commit that was being written when the last run ended, never acknowledged. Nothing is wrong with that."""

    file: str
    keep_bytes: int
    cut_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderReport:
    """What a folder holds and what is wrong with it. Sessions and ids may include some whose time has run out."""

    directory: str
    kind: Literal["shard", "backup"]
    identity: str
    name: str
    #: How often the shard was started; 0 where the manifest can't say.
    epoch: int
    counters: int
    sessions: int
    ids: int
    #: The commit that the checkpoint holds the state of.
    checkpoint_commit: int
    #: Commits in the log, and the last of them.
    log_commits: int
    last_commit: int
    log_bytes: int
    checkpoint_bytes: int
    pages: int
    torn: TornTail | None
    damage: tuple[Damage, ...]
    #: Commits that were acknowledged and can't be read: first and last of each run.
    lost_commits: tuple[tuple[int, int], ...]
    #: Commits that can be read, behind damage.
    commits_behind_damage: int
    lost_pages: int

    @property
    def is_sound(self) -> bool:
        """Would a server start on it, or a restore take it?"""
        return not self.damage


def check_folder(directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress) -> FolderReport:
    """Reads everything in a shard's folder, or a backup, and says what it holds and what is wrong with it.

    Nothing is made or changed. The folder is locked meanwhile, so no server can start on it.

    Raises:
        FolderLocked: a process has it open.
        FormatTooNew: a newer version wrote it.
        StorageError: it is neither, or the disk failed.
    """
    with read_folder(directory, on_progress) as contents:
        return report_of(contents, on_progress)


def report_of(contents: FolderContents, on_progress: OnProgress = ignore_progress) -> FolderReport:
    """The report on a folder that is being read."""
    reader, folder = contents.reader, contents.directory
    counters = contents.count(on_progress)
    figures, manifest, torn = reader.figures, reader.manifest, reader.torn
    damage = contents.damage
    if manifest is None and (folder / REPAIR_NAME).is_dir():
        what = "a repair was interrupted: run `pycounter repair` again, which finishes it"
        damage.insert(0, Damage(what=what, file=str(folder / REPAIR_NAME)))
    return FolderReport(
        directory=str(folder),
        kind="backup" if contents.is_backup else "shard",
        identity=reader.identity,
        name=contents.name,
        epoch=manifest["epoch"] if manifest else 0,
        counters=counters,
        sessions=figures["sessions"],
        ids=figures["ids"],
        checkpoint_commit=figures["checkpoint_commit"],
        log_commits=figures["commits"],
        last_commit=max(figures["last_commit"], figures["checkpoint_commit"]),
        log_bytes=reader.log_bytes,
        checkpoint_bytes=_bytes_below(folder / FOLDER_NAME),
        pages=figures["pages"],
        torn=None if torn is None else TornTail(file=str(torn[0]), keep_bytes=torn[1], cut_bytes=torn[2]),
        damage=tuple(damage),
        lost_commits=tuple(reader.lost),
        commits_behind_damage=figures["commits_behind_damage"],
        lost_pages=figures["lost_pages"],
    )


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
