"""A disk that fails on demand, for whole servers: `preload.c`, built with `cc` and loaded into them by LD_PRELOAD.

    disk.watch(shard.directory)
    rule = disk.plant(Call.SYNC, error=errno.EIO, part="/log/")
    ...
    disk.lift()

Rules act at once, in servers that run already. One `FaultyDisk` watches one folder at a time.
"""

import ctypes
import enum
import errno
import mmap
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.support.shard_process import WarmLauncher

FOREVER = 2**62
RULES = 4
SOURCE = Path(__file__).with_name("preload.c")


class Call(enum.IntFlag):
    """System calls, as the C library's functions that make them."""

    OPEN = 1
    READ = 2
    WRITE = 4
    SYNC = 8
    TRUNCATE = 16
    RENAME = 32
    UNLINK = 64
    LINK = 128
    MKDIR = 256
    CHANGES = WRITE | SYNC | TRUNCATE | RENAME | UNLINK | LINK | MKDIR
    """All that may leave a trace on the disk, but for the making of files."""


class Fate(enum.IntEnum):
    """What becomes of a call."""

    FAIL = 1
    SHORT = 2
    """A write that does half of what it was asked for, and says so."""
    SLEEP = 3
    STOP = 4
    """The whole process stops before it, as by SIGSTOP."""
    STOP_HALFWAY = 5
    """It stops after half of a write."""


class _Rule(ctypes.Structure):
    _fields_ = (
        ("calls", ctypes.c_uint32),
        ("action", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("sleep_ms", ctypes.c_uint32),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("seen", ctypes.c_int64),
        ("hits", ctypes.c_int64),
        ("part", ctypes.c_char * 64),
    )


class _Control(ctypes.Structure):
    _fields_ = (
        ("folder", ctypes.c_char * 512),
        ("wall_clock_shift_ns", ctypes.c_int64),
        ("monotonic_shift_ns", ctypes.c_int64),
        ("rules", _Rule * RULES),
    )


class Rule:
    """A rule that was planted."""

    def __init__(self, fields: _Rule) -> None:
        self._fields = fields

    @property
    def seen(self) -> int:
        """Calls that fitted, whether their turn had come or not."""
        return int(self._fields.seen)

    @property
    def hits(self) -> int:
        """Calls that met their fate."""
        return int(self._fields.hits)

    def wait_hit(self, hits: int = 1, timeout_s: float = 30.0) -> None:
        """Waits until so many calls met it. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while self.hits < hits:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.hits} calls of {self.seen} met the rule after {timeout_s} s")
            time.sleep(0.002)


class FaultyDisk:
    """The library, its control file, and a launcher whose servers have it loaded."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler")
        library = folder / "faulty_disk.so"
        command = [
            "cc",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-o",
            str(library),
            str(SOURCE),
            "-ldl",
        ]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        path = folder / "faulty_disk.control"
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        descriptor = os.open(path, os.O_RDWR)
        self._mapped = mmap.mmap(descriptor, ctypes.sizeof(_Control))
        os.close(descriptor)
        self._control = _Control.from_buffer(self._mapped)
        self.environment = {"LD_PRELOAD": str(library), "FAULTY_DISK_CONTROL": str(path)}
        self.launcher = WarmLauncher(environment=self.environment)

    def __enter__(self) -> "FaultyDisk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.launcher.close()

    def watch(self, folder: Path) -> None:
        """From now on rules concern this folder, and all below it. What was planted is lifted."""
        self.lift()
        self.shift_wall_clock(0.0)
        self.shift_monotonic_clock(0.0)
        self._control.folder = os.fsencode(folder)

    def plant(
        self,
        calls: Call,
        fate: Fate = Fate.FAIL,
        *,
        error: int = errno.EIO,
        first: int = 1,
        count: int = FOREVER,
        sleep_s: float = 0.0,
        part: str = "",
    ) -> Rule:
        """Plants a rule beside those that are there; of several that a call meets, the first decides.

        Args:
            calls: which calls meet it ...
            fate: ... and what becomes of them.
            error: the errno of those that fail.
            first: from the n-th such call on, counted from now and from 1 ...
            count: ... for so many calls.
            sleep_s: how long they sleep, at most: lifting the rule wakes them.
            part: only paths with this text in them.
        """
        fields = next(rule for rule in self._control.rules if rule.calls == 0)
        fields.action, fields.error, fields.sleep_ms = fate, error, int(sleep_s * 1000)
        fields.first, fields.count, fields.part = first, count, part.encode()
        fields.seen = fields.hits = 0
        fields.calls = calls
        return Rule(fields)

    def lift(self) -> None:
        """The disk works again."""
        for fields in self._control.rules:
            fields.calls = 0

    def shift_wall_clock(self, seconds: float) -> None:
        """Servers see a wall clock that is so much ahead of the real one."""
        self._control.wall_clock_shift_ns = int(seconds * 1e9)

    def shift_monotonic_clock(self, seconds: float) -> None:
        """Servers see a monotonic clock that is so much ahead, as after a standstill. Later waits are longer."""
        self._control.monotonic_shift_ns = int(seconds * 1e9)
