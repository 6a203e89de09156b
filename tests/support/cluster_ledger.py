"""What callers of a cluster were told, as bounds of each counter: the checker of tests that kill its processes.

Deltas are positive. A total is right if it lies between what was acknowledged and that plus what nobody knows yet; when
nothing is open, it is exactly what was acknowledged.
"""

from collections import Counter
from dataclasses import dataclass, field

from tests.support.history import Violation


@dataclass(slots=True)
class Ledger:
    """Every operation of every caller of one run."""

    acknowledged: Counter[bytes] = field(default_factory=Counter)
    open: Counter[bytes] = field(default_factory=Counter)
    """Attempted, and neither acknowledged nor known to have changed nothing."""
    operations: int = 0
    refused: int = 0
    reads: int = 0

    def attempt(self, key: bytes, delta: int) -> None:
        """Before it is handed to anybody."""
        self.operations += 1
        self.open[key] += delta

    def acknowledge(self, key: bytes, delta: int) -> None:
        """It was answered with a value."""
        self.open[key] -= delta
        self.acknowledged[key] += delta

    def refuse(self, key: bytes, delta: int) -> None:
        """It was answered with an error that promises that nothing was applied."""
        self.refused += 1
        self.open[key] -= delta

    def floor(self, key: bytes) -> int:
        """No exact read that begins now may give less."""
        return self.acknowledged[key]

    def check_read(self, who: str, key: bytes, value: int, floor: int) -> None:
        """An exact read, begun when the floor was this. Raises Violation."""
        self.reads += 1
        most = self.acknowledged[key] + self.open[key]
        if not floor <= value <= most:
            raise Violation(f"{who} read {value} of {key!r}, not from {floor} to {most}")

    def check_settled(self, totals: dict[bytes, int]) -> None:
        """Nothing runs any more. Raises Violation."""
        wrong = {
            key: f"{totals.get(key, 0)}, not from {self.acknowledged[key]} to {self.acknowledged[key] + self.open[key]}"
            for key in self.acknowledged.keys() | self.open.keys() | totals.keys()
            if not self.acknowledged[key] <= totals.get(key, 0) <= self.acknowledged[key] + self.open[key]
        }
        if wrong:
            raise Violation(f"{len(wrong)} of {len(totals)} totals are wrong: {dict(sorted(wrong.items())[:10])}")
