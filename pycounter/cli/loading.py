"""Loading a dump into a running server: a session numbers the lines, so that each counts once whatever is killed."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pycounter.cli.dumping import FORMAT, VERSION
from pycounter.client import SessionClient
from pycounter.errors import PyCounterError, RpcError
from pycounter.storage.folder_reading import OnProgress

__all__ = ["Loaded", "Loading"]

#: Lines that are sent together and answered before the next are.
_LINES_TOGETHER = 8000
_I64_MIN, _I64_MAX = -(2**63), 2**63 - 1
_KEY_BYTES_MAX = 1024

Line = tuple[int, bytes, int]


class _BadLine(PyCounterError):
    """A line is not what `dump` writes."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"line {number}: {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load did."""

    counters: int
    first_line: int
    last_line: int


class Loading:
    """One load. `applied` counts the lines that are durable; `state()` says in words what is and what isn't.

    Args:
        path: the file; None is the standard input.
        from_line: the first line to send.
        on_progress: told what is being done.
    """

    def __init__(self, path: Path | None, from_line: int, on_progress: OnProgress) -> None:
        self._path = path
        self._from_line = from_line
        self._on_progress = on_progress
        self.applied = 0
        #: Every line from `from_line` up to here is applied.
        self._through = from_line - 1
        #: The lines that are on their way, first and last.
        self._sent: tuple[int, int] | None = None

    def result(self) -> Loaded:
        """What was done."""
        return Loaded(counters=self.applied, first_line=self._from_line, last_line=self._through)

    def state(self) -> str:
        """What is applied and what isn't, and how to go on."""
        done = f"the lines before {self._through + 1} are applied" if self.applied else "no line is applied"
        if self._sent is None:
            return f"{done} and no later one: --from-line {self._through + 1} goes on" if self.applied else done
        first, last = self._sent
        return (
            f"{done}; it is unknown which of the lines {first} to {last} are, and loading them again may count them "
            f"twice; no later one is: --from-line {last + 1} goes on behind them"
        )

    async def run(self, client: SessionClient) -> None:
        """Sends everything.

        Raises:
            PyCounterError: a line is wrong or was refused, or the server is away for too long; the message says what is
                applied.
        """
        total = self._check_file()
        async with client:
            with self._open() as file:
                lines = _parse(file, self._from_line)
                while True:
                    try:
                        batch = await _take(lines)
                    except _BadLine as wrong:
                        raise PyCounterError(f"{wrong}; {self.state()}") from wrong
                    if not batch:
                        return
                    await self._send(client, batch)
                    self._on_progress("loading", self.applied / total if total else 0.0)

    def _open(self) -> Any:
        if self._path is None:
            # Never closed: a thread may be waiting for it when this ends.
            return nullcontext(os.fdopen(os.dup(sys.stdin.fileno()), "rb"))
        try:
            return self._path.open("rb")
        except OSError as error:
            raise PyCounterError(f"{self._path} can't be read: {error.strerror}; no line is applied") from error

    def _check_file(self) -> int:
        """Reads a file to its end before anything is sent; what comes by the standard input is checked on the way."""
        if self._path is None:
            return 0
        with self._open() as file:
            try:
                return sum(1 for _ in _parse(file, self._from_line))
            except _BadLine as wrong:
                raise PyCounterError(f"{self._path}: {wrong}; no line is applied") from wrong

    async def _send(self, client: SessionClient, batch: list[Line]) -> None:
        first, last = batch[0][0], batch[-1][0]
        self._sent = (first, last)
        try:
            results = await client.apply([(key, value) for _, key, value in batch])
        except RpcError as error:
            if error.effect == "nothing":
                self._sent = None
            raise PyCounterError(f"lines {first} to {last}: {error}; {self.state()}") from error
        refused = [
            (line[0], result) for line, result in zip(batch, results, strict=True) if isinstance(result, RpcError)
        ]
        self.applied += len(batch) - len(refused)
        if not refused:
            self._through, self._sent = last, None
            return
        if any(error.effect != "nothing" for _, error in refused):
            raise PyCounterError(f"line {refused[0][0]}: {refused[0][1]}; {self.state()}")
        self._through, self._sent = last, None
        numbers = ", ".join(str(number) for number, _ in refused[:20]) + (", ..." if len(refused) > 20 else "")
        raise PyCounterError(
            f"line {refused[0][0]}: {refused[0][1]}; not applied are the lines {numbers}; all others before {last + 1} "
            f"are, and no later one; --from-line {last + 1} goes on"
        )


async def _take(lines: Iterator[Line]) -> list[Line]:
    """The next lines, read by a thread: the standard input may make it wait for ever, and Ctrl-C has to end that."""
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[list[Line]] = loop.create_future()

    def settle(batch: list[Line], wrong: _BadLine | None) -> None:
        if taken.done():
            return
        if wrong is None:
            taken.set_result(batch)
        else:
            taken.set_exception(wrong)

    def read() -> None:
        batch: list[Line] = []
        wrong = None
        try:
            batch.extend(itertools.islice(lines, _LINES_TOGETHER))
        except _BadLine as error:
            wrong = error
        with contextlib.suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, batch, wrong)

    threading.Thread(target=read, name="pycounter-lines", daemon=True).start()
    return await taken


def _parse(file: IO[bytes], from_line: int) -> Iterator[Line]:
    """The counters of a dump from a line on: line number, key, value. Raises _BadLine."""
    count, number, has_ended = 0, 0, False
    for number, text in enumerate(file, 1):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            raise _BadLine(number, "it is no JSON") from None
        if has_ended:
            raise _BadLine(number, "it comes after the line that ends the dump")
        match fields:
            case {"format": format_, "version": version} if number == 1:
                if format_ != FORMAT or version != VERSION:
                    raise _BadLine(number, f"it is {format_!r}, version {version!r}; this reads {FORMAT!r}, {VERSION}")
            case _ if number == 1:
                raise _BadLine(number, "a dump begins with a line that says its format")
            case {"end": True, "counters": expected}:
                has_ended = True
                if expected != count:
                    raise _BadLine(number, f"the dump had {expected} counters, but here are {count}: lines are missing")
            case dict():
                count += 1
                line = (number, _key(number, fields), _value(number, fields))
                if number >= from_line:
                    yield line
            case _:
                raise _BadLine(number, "it is no object")
    if not has_ended:
        raise _BadLine(number + 1, "the dump is cut short: the line that ends it is missing")


def _key(number: int, fields: dict[str, Any]) -> bytes:
    try:
        match fields:
            case {"key": str(key), "value": _, **more} if not more:
                encoded = key.encode()
            case {"key_base64": str(key), "value": _, **more} if not more:
                encoded = base64.b64decode(key, validate=True)
            case _:
                raise _BadLine(number, "it has not exactly a key (`key` or `key_base64`) and a value")
    except (UnicodeEncodeError, binascii.Error) as error:
        raise _BadLine(number, f"its key is wrong: {error}") from error
    if not 1 <= len(encoded) <= _KEY_BYTES_MAX:
        raise _BadLine(number, f"its key has {len(encoded)} bytes, but must have 1 to {_KEY_BYTES_MAX}")
    return encoded


def _value(number: int, fields: dict[str, Any]) -> int:
    value = fields["value"]
    if type(value) is not int or not _I64_MIN <= value <= _I64_MAX:
        raise _BadLine(number, "its value is no whole number of 64 bits")
    return value
