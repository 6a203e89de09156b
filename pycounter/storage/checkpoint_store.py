"""The rows of a checkpoint, in RocksDB.

Only the checkpoint thread writes; who reads for replicas has a view of its own. The binding holds the interpreter lock
while it writes, so writes are small and never wait for RocksDB to make room (`no_slowdown`): they are tried again after
a pause without the lock. Damage is found by the engine, which checks every page's hash against the root; RocksDB's own
recovery isn't trusted.

RocksDB refuses all writes after one that failed, for as long as it is open. So whoever writes calls `reopen_if_broken`
first. Opening reads back what it has and writes it to new files, so nothing rests on pages that an fsync failed on.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from pycounter.errors import DamagedData, FolderLocked, StorageError, StorageFull

__all__ = ["FOLDER_NAME", "CheckpointStore", "StoreView"]

#: The store's folder within a shard's.
FOLDER_NAME = "checkpoint"
#: The binding's own file in it, written anew at every opening.
BINDING_NOTE_NAME = "rocksdict-config.json"
#: Rows are put in batches of about this many bytes: some milliseconds of the interpreter lock at most.
BATCH_BYTES = 256 * 1024
#: How long a batch is tried again while RocksDB stalls writes.
STALL_PATIENCE_S = 60.0
STALL_PAUSE_S = 0.02


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_max_background_jobs(4)
    options.set_write_buffer_size(64 * 1024 * 1024)
    options.set_max_write_buffer_number(3)
    options.set_target_file_size_base(64 * 1024 * 1024)
    options.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    # A fold reads each page once and then replaces it: nothing is worth keeping in memory.
    table.disable_cache()
    options.set_block_based_table_factory(table)
    options.set_keep_log_file_num(2)
    return options


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """RocksDB's errors, which are bare `Exception`s with a text, as ours: the one place for that."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # the binding raises nothing more specific, or an OSError that names no file
        text = " ".join(str(error).split())
        if "lock file" in text or "lock hold by" in text:
            raise FolderLocked(f"{path} is open elsewhere: stop the other process first ({text})", path) from error
        if "No space left" in text:
            message = f"the disk of {path} is full: make room; nothing is lost meanwhile ({text})"
            raise StorageFull(message, path) from error
        if "No such file" in text:
            message = f"a file of the checkpoint in {path} is missing: restore the folder from a backup ({text})"
            raise DamagedData(message, path) from error
        if "Corruption" in text:
            message = f"the checkpoint in {path} is damaged ({text}): restore the folder from a backup"
            raise DamagedData(message, path) from error
        raise StorageError(f"the checkpoint store in {path} failed: {text}", path) from error


def _shadow(path: Path) -> tempfile.TemporaryDirectory[str]:
    """Links to a store's files in a folder elsewhere: the binding writes a note even where RocksDB only reads."""
    shadow = tempfile.TemporaryDirectory(prefix="pycounter-")
    try:
        for file in path.resolve().iterdir():
            if file.name != BINDING_NOTE_NAME:
                (Path(shadow.name) / file.name).symlink_to(file)
    except OSError as error:
        shadow.cleanup()
        raise StorageError(f"the checkpoint store in {path} can't be read: {error.strerror}", path) from error
    return shadow


class StoreView:
    """The rows as they were at one moment, whatever is written later. Any thread may use it.

    It ends with the store, too; what is read then raises StorageError.
    """

    def __init__(self, path: Path, rows: Rdict) -> None:
        self._path = path
        self._lock = threading.Lock()
        with _mapped(path):
            self._rows: Any = rows.snapshot()

    def get(self, key: bytes) -> bytes | None:
        """The row's value, None where there is none."""
        with self._lock:
            if self._rows is None:
                raise StorageError(f"the view of the checkpoint store in {self._path} has ended", self._path)
            with _mapped(self._path):
                try:
                    value: bytes = self._rows[key]
                except Exception as error:  # the binding raises nothing more specific
                    if str(error) == "key not found":
                        return None
                    raise
                return value

    def close(self) -> None:
        """Lets the store drop what only this shows. Idempotent."""
        with self._lock:
            self._rows = None


