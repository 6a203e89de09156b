"""What every server's process sets for itself, whatever it serves."""

from __future__ import annotations

import sys

__all__ = ["BACKLOG", "hand_over_quickly"]

#: Connections that wait to be accepted.
BACKLOG = 1024
#: A thread that waits for the interpreter beside the busy loop gets it after this time instead of 5 ms.
SWITCH_INTERVAL_S = 1e-4


def hand_over_quickly() -> None:
    """Has the loop's thread give the interpreter soon to another thread that waits for it."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
