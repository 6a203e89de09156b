"""The command `pycounter`."""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """Runs the command line and exits."""
    from pycounter.cli.application import run
    from pycounter.cluster.parent import die_with_supervisor

    die_with_supervisor(os.environ)
    run()
