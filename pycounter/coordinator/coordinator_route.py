"""Everything through a coordinator's address: for clients that can't reach the shards, or don't want to.

It has the names that a client's parts for the direct way have. It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from pycounter.client.caller import Caller
from pycounter.client.framing import Level
from pycounter.client.id_client import IdClient
from pycounter.client.outcomes import Detail
from pycounter.clock import Clock
from pycounter.coordinator.shard_routes import Key, checked_item, checked_items, delta_number, key_bytes
from pycounter.coordinator.total import Total
from pycounter.coordinator.totals import Accuracy, ReadFrom
from pycounter.errors import IdExpired, InternalError, RemovalUnsettled, RpcError

__all__ = ["CoordinatorRoute"]

_ID_BYTES = 16
_PAGE = 1000
_Item = tuple[Key, int]


class CoordinatorRoute:
    """Increments under ids, and everything else as single requests.

    Args:
        caller: requests to any of the coordinators.
        ids: increments to them.
        clock: makes ids.
        timeout_s: of requests that name none.
    """

    def __init__(self, caller: Caller, ids: IdClient, *, clock: Clock, timeout_s: float) -> None:
        self.ids = ids
        self._caller = caller
        self._clock = clock
        self._timeout_s = timeout_s

    # --- counting --------------------------------------------------------------------------------------------------

    async def incr(
        self, key: Key, delta: int, *, level: Level | None, detail: bool, timeout_s: float | None
    ) -> int | Detail:
        """Adds to a counter."""
        # Increments of several callers leave together: one that can't be encoded would take the others along.
        checked_item((key, delta))
        return await self.ids.incr(key, delta_number(delta), level=level, detail=detail, timeout_s=timeout_s)

    async def incr_many(
        self, items: Sequence[_Item], *, level: Level | None, timeout_s: float | None
    ) -> list[int | RpcError]:
        """Adds to many counters."""
        _, results, good = checked_items(items)
        if good:
            sent = [(items[place][0], delta_number(items[place][1])) for place in good]
            outcomes = await self.ids.apply(sent, level=level, timeout_s=timeout_s)
            for place, outcome in zip(good, outcomes, strict=True):
                results[place] = outcome
        return results

    # --- reading ---------------------------------------------------------------------------------------------------

    async def get(self, key: Key, *, accuracy: Accuracy, read_from: ReadFrom, timeout_s: float | None) -> int:
        """A counter's value."""
        return _integer(await self._call("get", key_bytes(key), *_options(accuracy, read_from), timeout_s=timeout_s))

    async def get_many(
        self, keys: Iterable[Key], *, accuracy: Accuracy, read_from: ReadFrom, timeout_s: float | None
    ) -> list[int]:
        """The values of counters, in the keys' order."""
        encoded = [key_bytes(key) for key in keys]
        if not encoded:
            return []
        values = await self._call("get_many", encoded, *_options(accuracy, read_from), timeout_s=timeout_s)
        return [_integer(value) for value in _list(values, len(encoded))]

    async def total(self, key: Key, *, accuracy: Accuracy, read_from: ReadFrom, timeout_s: float | None) -> Total:
        """A counter's total."""
        return _total(await self._call("total", key_bytes(key), *_options(accuracy, read_from), timeout_s=timeout_s))

    async def total_many(
        self, keys: Iterable[Key], *, accuracy: Accuracy, read_from: ReadFrom, timeout_s: float | None
    ) -> list[Total]:
        """The totals of counters, in the keys' order."""
        encoded = [key_bytes(key) for key in keys]
        if not encoded:
            return []
        totals = await self._call("total_many", encoded, *_options(accuracy, read_from), timeout_s=timeout_s)
        return [_total(total) for total in _list(totals, len(encoded))]

    async def scan(self, prefix: Key = b"") -> AsyncIterator[tuple[bytes, int]]:
        """Every counter whose key begins with the prefix."""
        cursor: object = 0
        while True:
            cursor, page = _list(await self._call("scan", cursor, _PAGE, prefix, timeout_s=None), 2)
            for key, value in _list(page, None):
                yield _key(key), _integer(value)
            if not cursor:
                return

    async def top(self, n: int, prefix: Key = b"") -> list[tuple[bytes, int]]:
        """The largest counters."""
        page = _list(await self._call("top", n, prefix, timeout_s=None), None)
        return [(_key(key), _integer(value)) for key, value in page]

    # --- removing --------------------------------------------------------------------------------------------------

    async def drain(self, key: Key, *, operation_id: bytes | None, timeout_s: float | None) -> int:
        """Takes a counter's whole value."""
        return await self._remove("drain", operation_id, timeout_s, key_bytes(key))

    async def delete(self, key: Key, *, operation_id: bytes | None, timeout_s: float | None) -> int:
        """Removes a counter."""
        return await self._remove("delete", operation_id, timeout_s, key_bytes(key))

    async def delete_all(self, *, operation_id: bytes | None, timeout_s: float | None) -> int:
        """Removes every counter."""
        return await self._remove("delete_all", operation_id, timeout_s)

    async def set(self, key: Key, value: int, *, timeout_s: float | None) -> int:
        """Adds what is missing to the value. Gives the value before."""
        deadline = asyncio.get_running_loop().time() + (self._timeout_s if timeout_s is None else timeout_s)
        before = await self.get(key, accuracy="exact", read_from="primary", timeout_s=timeout_s)
        left_s = deadline - asyncio.get_running_loop().time()
        await self.incr(key, value - before, level=None, detail=False, timeout_s=left_s)
        return before

    async def _remove(self, method: str, operation_id: bytes | None, timeout_s: float | None, *keys: bytes) -> int:
        number = self._clock.random_bytes(_ID_BYTES) if operation_id is None else operation_id
        try:
            return _integer(await self._call(method, *keys, {"id": number}, timeout_s=timeout_s))
        except RpcError as error:
            if error.effect != "unknown" or isinstance(error, IdExpired):
                raise
            raise RemovalUnsettled(
                f"{error}. Repeat the {method} under the same id, {number.hex()} in hex",
                operation_id=number,
                taken={},
                unsettled={"coordinator": error},
            ) from error

    async def _call(self, method: str, *params: object, timeout_s: float | None) -> Any:
        return await self._caller.call(method, *params, timeout_s=self._timeout_s if timeout_s is None else timeout_s)


