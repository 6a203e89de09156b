"""The checkpoint thread: folds durable commits into pages, then lets the engine drop the log below.

It works in small steps with pauses, so that the loop gets the interpreter between them. A failure is logged,
counted and tried again later: the log simply stays longer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from pycounter._native import Fold
from pycounter.errors import StorageError
from pycounter.storage.checkpoint_store import CheckpointStore

__all__ = ["Checkpointer"]

_log = logging.getLogger(__name__)

#: How often the thread looks whether there is enough to do.
POLL_S = 0.2
#: The pause after each page while the server is busy: the loop gets the interpreter.
STEP_PAUSE_S = 0.001
#: After so long without a checkpoint, rows that the store holds in memory go to its files. Sooner, most of them would
#: be replaced before they are written at all.
CALM_S = 2.0
#: After a failure, before the next attempt.
RETRY_S = 5.0


class Foldable(Protocol):
    """What the checkpointer needs of a shard or an embedded map."""

    @property
    def log_bytes(self) -> int: ...
    @property
    def commits_behind(self) -> int: ...
    def begin_fold(self) -> Fold | None: ...
    def end_fold(self, fold: Fold) -> None: ...


class Checkpointer:
    """Checkpoints a folder in the background and on demand.

    Args:
        engine: the shard or the map.
        store: the checkpoint's rows; owned, and closed by `stop`.
        log_bytes: checkpoint once the log has grown by so much.
        interval_s: checkpoint after so many seconds, if anything was committed.
    """

    def __init__(self, engine: Foldable, store: CheckpointStore, *, log_bytes: int, interval_s: float) -> None:
        self._engine = engine
        self._store = store
        self._log_bytes = log_bytes
        self._interval_s = interval_s
        # What the last checkpoint couldn't drop: the file that is being written.
        self._log_bytes_left = 0
        self._one_at_a_time = threading.Lock()
        self._process = os.getpid()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # Pages of folds that failed. Whether the root of such a fold is in the store is not known, so they may go only
        # once a later root is.
        self._abandoned: list[bytes] = []
        #: Made since the start, failed attempts, and why the last attempt failed if it did.
        self.checkpoints = 0
        self.failures = 0
        self.last_failure: str | None = None
        #: Bytes of the log's files, as the thread saw them last.
        self.log_bytes = 0

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that made it: there is no thread here, and no store."""
        return self._process != os.getpid()

    @property
    def is_this_thread(self) -> bool:
        """Whether it is the thread that asks."""
        return self._thread is threading.current_thread()

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="pycounter-checkpoint", daemon=True)
        self._thread.start()

    def checkpoint(self, *, pause_s: float = 0.0) -> int:
        """Folds everything that is durable now. Returns the last commit folded, 0 if there was nothing new.

        Raises:
            StorageError: the old checkpoint and the log are as they were, or the new one is whole.
        """
        folded = 0
        with self._one_at_a_time:
            self._store.reopen_if_broken()
            # What becomes durable meanwhile is the next checkpoint's: under load there would be no end.
            behind = self._engine.commits_behind
            while behind > 0 and (fold := self._engine.begin_fold()) is not None:
                self._fold(fold, pause_s)
                folded = fold.commit
                behind -= fold.commits
            self._log_bytes_left = self.log_bytes = self._engine.log_bytes
            self.last_failure = None
        return folded

    def stop(self, *, checkpoint: bool = True) -> None:
        """Ends the thread, makes a last checkpoint, closes the store."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if checkpoint:
                self.checkpoint()
        finally:
            self._store.close()

    def copy_to(self, directory: Path) -> None:
        """Checkpoints, then copies the store's rows to a new folder, with no fold in between."""
        self.checkpoint()
        with self._one_at_a_time:
            self._store.reopen_if_broken()
            self._store.copy_to(directory)

    def _flush(self) -> None:
        with self._one_at_a_time:
            self._store.reopen_if_broken()
            self._store.flush()
            self.last_failure = None

    def _fold(self, fold: Fold, pause_s: float) -> None:
        older = len(self._abandoned)
        for step in range(fold.steps):
            key = fold.old_key(step)
            rows = fold.merge(step, None if key is None else self._store.get(key))
            self._abandoned.extend(key for key, _ in rows)
            self._store.put_lazily(rows)
            if pause_s:
                time.sleep(pause_s)
        key, root, garbage = fold.finish()
        self._store.put_safely(key, root)
        self._store.delete(self._abandoned[:older])
        del self._abandoned[:older]
        self._engine.end_fold(fold)
        self._abandoned.clear()
        self._store.delete(garbage)
        self.checkpoints += 1

    def _is_due(self, since_s: float) -> bool:
        if self._engine.commits_behind == 0:
            return False
        return since_s >= self._interval_s or self.log_bytes - self._log_bytes_left >= self._log_bytes

    def _run(self) -> None:
        last = time.monotonic()
        flushed = self.checkpoints
        while not self._stopping.wait(POLL_S):
            try:
                self.log_bytes = self._engine.log_bytes
                since_s = time.monotonic() - last
                if self._is_due(since_s):
                    self.checkpoint(pause_s=STEP_PAUSE_S)
                    last = time.monotonic()
                elif since_s >= CALM_S and self.checkpoints != flushed:
                    self._flush()
                    flushed = self.checkpoints
            except (StorageError, MemoryError) as error:
                self.failures += 1
                self.last_failure = str(error)
                _log.error("the checkpoint failed and is tried again; the log stays until then: %s", error)
                if self._stopping.wait(RETRY_S):
                    return