class CheckpointStore:
    """An ordered store of rows: keys and values are bytes. Opening it makes it, if it isn't there.

    Args:
        directory: the folder that the store's folder is in.
        read_only: nothing on disk is made or changed, and the store has to be there.

    Raises:
        FolderLocked: another process has it open.
        DamagedData: RocksDB can't open it.
        StorageError: whatever else it says.
    """

    def __init__(self, directory: str | os.PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(directory) / FOLDER_NAME
        self._shadow = _shadow(self.path) if read_only else None
        # While one of them is there, RocksDB keeps its files locked.
        self._views: weakref.WeakSet[StoreView] = weakref.WeakSet()
        self._views_lock = threading.Lock()
        try:
            self._open()
        except BaseException:
            self._clean_shadow()
            raise
        self._lazy = WriteOptions()
        self._lazy.no_slowdown = True
        self._safe = WriteOptions()
        self._safe.sync = True

    def _open(self) -> None:
        # Where it only reads, a log that RocksDB has not written into a table yet is read into memory.
        access = AccessType.read_only(error_if_log_file_exist=False) if self._shadow else AccessType.read_write()
        with _mapped(self.path):
            self._rows = Rdict(self._shadow.name if self._shadow else str(self.path), _options(), access_type=access)
        self._is_broken = False

    @contextlib.contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            with _mapped(path):
                yield
        except StorageError:
            self._is_broken = True
            raise

    def reopen_if_broken(self) -> None:
        """Closes and opens it again, if a write failed since it was opened.

        Raises:
            StorageError: the disk fails still; to be called again before the next use.
        """
        if self._is_broken:
            # What it would still like to write is refused here once more, and it is closed all the same.
            with contextlib.suppress(StorageError):
                self.close()
            self._open()

    def get(self, key: bytes) -> bytes | None:
        """The row's value, None where there is none."""
        with _mapped(self.path):
            value: bytes | None = self._rows.get(key)
            return value

    def view(self) -> StoreView:
        """The rows as they are now. Any thread may call it."""
        with self._views_lock:
            view = StoreView(self.path, self._rows)
            self._views.add(view)
            return view

    def keys(self) -> list[bytes]:
        """All keys, in order."""
        with _mapped(self.path):
            return [key for key in self._rows.keys() if isinstance(key, bytes)]  # noqa: SIM118 - an Rdict is no iterable

    def put_lazily(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        """Puts rows, safe only after the next `put_safely`."""
        batch = WriteBatch(raw_mode=True)
        for key, value in rows:
            batch.put(key, value)
            if batch.size_in_bytes() >= BATCH_BYTES:
                self._write(batch)
                batch = WriteBatch(raw_mode=True)
        if not batch.is_empty():
            self._write(batch)

    def put_safely(self, key: bytes, value: bytes) -> None:
        """Puts a row and returns once it, and everything put before it, is on disk."""
        with self._writing(self.path):
            self._rows.put(key, value, write_opt=self._safe)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Deletes rows that nothing names any more. A crash may undo that, which harms nothing."""
        batch = WriteBatch(raw_mode=True)
        for key in keys:
            batch.delete(key)
        if not batch.is_empty():
            self._write(batch)

    def copy_to(self, directory: Path) -> None:
        """A consistent copy in a new folder, by hard links where the disk allows them."""
        with self._writing(directory):
            Checkpoint(self._rows).create_checkpoint(str(directory))

    def flush(self) -> None:
        """Writes the rows that RocksDB holds in memory to its files: the memory is given back. Other threads run on."""
        with self._writing(self.path):
            self._rows.flush()

    def close(self) -> None:
        """Closes it, and all its views. Idempotent."""
        with self._views_lock:
            for view in self._views:
                view.close()
            with _mapped(self.path):
                self._rows.close()
        self._clean_shadow()

    def _clean_shadow(self) -> None:
        if self._shadow is not None:
            self._shadow.cleanup()

    def _write(self, batch: WriteBatch) -> None:
        deadline = time.monotonic() + STALL_PATIENCE_S
        while True:
            try:
                with _mapped(self.path):
                    self._rows.write(batch, self._lazy)
                return
            except StorageError as error:
                # Nothing was written then.
                if "Write stall" not in str(error) or time.monotonic() > deadline:
                    self._is_broken = True
                    raise
            time.sleep(STALL_PAUSE_S)
