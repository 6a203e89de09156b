"""A change at one shard, sent again under its ids until the shard has settled it or the time is over.

What it does at several shards is summed up here as well: the sum, or the error that says who did what.

One event loop. Cancelled, it stops repeating: what was sent may have been applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pycounter.client.backoff import Backoff
from pycounter.client.retry import BEFORE_THE_ID
from pycounter.clock import Clock
from pycounter.coordinator.shard_routes import ShardRoutes
from pycounter.durations import seconds
from pycounter.errors import (
    BadRequest,
    IdExpired,
    InternalError,
    RemovalUnsettled,
    RpcError,
    Unavailable,
    from_wire,
)

__all__ = ["Attempt", "Change", "Deletions", "Operation", "RemovalSettings", "Removed", "Settled", "Settling"]

ID_BYTES = 16
ID_BYTES_MAX = 64
#: No shard's clock goes further.
_TIME_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalSettings:
    """Times are seconds."""

    #: Of a removal that names none.
    timeout_s: float = 10.0
    #: One attempt at one shard.
    attempt_timeout_s: float = 2.0
    #: An operation is not repeated for longer; below the shards' window for ids, 2 minutes by default.
    id_window_s: float = 110.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Removed:
    """What a removal took."""

    #: From all shards together: an amount, or a number of counters.
    taken: int
    #: By shard, the commit that covers it there. Repeated under its id, it may be a later one.
    commits: dict[str, int]


@dataclass(slots=True)
class Settled:
    """What became of a change at one shard: its answer, or why there is none and whether it may count all the same."""

    value: int = 0
    commit: int = 0
    error: RpcError | None = None
    is_unknown: bool = False

    def take(self, answer: Settled) -> bool:
        """Takes what one more attempt gave. Gives whether that settles it."""
        self.value, self.commit, self.error = answer.value, answer.commit, answer.error
        if self.error is None:
            self.is_unknown = False
            return True
        is_unknown = self.error.effect == "unknown"
        self.is_unknown = self.is_unknown or is_unknown
        if self.error.retryable:
            return False
        # A refusal of the operation settles it, whatever went before.
        self.is_unknown = is_unknown or (self.is_unknown and self.error.code in BEFORE_THE_ID)
        return True


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call that removes from every shard, maybe not the first under its id."""

    operation_id: bytes
    #: How long ago the id was made; None: nobody knows.
    age_ms: int | None
    #: The loop's time by which it has to be settled.
    deadline: float


class Change(Protocol):
    """One request's worth of operations under ids."""

    @property
    def method(self) -> str:
        """What the shards call it."""

    def __len__(self) -> int:
        """How many operations."""

    def params(self, places: Sequence[int], options: dict[str, object]) -> tuple[object, ...]:
        """Those of a request with the operations at these places."""

    def answers(self, said: Any) -> list[Settled] | None:
        """What a shard's reply to it says of each of them; None: nonsense."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A single operation."""

    method: str
    keys: tuple[object, ...]
    operation_id: bytes

    def __len__(self) -> int:
        return 1

    def params(self, places: Sequence[int], options: dict[str, object]) -> tuple[object, ...]:
        """Part of Change."""
        del places
        return (*self.keys, {"id": self.operation_id, **options})

    def answers(self, said: Any) -> list[Settled] | None:
        """Part of Change."""
        match said:
            case {"value": int() as value, "commit": int() as commit}:
                return [Settled(value, commit)]
        return None


@dataclass(frozen=True, slots=True)
class Deletions:
    """Counters to be deleted, each under an id of its own."""

    items: Sequence[tuple[bytes, bytes]]
    method: str = "delete_many"

    def __len__(self) -> int:
        return len(self.items)

    def params(self, places: Sequence[int], options: dict[str, object]) -> tuple[object, ...]:
        """Part of Change."""
        return [self.items[place] for place in places], options

    def answers(self, said: Any) -> list[Settled] | None:
        """Part of Change."""
        match said:
            case {"values": list() as values, "commit": int() as commit}:
                return [
                    Settled(error=from_wire(value)) if isinstance(value, str) else Settled(int(value), commit)
                    for value in values
                ]
        return None


