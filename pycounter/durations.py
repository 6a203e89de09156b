"""Times that callers give, in seconds."""

from __future__ import annotations

import math
from typing import Any

from pycounter.errors import BadRequest

__all__ = ["seconds"]

#: A hundred years: what timers can hold, and more than anybody waits.
FOREVER_S = 100 * 365.25 * 24 * 3600.0


def seconds(given: float | None, default_s: float) -> float:
    """A time that a caller gave, or the default for None. A negative one is over already: 0.

    Raises:
        BadRequest: it isn't a number, or is NaN.
    """
    if given is None:
        return default_s
    number: Any = given
    if not isinstance(number, int | float) or isinstance(number, bool) or math.isnan(number):
        raise BadRequest(f"a timeout is a number of seconds, not {given!r}: nothing was sent")
    return min(max(float(given), 0.0), FOREVER_S)
