"""Reads over all shards at once: totals, and the plain values that `get` gives.

One request for each shard, however many counters. A shard that can't answer is replaced by a healthy replica, unless
the caller wants the total exact; if nobody can answer for it, the total names it as missing and `get` raises.

What a client wrote it reads, whatever the accuracy: a write makes a new version of its counter when it is sent and when
it is settled (`ReadCache.bump`), so that neither a cached value nor a load that was begun before is given afterwards;
what it diverted itself is among the foreign keys from then on; and a replica is only believed from the commit on with
which the shard acknowledged this client's last change.

Everything belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.shard_routes import Key, ReplicaCaller, ShardCaller, ShardRoutes, key_bytes
from pycounter.coordinator.shared_loads import SharedLoads
from pycounter.coordinator.total import Total
from pycounter.durations import seconds
from pycounter.errors import DeadlineExceeded, InternalError, RpcError, Unavailable, WrongShard

__all__ = ["Accuracy", "ForeignFilter", "ReadFrom", "TotalStatistics", "Totals", "ValueCache", "request_parts"]

Accuracy = Literal["cached", "recent", "exact"]
ReadFrom = Literal["primary", "replica", "any"]

ACCURACIES = ("cached", "recent", "exact")
SOURCES = ("primary", "replica", "any")

#: One request's keys; below the server's 65,536 items and 1 MiB.
REQUEST_KEYS_MAX = 16_384
REQUEST_BYTES_MAX = 512 * 1024
#: A shard that is known to be down is still asked, but only for so long: it may just be back.
DOWN_PATIENCE_S = 0.25

#: Someone who answers for a shard: a replica where the lag isn't None.
_Source = tuple[ShardCaller | ReplicaCaller, int | None]


class ForeignFilter(Protocol):
    """What reads ask `_native.ForeignKeys`."""

    def holders(self, key: bytes) -> tuple[int, ...]:
        """Shards other than the home that may hold the counter."""


class ValueCache(Protocol):
    """What reads ask `_native.ReadCache`."""

    def get(self, key: bytes) -> int | None:
        """A value that no write has made stale."""

    def lookup(self, key: bytes) -> tuple[int, float] | None:
        """The same, and how many seconds ago it was loaded."""

    def begin(self, key: bytes) -> int:
        """The counter's version, before a load."""

    def fill(self, key: bytes, value: int, version: int) -> bool:
        """Keeps what was loaded, unless the version has changed."""


@dataclass(slots=True, kw_only=True)
class TotalStatistics:
    """Counted since the client was made."""

    #: Totals that shards were asked for.
    loaded: int = 0
    #: Requests to shards and replicas for them.
    requests: int = 0
    #: Answers of a replica in place of its shard, wanted so or not.
    from_replicas: int = 0
    #: Totals that something was missing from.
    incomplete: int = 0


@dataclass(frozen=True, slots=True)
class _How:
    """How shards are asked."""

    exact: bool = False
    read_from: str = "primary"
    or_nil: bool = False


@dataclass(slots=True)
class _Answer:
    """What stands for one shard: its values, by key, or why there are none."""

    values: dict[bytes, int | None]
    lag_ms: int | None = None
    failure: RpcError | None = None


