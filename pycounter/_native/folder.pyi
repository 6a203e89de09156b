"""A shard's folder: checkpoints, copies, and a disk that simulations break.

For example:

    reader = FolderReader("backup")
    reader.figures["counters"]
"""

import os
from collections.abc import (
    Callable,
)
from pathlib import Path
from typing import Literal, TypedDict, final, type_check_only

from typing_extensions import disjoint_base

@disjoint_base
class JournaledFolder:
    """A locked folder: recovered first, checkpointed later.

    Recovery, in this order: `load_root`, `load_page` for each key that it gave, then `start` of the class that
    extends this one. Checkpoints may be made on another thread than the one that owns the rest.
    """

    @property
    def identity(self) -> str:
        """The shard's identity: 32 hexadecimal digits, made with the folder."""

    @property
    def name(self) -> str:
        """The shard's name, as the manifest has it."""

    @property
    def created(self) -> bool:
        """Was the folder empty before?"""

    @property
    def epoch(self) -> int:
        """The fencing number of this run. RuntimeError before `start`."""

    @property
    def torn_bytes(self) -> int:
        """Bytes that `start` cut from the log's end: a commit that was never acknowledged."""

    @property
    def log_bytes(self) -> int:
        """Bytes of the log's files. StorageError when one can't be measured."""

    @property
    def commits_behind(self) -> int:
        """Durable commits above the checkpoint."""

    def load_root(self, root: bytes | None) -> list[bytes]:
        """Takes the root's row, or None where the store has none. Gives the keys of the pages to load.

        Raises:
            DamagedData: it isn't what the manifest expects.
            FormatTooNew: a newer version wrote it.
        """

    def load_page(self, key: bytes, page: bytes | None) -> None:
        """Takes one page's row, or None where the store lacks it.

        Raises:
            DamagedData: it isn't the one that the root means.
        """

    def close_folder(self) -> None:
        """Unlocks the folder of one that was not started. Idempotent."""

    def roll_log(self) -> None:
        """Has the next commit begin a new file of the log, so that a checkpoint can drop the one before it."""

    def begin_fold(self) -> Fold | None:
        """Reads durable commits, as many as fit into the memory for it. None: there is nothing new."""

    def end_fold(self, fold: Fold) -> None:
        """The fold's root is safe in the store: tells the manifest, and drops the log below it that no pin holds."""

    def read_tail(
        self, identity: str | None, after: int, epoch: int, last_hash: int, index: int, *, upto: int, about_bytes: int
    ) -> tuple[Literal["records", "unknown", "late"], bytes]:
        """What there is for a replica from a place in the history on, up to commit `upto`, which is durable.

        Args:
            identity: of the shard that the place is of.
            after: the last commit that the replica has whole; 0: none.
            epoch: the newest epoch that it knows.
            last_hash: of that commit's last record.
            index: how many records of the next commit it has.
            upto: the newest commit to give.
            about_bytes: at least one record, if there is one.

        Returns:
            "records" and whole records; "unknown" and why the place isn't in this history; "late" where the log begins
            later.
        """

    def pin_log(self, after: int) -> int:
        """Keeps the log above commit `after`, as far as it is there still, until `unpin_log`. Gives the pin."""

    def move_pin(self, pin: int, after: int) -> None:
        """A pin needs only the log above commit `after` from now on."""

    def unpin_log(self, pin: int) -> None:
        """Ends a pin. What it kept goes with the next checkpoint."""

    def read_root(self, row: bytes) -> tuple[int, int, int, list[bytes]]:
        """What a checkpoint's root says: fold, commit, hash of the commit's last record, keys of the pages."""

@final
class Fold:
    """Commits read from the log, on their way into pages. For one thread."""

    @property
    def commit(self) -> int:
        """The last commit folded in."""

    @property
    def commits(self) -> int:
        """How many commits are folded in."""

    @property
    def steps(self) -> int:
        """How many pages are to be rewritten."""

    def old_key(self, step: int) -> bytes | None:
        """The row that `merge` needs for this step; None: no row."""

    def merge(self, step: int, old_page: bytes | None) -> list[tuple[bytes, bytes]]:
        """Merges a step's changes into its page. Gives the rows to put; none of them exists yet."""

    def finish(self) -> tuple[bytes, bytes, list[bytes]]:
        """All steps are merged: the root's key and row, to be put after the pages, and keys that are garbage then."""

