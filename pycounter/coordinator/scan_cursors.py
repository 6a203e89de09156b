"""Pages of a walk over all shards, for clients that go on by a cursor: a number of 64 bits.

A cursor says how far the walk is: which shard in which round, and the shard's own cursor. What a walk has to remember,
the foreign counters that it gave, stays here under a number that is part of the cursor too. It is forgotten if too many
walks are under way; and another coordinator doesn't know it. Then a counter that lies on several shards may come twice,
but none is left out.

One event loop.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable

from pycounter.coordinator.listing import Counter, Listing, Walk
from pycounter.errors import BadRequest, InternalError

__all__ = ["ScanCursors"]

#: A shard's cursor is a prefix of a hash.
SHARD_CURSOR_BITS = 32
STEP_BITS = 16
NUMBER_BITS = 15  # so that a cursor fits into a signed integer, which is all that some clients have

WALKS_MAX = 256
#: Foreign counters of all walks together.
REMEMBERED_MAX = 500_000


class ScanCursors:
    """Walks that are under way.

    Args:
        listing: the counters.
        shards: how many there are.
        remembered_max: foreign counters of all walks together.
    """

    def __init__(self, listing: Listing, shards: int, *, remembered_max: int = REMEMBERED_MAX) -> None:
        self._listing = listing
        self._shards = shards
        self._remembered_max = remembered_max
        self._numbers = itertools.count()
        self._walks: OrderedDict[int, dict[bytes, tuple[int, int]]] = OrderedDict()

    async def page(
        self, cursor: int, count: int, prefix: bytes, *, matches: Callable[[bytes], bool] | None = None
    ) -> tuple[int, list[Counter]]:
        """About `count` counters and the cursor of the next page, 0 at the end. A page may be empty and not the last.

        Raises:
            BadRequest: nobody gave this cursor.
            Unavailable: a shard can't be asked; the same cursor may go on later.
        """
        if cursor:
            number, walk = self._resume(cursor)
        else:
            foreign, _ = await self._listing.foreign_shards()
            number = self._new_number() if foreign else 0
            walk = Walk(foreign)
        found: list[Counter] = []
        # A shard that has little to give is not worth a page of its own.
        for _ in range(2 * self._shards):
            found += await self._listing.visit(walk, prefix, max(1, count - len(found)), matches=matches)
            if len(found) >= count or self._listing.is_over(walk):
                break
        if number:
            self._remember(number, walk)
        if self._listing.is_over(walk):
            return 0, found
        return self._encode(number, walk), found

    def _resume(self, cursor: int) -> tuple[int, Walk]:
        number, step = cursor >> (SHARD_CURSOR_BITS + STEP_BITS), cursor >> SHARD_CURSOR_BITS & (1 << STEP_BITS) - 1
        if not 0 <= number < 1 << NUMBER_BITS or step >= 2 * self._shards:
            raise BadRequest("no scan gave this cursor")
        # Which shards the first round visits was looked at when it began: those that it skips have no foreign counters.
        walk = Walk(
            frozenset(range(self._shards)),
            remembered=self._walks.get(number),
            step=step,
            cursor=cursor & (1 << SHARD_CURSOR_BITS) - 1,
        )
        return number, walk

    def _new_number(self) -> int:
        return 1 + next(self._numbers) % ((1 << NUMBER_BITS) - 1)

    def _remember(self, number: int, walk: Walk) -> None:
        if self._listing.is_over(walk):
            # Its last page may be asked for again, soon.
            self._walks.pop(number, None)
            self._walks[number] = walk.remembered
            self._walks.move_to_end(number, last=False)
        else:
            self._walks[number] = walk.remembered
            self._walks.move_to_end(number)
        while len(self._walks) > WALKS_MAX or sum(map(len, self._walks.values())) > self._remembered_max:
            self._walks.popitem(last=False)

    @staticmethod
    def _encode(number: int, walk: Walk) -> int:
        if walk.cursor >> SHARD_CURSOR_BITS:
            raise InternalError("a shard's cursor has more bits than a coordinator's cursor has room for")
        return (number << STEP_BITS | walk.step) << SHARD_CURSOR_BITS | walk.cursor
