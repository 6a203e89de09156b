"""Durable counters inside the user's process: `pycounter.open`."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from types import TracebackType
from typing import Literal, Self

from pycounter._native import JournaledCounters
from pycounter.errors import PyCounterError
from pycounter.settings import parse_bytes
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import open_folder

__all__ = ["DurableCounters", "open"]

#: As the server's defaults.
CHECKPOINT_LOG_BYTES = 64 << 20
CHECKPOINT_INTERVAL_S = 300.0

#: By identity: counters compare by content, so they have no hash.
_opened: weakref.WeakValueDictionary[int, DurableCounters] = weakref.WeakValueDictionary()


class DurableCounters(JournaledCounters):
    """`Counters` on disk: made by `pycounter.open`. Thread-safe; a context manager that closes.

    At "durable" every change returns once it is fsynced; at "applied" once it is in memory, and it is fsynced within
    a second, by `flush`, and by `close`.
    """

    _checkpointer: Checkpointer | None = None

    def checkpoint(self) -> None:
        """Folds the log into the checkpoint now, so that the next opening is quick.

        Raises:
            StorageError: it failed; nothing is lost, the log stays.
        """
        self.flush()
        if self._checkpointer is not None:
            self._checkpointer.checkpoint()

    def close(self) -> None:
        """Writes what is pending, makes a checkpoint and unlocks the folder. Idempotent.

        Raises:
            StorageError: not everything could be written; the folder is unlocked all the same.
        """
        checkpointer, self._checkpointer = self._checkpointer, None
        try:
            if checkpointer is not None:
                try:
                    self.flush()
                finally:
                    checkpointer.stop()
        finally:
            super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001 - as in `pycounter.open`
    path: str | os.PathLike[str],
    level: Literal["applied", "durable"] = "durable",
    *,
    memory_max: int | str = "8GiB",
    flush_interval_s: float = 1.0,
) -> DurableCounters:
    """Opens counters on disk, and makes them if the folder is empty or missing.

    Args:
        path: the folder. One process at a time; a server's folder is one too.
        level: when a change returns: "durable", once it is fsynced; "applied", once it is in memory.
        memory_max: bytes that the counters may take in memory, such as 1073741824 or "1GiB".
        flush_interval_s: `applied` changes are on disk after at most so many seconds (up to 1).

    Raises:
        FolderLocked: another process has it open.
        FormatTooNew: a newer version wrote it.
        DamagedData: what is there can't be what was written; nothing was changed.
        StorageError: the disk failed.
        ValueError: an argument is out of range.
    """
    if not 0 < flush_interval_s <= 1:
        raise ValueError(f"flush_interval_s must be above 0 and at most 1, not {flush_interval_s}")
    counters, store = open_folder(
        path,
        lambda: DurableCounters(
            path, level=level, counters_bytes_max=parse_bytes(memory_max), flush_interval_s=flush_interval_s
        ),
    )
    checkpointer = Checkpointer(counters, store, log_bytes=CHECKPOINT_LOG_BYTES, interval_s=CHECKPOINT_INTERVAL_S)
    try:
        counters.start()
    except BaseException:
        checkpointer.stop(checkpoint=False)
        counters.close_folder()
        raise
    counters._checkpointer = checkpointer
    checkpointer.start()
    _opened[id(counters)] = counters
    return counters


def _close_all() -> None:
    """At exit: what the program forgot to close is written."""
    for counters in list(_opened.values()):
        with contextlib.suppress(PyCounterError):
            counters.close()


def _forget_all() -> None:
    """In a forked child: the folders belong to the parent."""
    _opened.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
