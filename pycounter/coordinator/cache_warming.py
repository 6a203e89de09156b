"""A warm read cache after a start: the hottest keys of the last run are remembered in a small file and read again.

Only keys are remembered, never values: those come from the shards, through the reads of whoever owns the cache. A file
that is missing, damaged or too large costs a cold cache and nothing else, so it is written without waiting for the
disk. It belongs to one event loop; files are read and written by its executor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from pycounter.errors import RpcError

__all__ = ["CacheWarming", "HottestKeys", "read_hottest", "write_hottest"]

_log = logging.getLogger(__name__)

#: More than 100,000 keys of ordinary length; a larger file isn't read.
FILE_BYTES_MAX = 16 << 20
_KEY_BYTES = range(1, 1025)


class HottestKeys(Protocol):
    """What is asked of `_native.ReadCache`."""

    def hottest(self, n: int) -> list[tuple[str | bytes, int]]:
        """Keys, those read most first, with their reads."""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content, as MessagePack."""

    version: Literal[1]
    keys: list[bytes]


def read_hottest(path: Path) -> list[bytes]:
    """The keys of a file that `write_hottest` wrote, the hottest first; none if there is no such file, or it is bad."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise ValueError(f"more than {FILE_BYTES_MAX} bytes")
        keys = msgspec.msgpack.decode(content, type=_File).keys
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        # msgspec's errors are ValueErrors.
        _log.warning("%s: the cache stays cold: %s", path, error)
        return []
    return [key for key in keys if len(key) in _KEY_BYTES]


def write_hottest(path: Path, keys: list[bytes]) -> None:
    """Replaces the file in one step. Raises OSError."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(msgspec.msgpack.encode(_File(version=1, keys=keys)))
    new.replace(path)


class CacheWarming:
    """Reads the hottest keys of the last run again, and remembers those of this one.

    Args:
        cache: whose keys are remembered.
        path: the file, which this process alone writes.
        load: reads these keys so that their values come into the cache; what it gives isn't looked at.
        keys_max: how many keys are remembered.
        batch: how many are read at once.
        save_s: how often they are remembered, besides at the end.
    """

    def __init__(
        self,
        cache: HottestKeys,
        path: Path,
        load: Callable[[list[bytes]], Awaitable[object]],
        *,
        keys_max: int = 1000,
        batch: int = 100,
        save_s: float = 60.0,
    ) -> None:
        self._cache = cache
        self._path = path
        self._load = load
        self._keys_max = keys_max
        self._batch = batch
        self._save_s = save_s
        self._task: asyncio.Task[None] | None = None
        self._found = 0
        self._warmed = 0
        self._failed = ""

    def start(self) -> None:
        """Begins, in the background: nobody waits for a warm cache."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="pycounter cache warming")

    async def close(self) -> None:
        """Ends, and remembers the hottest keys of now."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        await self._save()

    def status(self) -> dict[str, Any]:
        """`found` keys in the file, `warmed` of them read again, and why no more were: `failed`, else empty."""
        return {"found": self._found, "warmed": self._warmed, "failed": self._failed}

    async def _work(self) -> None:
        await self._warm()
        while True:
            await asyncio.sleep(self._save_s)
            await self._save()

    async def _warm(self) -> None:
        loop = asyncio.get_running_loop()
        keys = (await loop.run_in_executor(None, read_hottest, self._path))[: self._keys_max]
        self._found = len(keys)
        for first in range(0, len(keys), self._batch):
            batch = keys[first : first + self._batch]
            begun = loop.time()
            try:
                await self._load(batch)
            except (OSError, RpcError) as error:
                # A shard that isn't there yet will be asked by whoever wants its counters.
                self._failed = str(error)
                _log.info("warming the cache ended after %d of %d keys: %s", self._warmed, len(keys), error)
                return
            self._warmed += len(batch)
            # As long a pause as the work took: those who came with requests of their own go first.
            await asyncio.sleep(loop.time() - begun)

    async def _save(self) -> None:
        hottest = self._cache.hottest(self._keys_max)
        if not hottest:
            # A run without cached reads forgets nothing of the one before.
            return
        keys = [key.encode() if isinstance(key, str) else key for key, _ in hottest]
        try:
            await asyncio.get_running_loop().run_in_executor(None, write_hottest, self._path, keys)
        except OSError as error:
            _log.warning("%s: the hottest keys aren't remembered: %s", self._path, error)
