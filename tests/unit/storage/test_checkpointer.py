"""The checkpoint thread's loop, with an engine that never runs out of new commits."""

from typing import Any

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
