"""The rare requests of raw clients, which the router leaves to Python: those that take all shards.

They come decoded from their wire, checked by the router; answers are plain values that it encodes for the client's
protocol. One event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgpack

from pycounter._native import glob_matches
from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.listing import PAGE, Counter, Listing
from pycounter.coordinator.removals import Removals
from pycounter.coordinator.scan_cursors import SHARD_CURSOR_BITS, ScanCursors
from pycounter.coordinator.shard_routes import ShardRoutes
from pycounter.coordinator.total import wire_integer
from pycounter.coordinator.totals import Totals
from pycounter.errors import (
    BadRequest,
    RemovalUnsettled,
    RpcError,
    StorageError,
    StorageFailed,
    TooLarge,
    Unavailable,
    UnknownMethod,
    UnknownOutcome,
)
from pycounter.topology import WATCH_S, Topology

__all__ = ["HostRequests"]

_log = logging.getLogger(__name__)

#: As a shard's own defaults.
SCAN_COUNT = 100
TOP_COUNT = 10
#: So long INFO waits for a shard.
INFO_PATIENCE_S = 0.25
#: Clients that wait for a newer topology.
WATCHERS_MAX = 10_000
#: As a shard's own bound.
KEYS_COUNTERS_MAX = 65_536
_GLOB_SPECIAL = b"*?[\\"


class HostRequests:
    """Answers requests.

    Args:
        routes: the shards.
        totals, removals, listing: on the same shards.
        stats, health: what the coordinator says of itself.
        info: INFO's text, of these sections and with this for Keyspace.
        backup: has a shard write a backup into this folder, on its machine.
        end_backup: ends the one in this folder, of which each shard's is whole. Raises StorageError.
        now_ms: the time that the router tells clients in `hello`.
        timeout_s: of one request.
    """

    def __init__(
        self,
        routes: ShardRoutes,
        *,
        totals: Totals,
        removals: Removals,
        listing: Listing,
        stats: Callable[[], dict[str, Any]],
        health: Callable[[], dict[str, Any]],
        info: Callable[[Sequence[bytes], str], str],
        backup: Callable[[int, str], Awaitable[None]],
        end_backup: Callable[[str], None],
        now_ms: Callable[[], int],
        timeout_s: float,
    ) -> None:
        self._routes = routes
        self._totals = totals
        self._removals = removals
        self._listing = listing
        self._stats = stats
        self._health = health
        self._info = info
        self._order_backup = backup
        self._end_backup = end_backup
        self._now_ms = now_ms
        self._timeout_s = timeout_s
        self._cursors = ScanCursors(listing, len(routes.shards))
        self._topology: Topology | None = None
        self._watchers: set[asyncio.Future[None]] = set()
        self._methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "get": self._get,
            "get_many": self._get_many,
            "total": self._total,
            "total_many": self._total_many,
            "drain": self._drain,
            "delete": self._delete,
            "delete_all": self._delete_all,
            "scan": self._scan,
            "top": self._top,
            "backup": self._backup,
            "stats": self._tell(stats),
            "health": self._tell(health),
            "watch_topology": self._watch_topology,
        }
        self._commands: dict[str, Callable[..., Awaitable[Any]]] = {
            "get": self._resp_get,
            "mget": self._resp_mget,
            "mset": self._resp_mset,
            "strlen": self._resp_strlen,
            "keys": self._resp_keys,
            "randomkey": self._resp_randomkey,
            "lastsave": self._resp_lastsave,
            "exists": self._resp_exists,
            "scan": self._resp_scan,
            "dbsize": self._resp_dbsize,
            "type": self._resp_type,
            "flushall": self._resp_flushall,
            "info": self._resp_info,
        }

    async def answer(self, method: str, params: bytes, protocol: str) -> bytes:
        """The encoded result. Raises RpcError."""
        methods = self._methods if protocol == "msgpack-rpc" else self._commands
        answer = methods.get(method)
        if answer is None:
            raise UnknownMethod(f"a coordinator has no {method}: ask a shard, `topology` says where they are")
        # Text as bytes: it is keys for the most part, of any bytes.
        arguments = msgpack.unpackb(params, raw=True, strict_map_key=False)
        encoded: bytes = msgpack.packb(await answer(*arguments))
        return encoded

    def set_topology(self, topology: Topology) -> None:
        """Tells whoever watches."""
        self._topology = topology
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    # --- MessagePack-RPC -------------------------------------------------------------------------------------------

    async def _get(self, key: bytes, options: Any = None) -> Any:
        return (await self._values([key], options))[0]

    async def _get_many(self, keys: list[bytes], options: Any = None) -> Any:
        return await self._values(keys, options)

    async def _values(self, keys: list[bytes], options: Any) -> list[int | str | None]:
        how = _options(options)
        accuracy = _text(how.get("accuracy"), "recent")
        values: Sequence[int | None]
        if how.get("or_nil"):
            values = await self._totals.find_many(keys, accuracy=accuracy, timeout_s=self._timeout_s)
        else:
            values = await self._totals.get_many(keys, **self._reading(how))
        return [None if value is None else wire_integer(value) for value in values]

    async def _total(self, key: bytes, options: Any = None) -> Any:
        return (await self._totals.total(key, **self._reading(_options(options)))).to_wire()

    async def _total_many(self, keys: list[bytes], options: Any = None) -> Any:
        totals = await self._totals.total_many(keys, **self._reading(_options(options)))
        return [total.to_wire() for total in totals]

    def _reading(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("min_commit") is not None:
            raise BadRequest("min_commit is a number of one shard's log, and this read asks several")
        accuracy = _text(options.get("accuracy"), "recent")
        source = _text(options.get("read_from"), "primary")
        return {"accuracy": accuracy, "read_from": source, "timeout_s": self._timeout_s}

    async def _drain(self, key: bytes, options: Any = None) -> Any:
        return await self._remove("drain", key, _options(options))

    async def _delete(self, key: bytes, options: Any = None) -> Any:
        return await self._remove("delete", key, _options(options))

    async def _delete_all(self, options: Any = None) -> Any:
        return await self._remove("delete_all", None, _options(options))

    async def _remove(self, method: str, key: bytes | None, options: dict[str, Any]) -> Any:
        born, number, level = options.get("born"), options.get("id"), options.get("level")
        level = None if level is None else _text(level, "")
        # An id without a time of birth is the client's affair, as at a shard. So is one from the future, by another
        # clock: the shards refuse it unless they know it.
        age_ms = None if born is None else self._now_ms() - born
        removed = await self._removals.remove(
            method, key, operation_id=number, age_ms=age_ms, level=level, timeout_s=self._timeout_s
        )
        value = wire_integer(removed.taken)
        if not options.get("detail"):
            return value
        # Each shard has its own commits. That of the home is what a later read may be told to wait for.
        home = None if key is None else self._routes.shards[self._routes.home(key)].name
        return {
            "value": value,
            "exact": True,
            "level": level or self._stats().get("level"),
            "commit": None if home is None else removed.commits[home],
            "commits": removed.commits,
        }

    async def _scan(self, cursor: int | None = None, count: int | None = None, prefix: bytes | None = None) -> Any:
        following, found = await self._cursors.page(
            cursor or 0, SCAN_COUNT if count is None else min(count, PAGE * 10), prefix or b""
        )
        return [following, _rows(found)]

    async def _top(self, n: int | None = None, prefix: bytes | None = None) -> Any:
        return _rows(await self._listing.top(TOP_COUNT if n is None else n, prefix or b""))

    async def _backup(self, directory: bytes) -> list[str]:
        """The folders of the shards' backups, once all are whole."""
        self._removals.settling.need_all("backup")
        shards = self._routes.shards
        folders = [f"{directory.decode().rstrip('/')}/{shard.name}" for shard in shards]
        orders = [self._order_backup(shard, folder) for shard, folder in enumerate(folders)]
        outcomes = await asyncio.gather(*orders, return_exceptions=True)
        failed = [error for error in outcomes if isinstance(error, BaseException)]
        for error in failed:
            if not isinstance(error, RpcError):
                raise error
        if not failed:
            try:
                await asyncio.to_thread(self._end_backup, directory.decode())
            except StorageError as error:
                raise StorageFailed(f"each shard's is whole, but they are no backup together: {error}") from error
            return folders
        told = ", ".join(
            f"{shard.name} {'is whole' if error is None else f'failed ({error})'}"
            for shard, error in zip(shards, outcomes, strict=True)
        )
        unknown = [error for error in failed if isinstance(error, RpcError) and error.effect == "unknown"]
        kind = UnknownOutcome if unknown else type(failed[0])
        raise kind(f"this is no backup of the cluster: that of {told}; begin again in a new folder")

    def _tell(self, say: Callable[[], dict[str, Any]]) -> Callable[..., Awaitable[Any]]:
        async def tell(*_: object) -> Any:
            return say()

        return tell

    async def _watch_topology(self, known: int | None = None, *_: object) -> Any:
        if self._topology is None or (known is not None and self._topology.version <= known):
            if len(self._watchers) >= WATCHERS_MAX:
                raise Unavailable("too many clients watch the topology: ask for it now and then")
            watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.add(watcher)
            try:
                # Nobody says when a client has left: it must not be waited with for ever.
                await asyncio.wait([watcher], timeout=WATCH_S)
            finally:
                self._watchers.discard(watcher)
        if self._topology is None:
            raise Unavailable("the supervisor has told no topology yet")
        return self._topology.to_wire()

    # --- RESP ------------------------------------------------------------------------------------------------------

    async def _resp_get(self, key: bytes) -> Any:
        return (await self._resp_mget(key))[0]

    async def _resp_mget(self, *keys: bytes) -> Any:
        values = await self._totals.find_many(keys, timeout_s=self._timeout_s)
        return [None if value is None else wire_integer(value) for value in values]

    async def _resp_mset(self, *pairs: Any) -> Any:
        values = dict(zip(pairs[::2], pairs[1::2], strict=True))
        done = 0
        try:
            for key, value in values.items():
                await self._removals.exchange(key, value, timeout_s=self._timeout_s)
                done += 1
        except RpcError as error:
            if not done:
                raise
            raise UnknownOutcome(f"{done} of {len(values)} counters were set, then: {error}") from error

    async def _resp_strlen(self, key: bytes) -> Any:
        value = await self._resp_get(key)
        return 0 if value is None else len(str(value))

    async def _resp_keys(self, pattern: bytes) -> Any:
        if await self._listing.count() > KEYS_COUNTERS_MAX:
            raise TooLarge(f"KEYS looks at {KEYS_COUNTERS_MAX} counters at most, and there are more: use SCAN")
        matches = _matcher(pattern)
        keys: list[bytes] = []
        cursor = 0
        while True:
            cursor, found = await self._cursors.page(cursor, PAGE, _prefix(pattern), matches=matches)
            keys += [key for key, _ in found]
            if not cursor:
                return keys
            if len(keys) > KEYS_COUNTERS_MAX:
                raise TooLarge(f"more than {KEYS_COUNTERS_MAX} counters match by now: use SCAN")

    async def _resp_randomkey(self) -> Any:
        # Each shard's walk begins somewhere; what it gives may lie on several shards, and is there all the same.
        shards = list(range(len(self._routes.shards)))
        random.shuffle(shards)
        for shard in shards:
            for start in (random.getrandbits(SHARD_CURSOR_BITS), 0):
                cursor: int | None = start
                while cursor is not None:
                    following, found = await self._routes.shards[shard].call(
                        "scan", cursor, 1, timeout_s=self._timeout_s
                    )
                    if found:
                        return found[0][0]
                    cursor = following or None
        return None

    async def _resp_lastsave(self) -> Any:
        async with Crowd() as crowd:
            asking = [
                crowd.create_task(shard.call("stats", timeout_s=self._timeout_s)) for shard in self._routes.shards
            ]
        return min(task.result()["last_save"] for task in asking)

    async def _resp_exists(self, *keys: bytes) -> Any:
        return sum(value is not None for value in await self._totals.find_many(keys, timeout_s=self._timeout_s))

    async def _resp_type(self, key: bytes) -> Any:
        return await self._resp_exists(key) > 0

    async def _resp_scan(self, cursor: int, count: int, pattern: bytes | None, other_type: bool) -> Any:
        if other_type:
            return [0, []]
        prefix, matches = b"", None
        if pattern is not None:
            prefix, matches = _prefix(pattern), _matcher(pattern)
        following, found = await self._cursors.page(cursor, min(count, PAGE * 10), prefix, matches=matches)
        return [following, [key for key, _ in found]]

    async def _resp_dbsize(self) -> Any:
        return await self._listing.count()

    async def _resp_info(self, *sections: bytes) -> Any:
        """Dashboards ask when something is wrong, and clients before anything else: no shard is waited for long."""
        async with Crowd() as crowd:
            asking = [crowd.create_task(self._count_held(shard)) for shard in range(len(self._routes.shards))]
        counts = [task.result() for task in asking]
        keys = sum(count or 0 for count in counts)
        missing = [shard.name for shard, count in zip(self._routes.shards, counts, strict=True) if count is None]
        keyspace = f"db0:keys={keys},expires=0,avg_ttl=0\r\n" if keys else ""
        if missing:
            keyspace += f"missing_shards:{','.join(missing)}\r\n"
        return self._info(sections, keyspace)

    async def _count_held(self, shard: int) -> int | None:
        """How many counters a shard has; None: it doesn't say."""
        if self._routes.is_down(shard):
            return None
        try:
            return int((await self._routes.shards[shard].call("stats", timeout_s=INFO_PATIENCE_S))["counters"])
        except RpcError:
            return None

    async def _resp_flushall(self) -> Any:
        try:
            await self._removals.delete_all(timeout_s=self._timeout_s)
        except RemovalUnsettled as error:
            raise UnknownOutcome(f"{error}, or send FLUSHALL again: it deletes what came since, too") from error


def _options(options: Any) -> dict[str, Any]:
    return {name.decode(): value for name, value in (options or {}).items()}


def _text(word: Any, default: str) -> Any:
    return default if word is None else word.decode()


def _prefix(pattern: bytes) -> bytes:
    """What each key that matches begins with."""
    return pattern[: min((at for at in map(pattern.find, _bytes_of(_GLOB_SPECIAL)) if at >= 0), default=None)]


def _bytes_of(text: bytes) -> list[bytes]:
    return [bytes([byte]) for byte in text]


def _matcher(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda key: glob_matches(pattern, key)


def _rows(counters: Sequence[Counter]) -> list[list[object]]:
    """As shards answer them: keys that are text as text."""
    return [[_as_text(key), wire_integer(value)] for key, value in counters]


def _as_text(key: bytes) -> str | bytes:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key
