"""What a person sees of the demo."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from pycounter.cli.demo import DemoResult, run_demo, stdlib_files

__all__ = ["show_demo"]


def show_demo(*, kills: int, shards: int, clients: int, level: str, limit_files: int | None, as_json: bool) -> bool:
    """Runs the demo with a progress bar, prints what came out, and says whether all totals are right."""
    console = Console(stderr=True)
    files = stdlib_files(limit_files)
    if not as_json:
        console.print(
            f"Counting every word of {len(files)} files of Python's standard library: {clients} client processes, a "
            f"{level} cluster of {shards} shards behind a coordinator, {kills} times kill -9 on the way."
        )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]:,} words  {task.fields[rate]:,.0f}/s  {task.fields[kills]} kills"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as progress:
        task = progress.add_task("counting", total=1.0, words=0, rate=0.0, kills=0)

        def update(share: float, words: int, killed: int) -> None:
            elapsed = progress.tasks[task].elapsed or 0.0
            progress.update(task, completed=share, words=words, kills=killed, rate=words / elapsed if elapsed else 0.0)

        result = run_demo(kills=kills, shards=shards, clients=clients, level=level, files=files, on_progress=update)
    if as_json:
        facts = {**asdict(result), "words_per_s": round(result.words / result.seconds), "succeeded": result.succeeded}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _tell(result)
    return result.succeeded


def _tell(result: DemoResult) -> None:
    top = "\n".join(f"  {count:>9,}  {word}" for word, count in result.top)
    verdict = (
        "Every counter is exactly right."
        if result.succeeded
        else "THE TOTALS ARE WRONG, or the kills did not happen: please report this."
    )
    sys.stdout.write(
        f"""
words counted         {result.words:,}
distinct counters     {result.counters:,}
rate                  {result.words / result.seconds:,.0f} a second, {result.level}, over TCP, kills included
shards                {result.shards}
kill -9               {result.kills}, of shards and of the coordinator
batches resent        {result.resent:,} (applied once all the same)
differences           {result.differences}   to collections.Counter over the same text

{verdict}

The ten most frequent:
{top}

Serve for real:
  pycounter serve --data ./counters --shards {result.shards}
  redis-cli -p 7400 incr visits
"""
    )
