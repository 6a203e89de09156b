"""Increments: which shard takes one, and what its answer means.

A counter's increments go to its home. While the home is unhealthy, unsent increments may be diverted to another shard;
a sent one stays at its shard until it is settled. The value of a diverted increment is the part of the shard that took
it, plus what the other shards were last known to hold. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pycounter._native import ReadCache, SplitItems
from pycounter.client.framing import Level, check_level
from pycounter.client.outcomes import Detail, Withdrawn
from pycounter.coordinator.shard_handle import ShardHandle
from pycounter.coordinator.shard_routes import Items, Key, checked_items, key_bytes
from pycounter.coordinator.shard_set import ShardSet
from pycounter.durations import seconds
from pycounter.errors import BadKey, RpcError, Unavailable

__all__ = ["Increments"]

_Item = tuple[Key, int]


class Increments:
    """Sends increments to their shards.

    Args:
        shards: where they go.
        cache: told of each key that is written, when it is sent and when it is settled.
        timeout_s: of increments that name none.
    """

    def __init__(self, shards: ShardSet, *, cache: ReadCache, timeout_s: float) -> None:
        self._shards = shards
        self._cache = cache
        self._bump = cache.bump
        self._timeout_s = timeout_s
        self._ring = shards.ring
        self._home = shards.ring.home
        self._by_name = shards.by_name
        self._foreign = shards.foreign
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

    async def incr_many(self, items: Items, *, level: Level | None, timeout_s: float | None) -> list[int | RpcError]:
        """Adds to many counters. See `Client.incr_many`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds(timeout_s, self._timeout_s)
        if level is not None:
            check_level(level)
        if not isinstance(items, Sequence | dict):
            items = list(items.items() if isinstance(items, Mapping) else items)
        if not (self._shards.is_calm or len(self._shards.handles) == 1):
            pairs = list(items.items() if isinstance(items, Mapping) else items)
            return await self._incr_many_with_care(_Many(pairs, deadline, level))
        # All shards are well, so each home takes its part, whole: nothing here looks at single items.
        split = self._ring.split(items)
        shards = split.shards
        sending = [self._send(self._shards.handles[number], split, level, deadline - loop.time()) for number in shards]
        self._cache.bump_split(split)
        try:
            failures = [await sending[0]] if len(sending) == 1 else await asyncio.gather(*sending)
        finally:
            self._cache.bump_split(split)
        results = split.results()
        for number, failure in zip(shards, failures, strict=True):
            if failure is not None:
                for place in split.places(number):
                    results[place] = failure
            elif len(self._shards.handles) > 1:
                self._shards.handles[number].note_split(split)
        for place in self._foreign.foreign_places(split):
            if isinstance(results[place], int):
                key = key_bytes(split.item(place)[0])
                handle = self._by_name[self._home(key)]
                results[place] = self._with_others(handle, key, results[place])
        if withdrawn := split.withdrawn():
            again = await self._incr_many_with_care(_Many([split.item(place) for place in withdrawn], deadline, level))
            for place, result in zip(withdrawn, again, strict=True):
                results[place] = result
        return results

    @staticmethod
    async def _send(handle: ShardHandle, split: SplitItems, level: Level | None, timeout_s: float) -> RpcError | None:
        """Sends a shard its part. Gives the error if all of it was refused at once."""
        try:
            await handle.session.apply_split(split, handle.number, level=level, timeout_s=timeout_s)
        except RpcError as error:
            return error
        return None

    async def _incr_many_with_care(self, many: _Many) -> list[int | RpcError]:
        """The same while a shard is unhealthy: decides for each item which shard takes it."""
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
