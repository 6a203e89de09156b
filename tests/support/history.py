"""The checker of crash tests: what was attempted, what was answered, and what that says about every total.

Clients report each operation before its bytes are handed to the transport, each answer, and each read of counters. The
checker holds for every counter, at any moment:

    acknowledged sum <= total <= attempted sum

where *acknowledged* is what was answered as durable before the read began, and *attempted* is what was sent before the
read ended. Once every outcome is settled the two are equal, and so must be the total. Beyond sums:

- A repeated operation gets the answer it got first, to the digit.
- The value after an increment is answered, so an increment of `d` that answered `v` owns the range from `v - d` to `v`:
  on a counter that only grows, no two increments may own one unit, and in the end they tile it from 0 to its total.
- What a read saw is visible to every later read, across any number of kills (visible means safe).

Nothing here knows a socket, so that the checker itself can be tested on histories made up to be wrong.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Level = Literal["applied", "durable"]


class Violation(AssertionError):
    """The server broke a promise."""


@dataclass(slots=True, eq=False)
class Operation:
    """One operation under one sequence or id, sent once or many times."""

    who: str
    """The session and sequence, or the id: for messages."""
    key: bytes
    delta: int
    kind: Literal["incr", "drain"] = "incr"
    first: int | str | None = None
    """The answer that binds: a value, or an error's code. None as long as nobody was told."""
    applied: int | str | None = None
    """An answer given at `applied`, which binds only until the next kill ..."""
    applied_epoch: int = 0
    """... that is, within this run of the server."""
    abandoned: bool = False
    """The client was told that it is lost, or may be: it won't be sent again."""

    def __str__(self) -> str:
        return f"{self.kind} {self.key!r} {self.delta:+d} ({self.who})"


@dataclass(slots=True)
class _Counter:
    attempted_up: int = 0
    attempted_down: int = 0
    acknowledged_up: int = 0
    acknowledged_down: int = 0
    drained: int = 0
    """By acknowledged drains."""
    can_fall: bool = False
    has_drains: bool = False
    open_operations: int = 0
    unknown_operations: int = 0
    """Abandoned with nobody knowing whether they were applied."""
    seen: int = 0
    """The highest value that any finished read or answered increment saw, where it can't fall."""
    ranges: dict[int, int] = field(default_factory=dict)
    """Value after an increment: its delta."""


@dataclass(frozen=True, slots=True)
class Floor:
    """What must be visible to a read that begins now."""

    totals: Mapping[bytes, tuple[int, int]]
    """For each counter what was acknowledged: additions (or more, if more was seen), and all that took away."""


