"""Forked children: their parents' folders are left alone, and their own work."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest

import pycounter
from pycounter import errors
from pycounter.storage.folder_reading import read_folder

HOLDS_AND_FORKS = """
import os, sys, time
import pycounter

counters = pycounter.open(sys.argv[1])
counters.incr("a")
child = os.fork()
if child == 0:
    time.sleep(600)
print(child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleeping_child():
    """Forks a child that sleeps, and ends it."""
    children = []

    def fork():
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"1")
            signal.pause()
            os._exit(0)
        children.append(child)
        assert os.read(ready, 1) == b"1"
        os.close(ready)
        os.close(told)

    yield fork
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_is_free_once_its_owner_closes_it(tmp_path, sleeping_child):
    counters = pycounter.open(tmp_path)
    counters.incr("a")
    sleeping_child()
    with pytest.raises(errors.FolderLocked, match="this process has the folder open"):
        pycounter.open(tmp_path)
    counters.close()
    with pycounter.open(tmp_path) as again:
        assert again["a"] == 1


def test_a_folder_is_free_once_its_owner_dies(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLDS_AND_FORKS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        with pytest.raises(errors.FolderLocked, match="another process has the folder open"):
            pycounter.open(tmp_path)
        owner.kill()
        owner.wait()
        with pycounter.open(tmp_path) as counters:
            assert counters["a"] == 1
    finally:
        os.kill(child, signal.SIGKILL)
        owner.stdout.close()


def test_a_childs_end_leaves_the_folder_to_its_owner(tmp_path):
    with pycounter.open(tmp_path) as counters:
        child = os.fork()
        if child == 0:
            # Dropped here, as an interpreter that ends would: the parent's lock stays.
            del counters
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(errors.FolderLocked):
            pycounter.open(tmp_path)
        counters.incr("a")


def opens_and_closes(folder):
    """In a forked child: counters of its own, from the opening to the last checkpoint."""
    with pycounter.open(folder) as counters:
        counters.incr("child", 7)
        counters.checkpoint()
    with pycounter.open(folder) as counters:
        return counters["child"]


def forked(run):
    """What `run` returns in a forked child, at most 60 seconds later."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            answer = repr(run())
        except BaseException as error:  # noqa: BLE001 - whatever it is goes to the parent
            answer = repr(error)
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return answer


@pytest.mark.parametrize("parent", ["closed", "open"])
def test_a_child_opens_and_closes_a_folder_of_its_own(tmp_path, parent):
    counters = pycounter.open(tmp_path / "parent")
    counters.incr("a")
    counters.checkpoint()
    if parent == "closed":
        counters.close()
    assert forked(lambda: opens_and_closes(tmp_path / "child")) == "7"
    if parent == "open":
        counters.incr("a")
        counters.checkpoint()
        counters.close()
    # A child's child, and the parent once more.
    assert forked(lambda: (opens_and_closes(tmp_path / "1"), forked(lambda: opens_and_closes(tmp_path / "2")))) == (
        "(7, '7')"
    )
    with pycounter.open(tmp_path / "parent") as counters:
        assert counters["a"] == (2 if parent == "open" else 1)


def test_forks_beside_checkpoints_lose_nothing(tmp_path):
    with pycounter.open(tmp_path / "parent") as counters:
        done = threading.Event()

        def work():
            while not done.is_set():
                counters.update(f"{number}" for number in range(2000))
                counters.checkpoint()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for number in range(5):
                assert forked(lambda at=number: opens_and_closes(tmp_path / f"child-{at}")) == "7"
        finally:
            done.set()
            worker.join()
        expected = dict(counters.items())
    with pycounter.open(tmp_path / "parent") as counters:
        assert dict(counters.items()) == expected
        assert len(set(expected.values())) == 1


def test_a_pool_of_forked_workers(tmp_path):
    with pycounter.open(tmp_path / "parent") as counters:
        counters.incr("a")
        with multiprocessing.get_context("fork").Pool(2) as pool:
            folders = [tmp_path / f"{number}" for number in range(6)]
            assert pool.map_async(opens_and_closes, folders).get(60) == [7] * 6
        counters.incr("a")
    with pycounter.open(tmp_path / "parent") as counters:
        assert counters["a"] == 2


FORGOTTEN: list[pycounter.Counters] = []


def forgets_to_close(folder):
    counters = pycounter.open(folder, level="applied")
    counters.incr("a", 3)
    FORGOTTEN.append(counters)


def test_what_a_child_of_multiprocessing_forgets_to_close_is_written(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=forgets_to_close, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    with pycounter.open(tmp_path) as counters:
        assert counters["a"] == 3


PREFORKS = """
import os, sys
import pycounter

# As a prefork server does: something is counted before the workers are made, and each has a folder of its own.
counters = pycounter.open(os.path.join(sys.argv[1], "master"))
counters.incr("started")
workers = []
for number in range(3):
    worker = os.fork()
    if worker == 0:
        # The way out is through the interpreter's end, with the master's counters in sight.
        with pycounter.open(os.path.join(sys.argv[1], f"worker-{number}"), level="applied") as mine:
            mine.incr("requests", number)
        counters.close()
        sys.exit(0)
    workers.append(worker)
print([os.waitpid(worker, 0)[1] for worker in workers])
counters.incr("started")
"""


def test_a_prefork_server(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PREFORKS, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[0, 0, 0]\n", "")
    with pycounter.open(tmp_path / "master") as counters:
        assert counters["started"] == 2
    with pycounter.open(tmp_path / "worker-2") as counters:
        assert counters["requests"] == 2


def test_a_child_leaves_a_folder_that_its_parent_reads_alone(tmp_path):
    pycounter.open(tmp_path / "counters").close()
    with read_folder(tmp_path / "counters") as contents:
        child = os.fork()
        if child == 0:
            # As the interpreter's end does.
            assert contents.store is not None
            assert contents.store._remove_shadow is not None
            contents.store._remove_shadow()
            os._exit(0)
        os.waitpid(child, 0)
        assert contents.store is not None
        assert contents.store.keys()


def test_counters_collected_in_their_checkpoint_thread_are_closed(tmp_path):
    counters = pycounter.open(tmp_path)
    checkpointer = counters._checkpointer
    assert checkpointer is not None
    counters.itself = counters  # type: ignore[attr-defined]
    collected = threading.Event()

    def collect(_since_s):
        gc.collect()
        collected.set()
        return False

    del counters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        checkpointer._is_due = collect  # type: ignore[method-assign]
        assert collected.wait(60)
    for thread in threading.enumerate():
        if thread.name == "pycounter-close":
            thread.join()
    pycounter.open(tmp_path).close()
