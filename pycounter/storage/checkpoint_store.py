"""The rows of a checkpoint, in RocksDB.

Only the checkpoint thread writes; who reads for replicas has a view of its own. The binding holds the interpreter lock
while it writes, so writes are small and never wait for RocksDB to make room (`no_slowdown`): they are tried again after
a pause without the lock. Damage is found by the engine, which checks every page's hash against the root; RocksDB's own
recovery isn't trusted.

RocksDB refuses all writes after one that failed, for as long as it is open. So whoever writes calls `reopen_if_broken`
first. Opening reads back what it has and writes it to new files, so nothing rests on pages that an fsync failed on.

A fork closes RocksDB, see `forking`; the next use opens it again. So every use holds the store's lock.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

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

from pycounter.errors import AfterFork, DamagedData, FolderLocked, PyCounterError, StorageError, StorageFull
from pycounter.storage import forking

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
    except PyCounterError:
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


def _shadow(path: Path) -> Path:
    """Links to a store's files in a folder elsewhere: the binding writes a note even where RocksDB only reads."""
    shadow = Path(tempfile.mkdtemp(prefix="pycounter-"))
    try:
        for file in path.resolve().iterdir():
            if file.name != BINDING_NOTE_NAME:
                (shadow / file.name).symlink_to(file)
    except OSError as error:
        shutil.rmtree(shadow, ignore_errors=True)
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
        #: Held by every use, and through a fork.
        self.lock = threading.RLock()
        # None while a fork's closing lasts, and after `close`.
        self._rows: Rdict | None = None
        self._state: Literal["in use", "closed", "the parent's"] = "in use"
        self._is_broken = False
        # While one of them is there, RocksDB keeps its files locked.
        self._views: weakref.WeakSet[StoreView] = weakref.WeakSet()
        self._lazy = WriteOptions()
        self._lazy.no_slowdown = True
        self._safe = WriteOptions()
        self._safe.sync = True
        self._shadow = _shadow(self.path) if read_only else None
        self._remove_shadow: weakref.finalize[..., CheckpointStore] | None = None
        if self._shadow is not None:
            self._remove_shadow = weakref.finalize(self, shutil.rmtree, self._shadow, ignore_errors=True)
        with forking.gate:
            forking.register(self)
        try:
            self._use()
        except BaseException:
            self._clean_shadow()
            raise

    def _use(self) -> Rdict:
        """RocksDB, opened if a fork closed it. To be called with the lock held, and within `_mapped`."""
        with self.lock:
            if self._state == "the parent's":
                raise AfterFork(
                    f"the checkpoint store in {self.path} belongs to the parent process: it was not touched"
                )
            if self._rows is None:
                if self._state == "closed":
                    raise StorageError(f"the checkpoint store in {self.path} is closed", self.path)
                self._rows = self._open()
            return self._rows

    def _open(self) -> Rdict:
        # Where it only reads, a log that RocksDB has not written into a table yet is read into memory.
        access = AccessType.read_only(error_if_log_file_exist=False) if self._shadow else AccessType.read_write()
        with _mapped(self.path):
            rows = Rdict(str(self._shadow or self.path), _options(), access_type=access)
        self._is_broken = False
        return rows

    @contextlib.contextmanager
    def _using(self, path: Path | None = None) -> Iterator[Rdict]:
        """RocksDB for one call; errors are about `path`, the store's own without it."""
        with self.lock, _mapped(path or self.path):
            yield self._use()

    @contextlib.contextmanager
    def _writing(self, path: Path | None = None) -> Iterator[Rdict]:
        try:
            with self._using(path) as rows:
                yield rows
        except StorageError:
            self._is_broken = True
            raise

    def rest(self) -> None:
        """Closes RocksDB until the store is used again, and ends all views. To be called with the lock held."""
        try:
            self._close_rows()
        except StorageError:
            # What it could not write it reads from its own log when it is opened.
            self._is_broken = True

    def disown(self) -> None:
        """In a forked child: what is on disk is the parent's, and its shadow too."""
        self._state = "the parent's"
        if self._remove_shadow is not None:
            self._remove_shadow.detach()

    def reopen_if_broken(self) -> None:
        """Closes and opens it again, if a write failed since it was opened.

        Raises:
            StorageError: the disk fails still; to be called again before the next use.
        """
        with self.lock:
            if self._is_broken:
                # What it would still like to write is refused here once more, and it is closed all the same.
                self.rest()
                self._use()

    def get(self, key: bytes) -> bytes | None:
        """The row's value, None where there is none."""
        with self._using() as rows:
            value: bytes | None = rows.get(key)
            return value

    def view(self) -> StoreView:
        """The rows as they are now. Any thread may call it."""
        with self._using() as rows:
            view = StoreView(self.path, rows)
            self._views.add(view)
            return view

    def keys(self) -> list[bytes]:
        """All keys, in order."""
        with self._using() as rows:
            return [key for key in rows.keys() if isinstance(key, bytes)]  # noqa: SIM118 - an Rdict is no iterable

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
        with self._writing() as rows:
            rows.put(key, value, write_opt=self._safe)

    def delete(self, keys: Sequence[bytes]) -> None:
        """Deletes rows that nothing names any more. A crash may undo that, which harms nothing."""
        batch = WriteBatch(raw_mode=True)
        for key in keys:
            batch.delete(key)
        if not batch.is_empty():
            self._write(batch)

    def copy_to(self, directory: Path) -> None:
        """A consistent copy in a new folder, by hard links where the disk allows them."""
        with self._writing(directory) as rows:
            Checkpoint(rows).create_checkpoint(str(directory))

    def flush(self) -> None:
        """Writes the rows that RocksDB holds in memory to its files: the memory is given back. Other threads run on."""
        with self._writing() as rows:
            rows.flush()

    def close(self) -> None:
        """Closes it, and all its views. Idempotent; does nothing in a forked child."""
        with self.lock:
            if self._state == "the parent's":
                return
            self._state = "closed"
            try:
                self._close_rows()
            finally:
                self._clean_shadow()

    def _close_rows(self) -> None:
        for view in self._views:
            view.close()
        rows, self._rows = self._rows, None
        if rows is not None:
            with _mapped(self.path):
                rows.close()

    def _clean_shadow(self) -> None:
        if self._remove_shadow is not None:
            self._remove_shadow()

    def _write(self, batch: WriteBatch) -> None:
        deadline = time.monotonic() + STALL_PATIENCE_S
        while True:
            try:
                with self._using() as rows:
                    rows.write(batch, self._lazy)
                return
            except StorageError as error:
                # Nothing was written then.
                if "Write stall" not in str(error) or time.monotonic() > deadline:
                    self._is_broken = True
                    raise
            time.sleep(STALL_PAUSE_S)
