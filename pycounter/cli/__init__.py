"""The command `pycounter`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Runs the command line and exits."""
    from pycounter.cli.application import run

    run()