class Settling:
    """Settles changes at shards.

    Args:
        routes: the shards.
        settings: times.
        clock: random numbers: for ids, and to spread the attempts.
    """

    def __init__(self, routes: ShardRoutes, settings: RemovalSettings, clock: Clock) -> None:
        self._routes = routes
        self._settings = settings
        self._clock = clock
        self._chance = clock.random()

    def pauses(self) -> Backoff:
        """Between the attempts of one request."""
        return Backoff(self._settings.backoff_first_s, self._settings.backoff_max_s, self._chance)

    def deadline(self, end: float | None) -> float:
        """When one request of several must be settled: in its own time, and before the end of all."""
        own = asyncio.get_running_loop().time() + self._settings.timeout_s
        return own if end is None else min(own, end)

    def need_all(self, method: str) -> None:
        """Raises Unavailable where a shard is known to be down."""
        shards = self._routes.shards
        down = [shards[shard].name for shard in range(len(shards)) if self._routes.is_down(shard)]
        if down:
            raise Unavailable(
                f"{method} needs every shard, and {', '.join(down)} can't be reached: nothing was applied"
            )

    def begin(self, method: str, operation_id: bytes | None, age_ms: int | None, timeout_s: float | None) -> Attempt:
        """What a removal from every shard begins with.

        Raises:
            BadRequest: it can't be an id.
            IdExpired: shards may have forgotten the id.
            Unavailable: a shard is known to be down.
        """
        if operation_id is None:
            operation_id, age_ms = self._clock.random_bytes(ID_BYTES), 0
        elif not 1 <= len(operation_id) <= ID_BYTES_MAX:
            raise BadRequest(f"an operation id has 1 to {ID_BYTES_MAX} bytes: nothing was sent")
        self.need_all(method)
        window_s = self._settings.id_window_s - (age_ms or 0) / 1000
        if window_s <= 0:
            raise IdExpired("the id is older than the time for which shards keep it: nothing was sent now")
        timeout_s = seconds(timeout_s, self._settings.timeout_s)
        return Attempt(operation_id, age_ms, asyncio.get_running_loop().time() + min(timeout_s, window_s))

    async def settle(
        self, shard: int, change: Change, *, level: str | None, age_ms: int | None, deadline: float
    ) -> list[Settled]:
        """Repeats a change under its ids at one shard, until it is settled or the deadline passes.

        Args:
            shard: which.
            change: what.
            level: when the shard answers, "applied" or "durable"; None: as it is set.
            age_ms: how long ago the ids were made, if that is known.
            deadline: the loop's time.

        Returns:
            For each of its operations what became of it.
        """
        loop = asyncio.get_running_loop()
        begun, pause = loop.time(), self.pauses()
        caller = self._routes.shards[shard]
        options: dict[str, object] = {"detail": True} if level is None else {"detail": True, "level": level}
        unsent = Unavailable(f"the time ran out before {change.method} was sent: nothing was applied")
        outcomes = [Settled(error=unsent) for _ in range(len(change))]
        pending = list(range(len(change)))
        while pending and (remaining := deadline - loop.time()) > 0:
            timeout_s = min(remaining, self._settings.attempt_timeout_s)
            try:
                if age_ms is not None and "born" not in options:
                    now = await self._routes.ask_time_ms(shard, timeout_s=timeout_s)
                    if now is not None:
                        born = now - age_ms - int((loop.time() - begun) * 1000)
                        options["born"] = min(max(0, born), _TIME_MAX)
                said = await caller.call(change.method, *change.params(pending, options), timeout_s=timeout_s)
            except RpcError as error:
                answers = [Settled(error=error)] * len(pending)
            else:
                answers = self._read(shard, change, said, len(pending))
            pending = [
                place for place, answer in zip(pending, answers, strict=True) if not outcomes[place].take(answer)
            ]
            if pending:
                await asyncio.sleep(max(0.0, min(pause.next_s(), deadline - loop.time())))
        return outcomes

    def _read(self, shard: int, change: Change, said: Any, count: int) -> list[Settled]:
        try:
            answers = change.answers(said)
        except (TypeError, ValueError):
            answers = None
        if answers is None or len(answers) != count:
            raise InternalError(f"{self._routes.shards[shard].name} answered {change.method} with nonsense")
        # A replica that is read from now on has to have it.
        self._routes.note_commit(shard, max((answer.commit for answer in answers), default=0))
        return answers

    def sum(self, method: str, operation_id: bytes, outcomes: Sequence[Settled]) -> Removed:
        """What every shard took, by shard.

        Raises:
            RemovalUnsettled: some may have, and not all of them have said so.
            RpcError: it was refused: nothing was applied.
        """
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        names = [shard.name for shard in self._routes.shards]
        if not failed:
            return Removed(
                sum(outcome.value for outcome in outcomes),
                {name: outcome.commit for name, outcome in zip(names, outcomes, strict=True)},
            )
        if len(failed) == len(outcomes) and not any(outcome.is_unknown or outcome.value for outcome in failed):
            raise failed[0].error or Unavailable(f"{method} was refused")
        taken: dict[str, int] = {}
        unsettled: dict[str, RpcError] = {}
        known: list[str] = []
        unknown: list[str] = []
        did, what = ("deleted", " counters") if method in {"delete_all", "delete_prefix"} else ("took", "")
        for name, outcome in zip(names, outcomes, strict=True):
            if outcome.error is None or outcome.value:
                taken[name] = outcome.value
                known.append(f"{name} {did} {outcome.value}{what}")
            if outcome.error is not None:
                unsettled[name] = outcome.error
                state = (
                    "nobody knows" if outcome.is_unknown else f"nothing {'more ' if outcome.value else ''}was applied"
                )
                unknown.append(f"{name} ({state}: {outcome.error})")
        raise RemovalUnsettled(
            f"{', '.join(known) or 'nobody has answered'}; not settled at {', '.join(unknown)}. "
            f"Repeat the {method} under the same id, {operation_id.hex()} in hex",
            operation_id=operation_id,
            taken=taken,
            unsettled=unsettled,
        )
