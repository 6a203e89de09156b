"""Dumps: counters as lines of JSON.

The first line says what the file is, the last one how many counters it has, so that a file that was cut is noticed:

    {"format": "pycounter-dump", "version": 1, "shard": "shard-0", "identity": "..."}
    {"key": "visits", "value": 5}
    {"key_base64": "/w==", "value": -1}
    {"end": true, "counters": 2}

A key that is no UTF-8 stands in base64. Values are whole numbers of up to 64 bits: readers that take numbers for floats
round the large ones.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from pycounter.client import SessionClient
from pycounter.errors import PyCounterError, StorageError
from pycounter.storage.folder_reading import OnProgress, read_folder

__all__ = ["FORMAT", "VERSION", "dump_folder", "dump_server", "output_file"]

FORMAT = "pycounter-dump"
VERSION = 1
#: Counters in one request.
_SCAN_COUNT = 1000


class _Writer:
    def __init__(self, lines: TextIO, *, shard: str, identity: str) -> None:
        self._lines = lines
        self.counters = 0
        self._write({"format": FORMAT, "version": VERSION, "shard": shard, "identity": identity})

    def _write(self, line: dict[str, object]) -> None:
        self._lines.write(json.dumps(line, ensure_ascii=False) + "\n")

    def put(self, counters: Iterable[tuple[bytes, int]]) -> None:
        for key, value in counters:
            try:
                self._write({"key": key.decode(), "value": value})
            except UnicodeDecodeError:
                self._write({"key_base64": base64.b64encode(key).decode(), "value": value})
            self.counters += 1

    def end(self) -> None:
        self._write({"end": True, "counters": self.counters})


def dump_folder(directory: str | os.PathLike[str], lines: TextIO, on_progress: OnProgress) -> None:
    """Writes the counters of a folder or a backup, in an order that depends on their keys only.

    Raises:
        DamagedData: something is wrong with it; nothing was written.
        StorageError: as `read_folder`.
    """
    with read_folder(directory, on_progress) as contents:
        contents.refuse_damage()
        writer = _Writer(lines, shard=contents.name, identity=contents.reader.identity)
        for part, counters in enumerate(contents.counters()):
            on_progress("dumping", part / contents.reader.parts)
            writer.put(counters)
        writer.end()


async def dump_server(client: SessionClient, lines: TextIO, on_progress: OnProgress) -> None:
    """Writes the counters of a running server, in the order of its scan, which stays as it is with the folder."""
    async with client:
        stats = await client.call("stats")
        total = max(1, stats["counters"])
        writer = _Writer(lines, shard=stats["shard"], identity=stats["identity"])
        identity, cursor = client.identity, 0
        while True:
            cursor, page = await client.call("scan", cursor, _SCAN_COUNT)
            if client.identity != identity:
                raise PyCounterError("the server became another shard on the way: the dump is not whole, begin again")
            writer.put((key.encode() if isinstance(key, str) else key, value) for key, value in page)
            on_progress("dumping", min(1.0, writer.counters / total))
            if cursor == 0:
                break
        writer.end()


@contextlib.contextmanager
def output_file(name: str | None) -> Iterator[TextIO]:
    """Where lines go: the standard output, or a file that gets its name once it is whole."""
    if name is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
        return
    path = Path(name)
    try:
        found = path.stat() if path.exists() else None
        if found is not None and (not stat.S_ISREG(found.st_mode) or _is_open(found)):
            # A device, a pipe or our own output: there is nothing to replace.
            with path.open("w", encoding="utf-8", newline="\n") as file:
                yield file
            return
        # Through links, to what they name.
        whole = path.resolve()
        part = whole.with_name(f"{whole.name}.part")
        try:
            with part.open("w", encoding="utf-8", newline="\n") as file:
                if found is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(whole)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"the dump to {path} failed: {error.strerror or error}", path) from error


def _is_open(file: os.stat_result) -> bool:
    """Whether it is the file of our standard output or error, as /dev/stdout names it."""
    return any(os.path.samestat(file, os.fstat(number)) for number in (1, 2))
