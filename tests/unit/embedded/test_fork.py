"""Forked children and the folders of their parents: the lock belongs to whoever took it."""

import os
import signal
import subprocess
import sys

import pytest

import pycounter
from pycounter import errors

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
