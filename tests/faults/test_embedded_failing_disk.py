"""Maps in a process whose disk is full: what `close`, `flush` and the end of the program say and do."""

import errno
import os
import subprocess
import sys

import pytest

import pycounter
from tests.support.faulty_disk import Call
from tests.support.shard_process import ROOT

PRELUDE = """
import os, sys
import pycounter
from pycounter import errors

def tell(line):
    print(line, flush=True)
    sys.stdin.readline()

"""


class Program:
    """A program on a disk that can be made to fail; it stops at each `tell`."""

    def __init__(self, disk, text, *arguments):
        environment = {**os.environ, **disk.environment, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + text, *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def told(self):
        """The next line."""
        return self._output.readline().strip()

    def go_on(self):
        self._input.write("\n")
        self._input.flush()

    def end(self):
        """Status and stderr."""
        self._input.write("\n")
        _, errors = self._process.communicate(timeout=60)
        return self._process.returncode, errors


@pytest.fixture
def folder(faulty_disk, tmp_path):
    folder = tmp_path / "counters"
    faulty_disk.watch(folder)
    yield folder
    faulty_disk.lift()


def value(folder, key):
    with pycounter.open(folder) as counters:
        return counters[key]


@pytest.mark.parametrize("end", ["", "sys.exit(0)"])
def test_a_program_that_ends_with_a_full_disk_says_what_is_lost_and_fails(faulty_disk, folder, end):
    text = f"""
counters = pycounter.open(sys.argv[1], level="applied")
counters.incr("kept", 5)
counters.flush()
tell("ready")
for _ in range(5000):
    counters.incr("a")
{end}
"""
    program = Program(faulty_disk, text, str(folder))
    assert program.told() == "ready"
    faulty_disk.plant(Call.WRITE, error=errno.ENOSPC, part="/log/")
    status, said = program.end()
    assert status == 1
    assert "Traceback" not in said
    assert f"changes to {folder} are lost: 1 counters have changes in memory that the disk doesn't take" in said
    assert "No space left" in said
    faulty_disk.lift()
    assert value(folder, "kept") == 5
    assert value(folder, "a") == 0


@pytest.mark.parametrize("level", ["applied", "durable"])
def test_close_tells_what_is_not_written_and_may_be_repeated(faulty_disk, folder, level):
    text = f"""
counters = pycounter.open(sys.argv[1], level={level!r})
counters.incr("a")
tell("ready")
for _ in range(3):
    try:
        counters.incr("a")
    except errors.StorageError as error:
        last = type(error).__name__
for again in range(2):
    try:
        counters.close()
    except errors.NotDurable as error:
        text = str(error)
held = counters["a"]
tell(f"{{held}} {{text}}")
counters.flush()
counters.incr("a", 10)
counters.close()
counters.close()
tell("closed")
"""
    program = Program(faulty_disk, text, str(folder))
    assert program.told() == "ready"
    faulty_disk.plant(Call.WRITE, error=errno.ENOSPC, part="/log/")
    program.go_on()
    held, _, said = program.told().partition(" ")
    assert "nothing is lost yet" in said
    assert "close() again" in said
    faulty_disk.lift()
    program.go_on()
    assert program.told() == "closed"
    assert program.end() == (0, "")
    assert value(folder, "a") == int(held) + 10


def test_what_is_discarded_is_lost_and_the_folder_free(faulty_disk, folder):
    text = """
counters = pycounter.open(sys.argv[1], level="applied")
counters.incr("a")
counters.flush()
tell("ready")
counters.incr("a")
counters.close(discard=True)
tell("closed")
"""
    program = Program(faulty_disk, text, str(folder))
    assert program.told() == "ready"
    faulty_disk.plant(Call.WRITE, error=errno.ENOSPC, part="/log/")
    program.go_on()
    assert program.told() == "closed"
    faulty_disk.lift()
    assert value(folder, "a") == 1
    program.end()


def test_a_checkpoint_that_fails_at_close_loses_nothing(faulty_disk, folder):
    text = """
counters = pycounter.open(sys.argv[1], level="applied")
counters.incr("a", 7)
counters.flush()
tell("ready")
counters.close()
tell("closed")
"""
    program = Program(faulty_disk, text, str(folder))
    assert program.told() == "ready"
    faulty_disk.plant(Call.WRITE | Call.SYNC, error=errno.ENOSPC, part="/checkpoint/")
    program.go_on()
    assert program.told() == "closed"
    faulty_disk.lift()
    status, said = program.end()
    assert status == 0
    assert "no checkpoint was made" in said
    assert value(folder, "a") == 7
