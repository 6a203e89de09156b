"""Time and chance, in one place, so that a simulation can replace both.

What runs on an event loop takes the loop's own time for its delays and deadlines. Here is the rest: clocks that outlast
a loop or a process, and random numbers.
"""

from __future__ import annotations

import os
import random
import time

__all__ = ["SYSTEM_CLOCK", "Clock"]


class Clock:
    """The system's clocks and random numbers. A simulation derives its own."""

    def running_s(self) -> float:
        """Seconds that the machine has run, those in which it slept too: another machine ran on meanwhile."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        """Seconds since 1970, as far as the machine knows."""
        return time.time()

    def random(self) -> random.Random:
        """A generator for jitter and samples."""
        return random.Random()

    def random_bytes(self, count: int) -> bytes:
        """Bytes that nobody can guess, for ids."""
        return os.urandom(count)


SYSTEM_CLOCK = Clock()
