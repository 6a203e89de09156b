"""Backups: a copy of the checkpoint, with a note of what it is."""

from __future__ import annotations

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any, Protocol

from pycounter._native import VERSION
from pycounter.errors import StorageError
from pycounter.storage.checkpoint_store import FOLDER_NAME
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import NOTE_NAME

__all__ = ["NOTE_FORMAT", "sync_folder", "write_backup", "write_note"]

NOTE_FORMAT = 1


class _Shard(Protocol):
    @property
    def identity(self) -> str: ...
    @property
    def name(self) -> str: ...


def write_backup(shard: _Shard, checkpointer: Checkpointer, directory: str | os.PathLike[str]) -> Path:
    """Copies everything that is durable now into a new folder, while the shard goes on.

    The result is no shard's folder: a server refuses it, since two shards with one identity could count an operation
    twice.

    Args:
        shard: whose.
        checkpointer: its checkpoints.
        directory: the folder to make; it must not exist, or be empty.

    Raises:
        StorageError: the folder has something in it, or the disk failed; what was begun is left there without the note.
    """
    target = Path(directory)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise StorageError(f"{target} is not empty: nothing was written; name a new folder", target)
        checkpointer.copy_to(target / FOLDER_NAME)
        note = {
            "format": NOTE_FORMAT,
            "identity": shard.identity,
            "shard": shard.name,
            "version": VERSION,
            "created_at": int(time.time()),
            "backup": secrets.token_hex(16),
        }
        # The note comes last: a folder without it is no whole backup.
        write_note(target / NOTE_NAME, note)
        sync_folder(target.parent)
    except OSError as error:
        raise StorageError(f"the backup to {target} failed: {error}", target) from error
    return target


def write_note(path: Path, note: dict[str, Any]) -> None:
    """Writes what a backup says of itself, durably, whole or not at all. Raises OSError."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(note, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(directory: Path) -> None:
    """Makes the names in a folder durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
