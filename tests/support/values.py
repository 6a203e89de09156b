"""What counts as a key and as a delta: one table for every surface in a process and every client."""

from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np

from pycounter import Counters

MINIMUM, MAXIMUM = -(2**63), 2**63 - 1


class Index:
    """Something that Python takes for an index."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


#: What is taken, and the integer that it is.
DELTAS: list[tuple[Any, int]] = [
    (1, 1),
    (-3, -3),
    (0, 0),
    (MAXIMUM, MAXIMUM),
    (MINIMUM, MINIMUM),
    (True, 1),
    (False, 0),
    (np.int64(-7), -7),
    (np.uint8(200), 200),
    (Index(12), 12),
]
#: What is refused, always with BadDelta.
BAD_DELTAS: list[Any] = [
    1.0, 1.5, float("nan"), np.float64(2), Decimal(2), Fraction(2), "2", b"2", None, [1], 2j,
    MAXIMUM + 1, MINIMUM - 1, 10**40, np.uint64(2**63), Index(2**63),
]  # fmt: skip
#: What is taken, and the key's bytes.
KEYS: list[tuple[Any, bytes]] = [
    ("a", b"a"),
    (b"a", b"a"),
    ("ü", "ü".encode()),
    (b"\xff\x00", b"\xff\x00"),
    ("x" * 1024, b"x" * 1024),
    (np.str_("n"), b"n"),
]
#: What is refused, always with BadKey.
BAD_KEYS: list[Any] = [
    "",
    b"",
    "x" * 1025,
    "ü" * 513,
    "\ud800",
    1,
    1.5,
    None,
    True,
    ("a",),
    bytearray(b"a"),
    Decimal(1),
]
#: The same increments, a: 1 and b: 2, in every form in which a call takes many of them.
FORMS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {"a": 1, b"b": 2},
    "Counter": lambda: Counter(a=1, b=2),
    "Counters": lambda: Counters(a=1, b=2),
    "pairs": lambda: [("a", 1), (b"b", 2)],
    "tuple": lambda: (("a", 1), ("b", 2)),
    "lists": lambda: [["a", 1], ["b", 2]],
    "generator": lambda: (pair for pair in [("a", 1), ("b", 2)]),
    "items": {"a": 1, "b": 2}.items,
}
