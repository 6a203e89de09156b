"""The command `pycounter`."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line and exits."""
    try:
        from pycounter.cli.standard_streams import open_standard_streams

        open_standard_streams()
        from pycounter.cli.application import run
        from pycounter.cluster.parent import die_with_supervisor

        die_with_supervisor(os.environ)
        run()
    except KeyboardInterrupt:
        # Also while modules are imported.
        sys.stderr.write("pycounter: interrupted\n")
        sys.exit(130)
