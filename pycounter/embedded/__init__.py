"""Durable counters inside the user's process: `pycounter.open`."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import warnings
import weakref
from types import TracebackType
from typing import Literal, Self

from pycounter._native import JournaledCounters, JournaledFolder, fail_at_exit
from pycounter.durations import is_number
from pycounter.errors import PyCounterError, StorageError
from pycounter.settings import counters_share, parse_bytes
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import open_folder

__all__ = ["DurableCounters", "open"]

#: As the server's defaults.
CHECKPOINT_LOG_BYTES = 64 << 20
CHECKPOINT_INTERVAL_S = 300.0

_log = logging.getLogger(__name__)

#: By identity: counters compare by content, so they have no hash.
_opened: weakref.WeakValueDictionary[int, DurableCounters] = weakref.WeakValueDictionary()
#: The process at whose end `multiprocessing` closes them.
_closed_at_end_of: set[int] = set()


class DurableCounters(JournaledCounters):
    """`Counters` on disk: made by `pycounter.open`. Thread-safe; a context manager that closes.

    At "durable" every change returns once it is fsynced; at "applied" once it is in memory, and it is fsynced within
    a second, by `flush`, and by `close`.
    """

    _checkpointer: Checkpointer | None = None
    _path = ""

    def checkpoint(self) -> None:
        """Folds the log into the checkpoint now, so that the next opening is quick.

        Raises:
            StorageError: it failed; nothing is lost, the log stays.
        """
        self.flush()
        if self._checkpointer is not None:
            self._checkpointer.checkpoint()

    def close(self, *, discard: bool = False) -> None:
        """Writes what is pending, makes a checkpoint and unlocks the folder. Idempotent, and nothing in a forked child.

        Args:
            discard: close even if the disk refuses, and lose what is not on it.

        Raises:
            NotDurable: the disk refused. Nothing is lost and the map stays open: close it again once there is room.
        """
        if self._checkpointer is not None and self._checkpointer.is_forked:
            return
        super().close(discard=discard)
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is None:
            return
        try:
            checkpointer.stop()
        except StorageError as error:
            _log.warning("%s: no checkpoint was made, so the next opening replays the log: %s", self._path, error)
        finally:
            self.folder.close_folder()
            _opened.pop(id(self), None)

    def __del__(self) -> None:
        if self._checkpointer is not None and not self._checkpointer.is_forked:
            warnings.warn(f"counters in {self._path} were not closed", ResourceWarning, stacklevel=2, source=self)
            if self._checkpointer.is_this_thread:
                # The collector came by in the very thread that closing waits for.
                threading.Thread(target=_close_or_tell, args=(self,), name="pycounter-close").start()
            else:
                _close_or_tell(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001 - as in `pycounter.open`
    path: str | bytes | os.PathLike[str],
    level: Literal["applied", "durable"] = "durable",
    *,
    memory_max: int | str | None = None,
    flush_interval_s: float = 1.0,
) -> DurableCounters:
    """Opens counters on disk, and makes them if the folder is empty or missing.

    Args:
        path: the folder. One process at a time; a server's folder is one too.
        level: when a change returns: "durable", once it is fsynced; "applied", once it is in memory.
        memory_max: bytes that the counters may take in memory, such as 1073741824 or "1GiB"; None: half of the
            machine's memory, or of what its container may use.
        flush_interval_s: `applied` changes are on disk after at most so many seconds (up to 1).

    Raises:
        FolderLocked: another process has it open.
        FormatTooNew: a newer version wrote it.
        DamagedData: what is there can't be what was written; nothing was changed.
        StorageError: the disk failed.
        ValueError: an argument is out of range.
    """
    if not is_number(flush_interval_s) or not 0 < flush_interval_s <= 1:
        raise ValueError(f"flush_interval_s must be a number above 0 and at most 1, not {flush_interval_s!r}")
    path = os.fsdecode(path)
    opened: list[DurableCounters] = []

    def lock() -> JournaledFolder:
        memory_bytes = counters_share() if memory_max is None else parse_bytes(memory_max)
        counters = DurableCounters(
            path, level=level, counters_bytes_max=memory_bytes, flush_interval_s=flush_interval_s
        )
        opened.append(counters)
        return counters.folder

    folder, store = open_folder(path, lock)
    # The thread keeps the folder and not the counters: they are closed when the program drops them.
    checkpointer = Checkpointer(folder, store, log_bytes=CHECKPOINT_LOG_BYTES, interval_s=CHECKPOINT_INTERVAL_S)
    (counters,) = opened
    try:
        counters.start()
    except BaseException:
        checkpointer.stop(checkpoint=False)
        folder.close_folder()
        raise
    counters._path = path
    counters._checkpointer = checkpointer
    checkpointer.start()
    _opened[id(counters)] = counters
    _close_at_exit_of_child()
    return counters


def _close_or_tell(counters: DurableCounters) -> bool:
    """Closes counters that the program can't close any more. False: something is lost, and stderr says what."""
    try:
        counters.close()
        return True
    except PyCounterError as error:
        print(f"pycounter: changes to {counters._path} are lost: {error}", file=sys.stderr)  # noqa: T201
        counters.close(discard=True)
        return False


def _close_all() -> None:
    """At exit: writes what the program forgot to close, or says what is lost and fails."""
    lost = [counters for counters in list(_opened.values()) if not _close_or_tell(counters)]
    if lost:
        fail_at_exit()


def _close_at_exit_of_child() -> None:
    """A child of `multiprocessing` runs no exit handlers but `multiprocessing`'s own."""
    process = sys.modules.get("multiprocessing.process")
    if os.getpid() in _closed_at_end_of or process is None or process.parent_process() is None:
        return
    # After all other finalizers: it may end the process.
    sys.modules["multiprocessing.util"].Finalize(None, _close_all_in_child, exitpriority=-1000)
    _closed_at_end_of.add(os.getpid())


def _close_all_in_child() -> None:
    lost = [counters for counters in list(_opened.values()) if not _close_or_tell(counters)]
    if lost:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _forget_all() -> None:
    """In a forked child: the folders belong to the parent."""
    _opened.clear()
    _closed_at_end_of.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
