"""Changes that need every shard: `drain`, `delete`, `delete_all` and `set`.

A removal goes to all shards at once under one id, and is repeated under it, at each shard, until that has settled it or
the time is over. What the shards took is answered when all of them have; before that nobody knows, and the error says
who took what. Repeated under the same id, it gets the same amounts.

One event loop. Cancelled, it stops repeating: what was sent may have been applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.settling import ID_BYTES, Operation, RemovalSettings, Removed, Settled, Settling
from pycounter.coordinator.shard_routes import Key, ShardRoutes, key_bytes
from pycounter.coordinator.total import I64
from pycounter.coordinator.totals import Totals
from pycounter.durations import seconds
from pycounter.errors import BadDelta, CounterOverflow, Unavailable, UnknownOutcome

__all__ = ["RemovalSettings", "Removals", "Removed"]


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
        #: Repeats what is sent to a shard.
        self.settling = Settling(routes, self._settings, clock)

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
        self.settling.need_all("set")
        timeout_s = seconds(timeout_s, self._settings.timeout_s)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            (before,) = await self._totals.find_many([encoded], accuracy="exact", timeout_s=timeout_s)
        except Unavailable as error:
            raise Unavailable(f"set needs what every shard holds: {error}; nothing was applied") from error
        home = self._routes.home(encoded)
        settled = Settled()
        steps = _steps(value - (before or 0))
        self._bump(encoded)
        try:
            for number, delta in enumerate(steps):
                change = Operation("incr", (encoded, delta), self._clock.random_bytes(ID_BYTES))
                (settled,) = await self.settling.settle(home, change, level=level, age_ms=0, deadline=deadline)
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
        attempt = self.settling.begin(method, operation_id, age_ms, timeout_s)
        change = Operation(method, () if encoded is None else (encoded,), attempt.operation_id)
        self._on_removal(encoded)
        try:
            async with Crowd() as group:
                settling = [
                    group.create_task(
                        self.settling.settle(
                            shard, change, level=level, age_ms=attempt.age_ms, deadline=attempt.deadline
                        )
                    )
                    for shard in range(len(self._routes.shards))
                ]
        finally:
            self._on_removal(encoded)
        return self.settling.sum(
            method, attempt.operation_id, [outcome for task in settling for outcome in task.result()]
        )


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