def _options(accuracy: str, read_from: str) -> tuple[dict[str, object], ...]:
    options: dict[str, object] = {}
    if accuracy != "recent":
        options["accuracy"] = accuracy
    if read_from != "primary":
        options["read_from"] = read_from
    return (options,) if options else ()


def _integer(said: Any) -> int:
    """A value; one outside 64 bits comes as a text."""
    try:
        if isinstance(said, int | str):
            return int(said)
    except ValueError:
        pass
    raise InternalError(f"the coordinator answered {said!r:.100} for a value")


def _list(said: Any, length: int | None) -> list[Any]:
    if not isinstance(said, list) or (length is not None and len(said) != length):
        raise InternalError(f"the coordinator answered {said!r:.100} for a list")
    return said


def _key(said: Any) -> bytes:
    if isinstance(said, str):
        return said.encode()
    if isinstance(said, bytes):
        return said
    raise InternalError(f"the coordinator answered {said!r:.100} for a key")


def _total(said: Any) -> Total:
    match said:
        case {"total": total, "partials": dict() as partials, "missing": list() as missing, "exact": bool() as exact}:
            return Total(
                total=_integer(total),
                partials={str(name): _integer(value) for name, value in partials.items()},
                missing=tuple(str(name) for name in missing),
                exact=exact,
                age_ms=_integer(said.get("age_ms", 0)),
                replicas={str(name): _integer(lag) for name, lag in (said.get("replicas") or {}).items()},
            )
    raise InternalError(f"the coordinator answered {said!r:.100} for a total")
