"""The checkpoint thread: folds durable commits into pages, then lets the engine drop the log below.

It works in small steps with pauses, so that the loop gets the interpreter between them. A failure is logged,
counted and tried again later: the log simply stays longer.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from pathlib import Path
from typing import Protocol

from pycounter._native import Fold
from pycounter.errors import StorageError
from pycounter.storage.checkpoint_store import CheckpointStore
from pycounter.storage.reserve import Reserve, free_bytes

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
#: What a start replays of the log in a second, at the least.
REPLAY_BYTES_PER_S = 100e6
#: A stop may finish a checkpoint in this time, however little it saves.
STOP_MIN_S = 1.0
#: How often a stop says how far its last checkpoint is.
PROGRESS_S = 2.0
#: The log is no trouble to any disk below this size.
LOG_BYTES_MIN = 256 * 1024
#: After a new file of the log was ordered: a commit begins it.
ROLL_S = 0.05


class _OutOfTime(Exception):
    """A stop can wait no longer for a checkpoint."""


class Foldable(Protocol):
    """What the checkpointer needs of a shard or an embedded map."""

    @property
    def log_bytes(self) -> int: ...
    @property
    def commits_behind(self) -> int: ...
    def roll_log(self) -> None: ...
    def begin_fold(self) -> Fold | None: ...
    def end_fold(self, fold: Fold) -> None: ...


class Checkpointer:
    """Checkpoints a folder in the background and on demand.

    Args:
        engine: the shard or the map.
        store: the checkpoint's rows; owned, and closed by `stop`.
        log_bytes: checkpoint once the log has grown by so much.
        interval_s: checkpoint after so many seconds, if anything was committed.
        reserve: room on the disk for checkpoints and starts.
    """

    def __init__(
        self,
        engine: Foldable,
        store: CheckpointStore,
        *,
        log_bytes: int,
        interval_s: float,
        reserve: Reserve | None = None,
    ) -> None:
        self._engine = engine
        self._store = store
        self._log_bytes = log_bytes
        self._interval_s = interval_s
        self._reserve = reserve
        # A stop waits for a fold until then.
        self._give_up_at = math.inf
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
        """Ends the thread, and closes the store.

        A last checkpoint saves the next start the replay of the log, which is the quicker of the two where many pages
        have changed. So it is given up once it takes longer than that replay would.
        """
        patience_s = 0.0
        if checkpoint:
            with contextlib.suppress(StorageError):
                self.log_bytes = self._engine.log_bytes
            patience_s = max(STOP_MIN_S, self.log_bytes / REPLAY_BYTES_PER_S)
        self._give_up_at = time.monotonic() + patience_s
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        try:
            # The thread may have waited for its own fold until now.
            if checkpoint and time.monotonic() < self._give_up_at:
                self.checkpoint()
        except _OutOfTime:
            _log.info("no last checkpoint: the next start replays the log sooner than one is written")
        finally:
            self._store.close()

    def make_room(self) -> None:
        """Before anything is served: checkpoints if the log has nearly filled the disk, and keeps a reserve."""
        try:
            self.log_bytes = self._engine.log_bytes
            if self._is_low() and self._engine.commits_behind > 0:
                _log.info("the log has nearly filled the disk: checkpointing before anything is served")
                self.checkpoint()
        except StorageError as error:
            self._note_failure(error)
        self._fill_reserve()

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
        told = time.monotonic()
        for step in range(fold.steps):
            if self._stopping.is_set():
                now = time.monotonic()
                if now > self._give_up_at:
                    raise _OutOfTime
                if now - told > PROGRESS_S:
                    told = now
                    _log.info("stopping: a checkpoint is being written, %d of %d pages", step, fold.steps)
            key = fold.old_key(step)
            rows = fold.merge(step, None if key is None else self._store.get(key))
            self._abandoned.extend(key for key, _ in rows)
            self._store.put_lazily(rows)
            if pause_s and not self._stopping.is_set():
                time.sleep(pause_s)
        key, root, garbage = fold.finish()
        self._store.put_safely(key, root)
        self._store.delete(self._abandoned[:older])
        del self._abandoned[:older]
        self._engine.end_fold(fold)
        self._abandoned.clear()
        self._store.delete(garbage)
        self.checkpoints += 1

    def _is_long(self) -> bool:
        return self.log_bytes - self._log_bytes_left >= self._log_bytes

    def _is_low(self) -> bool:
        """Would the log fill the disk before it is long?"""
        try:
            return self.log_bytes >= max(LOG_BYTES_MIN, free_bytes(self._store.path) // 2)
        except OSError:
            return False

    def _fill_reserve(self) -> None:
        if self._reserve is not None:
            with contextlib.suppress(OSError):  # there is no room: it is tried again after the next checkpoint
                self._reserve.fill()

    def _note_failure(self, error: Exception) -> None:
        self.failures += 1
        self.last_failure = str(error)
        _log.error("the checkpoint failed and is tried again; the log stays until then: %s", error)

    def _is_due(self, since_s: float) -> bool:
        if self._engine.commits_behind == 0:
            return False
        return since_s >= self._interval_s or self._is_long() or self._is_low()

    def _checkpoint_in_passing(self) -> None:
        if self._is_low():
            # Nothing of the file that is being written could be dropped; and the pages need room first.
            if self._reserve is not None:
                self._reserve.lend()
            self._engine.roll_log()
            time.sleep(ROLL_S)
        self.checkpoint(pause_s=STEP_PAUSE_S)
        self._fill_reserve()

    def _run(self) -> None:
        last = time.monotonic()
        flushed = self.checkpoints
        while not self._stopping.wait(POLL_S):
            try:
                self.log_bytes = self._engine.log_bytes
                since_s = time.monotonic() - last
                if self._is_due(since_s):
                    self._checkpoint_in_passing()
                    last = time.monotonic()
                elif since_s >= CALM_S and self.checkpoints != flushed:
                    self._flush()
                    flushed = self.checkpoints
            except _OutOfTime:
                return
            except (StorageError, MemoryError) as error:
                self._note_failure(error)
                if self._stopping.wait(RETRY_S):
                    return
