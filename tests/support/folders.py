"""Shards' folders for tests of the commands that keep them: as an orderly stop or a crash leaves them, and damaged."""

import hashlib
import shutil
from pathlib import Path

import pycounter
from pycounter.embedded import DurableCounters
from pycounter.storage.folder_reading import read_folder

#: What `stopped_folder` and `crashed_folder` hold.
COUNTERS = {f"counter {number}".encode(): number - 50 for number in range(100)} | {b"\xff\x00": 2**63 - 1, b"last": 1}


def stopped_folder(directory: Path) -> Path:
    """After an orderly stop: everything is in the checkpoint."""
    with pycounter.open(directory) as counters:
        _fill(counters)
    return directory


def crashed_folder(directory: Path) -> Path:
    """After a crash: a part is in the checkpoint, the rest in some commits of the log."""
    running = directory.with_name(f"{directory.name}.running")
    with pycounter.open(running) as counters:
        counters.incr("to be deleted")
        counters.incr("counter 7", -43)
        counters.checkpoint()
        _fill(counters)
        shutil.copytree(running, directory)
    return directory


def _fill(counters: DurableCounters) -> None:
    for key, value in COUNTERS.items():
        counters.incr(key, value - counters[key])
    counters.delete("to be deleted")


def counters_in(directory: Path) -> dict[bytes, int]:
    """Every counter that can be read; each is there once."""
    with read_folder(directory) as contents:
        pairs = [pair for part in contents.counters() for pair in part]
    counters = dict(pairs)
    assert len(counters) == len(pairs)
    return counters


def fingerprint(directory: Path) -> dict[str, tuple[int, str]]:
    """All files below a folder: when each was changed, and a hash of what it holds."""
    return {
        str(path.relative_to(directory)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(directory.rglob("*"))
    }


def log_files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted((directory / "log").iterdir())


def flip(path: Path, at: int) -> None:
    """Changes one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def flip_where(path: Path, what: bytes) -> int:
    """Changes the first byte of `what`; gives where it stands."""
    at = path.read_bytes().index(what)
    flip(path, at)
    return at
