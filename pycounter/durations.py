"""Numbers that users give: times in seconds, and everything that is counted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container
from typing import Any

from pycounter.errors import BadRequest, SettingsError

__all__ = ["check_numbers", "is_number", "seconds"]

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


def is_number(value: Any, wanted: Any = int | float) -> bool:
    """Is it a finite number? `True` is none."""
    return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(settings: Any, *, may_be_zero: Container[str] = ()) -> None:
    """Checks every number among the fields of a dataclass with settings.

    Raises:
        SettingsError: one isn't a finite number above 0 (0 is allowed to some), or not an integer where it has to be.
    """
    for field in dataclasses.fields(settings):
        wanted: Any = {"int": int, "float": int | float}.get(str(field.type))
        if wanted is None:
            continue
        value = getattr(settings, field.name)
        if not is_number(value, wanted) or value < 0 or (value == 0 and field.name not in may_be_zero):
            kind = "an integer" if wanted is int else "a number"
            least = "at least 0" if field.name in may_be_zero else "above 0"
            raise SettingsError(f"{field.name} must be {kind} {least}, not {value!r}", setting=field.name)
