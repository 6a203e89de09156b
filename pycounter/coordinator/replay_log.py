"""Increments that a coordinator accepted though nobody waits and no shard could take them: kept on disk until one has.

An append-only file of records, each with its length and checksum. What happens to an operation is another record: it is
about to be sent, it was not sent after all, it is settled. Records written in one turn of the loop, or while others are
being written, share one fsync. When most of the file is useless, or a write failed, a new file replaces it.

**Reading it.** A bad record with no readable one behind it is taken for the torn end of an unfinished write, and cut.
Any other bad range is damage: the records behind it are read, and a copy of the file is kept. An operation that was
open at a damaged range is kept only if a later record states where it is. Otherwise nobody knows whether and where it
was sent, and sending it again could count it twice: it is `lost`, and reported.

The loop owns everything; files are written by its executor, one write at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgpack

__all__ = ["Kept", "ReplayLog", "Sent"]

_log = logging.getLogger(__name__)

MAGIC = b"pycounter replay 1\n"
_HEAD = struct.Struct("<II")
RECORD_BYTES_MAX = 4096
_ZEROS = 64
#: A file is written anew only from this size on.
REWRITE_BYTES_MIN = 1 << 20

_ACCEPTED, _SENT, _UNSENT, _SETTLED = range(4)


@dataclass(frozen=True, slots=True)
class Sent:
    """The shard that an operation may have been sent to: it goes to no other one any more."""

    shard: str
    identity: str
    #: On the shard's clock, in milliseconds.
    born: int


@dataclass(slots=True)
class Kept:
    """An increment that isn't settled."""

    id: bytes
    key: bytes
    delta: int
    #: None: it was certainly not sent yet.
    sent: Sent | None = None


