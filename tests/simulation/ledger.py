"""What was attempted, what was answered, and what must therefore be true of every value that anybody sees.

The operations on a counter add 1, 4, 16, ...: so a value says which of them are in it. Written in base 4, the digit of
an operation is 0 if it isn't counted and 1 if it is; 2 says that it was counted twice. So the ledger checks sets of
operations and not sums, and names the operation that is missing or doubled.

What must hold for a value that was answered at `durable`, of a read or of a change:

- every operation in it had been begun, and none in it was refused, then or later;
- every operation is in it that was acknowledged as durable, or was in an earlier such value, before it was asked for;
- whatever is in it is in every later one, across any number of crashes.

Where a counter is drained, each operation is in one drained amount, or in what is left, or, if it is unknown what a
drain took, in neither.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

#: So many operations of one counter fit into 64 bits.
PER_COUNTER = 31
Level = Literal["applied", "durable"]
State = Literal["begun", "acknowledged", "applied", "refused", "unknown", "lost"]


def client_of(who: str) -> str:
    """The client of a caller."""
    return who.partition(".")[0]


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(slots=True, eq=False)
class Operation:
    """One increment."""

    who: str
    key: str
    place: int
    level: Level
    state: State = "begun"
    #: What was known when it was begun.
    floor: int = 0

    @property
    def delta(self) -> int:
        return 1 << (2 * self.place)

    def __str__(self) -> str:
        return f"{self.key} +4^{self.place} ({self.who}, {self.state})"


@dataclass(slots=True, eq=False)
class Read:
    """A read that has begun, or a drain."""

    who: str
    key: str
    #: What is safe, and what of it this client was told itself.
    floor: int
    own: int = 0


@dataclass(slots=True, eq=False)
class _Counter:
    operations: list[Operation] = field(default_factory=list)
    #: Operations as bits, by place: acknowledged as durable or seen in a durable value.
    safe: int = 0
    #: Everything that was ever in a durable value, or taken.
    seen: int = 0
    drained: int = 0
    is_drained: bool = False
    #: Acknowledged as durable, by client.
    own: dict[str, int] = field(default_factory=dict)
    unknown_drains: int = 0


class Ledger:
    """Of all counters of one simulation."""

    def __init__(self) -> None:
        self.counters: dict[str, _Counter] = {}
        self.acknowledged = 0
        self.reads = 0
        self.unknown = 0
        self.refused = 0
        self.lost = 0

    def is_full(self, key: str) -> bool:
        """May no more operations be begun on it?"""
        counter = self.counters.get(key)
        return counter is not None and len(counter.operations) >= PER_COUNTER

    def operation(self, key: str, place: int) -> Operation:
        return self.counters[key].operations[place]

    # --- changes ---------------------------------------------------------------------------------------------------

    def begin(self, who: str, key: str, level: Level = "durable") -> Operation:
        """An operation is about to be handed to the client."""
        counter = self.counters.setdefault(key, _Counter())
        operation = Operation(who, key, len(counter.operations), level, floor=counter.safe)
        counter.operations.append(operation)
        return operation

    def acknowledge(self, operation: Operation, value: int | None, level: Level, *, is_whole: bool = True) -> None:
        """It was answered with a value; None: it counted, and its value is no more known.

        `is_whole`: the value is the counter's. Otherwise it may lack what other shards hold, or was held before.
        """
        counter = self.counters[operation.key]
        if operation.state == "lost" and level == "applied":
            # Its caller hears of the answer only after the client has heard of the crash.
            return
        if operation.state not in {"begun", "unknown"}:
            raise Violation(f"{operation} was acknowledged after all")
        self.acknowledged += 1
        if level == "applied":
            operation.state = "applied"
        else:
            operation.state = "acknowledged"
            counter.safe |= 1 << operation.place
            client = client_of(operation.who)
            counter.own[client] = counter.own.get(client, 0) | 1 << operation.place
        if value is None:
            return
        inside = self._inside(operation.key, value, str(operation), may_be_lost=level == "applied" or not is_whole)
        if not inside >> operation.place & 1:
            raise Violation(f"{operation} was answered with {value}, which doesn't have it")
        if level == "durable" and is_whole:
            self._note_seen(operation.key, inside, operation.floor, str(operation))

    def refuse(self, operation: Operation) -> None:
        """It was refused: nothing was applied, and nothing ever will be."""
        if operation.state not in {"begun", "unknown"}:
            raise Violation(f"{operation} was refused")
        self.refused += 1
        operation.state = "refused"

    def give_up(self, operation: Operation) -> None:
        """Nobody knows."""
        if operation.state == "begun":
            self.unknown += 1
            operation.state = "unknown"

    def lose(self, key: str, delta: int) -> None:
        """It was acknowledged at `applied`, and the client says that a crash took it."""
        operation = self.operation(key, (delta.bit_length() - 1) // 2)
        # Its caller may not have run since the answer came, or has given up before.
        if operation.level != "applied" or operation.state not in {"applied", "begun", "unknown"}:
            raise Violation(f"{operation} was reported as lost")
        self.lost += 1
        operation.state = "lost"

    # --- reads and drains ------------------------------------------------------------------------------------------

    def begin_read(self, who: str, key: str) -> Read:
        counter = self.counters.setdefault(key, _Counter())
        return Read(who, key, counter.safe, counter.own.get(client_of(who), 0))

    def end_read(self, read: Read, value: int, *, is_exact: bool = True, is_complete: bool = True) -> int:
        """A read at `durable` gave a value. Gives the operations in it.

        An exact one has all that is safe; any other that is complete has what its own client was told.
        """
        self.reads += 1
        inside = self._inside(read.key, value, read.who)
        self._note_seen(read.key, inside, (read.floor if is_exact else read.own) if is_complete else 0, read.who)
        return inside

    def check(self, who: str, key: str, value: int) -> None:
        """A value that may be as old as it likes: is it one at all?"""
        self.reads += 1
        self._inside(key, value, who, may_be_lost=True)

    def begin_drain(self, who: str, key: str) -> Read:
        counter = self.counters.setdefault(key, _Counter())
        counter.is_drained = True
        return Read(who, key, 0)

    def end_drain(self, drain: Read, amount: int | None) -> None:
        """It took so much; None: nobody knows what."""
        counter = self.counters[drain.key]
        if amount is None:
            counter.unknown_drains += 1
            return
        inside = self._inside(drain.key, amount, f"drain by {drain.who}")
        if twice := inside & counter.drained:
            raise Violation(f"drain by {drain.who}: {self._names(drain.key, twice)} were taken before")
        counter.drained |= inside
        counter.seen |= inside

    # --- the end ---------------------------------------------------------------------------------------------------

    def settle(self, key: str, value: int) -> int:
        """Everything is over, and this is the counter's value. Gives the operations in it."""
        counter = self.counters[key]
        inside = self._inside(key, value, "the last read")
        if twice := inside & counter.drained:
            raise Violation(f"{self._names(key, twice)} were drained and are still there")
        there = inside | counter.drained
        for operation in counter.operations:
            is_there = there >> operation.place & 1
            if is_there and operation.state in {"refused", "lost"}:
                raise Violation(f"{operation} is in the last value")
            if not is_there and operation.state == "acknowledged" and not counter.unknown_drains:
                raise Violation(f"{operation} is missing in the last value")
        if not counter.is_drained and (gone := counter.seen & ~inside):
            raise Violation(f"{self._names(key, gone)} were seen before and are not in the last value")
        return inside

    def missing_applied(self, key: str, inside: int) -> list[Operation]:
        """Acknowledged at `applied`, not there, and not reported as lost."""
        counter = self.counters[key]
        there = inside | counter.drained
        if counter.unknown_drains:
            return []
        return [
            operation
            for operation in counter.operations
            if operation.state == "applied" and not there >> operation.place & 1
        ]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _inside(self, key: str, value: int, who: str, *, may_be_lost: bool = False) -> int:
        """The operations in a value, as bits. An answer at `applied` may come late, with what a crash took since."""
        counter = self.counters[key]
        if type(value) is not int or value < 0:
            raise Violation(f"{who}: {key} is {value!r}")
        inside = place = 0
        while value:
            digit = value & 3
            if digit:
                if place >= len(counter.operations):
                    raise Violation(f"{who}: {key} has 4^{place}, which nobody added")
                if digit > 1:
                    raise Violation(f"{who}: {counter.operations[place]} was counted {digit} times")
                if counter.operations[place].state in ({"refused"} if may_be_lost else {"refused", "lost"}):
                    raise Violation(f"{who}: has {counter.operations[place]}")
                inside |= 1 << place
            value >>= 2
            place += 1
        return inside

    def _note_seen(self, key: str, inside: int, floor: int, who: str) -> None:
        counter = self.counters[key]
        if counter.is_drained:
            return
        if gone := floor & ~inside:
            raise Violation(f"{who}: {self._names(key, gone)} were safe before and are not in the value")
        counter.seen |= inside
        counter.safe |= inside

    def _names(self, key: str, places: int) -> str:
        operations: Iterable[Operation] = self.counters[key].operations
        return ", ".join(str(operation) for operation in operations if places >> operation.place & 1)
