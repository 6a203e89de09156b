"""Changes that need every shard: `drain`, `delete`, `delete_all` and `set`.

A removal goes to all shards at once under one id, and is repeated under it, at each shard, until that has settled it or
the time is over. What the shards took is answered when all of them have; before that nobody knows, and the error says
who took what. Repeated under the same id, it gets the same amounts.

One event loop. Cancelled, it stops to repeat: what was sent may have been applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pycounter.client.backoff import Backoff
from pycounter.client.retry import BEFORE_THE_ID
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.shard_routes import Key, ShardRoutes, key_bytes
from pycounter.coordinator.total import I64
from pycounter.coordinator.totals import Totals
from pycounter.durations import seconds
from pycounter.errors import (
    BadDelta,
    BadRequest,
    CounterOverflow,
    IdExpired,
    InternalError,
    RemovalUnsettled,
    RpcError,
    Unavailable,
    UnknownOutcome,
)

__all__ = ["RemovalSettings", "Removals", "Removed"]

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

    #: From all shards together: an amount, or of `delete_all` a number of counters.
    taken: int
    #: By shard, the commit that covers it there. Repeated under its id, it may be a later one.
    commits: dict[str, int]


@dataclass(slots=True)
class _Settled:
    """What became of a change at one shard: its answer, or why there is none and whether it may count all the same."""

    value: int = 0
    commit: int = 0
    error: RpcError | None = None
    is_unknown: bool = False


class Removals:
    """Removes counters from every shard.

    Args:
        routes: the shards.
        totals: for `set`, which needs an exact one.
        bump: told of a key that is set, when it is sent and when it is settled (`ReadCache.bump`).
        on_removal: told the same of a key that is removed, and with None of a removal of all.
        settings: times.
        clock: random numbers: for ids, and to spread the attempts.
    """

    def __init__(
        self,
        routes: ShardRoutes,
        totals: Totals,
        *,
        bump: Callable[[bytes], object],
        on_removal: Callable[[bytes | None], object],
        settings: RemovalSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._routes = routes
        self._totals = totals
        self._bump = bump
        self._on_removal = on_removal
        self._settings = settings or RemovalSettings()
        self._clock = clock
        self._chance = clock.random()

    async def drain(
        self,
        key: Key,
        *,
        operation_id: bytes | None = None,
        age_ms: int | None = None,
        level: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Takes a counter's whole value and leaves it at 0. No increment is lost: each is taken or stays.

        Args:
            key: which.
            operation_id: from an earlier attempt (`RemovalUnsettled`), or a new one of 1 to 64 bytes that no other
                operation will ever have; None: one is made.
            age_ms: how long ago that id was made, if that is known; below 0 it is from the future, by another clock.
            level: when the shards answer, "applied" or "durable"; None: as they are set.
            timeout_s: for all of it.

        Returns:
            The amount taken, over all shards.

        Raises:
            Unavailable: a shard is known to be down: nothing was applied.
            RemovalUnsettled: nobody knows it of every shard; repeat it under the same id.
            RpcError: it was refused: nothing was applied.
        """
        removed = await self.remove(
            "drain", key, operation_id=operation_id, age_ms=age_ms, level=level, timeout_s=timeout_s
        )
        return removed.taken

    async def delete(
        self,
        key: Key,
        *,
        operation_id: bytes | None = None,
        age_ms: int | None = None,
        level: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Takes a counter's whole value and forgets the counter. As `drain`."""
        removed = await self.remove(
            "delete", key, operation_id=operation_id, age_ms=age_ms, level=level, timeout_s=timeout_s
        )
        return removed.taken

    async def delete_all(
        self,
        *,
        operation_id: bytes | None = None,
        age_ms: int | None = None,
        level: str | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Forgets every counter, by one operation at each shard. As `drain`.

        Returns:
            How many counters the shards had together: one that lay on two of them counts twice.
        """
        removed = await self.remove(
            "delete_all", None, operation_id=operation_id, age_ms=age_ms, level=level, timeout_s=timeout_s
        )
        return removed.taken

    async def set(self, key: Key, value: int, *, level: str | None = None, timeout_s: float | None = None) -> int:
        """Makes a counter's total this value, by adding the difference to its exact total, at its home.

        Not linearizable: an increment between the two counts on top, and of two callers who set at once both add their
        difference. Setting again is always right.

        Returns:
            The total before, 0 where there was no such counter.

        Raises:
            Unavailable: a shard is down, or couldn't tell what it holds: nothing was applied.
            UnknownOutcome: the difference was sent, and nobody knows.
            CounterOverflow: what the home would hold then is outside 64 bits.
            RpcError: it was refused: nothing was applied.
        """
        return await self.exchange(key, value, level=level, timeout_s=timeout_s) or 0

    async def exchange(
        self, key: Key, value: int, *, level: str | None = None, timeout_s: float | None = None
    ) -> int | None:
        """As `set`, but None where there was no such counter."""
        encoded = key_bytes(key)
        if type(value) is not int or value not in I64:
            raise BadDelta("a value to set is a signed 64-bit integer: nothing was sent")
        self.need_all("set")
        timeout_s = seconds(timeout_s, self._settings.timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            (before,) = await self._totals.find_many([encoded], accuracy="exact", timeout_s=timeout_s)
        except Unavailable as error:
            raise Unavailable(f"set needs what every shard holds: {error}; nothing was applied") from error
        home = self._routes.home(encoded)
        settled = _Settled()
        steps = _steps(value - (before or 0))
        self._bump(encoded)
        try:
            for number, delta in enumerate(steps):
                options = _options(self._clock.random_bytes(ID_BYTES), level)
                settled = await self._settle(home, "incr", (encoded, delta), options, age_ms=0, deadline=deadline)
                if settled.error is not None:
                    settled.is_unknown = settled.is_unknown or number > 0
                    break
        finally:
            self._bump(encoded)
        if settled.error is None:
            return before
        if settled.is_unknown:
            raise UnknownOutcome(
                f"the difference was sent to {self._routes.shards[home].name}, then: {settled.error}"
            ) from settled.error
        raise settled.error

    # --- every shard -----------------------------------------------------------------------------------------------

    async def remove(
        self,
        method: str,
        key: Key | None,
        *,
        operation_id: bytes | None = None,
        age_ms: int | None = None,
        level: str | None = None,
        timeout_s: float | None = None,
    ) -> Removed:
        """`drain` or `delete` of a key, or `delete_all` of None, told in full. As `drain`."""
        encoded = None if key is None else key_bytes(key)
        if operation_id is None:
            operation_id, age_ms = self._clock.random_bytes(ID_BYTES), 0
        elif not 1 <= len(operation_id) <= ID_BYTES_MAX:
            raise BadRequest(f"an operation id has 1 to {ID_BYTES_MAX} bytes: nothing was sent")
        self.need_all(method)
        window_s = self._settings.id_window_s - (age_ms or 0) / 1000
        if window_s <= 0:
            raise IdExpired("the id is older than the time for which shards keep it: nothing was sent now")
        timeout_s = seconds(timeout_s, self._settings.timeout_s)
        deadline = asyncio.get_running_loop().time() + min(timeout_s, window_s)
        keys = () if encoded is None else (encoded,)
        self._on_removal(encoded)
        try:
            async with Crowd() as group:
                settling = [
                    group.create_task(
                        self._settle(
                            shard, method, keys, _options(operation_id, level), age_ms=age_ms, deadline=deadline
                        )
                    )
                    for shard in range(len(self._routes.shards))
                ]
        finally:
            self._on_removal(encoded)
        return self._sum(method, operation_id, [task.result() for task in settling])

    def _sum(self, method: str, operation_id: bytes, outcomes: list[_Settled]) -> Removed:
        """What was taken, when everybody has said so."""
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if not failed:
            names = [shard.name for shard in self._routes.shards]
            return Removed(
                sum(outcome.value for outcome in outcomes),
                {name: outcome.commit for name, outcome in zip(names, outcomes, strict=True)},
            )
        if len(failed) == len(outcomes) and not any(outcome.is_unknown for outcome in failed):
            raise failed[0].error or Unavailable(f"{method} was refused")
        taken: dict[str, int] = {}
        unsettled: dict[str, RpcError] = {}
        known: list[str] = []
        unknown: list[str] = []
        did, what = ("deleted", " counters") if method == "delete_all" else ("took", "")
        for shard, outcome in zip(self._routes.shards, outcomes, strict=True):
            if outcome.error is None:
                taken[shard.name] = outcome.value
                known.append(f"{shard.name} {did} {outcome.value}{what}")
            else:
                unsettled[shard.name] = outcome.error
                state = "nobody knows" if outcome.is_unknown else "nothing was applied"
                unknown.append(f"{shard.name} ({state}: {outcome.error})")
        raise RemovalUnsettled(
            f"{', '.join(known) or 'nobody has answered'}; not settled at {', '.join(unknown)}. "
            f"Repeat the {method} under the same id, {operation_id.hex()} in hex",
            operation_id=operation_id,
            taken=taken,
            unsettled=unsettled,
        )

    def need_all(self, method: str) -> None:
        """Raises Unavailable where a shard is known to be down."""
        shards = self._routes.shards
        down = [shards[shard].name for shard in range(len(shards)) if self._routes.is_down(shard)]
        if down:
            raise Unavailable(
                f"{method} needs every shard, and {', '.join(down)} can't be reached: nothing was applied"
            )

    async def _settle(
        self,
        shard: int,
        method: str,
        params: tuple[object, ...],
        options: dict[str, object],
        *,
        age_ms: int | None,
        deadline: float,
    ) -> _Settled:
        """Repeats a change under its id at one shard, until it is settled or the deadline passes."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        pause = Backoff(settings.backoff_first_s, settings.backoff_max_s, self._chance)
        caller = self._routes.shards[shard]
        begun = loop.time()
        outcome = _Settled(error=Unavailable(f"the time ran out before {method} was sent: nothing was applied"))
        while (remaining := deadline - loop.time()) > 0:
            timeout_s = min(remaining, settings.attempt_timeout_s)
            try:
                if age_ms is not None and "born" not in options:
                    now = await self._routes.ask_time_ms(shard, timeout_s=timeout_s)
                    if now is not None:
                        born = now - age_ms - int((loop.time() - begun) * 1000)
                        options["born"] = min(max(0, born), _TIME_MAX)
                said = await caller.call(method, *params, options, timeout_s=timeout_s)
            except RpcError as error:
                outcome.error = error
                outcome.is_unknown = outcome.is_unknown or error.effect == "unknown"
                if not error.retryable:
                    # A refusal of the operation settles it, whatever went before.
                    is_before = outcome.is_unknown and error.code in BEFORE_THE_ID
                    outcome.is_unknown = error.effect == "unknown" or is_before
                    return outcome
            else:
                settled = _settled(said, caller.name)
                # A replica that is read from now on has to have it.
                self._routes.note_commit(shard, settled.commit)
                return settled
            await asyncio.sleep(max(0.0, min(pause.next_s(), deadline - loop.time())))
        return outcome


def _settled(said: Any, shard: str) -> _Settled:
    match said:
        case {"value": int() as value, "commit": int() as commit}:
            return _Settled(value, commit)
    raise InternalError(f"{shard} answered a change with nonsense")


def _options(operation_id: bytes, level: str | None) -> dict[str, object]:
    options: dict[str, object] = {"id": operation_id, "detail": True}
    return options if level is None else {**options, "level": level}


def _steps(difference: int) -> list[int]:
    """A difference as increments of 64 bits: at most three between two values of 64 bits.

    Raises:
        CounterOverflow: no counter of 64 bits goes so far.
    """
    if abs(difference) >= 2**64:
        raise CounterOverflow("the difference is beyond what a counter can hold: nothing was applied")
    steps = [max(I64.start, min(I64.stop - 1, difference))]
    while left := difference - sum(steps):
        steps.append(max(I64.start, min(I64.stop - 1, left)))
    return steps
