"""The log's files read from outside, by the table in `docs/journal.md`: which record stands where."""

import itertools
import json
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"PyCr"
HEADER = struct.Struct("<4sBBBBII16sQQQQQ")


@dataclass(frozen=True, slots=True)
class Record:
    """A record's place and header."""

    path: Path
    start: int
    end: int
    kind: int
    is_final: bool
    epoch: int
    commit: int
    previous_hash: int
    hash: int


def segments(folder: Path) -> list[Path]:
    """The log's files, in order."""
    return sorted((folder / "log").glob("*.log"))


def records(path: Path) -> list[Record]:
    """The records of one file, up to where it ends or one isn't whole."""
    content = path.read_bytes()
    found = []
    start = 0
    while start + HEADER.size <= len(content):
        magic, _, kind, flags, _, length, _, _, epoch, _, commit, previous, own = HEADER.unpack_from(content, start)
        end = start + HEADER.size + length
        if magic != MAGIC or end > len(content):
            break
        found.append(Record(path, start, end, kind, bool(flags & 1), epoch, commit, previous, own))
        start = end
    return found


def check_history(folder: Path) -> int:
    """The log of a shard that isn't running is one history: each commit once, in order. Gives how many there are."""
    manifest = json.loads((folder / "manifest.json").read_bytes())["content"]
    paths = segments(folder)
    assert [int(path.stem) for path in paths] == manifest["segments"]
    found = [record for path in paths for record in records(path)]
    for before, after in itertools.pairwise(found):
        assert after.previous_hash == before.hash, (before, after)
        assert after.commit == before.commit + before.is_final, (before, after)
    for path in paths[:-1]:
        assert records(path)[-1].end == path.stat().st_size, f"{path} has bytes behind its last record"
    return sum(record.is_final for record in found)
