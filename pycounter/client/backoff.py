"""How long to wait before the next attempt."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

_EXPONENT_MAX = 30


class Backoff:
    """Exponential and capped, each delay drawn between half and all of the current step, so that clients spread out."""

    __slots__ = ("_attempts", "_first_s", "_max_s", "_random")

    def __init__(self, first_s: float, max_s: float, chance: random.Random | None = None) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._attempts = 0
        self._random = chance or random.Random()

    def reset(self) -> None:
        """It worked: begin again with the first step."""
        self._attempts = 0

    def next_s(self) -> float:
        """The delay before the next attempt."""
        step = min(self._max_s, self._first_s * 2.0 ** min(self._attempts, _EXPONENT_MAX))
        self._attempts += 1
        return step * self._random.uniform(0.5, 1.0)