class Totals:
    """Totals and values of counters.

    Args:
        routes: the shards.
        foreign: which counters are where they aren't at home; None: it isn't known, so every shard is asked.
        cache: None where nothing is cached.
        timeout_s: of a read that names none.
    """

    def __init__(
        self,
        routes: ShardRoutes,
        *,
        foreign: ForeignFilter | None,
        cache: ValueCache | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        self.statistics = TotalStatistics()
        self._routes = routes
        self._foreign = foreign
        self._cache = cache
        self._timeout_s = timeout_s
        self._turns = itertools.count()
        #: Of what is read for the cache: (key, version).
        self._shared: SharedLoads[tuple[bytes, int], _Loaded] = SharedLoads(self._load_shared)

    @property
    def shared_loads(self) -> int:
        """How often a load served somebody who came later."""
        return self._shared.shared

    # --- what callers want -----------------------------------------------------------------------------------------

    async def get(
        self,
        key: Key,
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> int:
        """A counter's value: its total, 0 if it was never touched.

        Args:
            key: which.
            accuracy: `cached` may be as old as the cache allows; `recent` asks the shards that hold the counter, as far
                as is known; `exact` asks every shard itself.
            read_from: whom to prefer, for `recent`.
            timeout_s: for all of it.

        Raises:
            Unavailable: a shard, and its replicas, couldn't answer.
            BadKey: it is no key.
        """
        encoded = key_bytes(key)
        if accuracy == "cached" and self._cache is not None:
            if (value := self._cache.get(encoded)) is not None:
                return value
            # Not by the way of the others, which would look again and count a second miss.
            timeout_s = seconds(timeout_s, self._timeout_s)
            absent = [(encoded, self._cache.begin(encoded))]
            return self._complete((await self._load_absent(absent, timeout_s))[encoded])
        return self._complete((await self._total_many([encoded], accuracy, read_from, timeout_s))[encoded])

    async def get_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[int]:
        """The values of counters, in the keys' order. As `get`."""
        encoded = [key_bytes(key) for key in keys]
        totals = await self._total_many(encoded, accuracy, read_from, timeout_s)
        return [self._complete(totals[key]) for key in encoded]

    async def total(
        self,
        key: Key,
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> Total:
        """A counter's total with its partials and what is missing. As `get`, but it raises nothing for that.

        Raises:
            BadKey: it is no key.
        """
        encoded = key_bytes(key)
        return (await self._total_many([encoded], accuracy, read_from, timeout_s))[encoded].total

    async def total_many(
        self,
        keys: Iterable[Key],
        *,
        accuracy: Accuracy = "recent",
        read_from: ReadFrom = "primary",
        timeout_s: float | None = None,
    ) -> list[Total]:
        """The totals of counters, in the keys' order, by one request to each shard. As `total`."""
        encoded = [key_bytes(key) for key in keys]
        totals = await self._total_many(encoded, accuracy, read_from, timeout_s)
        return [totals[key].total for key in encoded]

    async def find_many(
        self, keys: Iterable[Key], *, accuracy: Accuracy = "recent", timeout_s: float | None = None
    ) -> list[int | None]:
        """The values of counters, in the keys' order, None where no shard has the counter. Never from the cache.

        Raises:
            Unavailable: a shard, and its replicas, couldn't answer.
            BadKey: one is no key.
        """
        encoded = [key_bytes(key) for key in keys]
        timeout_s = seconds(timeout_s, self._timeout_s)
        wanted = list(dict.fromkeys(encoded))
        loaded = await self._load(wanted, _How(exact=accuracy == "exact", or_nil=True), timeout_s)
        return [self._complete(loaded[key]) if loaded[key].exists else None for key in encoded]

    @staticmethod
    def _complete(loaded: _Loaded) -> int:
        if loaded.total.missing:
            raise Unavailable(f"no answer for {', '.join(loaded.total.missing)}: {loaded.failure}") from loaded.failure
        return loaded.total.total

    # --- cached, shared, loaded ------------------------------------------------------------------------------------

    async def _total_many(
        self, keys: Sequence[bytes], accuracy: str, read_from: str, timeout_s: float | None
    ) -> dict[bytes, _Loaded]:
        if accuracy not in ACCURACIES:
            raise ValueError(f"accuracy is one of {', '.join(ACCURACIES)}, not {accuracy!r}")
        if read_from not in SOURCES:
            raise ValueError(f"read_from is one of {', '.join(SOURCES)}, not {read_from!r}")
        timeout_s = seconds(timeout_s, self._timeout_s)
        wanted = list(dict.fromkeys(keys))
        if accuracy != "cached" or self._cache is None:
            return await self._load(wanted, _How(exact=accuracy == "exact", read_from=read_from), timeout_s)
        found: dict[bytes, _Loaded] = {}
        absent: list[tuple[bytes, int]] = []
        for key in wanted:
            cached = self._cache.lookup(key)
            if cached is None:
                absent.append((key, self._cache.begin(key)))
            else:
                found[key] = _Loaded(Total(total=cached[0], age_ms=int(cached[1] * 1000)))
        return {**found, **await self._load_absent(absent, timeout_s)} if absent else found

    async def _load_absent(self, absent: list[tuple[bytes, int]], timeout_s: float) -> dict[bytes, _Loaded]:
        """Loads what the cache doesn't have, together with whoever wants it too: keys with their versions."""
        try:
            async with asyncio.timeout(timeout_s):
                shared = await self._shared.get(absent)
        except TimeoutError:
            return {key: self._unanswered(key) for key, _ in absent}
        # The load may have begun for somebody else, long ago: it is whole, and no total of now.
        return {key: replace(loaded, total=replace(loaded.total, exact=False)) for (key, _), loaded in shared.items()}

    def _unanswered(self, key: bytes) -> _Loaded:
        """What a reader gets that can't wait for a shared load."""
        _, asked = self._whom_to_ask([key], exact=False)
        missing = tuple(self._routes.shards[shard].name for shard in asked[key])
        return _Loaded(Total(total=0, missing=missing), failure=DeadlineExceeded("it was not answered in time"))

    async def _load_shared(self, wanted: Sequence[tuple[bytes, int]]) -> dict[tuple[bytes, int], _Loaded]:
        keys = [key for key, _ in wanted]
        loaded = await self._load(keys, _How(), self._timeout_s)
        return {each: loaded[each[0]] for each in wanted}

    async def _load(self, keys: list[bytes], how: _How, timeout_s: float) -> dict[bytes, _Loaded]:
        """Asks the shards, all at once, and fills the cache with what they say."""
        if not keys:
            return {}
        cache = self._cache
        versions = [] if cache is None else [cache.begin(key) for key in keys]
        needs, asked = self._whom_to_ask(keys, exact=how.exact)
        answers = await self._ask_all(needs, how, timeout_s)
        loaded = {key: self._sum(key, asked[key], answers) for key in keys}
        if cache is not None:
            for key, version in zip(keys, versions, strict=True):
                total = loaded[key].total
                if not total.missing and not total.replicas:
                    cache.fill(key, total.total, version)
        return loaded

    def _whom_to_ask(
        self, keys: list[bytes], *, exact: bool
    ) -> tuple[dict[int, list[bytes]], dict[bytes, tuple[int, ...]]]:
        """For each shard the keys to ask it for; for each key the shards that are asked, its home first."""
        routes, foreign = self._routes, self._foreign
        asked: dict[bytes, tuple[int, ...]] = {}
        if exact or foreign is None:
            every = tuple(range(len(routes.shards)))
            return dict.fromkeys(every, keys), dict.fromkeys(keys, every)
        needs: dict[int, list[bytes]] = {}
        for key in keys:
            # As long as nobody knows what is foreign where, the home is among those that may hold it.
            shards = tuple(dict.fromkeys((routes.home(key), *foreign.holders(key))))
            asked[key] = shards
            for shard in shards:
                needs.setdefault(shard, []).append(key)
        return needs, asked

    def _sum(self, key: bytes, shards: Sequence[int], answers: dict[int, _Answer]) -> _Loaded:
        names = self._routes.shards
        partials: dict[str, int] = {}
        missing: list[str] = []
        replicas: dict[str, int] = {}
        failure: RpcError | None = None
        exists = False
        for shard in shards:
            answer = answers[shard]
            name = names[shard].name
            if answer.failure is not None:
                missing.append(name)
                failure = answer.failure
                continue
            value = answer.values[key]
            exists = exists or value is not None
            partials[name] = value or 0
            if answer.lag_ms is not None:
                replicas[name] = answer.lag_ms
        self.statistics.loaded += 1
        self.statistics.incomplete += bool(missing)
        total = Total(
            total=sum(partials.values()),
            partials=partials,
            missing=tuple(missing),
            exact=not missing and not replicas and len(partials) == len(names),
            age_ms=max(replicas.values(), default=0),
            replicas=replicas,
        )
        return _Loaded(total, exists=exists or bool(missing), failure=failure)

    # --- asking ----------------------------------------------------------------------------------------------------

    async def _ask_all(self, needs: dict[int, list[bytes]], how: _How, timeout_s: float) -> dict[int, _Answer]:
        deadline = asyncio.get_running_loop().time() + timeout_s
        if len(needs) == 1:
            # Most reads: no other task is needed.
            ((shard, keys),) = needs.items()
            return {shard: await self._ask(shard, keys, how, deadline)}
        async with Crowd() as crowd:
            asking = {shard: crowd.create_task(self._ask(shard, keys, how, deadline)) for shard, keys in needs.items()}
        return {shard: task.result() for shard, task in asking.items()}

    async def _ask(self, shard: int, keys: list[bytes], how: _How, deadline: float) -> _Answer:
        """Asks a shard, or whoever can stand for it. Raises RpcError only for what every shard would refuse."""
        loop = asyncio.get_running_loop()
        sources = self._sources(shard, how)
        failure: RpcError = Unavailable(f"{self._routes.shards[shard].name} was not asked: the time ran out")
        for left, (source, lag_ms) in zip(range(len(sources), 0, -1), sources, strict=True):
            remaining = deadline - loop.time()
            if remaining <= 0:
                break
            # Half of the time for each but the last: a shard that only stalls leaves some for its replica.
            patience = remaining / 2 if left > 1 else remaining
            if lag_ms is None and self._routes.is_down(shard):
                patience = min(patience, DOWN_PATIENCE_S)
            options = self._options(shard, how, is_replica=lag_ms is not None)
            try:
                values = await self._read(source, keys, options, patience)
            except RpcError as error:
                if not _is_passing(error) and lag_ms is None:
                    raise
                failure = error
                continue
            self.statistics.from_replicas += lag_ms is not None
            return _Answer(values, lag_ms)
        return _Answer({}, failure=failure)

    def _sources(self, shard: int, how: _How) -> list[_Source]:
        """Who may answer for a shard, in the order in which they are asked."""
        primary: _Source = (self._routes.shards[shard], None)
        if how.exact:
            return [primary]
        replicas: list[_Source] = [(replica, replica.lag_ms) for replica in self._routes.replicas(shard)]
        if not replicas:
            return [primary]
        if how.read_from == "replica" or self._routes.is_down(shard) or self._routes.is_unwell(shard):
            return [*replicas, primary]
        sources = [primary, *replicas]
        if how.read_from == "any":
            first = next(self._turns) % len(sources)
            sources = sources[first:] + sources[:first]
        return sources

    def _options(self, shard: int, how: _How, *, is_replica: bool) -> dict[str, object]:
        options: dict[str, object] = {"or_nil": True} if how.or_nil else {}
        if is_replica and (commit := self._routes.commit_seen(shard)):
            options["min_commit"] = commit
        if how.exact:
            # What isn't on disk could be gone after a crash, and the next exact total be smaller.
            options["level"] = "durable"
        return options

    async def _read(
        self, source: ShardCaller, keys: list[bytes], options: dict[str, object], timeout_s: float
    ) -> dict[bytes, int | None]:
        """The values that one process has. Raises RpcError."""
        extra = (options,) if options else ()
        if len(keys) == 1:
            self.statistics.requests += 1
            return _checked(source, keys, [await source.call("get", keys[0], *extra, timeout_s=timeout_s)])
        values: dict[bytes, int | None] = {}
        deadline = asyncio.get_running_loop().time() + timeout_s
        for part in request_parts(keys):
            self.statistics.requests += 1
            remaining = max(0.001, deadline - asyncio.get_running_loop().time())
            values |= _checked(source, part, await source.call("get_many", part, *extra, timeout_s=remaining))
        return values


@dataclass(slots=True)
class _Loaded:
    """A total, and the last reason why something is missing from it."""

    total: Total
    #: Has a shard said that it has the counter, or might a missing one? Asked with `or_nil` only.
    exists: bool = True
    failure: RpcError | None = None


def _is_passing(error: RpcError) -> bool:
    """Does this say that the shard can't answer, rather than that the question is wrong?"""
    return error.retryable or error.effect == "unknown" or isinstance(error, WrongShard)


def request_parts(keys: Iterable[bytes], *, beside: int = 3) -> Iterable[list[bytes]]:
    """The keys in as few requests as the server's bounds allow; none for no keys. Each has `beside` bytes around it."""
    part: list[bytes] = []
    size = 0
    for key in keys:
        if part and (len(part) == REQUEST_KEYS_MAX or size + len(key) + beside > REQUEST_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(key)
        size += len(key) + beside
    if part:
        yield part


def _checked(source: ShardCaller, keys: Sequence[bytes], values: Any) -> dict[bytes, int | None]:
    """The values, if they are what was asked for."""
    if not isinstance(values, (list, tuple)) or len(values) != len(keys):
        raise InternalError(f"{source.name} answered a read with nonsense")
    for value in values:
        if type(value) is not int and value is not None:
            raise InternalError(f"{source.name} answered a read with nonsense")
    return dict(zip(keys, values, strict=True))