class ReplayLog:
    """The operations, and their file.

    Args:
        path: the file; made if missing.
        operations_max: how many are to be kept at most; whoever accepts them looks at it.
    """

    def __init__(self, path: Path, *, operations_max: int = 100_000) -> None:
        self.operations: dict[bytes, Kept] = {}
        #: Operations of which damage to the file left too little to go on with.
        self.lost: list[Kept] = []
        #: Why the disk took nothing at the last attempt; empty if it did.
        self.failure = ""
        self.operations_max = operations_max
        self._path = path
        self._file: int | None = None
        self._size = 0
        self._pending: list[bytes] = []
        self._written: asyncio.Future[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._must_rewrite = False

    @classmethod
    def open(cls, path: Path, *, operations_max: int = 100_000) -> Self:
        """Reads the file.

        Raises:
            OSError: it can't be read or written.
        """
        log = cls(path, operations_max=operations_max)
        content = path.read_bytes() if path.exists() else b""
        if content and not content.startswith(MAGIC):
            aside = path.with_name(f"{path.name}.unreadable")
            path.replace(aside)
            _log.error("%s is no file of this program's: it was put aside as %s", path, aside.name)
            content = b""
        end, damage = log._replay(content)
        if end < len(content) and not damage:
            _log.warning("%s: the last %d bytes are cut, a write that was not finished", path, len(content) - end)
        log._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        if damage:
            copy = path.with_name(f"{path.name}.damaged")
            copy.write_bytes(content)
            ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in damage)
            _log.error(
                "%s is damaged at bytes %s: nobody knows any more whether %d increments in it were sent, so they are "
                "not sent again; what the later records say is kept, and the damaged file is in %s",
                path,
                ranges,
                len(log.lost),
                copy.name,
            )
            log._replace(log._contents())
            return log
        if content:
            os.ftruncate(log._file, end)
            os.lseek(log._file, end, os.SEEK_SET)
        else:
            os.write(log._file, MAGIC)
        os.fsync(log._file)
        _sync_folder(path.parent)
        log._size = max(end, len(MAGIC))
        return log

    async def close(self) -> None:
        """Writes what is left. Idempotent."""
        if self._writer is not None:
            await self._writer
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- what happens to operations ----------------------------------------------------------------------------------

    async def accept(self, operation: Kept) -> None:
        """Keeps an operation. Returns once it is on disk, or the disk has failed: then it is kept in memory only."""
        self.operations[operation.id] = operation
        await self._append([_ACCEPTED, operation.id, operation.key, operation.delta])

    async def note_sent(self, operation: Kept, sent: Sent) -> bool:
        """Says where an operation is about to be sent. False: the disk doesn't know it, so it must not be sent."""
        operation.sent = sent
        await self._append([_SENT, operation.id, sent.shard, sent.identity, sent.born])
        return not self.failure

    async def note_unsent(self, operation: Kept) -> None:
        """It was certainly not applied, and may go elsewhere."""
        operation.sent = None
        await self._append([_UNSENT, operation.id])

    async def settle(self, operation: Kept) -> None:
        """It is counted, refused for good, or given up."""
        if self.operations.pop(operation.id, None) is not None:
            await self._append([_SETTLED, operation.id])

    # --- the file ----------------------------------------------------------------------------------------------------

    def _replay(self, content: bytes) -> tuple[int, list[tuple[int, int]]]:
        """Takes in the records. Gives where the last good one ends, and the damaged ranges before it."""
        at, damage = min(len(MAGIC), len(content)), []
        #: Operations that were open at a damaged range, and of which no later record has told anything.
        doubtful: dict[bytes, Kept] = {}
        while at < len(content):
            record = _record_at(content, at)
            if record is None:
                found = _next_record(content, at + 1)
                if found is None:
                    break
                damage.append((at, found))
                doubtful.update(self.operations)
                at = found
                continue
            length, said = record
            at += length
            kind, number, *rest = said
            if kind != _ACCEPTED and number not in self.operations and damage and kind != _SETTLED:
                # It was accepted in a damaged range: what it adds, and to what, is gone.
                self.lost.append(Kept(number, b"", 0))
            doubtful.pop(number, None)
            self._take(kind, number, rest)
        for number, operation in doubtful.items():
            if self.operations.pop(number, None) is not None:
                self.lost.append(operation)
        return at, damage

    def _take(self, kind: int, number: bytes, rest: list[Any]) -> None:
        if kind == _ACCEPTED:
            self.operations[number] = Kept(number, *rest)
        elif number in self.operations:
            if kind == _SENT:
                self.operations[number].sent = Sent(*rest)
            elif kind == _UNSENT:
                self.operations[number].sent = None
            elif kind == _SETTLED:
                del self.operations[number]

    async def _append(self, record: list[Any]) -> None:
        """Returns once it is on disk or the disk has failed. Cancelled, it is written all the same."""
        self._pending.append(_encode(record))
        if self._written is None:
            self._written = asyncio.get_running_loop().create_future()
        written = self._written
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(written)

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        # What comes in this turn of the loop goes with it.
        await asyncio.sleep(0)
        while self._pending:
            data, self._pending = b"".join(self._pending), []
            done, self._written = self._written, None
            rewritten = self._contents() if self._must_rewrite or self._is_mostly_useless() else None
            try:
                if rewritten is None:
                    await loop.run_in_executor(None, self._append_bytes, data)
                else:
                    await loop.run_in_executor(None, self._replace, rewritten)
            except OSError as error:
                if not self.failure:
                    _log.error("%s can't be written, its operations are in memory only: %s", self._path, error)
                self.failure = error.strerror or str(error)
                # Nobody knows what is on disk behind the last good write.
                self._must_rewrite = True
            else:
                self.failure = ""
                self._must_rewrite = False
            if done is not None:
                done.set_result(None)
        self._writer = None

    def _is_mostly_useless(self) -> bool:
        return self._size > max(REWRITE_BYTES_MIN, 1000 * len(self.operations))

    def _contents(self) -> bytes:
        parts = [MAGIC]
        for one in self.operations.values():
            parts.append(_encode([_ACCEPTED, one.id, one.key, one.delta]))
            if one.sent is not None:
                parts.append(_encode([_SENT, one.id, one.sent.shard, one.sent.identity, one.sent.born]))
        return b"".join(parts)

    def _append_bytes(self, data: bytes) -> None:
        if self._file is None:
            raise OSError("it is closed")
        _write_all(self._file, data)
        os.fdatasync(self._file)
        self._size += len(data)

    def _replace(self, content: bytes) -> None:
        temporary = self._path.with_name(f"{self._path.name}.new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            _write_all(file, content)
            os.fsync(file)
            temporary.replace(self._path)
            _sync_folder(self._path.parent)
        except BaseException:
            os.close(file)
            raise
        old, self._file = self._file, file
        self._size = len(content)
        if old is not None:
            os.close(old)


def _record_at(content: bytes, at: int) -> tuple[int, list[Any]] | None:
    """The record that begins here, and its length with its head; None if none does."""
    if at + _HEAD.size > len(content):
        return None
    length, checksum = _HEAD.unpack_from(content, at)
    record = content[at + _HEAD.size : at + _HEAD.size + length]
    if not 0 < length <= RECORD_BYTES_MAX or len(record) < length or zlib.crc32(record) != checksum:
        return None
    return _HEAD.size + length, msgpack.unpackb(record)


def _next_record(content: bytes, at: int) -> int | None:
    """Where the first readable record from here on begins."""
    while at < len(content):
        if _record_at(content, at) is not None:
            return at
        at += 1
        if not any(content[at : at + _ZEROS]):
            # A long range of zeros, as a disk leaves it: no record begins well within it.
            at += max(0, len(content[at:]) - len(content[at:].lstrip(b"\0")) - _HEAD.size)
    return None


def _encode(record: Iterable[Any]) -> bytes:
    packed: bytes = msgpack.packb(list(record))
    return _HEAD.pack(len(packed), zlib.crc32(packed)) + packed


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
