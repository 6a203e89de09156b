"""The latest values of counters, in bounded memory and at a constant cost for each."""

from __future__ import annotations

__all__ = ["LatestValues"]


class LatestValues:
    """Remembers the values of the latest `counters_min` counters, and of at most twice as many.

    There are two generations. When the young one is full it becomes the old one, and what was old is dropped whole: no
    entry is ever looked for to make room for another, so a full one costs the same as an empty one.
    """

    __slots__ = ("_counters_min", "_old", "_young")

    def __init__(self, counters_min: int) -> None:
        self._counters_min = counters_min
        self._young: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def note(self, key: str | bytes, value: int) -> None:
        """This is the counter's value now."""
        self._young[key if isinstance(key, bytes) else key.encode()] = value
        if len(self._young) >= self._counters_min:
            self._old, self._young = self._young, {}

    def get(self, key: bytes) -> int | None:
        """The counter's latest value; None where it isn't remembered."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def forget(self, key: bytes | None) -> None:
        """Forgets a counter; None: all of them."""
        for generation in (self._young, self._old):
            if key is None:
                generation.clear()
            else:
                generation.pop(key, None)