@type_check_only
class _Manifest(TypedDict):
    name: str
    epoch: int
    created_at: int

@final
class FolderReader:
    """A shard's folder, or a backup, that is read and not changed. For one thread.

    In this order: `load_root`, `load_page` for each key that it gave, `read_log`; then the rest.

    Args:
        directory: the folder; locked while this is open, if it has a lock.
        backup_of: the identity of the shard whose backup it is; None: it is a shard's own folder.

    Raises:
        FolderLocked: a process has it open.
        FormatTooNew: a newer version wrote it.
    """

    def __new__(cls, directory: str | os.PathLike[str], *, backup_of: str | None = None) -> FolderReader: ...
    @property
    def manifest(self) -> _Manifest | None:
        """What the manifest says. None where it can't be read."""

    @property
    def identity(self) -> str:
        """Whose folder it is."""

    def load_root(self, root: bytes | None) -> list[bytes]:
        """Takes the root's row, or None. Gives the keys of the pages to load."""

    def load_page(self, key: bytes, page: bytes | None) -> None:
        """Takes one page's row, None where the store lacks it or can't give it."""

    def lose_checkpoint(self) -> None:
        """Nothing of the checkpoint can be read."""

    def read_log(self, on_bytes: Callable[[int], object]) -> None:
        """Reads the log. `on_bytes` is told now and then how many bytes were read; what it raises ends the reading."""

    @property
    def damage(self) -> list[tuple[str, Path | None, tuple[int, int] | None]]:
        """What is wrong: a sentence, the file, and its bytes from and to."""

    @property
    def figures(self) -> dict[str, int]:
        """Figures, after everything was read."""

    @property
    def log_bytes(self) -> int:
        """Bytes of the log's files."""

    @property
    def lost(self) -> list[tuple[int, int]]:
        """Commits that were there and can't be read: first and last of each run."""

    @property
    def torn(self) -> tuple[Path, int, int] | None:
        """The torn end of the log: file, bytes to keep, bytes to cut."""

    @property
    def only_foreign_files(self) -> list[Path] | None:
        """Files in the log's folder that no journal made; None if anything else is wrong."""

    @property
    def parts(self) -> int:
        """How many parts the counters come in."""

    def part_key(self, part: int) -> bytes | None:
        """The key of the row that a part needs; None: no row."""

    def read_part(self, part: int, row: bytes | None) -> list[tuple[bytes, int]]:
        """The counters of a part."""

    def count_part(self, part: int, row: bytes | None) -> int:
        """How many counters a part has."""

    def close(self) -> None:
        """Unlocks the folder. Idempotent."""

@final
class FolderWriter:
    """A shard's folder that is made from counters. For one thread. Nothing is written before `finish`.

    Args:
        directory: the folder.
        name: the shard's.
        uptime_ms: of the shard that the counters come from.
    """

    def __new__(cls, directory: str | os.PathLike[str], name: str, uptime_ms: int) -> FolderWriter: ...
    @property
    def identity(self) -> str:
        """The new shard's."""

    def copy(self, reader: FolderReader, part: int, row: bytes | None) -> list[tuple[bytes, bytes]]:
        """Takes a part's counters, in order. Gives rows to put."""

    def finish_rows(self) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
        """All parts were copied: the last rows to put, and then the root's key and row."""

    def finish(self) -> None:
        """The rows are in their store, which is closed: makes all of it durable and writes the manifest."""

@final
class SimulatedDisk:
    """Files and clock of a simulated shard: nothing leaves memory, and a seed decides what failing power leaves.

    A shard on it that was killed is opened again as `Shard(directory, simulated=disk)`.

    Args:
        seed: of every decision, and of the identity of a shard that is made here.
    """

    def __new__(cls, seed: int) -> SimulatedDisk: ...
    def set_clock(self, elapsed_s: float) -> None:
        """Sets the clock of shards on this disk, to seconds after its beginning."""

    @property
    def operations(self) -> int:
        """How many file operations there were."""

    def fail_next(self, count: int) -> None:
        """Has the next so many operations fail, each done in part or not at all; 0: no more fail."""

    def die_after(self, count: int) -> None:
        """Has the process die in so many operations from now: that one is done in part, the later ones not at all."""

    def kill(self) -> None:
        """The process is gone: what it wrote is there. Faults end."""

    def crash(self) -> None:
        """The power fails: of what was not fsynced anything may be there. Faults end."""
