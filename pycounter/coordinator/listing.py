"""All counters of a cluster: by a walk over its shards, or the largest ones; and how many there are.

A counter may lie on several shards, if increments of it were diverted while its home was sick. It comes once, with its
total. The walk has two rounds. The first visits the shards that hold foreign counters and gives only those, each when
it is seen first; their keys are remembered. The second visits every shard and gives the counters that are at home
there, but for those remembered. So a counter that is present throughout comes once, even if it becomes foreign
meanwhile: it was either foreign in the first round or comes from its home in the second. Only foreign keys are
remembered, and where these are many, the walk is made several times, each for a part of the keys.

One event loop. Nothing here changes a counter.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import AsyncIterator, Callable, Iterable
from hashlib import blake2b
from typing import Any, Protocol

from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.shard_routes import Key, ShardRoutes, prefix_bytes
from pycounter.coordinator.totals import Totals, request_parts
from pycounter.errors import BadRequest, InternalError, Overloaded, RpcError, TooLarge, Unavailable

__all__ = ["ForeignKeyList", "Listing", "Walk"]

#: Counters that one request to a shard asks for.
PAGE = 1000
#: Foreign keys that one walk remembers, at about 150 bytes each.
REMEMBERED_MAX = 200_000
#: The largest list that a shard gives.
TOP_MAX = 65_536
HASH_BYTES = 16

Counter = tuple[bytes, int]


class ForeignKeyList(Protocol):
    """What listings ask `_native.ForeignKeys`."""

    def is_foreign(self, key: bytes) -> bool:
        """May another shard than the home hold the counter?"""

    def count(self, shard: int) -> int:
        """How many foreign counters of a shard are known."""

    def note(self, shard: int, key: bytes) -> Any:
        """A shard other than the home holds the counter."""


class Walk:
    """A walk over all counters whose hash belongs to a part, and where it is.

    Args:
        foreign_shards: the shards of the first round.
        part: which part, of ...
        parts: ... how many.
        remembered: of an earlier walk that goes on here.
        step: which shard, in which round: below the number of shards it is the first.
        cursor: where on that shard.
    """

    __slots__ = ("cursor", "foreign_shards", "part", "parts", "remembered", "step")

    def __init__(
        self,
        foreign_shards: frozenset[int],
        *,
        part: int = 0,
        parts: int = 1,
        remembered: dict[bytes, tuple[int, int]] | None = None,
        step: int = 0,
        cursor: int = 0,
    ) -> None:
        self.foreign_shards = foreign_shards
        self.part = part
        self.parts = parts
        #: Hashes of the foreign keys that were given, and the place of the page that gave them: a page that is asked
        #: for again gives them again.
        self.remembered = {} if remembered is None else remembered
        self.step = step
        self.cursor = cursor

    def was_given(self, key: bytes) -> bool:
        """Did a page before this one give this foreign key?"""
        place = self.remembered.get(_hash(key)) if self.remembered else None
        return place is not None and place < (self.step, self.cursor)


class Listing:
    """Lists counters.

    Args:
        routes: the shards.
        totals: for those counters that lie on several.
        foreign: which these are.
        timeout_s: of one request to a shard.
        remembered_max: foreign keys that are remembered at a time.
    """

    def __init__(
        self,
        routes: ShardRoutes,
        totals: Totals,
        *,
        foreign: ForeignKeyList,
        timeout_s: float = 10.0,
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._routes = routes
        self._totals = totals
        self._foreign = foreign
        self._timeout_s = timeout_s
        self._remembered_max = remembered_max

    async def scan(self, prefix: Key = b"", *, page: int = PAGE) -> AsyncIterator[Counter]:
        """Every counter whose key begins with `prefix`, with its total, in no order.

        A counter present throughout comes exactly once; one made or deleted meanwhile may or may not.

        Args:
            prefix: of the keys.
            page: how many counters are asked for at a time.

        Raises:
            BadKey: no key begins so.
            Unavailable: a shard can't be asked.
            Overloaded: more counters became foreign meanwhile than can be remembered.
        """
        wanted = prefix_bytes(prefix)
        foreign, count = await self.foreign_shards()
        parts = max(1, math.ceil(count / self._remembered_max))
        for part in range(parts):
            walk = Walk(foreign, part=part, parts=parts)
            while not self.is_over(walk):
                for counter in await self.visit(walk, wanted, page):
                    yield counter
                if len(walk.remembered) > 2 * self._remembered_max + PAGE:
                    raise Overloaded("too many counters became foreign during the scan: begin it again")

    async def top(self, n: int, prefix: Key = b"") -> list[Counter]:
        """The `n` largest totals of counters whose key begins with `prefix`: by falling total, then by key.

        Exact if nothing changes meanwhile, foreign counters and negative partials included.

        Raises:
            BadRequest: `n` isn't 0 to 65,536.
            Unavailable: a shard can't be asked.
        """
        if not 0 <= n <= TOP_MAX:
            raise BadRequest(f"top gives up to {TOP_MAX:,} counters, not {n}")
        wanted = prefix_bytes(prefix)
        foreign, count = await self.foreign_shards()
        if count > self._remembered_max:
            return await self._top_of_all(n, wanted)
        # Partials say nothing about the order of totals: each counter that lies on several shards is a candidate.
        largest: list[Counter] = []
        walk = Walk(foreign)
        while not self.is_over(walk) and walk.step < len(self._routes.shards):
            largest = _largest(n, largest, await self.visit(walk, wanted, PAGE))
        # And of those that lie at home only, no shard has more than its own `n` largest to add.
        async with Crowd() as group:
            lists = [
                group.create_task(self._top_of_shard(shard, n, wanted)) for shard in range(len(self._routes.shards))
            ]
        for task in lists:
            found = task.result()
            if found is None:
                return await self._top_of_all(n, wanted)
            largest = _largest(n, largest, found)
        return largest

    # --- how many --------------------------------------------------------------------------------------------------

    async def count(self) -> int:
        """How many counters there are. One that lies on several shards is one; exact if nothing changes meanwhile.

        Where no shard holds a foreign counter, each is asked for a figure; else all foreign ones are looked at.

        Raises:
            Unavailable: a shard can't be asked.
        """
        foreign, _ = await self.foreign_shards()
        async with Crowd() as group:
            held = [group.create_task(self._count_held(shard)) for shard in range(len(self._routes.shards))]
            repeated = [group.create_task(self._count_repeated(shard, foreign)) for shard in foreign]
        return sum(task.result() for task in held) - sum(task.result() for task in repeated)

    async def _count_held(self, shard: int) -> int:
        try:
            count = int((await self._ask(shard, "stats"))["counters"])
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(f"{self._routes.shards[shard].name} doesn't say how many counters it has") from error
        # A figure waits for no disk, but this does: what is told here is not taken back by a crash.
        await self._ask(shard, "get_many", [])
        return count

    async def _count_repeated(self, shard: int, foreign: frozenset[int]) -> int:
        """How many foreign counters of a shard lie at home, too, or on a shard before it."""
        home = self._routes.home
        cursor = repeated = 0
        while True:
            cursor, page = await self.page(shard, cursor, PAGE, b"", foreign=True)
            found: set[bytes] = set()
            for other in range(len(self._routes.shards)):
                is_before = other < shard and other in foreign
                wanted = [key for key, _ in page if is_before or home(key) == other]
                for keys in request_parts(wanted):
                    values = await self._ask(other, "get_many", keys, {"or_nil": True})
                    found |= {key for key, value in zip(keys, values, strict=True) if value is not None}
            repeated += len(found)
            if not cursor:
                return repeated

    # --- a walk ----------------------------------------------------------------------------------------------------

    def is_over(self, walk: Walk) -> bool:
        """Has the walk visited everything?"""
        shards = len(self._routes.shards)
        while walk.step < shards and walk.step not in walk.foreign_shards:
            walk.step += 1
        return walk.step >= 2 * shards

    async def visit(
        self, walk: Walk, prefix: bytes, count: int, *, matches: Callable[[bytes], bool] | None = None
    ) -> list[Counter]:
        """The walk's next counters, about `count`; none at all doesn't mean that it is over. Cancelled, it stays.

        Raises:
            Unavailable: the shard can't be asked; the walk may go on later.
        """
        if self.is_over(walk):
            return []
        routes = self._routes
        is_first = walk.step < len(routes.shards)
        shard = walk.step % len(routes.shards)
        next_cursor, page = await self.page(shard, walk.cursor, count, prefix, foreign=is_first)
        found: dict[bytes, int] = {}
        summed: list[bytes] = []
        for key, value in page:
            if (matches is not None and not matches(key)) or not _belongs(key, walk):
                continue
            is_home = routes.home(key) == shard
            if is_home == is_first or walk.was_given(key):
                continue
            if is_first:
                self._foreign.note(shard, key)
            if is_first or self._foreign.is_foreign(key):
                summed.append(key)
            found[key] = value
        if summed:
            found.update(zip(summed, await self._totals.get_many(summed, accuracy="exact"), strict=True))
        # Nothing is awaited from here on.
        if is_first:
            place = (walk.step, walk.cursor)
            for key in summed:
                walk.remembered.setdefault(_hash(key), place)
        walk.cursor = next_cursor
        if not next_cursor:
            walk.step += 1
        return list(found.items())

    async def foreign_shards(self) -> tuple[frozenset[int], int]:
        """The shards that hold foreign counters, and how many of these there may be.

        Raises:
            Unavailable: a shard can't be asked.
        """
        shards = self._routes.shards
        if len(shards) == 1:
            return frozenset(), 0
        async with Crowd() as group:
            asking = [group.create_task(self._foreign_count(shard)) for shard in range(len(shards))]
        counts = [task.result() for task in asking]
        return frozenset(shard for shard, count in enumerate(counts) if count), sum(counts)

    async def _foreign_count(self, shard: int) -> int:
        """How many foreign counters a shard says that it holds, at most."""
        # Where the list goes on, since only its length is of interest here.
        health = await self._ask(shard, "health", {"foreign_from": self._foreign.count(shard)})
        try:
            foreign = health["foreign"]
            if foreign["all"]:
                return int((await self._ask(shard, "stats"))["counters"])
            return int(foreign["count"])
        except (KeyError, TypeError, ValueError) as error:
            raise InternalError(
                f"{self._routes.shards[shard].name} doesn't say what foreign counters it has"
            ) from error

    async def page(
        self, shard: int, cursor: int, count: int, prefix: bytes, *, foreign: bool = False
    ) -> tuple[int, list[Counter]]:
        """A page of what one shard holds, or of the foreign ones of it; and the next cursor, 0 at the end.

        Raises:
            Unavailable: the shard can't be asked.
        """
        reply = await self._ask(shard, "scan_foreign" if foreign else "scan", cursor, count, prefix)
        try:
            following, rows = reply
            return int(following), [(_bytes(key), int(value)) for key, value in rows]
        except (TypeError, ValueError) as error:
            raise InternalError(f"{self._routes.shards[shard].name} answered scan with nonsense") from error

    async def _ask(self, shard: int, method: str, *params: object) -> Any:
        caller = self._routes.shards[shard]
        try:
            return await caller.call(method, *params, timeout_s=self._timeout_s)
        except RpcError as error:
            if error.effect == "unknown":
                # A read: it makes no difference to the caller whether it was sent.
                raise Unavailable(f"{caller.name}: {error}") from error
            raise

    # --- the largest -----------------------------------------------------------------------------------------------

    async def _top_of_shard(self, shard: int, n: int, prefix: bytes) -> list[Counter] | None:
        """The `n` largest that lie on this shard only. None: the shard can't list them."""
        wanted = n
        while True:
            try:
                rows = await self._ask(shard, "top", wanted, prefix)
            except TooLarge:
                return None
            try:
                listed = [(_bytes(key), int(value)) for key, value in rows]
            except (TypeError, ValueError) as error:
                raise InternalError(f"{self._routes.shards[shard].name} answered top with nonsense") from error
            at_home = [
                (key, value)
                for key, value in listed
                if self._routes.home(key) == shard and not self._foreign.is_foreign(key)
            ]
            if len(at_home) >= n or len(listed) < wanted:
                return at_home
            if wanted == TOP_MAX:
                return None
            # Foreign ones took places: ask for more.
            wanted = min(TOP_MAX, 2 * wanted)

    async def _top_of_all(self, n: int, prefix: bytes) -> list[Counter]:
        """By looking at every counter."""
        largest: list[Counter] = []
        gathered: list[Counter] = []
        async for counter in self.scan(prefix):
            gathered.append(counter)
            if len(gathered) >= max(n, PAGE):
                largest, gathered = _largest(n, largest, gathered), []
        return _largest(n, largest, gathered)


def _largest(n: int, *lists: Iterable[Counter]) -> list[Counter]:
    return heapq.nsmallest(n, (counter for each in lists for counter in each), key=lambda it: (-it[1], it[0]))


def _belongs(key: bytes, walk: Walk) -> bool:
    """Is it a key of the walk's part?"""
    return walk.parts == 1 or int.from_bytes(_hash(key)[:4]) % walk.parts == walk.part


def _hash(key: bytes) -> bytes:
    return blake2b(key, digest_size=HASH_BYTES).digest()


def _bytes(key: Any) -> bytes:
    return key.encode() if isinstance(key, str) else bytes(key)
