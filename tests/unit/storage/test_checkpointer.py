"""The checkpoint thread's loop, with an engine that never runs out of new commits."""

import threading
from pathlib import Path
from typing import Any

from pycounter.storage import checkpointer as checkpointer_module
from pycounter.storage.checkpoint_store import CheckpointStore
from pycounter.storage.checkpointer import Checkpointer


class EndlessFold:
    """Folds two commits into no page."""

    commits = 2
    steps = 0

    def __init__(self, commit: int) -> None:
        self.commit = commit

    def finish(self) -> tuple[bytes, bytes, list[bytes]]:
        return b"root", b"%d" % self.commit, []


class EndlessEngine:
    """While two commits are folded, two more become durable."""

    log_bytes = 0
    commits_behind = 5

    def __init__(self) -> None:
        self.folded = 0

    def begin_fold(self) -> EndlessFold:
        return EndlessFold(self.folded + EndlessFold.commits)

    def end_fold(self, fold: EndlessFold) -> None:
        self.folded = fold.commit


def test_a_checkpoint_under_load_ends(tmp_path):
    engine: Any = EndlessEngine()
    checkpointer = Checkpointer(engine, CheckpointStore(tmp_path), log_bytes=1, interval_s=1000)
    assert checkpointer.checkpoint() == 6, "everything that was durable at its beginning, and no more"
    checkpointer.stop()
    assert engine.folded == 12


class QuietEngine:
    """Has one fold to make, ever."""

    log_bytes = 0
    commits_behind = 1

    def begin_fold(self) -> EndlessFold | None:
        return EndlessFold(1) if self.commits_behind else None

    def end_fold(self, fold: EndlessFold) -> None:
        self.commits_behind = 0


class CountingStore(CheckpointStore):
    """Says when it was flushed."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.flushed = threading.Semaphore(0)

    def flush(self) -> None:
        super().flush()
        self.flushed.release()


def test_a_calm_store_is_flushed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpointer_module, "POLL_S", 0.01)
    monkeypatch.setattr(checkpointer_module, "CALM_S", 0.05)
    engine: Any = QuietEngine()
    store = CountingStore(tmp_path)
    checkpointer = Checkpointer(engine, store, log_bytes=1, interval_s=0.01)
    checkpointer.start()
    assert store.flushed.acquire(timeout=60)
    assert not store.flushed.acquire(timeout=0.3), "there was nothing more to flush"
    checkpointer.stop()
