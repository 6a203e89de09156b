"""Whether the callers of a shard are served all together or in two halves. It belongs to one event loop.

Callers that count on as soon as they are answered fall into step: all of them wait while the shard writes their batch
to disk, and the shard waits while the client serves them. Where the client takes longer than the shard, it is better
that a batch leaves as soon as it has half of them: then both work at the same time. Where the disk is slower, two
halves would only need two writes for what one can do.
"""

from __future__ import annotations

__all__ = ["Halves"]

#: A batch of fewer tells little, and isn't worth a request of its own.
_COUNT_MIN = 8
#: How much a new sample counts.
_SHARE = 1 / 8
#: There are as many callers as there were at most during so many answers, or twice as many.
_ANSWERS = 32


class Halves:
    """Learns from what leaves and what is answered."""

    __slots__ = ("_answer_s", "_answers", "_callers", "_callers_before", "_is_apart", "_serving_s")

    def __init__(self) -> None:
        #: From one increment of a batch to the next, and from a batch to its answer; both smoothed.
        self._serving_s = 0.0
        self._answer_s = 0.0
        self._answers = 0
        self._callers = self._callers_before = 0
        self._is_apart = False

    def on_leave(self, count: int, gathered_s: float) -> None:
        """A batch leaves, so long after its first increment came."""
        if count >= _COUNT_MIN:
            self._serving_s += _SHARE * (gathered_s / count - self._serving_s)

    def on_answer(self, answer_s: float, operations: int) -> int | None:
        """A batch was answered after so long, when so many operations were not settled.

        Gives at which size batches leave from now on; None: all together.
        """
        self._answer_s += _SHARE * (answer_s - self._answer_s)
        self._answers += 1
        if self._answers % _ANSWERS == 0:
            self._callers, self._callers_before = 0, self._callers
        self._callers = max(self._callers, operations)
        callers = max(self._callers, self._callers_before)
        # Apart, a half may have to wait for the write of the other.
        limit_s = self._answer_s / 2 if self._is_apart else self._answer_s
        self._is_apart = callers >= 2 * _COUNT_MIN and self._serving_s * callers > limit_s
        return (callers + 1) // 2 if self._is_apart else None
