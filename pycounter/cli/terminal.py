"""What commands share on a terminal: a progress bar on stderr, and output as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["print_json", "progress_bar"]


def print_json(facts: Any) -> None:
    """One JSON object on a line."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def progress_bar(*, enabled: bool = True) -> Iterator[Callable[[str, float], None]]:
    """A bar, shown only where stderr is a terminal. What it gives is told what is done, and which share of it."""
    if not (enabled and sys.stderr.isatty()):
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)
