"""Reading a folder that no server has open, and changing nothing in it: a shard's own, or a backup.

Everything is read, damaged or not: the checkpoint's root and pages, then the log. `check`, `repair`, `restore` and
`dump` begin with it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycounter._native import FolderReader
from pycounter.errors import DamagedData, FolderLocked, FormatTooNew, StorageError
from pycounter.storage.backup import NOTE_FORMAT
from pycounter.storage.checkpoint_store import FOLDER_NAME, CheckpointStore
from pycounter.storage.recovery import NOTE_NAME, ROOT_KEY

__all__ = ["REPAIR_NAME", "Damage", "FolderContents", "OnProgress", "ignore_progress", "read_folder", "read_note"]

#: Where `repair` makes the new state, within the folder.
REPAIR_NAME = "repaired.new"

#: Told what is being done and which share of it is.
OnProgress = Callable[[str, float], None]

#: What a shard's folder has at least one of.
_NAMES = ("manifest.json", "log", FOLDER_NAME, REPAIR_NAME)
#: A share is told after so many pages.
_PAGES_BETWEEN = 64


def ignore_progress(what: str, share: float) -> None:
    """Nobody is watching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One thing that is wrong. `first_byte` and `end_byte` where it is in known bytes of the file."""

    what: str
    file: str | None = None
    first_byte: int | None = None
    end_byte: int | None = None


class FolderContents:
    """A folder that was read to its end. It stays locked until `read_folder` is left.

    Attributes:
        directory: the folder.
        is_backup: it has a checkpoint and no log.
        name: the shard's.
        reader: the engine's view.
    """

    def __init__(self, directory: Path, note: dict[str, Any] | None, reader: FolderReader) -> None:
        self.directory = directory
        self.is_backup = note is not None
        self.reader = reader
        manifest = reader.manifest
        self.name: str = note["shard"] if note else manifest["name"] if manifest else "shard-0"
        self.store: CheckpointStore | None = None
        self._store_damage: list[Damage] = []

    @property
    def damage(self) -> list[Damage]:
        """Everything that is wrong, the log first."""
        found = []
        for what, file, span in self.reader.damage:
            # A bare place, where no length is known, has no end.
            end = span[1] if span and span[1] > span[0] else None
            where = file or self.directory / FOLDER_NAME
            found.append(Damage(what=what, file=str(where), first_byte=span[0] if span else None, end_byte=end))
        return found + self._store_damage

    def row(self, key: bytes | None) -> bytes | None:
        """A row of the checkpoint; None where there is none, or the store can't give it, which is noted."""
        if key is None or self.store is None:
            return None
        try:
            return self.store.get(key)
        except StorageError as error:
            self._note(error)
            return None

    def counters(self) -> Iterator[list[tuple[bytes, int]]]:
        """All counters that can be read, some thousand at a time, in an order that depends on their keys only."""
        for part in range(self.reader.parts):
            yield self.reader.read_part(part, self.row(self.reader.part_key(part)))

    def count(self, on_progress: OnProgress = ignore_progress) -> int:
        """How many counters can be read."""
        total = 0
        for part in range(self.reader.parts):
            if part % _PAGES_BETWEEN == 0:
                on_progress("counting", part / self.reader.parts)
            total += self.reader.count_part(part, self.row(self.reader.part_key(part)))
        return total

    def refuse_damage(self) -> None:
        """For whoever needs everything to be there.

        Raises:
            DamagedData: something is wrong.
        """
        damage = self.damage
        if damage:
            more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
            raise DamagedData(
                f"{self.directory} is damaged: {damage[0].what}{more}; `pycounter check` lists it all", self.directory
            )

    def _note(self, error: StorageError) -> None:
        damage = Damage(what=str(error), file=str(self.directory / FOLDER_NAME))
        if damage not in self._store_damage:
            self._store_damage.append(damage)

    def load(self, on_progress: OnProgress) -> None:
        """Reads everything once."""
        self.store = self._open_store()
        keys = self.reader.load_root(self.row(ROOT_KEY)) if self.store or not self._store_damage else []
        if self._store_damage and not keys:
            self.reader.lose_checkpoint()
        for number, key in enumerate(keys):
            if number % _PAGES_BETWEEN == 0:
                on_progress("checking pages", number / len(keys))
            self.reader.load_page(key, self.row(key))
        log_bytes = self.reader.log_bytes
        self.reader.read_log(lambda done: on_progress("checking the log", done / log_bytes if log_bytes else 1.0))

    def _open_store(self) -> CheckpointStore | None:
        folder = self.directory / FOLDER_NAME
        if not (folder / "CURRENT").exists() and not any(folder.glob("*.log")):
            # There is no store, or the making of one was interrupted: a server makes it anew. Whether there must be
            # one is the manifest's to say.
            return None
        try:
            return CheckpointStore(self.directory, read_only=True)
        except FolderLocked:
            raise
        except StorageError as error:
            self._note(error)
            return None


@contextlib.contextmanager
def read_folder(
    directory: str | os.PathLike[str], on_progress: OnProgress = ignore_progress
) -> Iterator[FolderContents]:
    """Reads a shard's folder or a backup, whatever state it is in.

    Raises:
        FolderLocked: a process has it open.
        FormatTooNew: a newer version wrote it.
        StorageError: it is neither, or the disk failed.
    """
    folder = Path(directory)
    note = read_note(folder)
    if note is None and not any((folder / name).exists() for name in _NAMES):
        raise StorageError(f"{folder} is no shard's folder and no backup: nothing was read or changed", folder)
    reader = FolderReader(folder, backup_of=note["identity"] if note else None)
    contents = FolderContents(folder, note, reader)
    try:
        contents.load(on_progress)
        yield contents
    finally:
        if contents.store is not None:
            contents.store.close()
        reader.close()


def read_note(folder: Path) -> dict[str, Any] | None:
    """What a backup says of itself; None where the folder is none.

    Raises:
        DamagedData, FormatTooNew, StorageError: it can't be read.
    """
    path = folder / NOTE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}", path) from error
    except UnicodeDecodeError as error:
        raise DamagedData(f"{path} is damaged: it is no text; use another backup", path) from error
    try:
        note = json.loads(text)
        if note["format"] > NOTE_FORMAT:
            raise FormatTooNew(f"{path} has format {note['format']}: use a newer version", path)
        identity, name = note["identity"], note["shard"]
        if not (isinstance(name, str) and isinstance(identity, str) and len(bytes.fromhex(identity)) == 16):
            raise ValueError("it names no shard")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{path} is damaged: {error}; use another backup", path) from error
    return {"identity": identity, "shard": name, "created_at": note.get("created_at"), "backup": note.get("backup")}
