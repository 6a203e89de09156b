"""The rows of a checkpoint in memory, where `CheckpointStore` has them on disk."""

import random
from collections.abc import Sequence


class Died(BaseException):
    """The process ends in the middle of a checkpoint."""


class MemoryStore:
    """Rows, and which of them are safe: a failing power takes what came after the last safe one, or a part of it."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._rows: dict[bytes, bytes] = {}
        self._safe: dict[bytes, bytes] = {}
        self._since: list[tuple[bytes, bytes | None]] = []
        #: So many more changes, and the process dies before the next.
        self.die_after: int | None = None

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def keys(self) -> list[bytes]:
        return list(self._rows)

    def put_lazily(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        self._may_die()
        for key, row in rows:
            self._change(key, row)

    def put_safely(self, key: bytes, value: bytes) -> None:
        self._may_die()
        self._change(key, value)
        self._safe = dict(self._rows)
        self._since.clear()

    def delete(self, keys: Sequence[bytes]) -> None:
        self._may_die()
        for key in keys:
            self._change(key, None)

    def reopen_if_broken(self) -> None:
        """It never is."""

    def crash(self, *, power: bool) -> None:
        """The process is gone, or the machine."""
        self.die_after = None
        if power:
            since, self._since = self._since, []
            self._rows = dict(self._safe)
            for key, row in since[: self._chance.randrange(len(since) + 1)]:
                self._change(key, row)

    def _change(self, key: bytes, row: bytes | None) -> None:
        self._since.append((key, row))
        if row is None:
            self._rows.pop(key, None)
        else:
            self._rows[key] = row

    def _may_die(self) -> None:
        if self.die_after is not None:
            self.die_after -= 1
            if self.die_after < 0:
                raise Died
