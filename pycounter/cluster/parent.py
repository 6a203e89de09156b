"""Children of a supervisor don't outlive it, even if it is killed with -9."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

__all__ = ["SUPERVISOR_VARIABLE", "die_with_parent", "die_with_supervisor"]

#: The process id of the supervisor, in the environment of its children.
SUPERVISOR_VARIABLE = "PYCOUNTER_SUPERVISOR"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For a child process: has the system kill it when its parent ends, however that happens."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def die_with_supervisor(environment: Mapping[str, str]) -> None:
    """If a supervisor started this process: have the system kill it when the supervisor ends, however that happens.

    It exits at once where the supervisor has ended already.
    """
    told = environment.get(SUPERVISOR_VARIABLE)
    if told is None:
        return
    die_with_parent()
    # It may have ended before this process said that it wants to be told.
    if str(os.getppid()) != told:
        sys.exit(f"pycounter: the supervisor {told} has ended, or is another process's parent: not starting")