class History:
    """Everything that happened to the counters of one shard."""

    def __init__(self) -> None:
        self._counters: dict[bytes, _Counter] = {}
        self.acknowledged = 0
        self.repeated = 0
        self.reads = 0
        self.lost = 0

    def _counter(self, key: bytes) -> _Counter:
        return self._counters.setdefault(key, _Counter())

    @property
    def keys(self) -> list[bytes]:
        """Every counter that anyone touched."""
        return list(self._counters)

    # --- operations ------------------------------------------------------------------------------------------------

    def attempt(self, operation: Operation) -> None:
        """The operation is about to be sent for the first time."""
        counter = self._counter(operation.key)
        counter.open_operations += 1
        if operation.kind == "drain":
            counter.can_fall = counter.has_drains = True
        elif operation.delta >= 0:
            counter.attempted_up += operation.delta
        else:
            counter.attempted_down += operation.delta
            counter.can_fall = True

    def answer(self, operation: Operation, result: int | str, level: Level = "durable", epoch: int = 0) -> None:
        """An answer came, the first or a repeated one: a value, or an error's code that the operation ended with."""
        if operation.abandoned:
            raise Violation(f"{operation} was answered {result!r} after it was reported lost")
        before = operation.first
        if before is None and operation.applied_epoch == epoch:
            before = operation.applied
        if before is not None:
            self.repeated += 1
            if before != result:
                raise Violation(f"{operation} was answered {before!r}, and repeated {result!r}")
        if operation.first is not None:
            return
        if level == "durable":
            operation.first = result
            self._settle(operation, result)
        else:
            operation.applied = result
            operation.applied_epoch = epoch

    def _settle(self, operation: Operation, result: int | str) -> None:
        self.acknowledged += 1
        counter = self._counter(operation.key)
        counter.open_operations -= 1
        if isinstance(result, str):
            # It ended without effect: nobody waits for it any more.
            if operation.kind == "incr" and operation.delta >= 0:
                counter.attempted_up -= operation.delta
            elif operation.kind == "incr":
                counter.attempted_down -= operation.delta
        elif operation.kind == "drain":
            counter.drained += result
        elif operation.delta < 0:
            counter.acknowledged_down += operation.delta
        else:
            counter.acknowledged_up += operation.delta
            if not counter.can_fall:
                self._own(counter, operation, result)

    def _own(self, counter: _Counter, operation: Operation, value: int) -> None:
        if value < operation.delta or value > counter.attempted_up:
            raise Violation(f"{operation} was answered {value}, of {counter.attempted_up} attempted in all")
        if operation.delta:
            if value in counter.ranges:
                raise Violation(f"{operation} was answered {value}, as another increment was")
            counter.ranges[value] = operation.delta
        counter.seen = max(counter.seen, value)

    def abandon(self, operation: Operation, *, known_lost: bool) -> None:
        """The client will never ask again. `known_lost`: it was told that the operation isn't in the total."""
        if operation.abandoned or operation.first is not None:
            raise ValueError(f"{operation} is settled")
        operation.abandoned = True
        self.lost += 1
        counter = self._counter(operation.key)
        counter.open_operations -= 1
        if not known_lost:
            counter.unknown_operations += 1
        elif operation.kind == "incr" and operation.delta >= 0:
            counter.attempted_up -= operation.delta
        elif operation.kind == "incr":
            counter.attempted_down -= operation.delta

    # --- reads -----------------------------------------------------------------------------------------------------

    def begin_read(self, keys: Iterable[bytes] | None = None) -> Floor:
        """A read of these counters (all, if not told) is about to be sent."""
        totals = {}
        for key in self._counters if keys is None else keys:
            counter = self._counter(key)
            up = counter.acknowledged_up
            if not counter.can_fall:
                up = max(up, counter.seen)
            totals[key] = (up, counter.acknowledged_down - counter.drained)
        return Floor(totals)

    def end_read(self, floor: Floor, values: Mapping[bytes, int]) -> None:
        """The read's answer came, at `durable`."""
        self.reads += 1
        for key, value in values.items():
            if key not in floor.totals:
                continue
            counter = self._counter(key)
            up, down = floor.totals[key]
            highest = counter.attempted_up + down
            if value > highest:
                raise Violation(f"{key!r} is {value}, but only {highest} was attempted")
            if not counter.can_fall:
                if value < up:
                    raise Violation(f"{key!r} is {value}, but {up} was acknowledged or seen before")
                counter.seen = max(counter.seen, value)
            elif not counter.has_drains and value < up + counter.attempted_down:
                raise Violation(f"{key!r} is {value}, but must be at least {up + counter.attempted_down}")

    # --- the end ---------------------------------------------------------------------------------------------------

    def check_settled(self, totals: Mapping[bytes, int]) -> None:
        """Nothing is under way any more: acknowledged, total and attempted must be one number."""
        unknown_keys = totals.keys() - self._counters.keys()
        if unknown_keys:
            raise Violation(f"counters that nobody touched: {sorted(unknown_keys)[:10]}")
        for key, counter in self._counters.items():
            if counter.open_operations:
                raise Violation(f"{key!r} has {counter.open_operations} operations whose outcome nobody was told")
            total = totals.get(key, 0)
            acknowledged = counter.acknowledged_up + counter.acknowledged_down - counter.drained
            if counter.unknown_operations:
                highest = counter.attempted_up + counter.acknowledged_down - counter.drained
                if not acknowledged <= total <= highest:
                    raise Violation(f"{key!r} is {total}, and not within {acknowledged} to {highest}")
            elif total != acknowledged:
                raise Violation(f"{key!r} is {total}, but {acknowledged} was acknowledged")
            if not counter.can_fall:
                self._check_tiles(key, counter, total)

    @staticmethod
    def _check_tiles(key: bytes, counter: _Counter, total: int) -> None:
        end = 0
        for value in sorted(counter.ranges):
            start = value - counter.ranges[value]
            if start < end:
                raise Violation(f"{key!r}: two increments answered values that overlap at {end}")
            if start > end and not counter.unknown_operations:
                raise Violation(f"{key!r}: nobody added the units from {end} to {start}")
            end = value
        if end > total:
            raise Violation(f"{key!r} is {total}, but an increment was answered {end}")
