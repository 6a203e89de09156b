"""Counting straight at the shards: which one takes an operation, and what its answer means.

A counter's increments go to its home. While that is unwell, the balancer sends those elsewhere that were never sent;
what was sent stays at its shard until it is settled, whatever happens. The value that an increment answers is then the
part of the shard that took it, and what the others were last known to hold. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pycounter.client.framing import Level
from pycounter.client.outcomes import Detail, Withdrawn
from pycounter.coordinator.shard_handle import ShardHandle
from pycounter.coordinator.shard_routes import Key, checked_items, key_bytes
from pycounter.coordinator.shard_set import ShardSet
from pycounter.durations import seconds
from pycounter.errors import BadKey, RpcError, Unavailable

__all__ = ["DirectRoute"]

_Item = tuple[Key, int]


class DirectRoute:
    """Increments, straight to the shards.

    Args:
        shards: where they go.
        bump: told of each key that is written, when it is sent and when it is settled.
        timeout_s: of increments that name none.
    """

    def __init__(self, shards: ShardSet, *, bump: Callable[[Key], object], timeout_s: float) -> None:
        self._shards = shards
        self._bump = bump
        self._timeout_s = timeout_s
        self._home = shards.ring.home
        self._by_name = shards.by_name
        self._is_foreign = shards.foreign.is_foreign

    # --- one -------------------------------------------------------------------------------------------------------

    async def incr(
        self, key: Key, delta: int, *, level: Level | None, detail: bool, timeout_s: float | None
    ) -> int | Detail:
        """Adds to a counter. See `Client.incr`."""
        if level is not None or detail or timeout_s is not None or not self._shards.is_calm:
            return await self._incr_with_care(key, delta, level, detail=detail, timeout_s=timeout_s)
        # The hot path: all shards are well, so the home takes it, in the session's next batch.
        try:
            home = self._by_name[self._home(key)]
            self._bump(key)
        except (TypeError, ValueError) as error:
            key_bytes(key)
            raise BadKey(str(error)) from error
        try:
            value = await home.session.incr(key, delta)
        except Withdrawn:
            return await self._incr_with_care(key, delta, level, detail=detail, timeout_s=timeout_s)
        finally:
            self._bump(key)
        home.note_value(key, value)
        return value if not self._is_foreign(key) else self._with_others(home, key_bytes(key), value)

    async def _incr_with_care(
        self, key: Key, delta: int, level: Level | None, *, detail: bool, timeout_s: float | None
    ) -> int | Detail:
        encoded = key_bytes(key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds(timeout_s, self._timeout_s)
        while True:
            handle = self._shards.server_of(encoded)
            session = handle.session
            self._bump(key)
            try:
                said = await session.incr(key, delta, level=level, detail=True, timeout_s=deadline - loop.time())
            except Withdrawn:
                # It was never sent, and may go to another shard.
                if loop.time() >= deadline:
                    raise
            except Unavailable:
                # The shard is another one since, with a session of its own: nothing was applied before.
                if session is handle.session or loop.time() >= deadline:
                    raise
            else:
                handle.note_value(key, said.value)
                is_foreign = self._is_foreign(key)
                value = self._with_others(handle, encoded, said.value) if is_foreign else said.value
                return replace(said, value=value, exact=not is_foreign, shard=handle.name) if detail else value
            finally:
                self._bump(key)

    def _with_others(self, handle: ShardHandle, key: bytes, value: int) -> int:
        """The part of the shard that took an increment, and what the others are last known to hold."""
        shards = self._shards
        holders = {shards.home(key), *shards.foreign.holders(key)} - {handle.number}
        return value + sum(shards.handles[number].last_known(key) for number in holders)

    # --- many ------------------------------------------------------------------------------------------------------

    async def incr_many(
        self, items: Sequence[_Item], *, level: Level | None, timeout_s: float | None
    ) -> list[int | RpcError]:
        """Adds to many counters. See `Client.incr_many`."""
        if len(self._shards.handles) == 1 and self._bump_each(items):
            # They all go to the only shard, and none of them is foreign: the session checks each.
            try:
                return await self._shards.handles[0].session.apply(items, level=level, timeout_s=timeout_s)
            finally:
                self._bump_each(items)
        loop = asyncio.get_running_loop()
        many = _Many(items, loop.time() + seconds(timeout_s, self._timeout_s), level)
        left = many.check()
        while left:
            groups: dict[int, list[int]] = {}
            for place in left:
                try:
                    groups.setdefault(self._shards.server_of(many.keys[place]).number, []).append(place)
                except Unavailable as error:
                    many.results[place] = error
            sending = [self._apply(self._shards.handles[number], many, places) for number, places in groups.items()]
            outcomes = [await sending[0]] if len(sending) == 1 else await asyncio.gather(*sending)
            left = sorted(place for withdrawn in outcomes for place in withdrawn)
        return many.results

    def _bump_each(self, items: Sequence[_Item]) -> bool:
        """Tells of each key that is written. False: one of the items is none."""
        bump = self._bump
        try:
            for key, _ in items:
                bump(key)
        except (TypeError, ValueError):
            return False
        return True

    async def _apply(self, handle: ShardHandle, many: _Many, places: list[int]) -> list[int]:
        """Sends some of the items to one shard; gives the places of those that may go to another."""
        keys, time_left = many.keys, many.deadline - asyncio.get_running_loop().time()
        outcomes: Sequence[int | RpcError]
        for place in places:
            self._bump(keys[place])
        try:
            outcomes = await handle.session.apply(
                [many.items[place] for place in places], level=many.level, timeout_s=time_left
            )
        except RpcError as error:
            outcomes = [error] * len(places)
        finally:
            for place in places:
                self._bump(keys[place])
        withdrawn = []
        for place, outcome in zip(places, outcomes, strict=True):
            many.results[place] = outcome
            if not isinstance(outcome, RpcError):
                handle.note_value(keys[place], outcome)
                if self._is_foreign(keys[place]):
                    many.results[place] = self._with_others(handle, keys[place], outcome)
            elif isinstance(outcome, Withdrawn) and time_left > 0:
                withdrawn.append(place)
        return withdrawn


@dataclass(slots=True)
class _Many:
    """Increments that were asked for together, and what became of each."""

    items: Sequence[_Item]
    deadline: float
    level: Level | None
    keys: list[bytes] = field(init=False)
    results: list[int | RpcError] = field(init=False)

    def check(self) -> list[int]:
        """Gives the places of those that can be sent; the others have their errors."""
        self.keys, self.results, good = checked_items(self.items)
        return good
