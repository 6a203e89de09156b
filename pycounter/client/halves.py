"""Whether the callers of a shard are served all together or in two halves. It belongs to one event loop.

Callers that count on as soon as they are answered fall into step: all of them wait while the shard writes their batch
to disk, and the shard waits while the client serves them. A batch that leaves as soon as it has half of them lets both
work at the same time. Where the disk is slow it only makes two writes of what could be one. Which is better depends on
the disk, the machine and the callers, so now and then the other way is tried, and kept if more increments are answered
by it: a window of answers each, those with a pause in them left out.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Halves"]

#: A smaller half isn't worth a request of its own.
_HALF_MIN = 8
#: Answers in a window.
_ANSWERS = 64
#: In a window with a gap so many times longer than the mean, callers or the machine paused.
_GAP = 8
#: What is better by less is noise.
_GAIN = 1.05
#: Between two trials there are at most so many windows: a trial that fails doubles them.
_WINDOWS_MAX = 64


class Halves:
    """Learns from answers at which size batches leave.

    Args:
        running_s: a clock.
    """

    __slots__ = (
        "_answered_at",
        "_answers",
        "_callers",
        "_callers_before",
        "_gap_s",
        "_is_apart",
        "_is_trial",
        "_rate",
        "_running_s",
        "_settled",
        "_since",
        "_wait",
        "_windows",
    )

    def __init__(self, running_s: Callable[[], float]) -> None:
        self._running_s = running_s
        self._is_apart = self._is_trial = False
        #: Increments a second by the way that is better as far as is known.
        self._rate = 0.0
        #: Windows since the last trial, and how many there are to be.
        self._windows, self._wait = 0, 1
        self._callers = 0
        self._begin(running_s())

    def _begin(self, now: float) -> None:
        """Begins a window."""
        self._since = self._answered_at = now
        self._answers = self._settled = 0
        self._gap_s = 0.0
        #: Callers are as many as there were at most in this window and the one before.
        self._callers_before, self._callers = self._callers, 0

    def on_answer(self, count: int, unsettled: int) -> int | None:
        """So many increments were answered together, when so many were not settled, these included.

        Gives the size at which batches leave from now on; None: all together.
        """
        now = self._running_s()
        self._gap_s = max(self._gap_s, now - self._answered_at)
        self._answered_at = now
        self._answers += 1
        self._settled += count
        self._callers = max(self._callers, unsettled)
        half = (max(self._callers, self._callers_before) + 1) // 2
        if self._answers == _ANSWERS:
            took_s = now - self._since
            if half >= _HALF_MIN and self._gap_s * _ANSWERS < _GAP * took_s:
                self._judge(self._settled / took_s)
            self._begin(now)
        return half if self._is_apart and half >= _HALF_MIN else None

    def _judge(self, rate: float) -> None:
        if self._is_trial:
            self._is_trial = False
            if rate > _GAIN * self._rate:
                self._rate, self._wait = rate, 1
            else:
                self._is_apart = not self._is_apart
                self._wait = min(2 * self._wait, _WINDOWS_MAX)
            self._windows = 0
            return
        self._rate = (self._rate + rate) / 2 if self._rate else rate
        self._windows += 1
        if self._windows >= self._wait:
            self._is_trial = True
            self._is_apart = not self._is_apart
