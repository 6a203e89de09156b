"""Counters on disk in this process: levels, a second process, forks, crashes."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest

import pycounter
from pycounter import errors


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("level", ["durable", "applied"])
def test_counters_are_there_again(tmp_path, level):
    with pycounter.open(tmp_path / "counters", level=level) as counters:
        assert counters.incr("hits") == 1
        assert counters.incr(b"hits", 41) == 42
        counters.update(["a", "b", "a"])
        counters["gone"] = 5
        assert counters.delete("gone") == 5
        assert counters.drain("b") == 1
    with pycounter.open(tmp_path / "counters", level=level) as counters:
        assert dict(counters.items()) == {"hits": 42, "a": 2, "b": 0}
        assert "gone" not in counters
        assert counters.most_common(1) == [("hits", 42)]


def test_a_durable_change_survives_kill_9_and_a_checkpoint_does_too(tmp_path):
    code = """
        import os, sys, pycounter
        counters = pycounter.open(sys.argv[1])
        for _ in range(50):
            counters.incr("before")
        counters.checkpoint()
        for _ in range(7):
            counters.incr("after")
        os.kill(os.getpid(), 9)
    """
    assert run(code, str(tmp_path / "counters")).returncode == -9
    with pycounter.open(tmp_path / "counters") as counters:
        assert dict(counters.items()) == {"before": 50, "after": 7}


def test_applied_changes_are_durable_after_flush(tmp_path):
    code = """
        import os, sys, pycounter
        counters = pycounter.open(sys.argv[1], level="applied")
        counters.update(["x"] * 1000)
        counters.flush()
        assert counters.pending == 0
        os.kill(os.getpid(), 9)
    """
    assert run(code, str(tmp_path / "counters")).returncode == -9
    with pycounter.open(tmp_path / "counters") as counters:
        assert counters["x"] == 1000


def test_what_a_program_forgets_to_close_is_written_at_exit(tmp_path):
    code = """
        import sys, pycounter
        counters = pycounter.open(sys.argv[1], level="applied")
        counters.incr("x", 3)
    """
    done = run(code, str(tmp_path / "counters"))
    assert done.returncode == 0, done.stderr
    with pycounter.open(tmp_path / "counters") as counters:
        assert counters["x"] == 3


def test_a_second_opening_is_refused_with_the_reason(tmp_path):
    with pycounter.open(tmp_path / "counters") as counters:
        with pytest.raises(errors.FolderLocked, match="this process has the folder open"):
            pycounter.open(tmp_path / "counters")
        code = "import sys, pycounter; pycounter.open(sys.argv[1])"
        assert "FolderLocked" in run(code, str(tmp_path / "counters")).stderr
        counters.incr("still works")
    pycounter.open(tmp_path / "counters").close()


def test_a_newer_format_is_refused(tmp_path):
    folder = tmp_path / "counters"
    pycounter.open(folder).close()
    manifest = folder / "manifest.json"
    whole = json.loads(manifest.read_text())
    whole["format"] = 99
    manifest.write_text(json.dumps(whole))
    with pytest.raises(errors.FormatTooNew, match="newer"):
        pycounter.open(folder)


def test_a_forked_child_is_told_so(tmp_path):
    with pycounter.open(tmp_path / "counters") as counters:
        counters.incr("x")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                counters.incr("x")
                outcome = "counted"
            except errors.AfterFork:
                outcome = "AfterFork"
            except BaseException as error:  # noqa: BLE001 - whatever it is goes to the parent
                outcome = repr(error)
            os.write(writer, outcome.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        assert os.read(reader, 1000) == b"AfterFork"
        os.close(reader)
        assert counters.incr("x") == 2


def test_a_closed_map_says_so(tmp_path):
    counters = pycounter.open(tmp_path / "counters")
    counters.close()
    counters.close()
    with pytest.raises(errors.PyCounterError, match="closed"):
        counters.incr("x")


def test_threads_count_every_change_once(tmp_path):
    words = ["a", "b", "c", "a"] * 250
    with pycounter.open(tmp_path / "counters", level="applied") as counters:

        def work():
            for word in words[:200]:
                counters.incr(word)
            counters.update(words)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = Counter((words + words[:200]) * 8)
        assert dict(counters.items()) == expected
    with pycounter.open(tmp_path / "counters") as counters:
        assert dict(counters.items()) == expected


def test_arguments_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match="flush_interval_s"):
        pycounter.open(tmp_path / "counters", flush_interval_s=2)
    with pytest.raises(ValueError, match="level"):
        pycounter.open(tmp_path / "counters", level="sometimes")  # type: ignore[arg-type]


def list_of(folder):
    return list(Path(folder).iterdir())


def test_a_map_that_is_dropped_is_closed_with_a_warning(tmp_path):
    descriptors = len(list_of("/proc/self/fd"))
    threads = len(list_of("/proc/self/task"))
    for number in range(5):
        counters = pycounter.open(tmp_path / "counters", level="applied")
        counters.incr("x")
        with pytest.warns(ResourceWarning, match="were not closed"):
            del counters
        assert len(list_of("/proc/self/fd")) <= descriptors + 3, number
    # RocksDB keeps some threads of its own for good.
    assert len(list_of("/proc/self/task")) <= threads + 4
    with pycounter.open(tmp_path / "counters") as counters:
        assert counters["x"] == 5


def test_what_the_folder_does_is_not_among_the_maps_own_names(tmp_path):
    with pycounter.open(tmp_path / "counters") as counters:
        names = {name for name in dir(counters) if not name.startswith("_")} - set(dir(pycounter.Counters))
        assert names == {"checkpoint", "close", "flush", "folder", "level", "pending", "start"}
        assert counters.folder.created
        assert len(counters.folder.identity) == 32


def test_a_folder_whose_name_is_not_utf_8_is_refused_and_nothing_is_made(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    for path in (name, os.fsdecode(name)):
        with pytest.raises(errors.StorageError, match=r"caf\\xe9 isn't UTF-8: nothing was made"):
            pycounter.open(path)
    assert list(tmp_path.iterdir()) == []
    with pycounter.open(os.fsencode(tmp_path) + "/café".encode()) as counters:
        counters.incr("a")
    assert [path.name for path in tmp_path.iterdir()] == ["café"]
