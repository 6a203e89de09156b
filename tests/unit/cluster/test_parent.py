"""Children end with their supervisor, and don't begin without it."""

import os
import signal
import subprocess
import sys

from pycounter.cluster.parent import SUPERVISOR_VARIABLE, die_with_supervisor
from tests.support.cluster_process import is_there
from tests.support.waiting import wait_until


def run(program, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_without_a_supervisor_nothing_happens():
    die_with_supervisor({})


def test_a_child_whose_supervisor_has_ended_does_not_start():
    done = run("from pycounter.cli import main; main()", "--version", **{SUPERVISOR_VARIABLE: "1"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "the supervisor 1 has ended" in done.stderr
    done = run("from pycounter.cli import main; main()", "--version", **{SUPERVISOR_VARIABLE: str(os.getpid())})
    assert (done.returncode, done.stderr) == (0, "")


PARENT = """
import os, subprocess, sys
child = "import os, time; from pycounter.cluster.parent import die_with_supervisor; die_with_supervisor(os.environ);"
child += "print('ready', flush=True); time.sleep(60)"
os.environ[sys.argv[1]] = str(os.getpid())
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, start_new_session=True)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def test_a_child_ends_when_its_supervisor_is_killed():
    with subprocess.Popen([sys.executable, "-c", PARENT, SUPERVISOR_VARIABLE], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_there(child)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait_until(lambda: not is_there(child))
