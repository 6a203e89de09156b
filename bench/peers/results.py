"""Where a run's tables go: Markdown and JSON, and a plot where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.peers.table import Table

#: Of those runs that are kept.
FOLDER = Path(__file__).parents[1] / "results"


def as_json(machine: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Everything, for programs."""
    return json.dumps({"machine": machine, "tables": [table.data() for table in tables]}, indent=2)


def as_markdown(machine: Mapping[str, str], tables: Sequence[Table]) -> str:
    """Everything, for people."""
    facts = "\n".join(f"- {name}: {fact}" for name, fact in machine.items())
    goals = [(table, row, goal) for table in tables for row in table.rows for goal in row.goals]
    missed = [f"- {table.name}, {row.case}: {goal}" for table, row, goal in goals if not goal.met]
    summary = f"{len(goals) - len(missed)} of {len(goals)} goals met."
    parts = [
        "# PyCounter beside its peers",
        "Made by `make bench-peers`; `docs/performance.md` says how each figure is measured. Medians of interleaved "
        "rounds. Machines differ and are noisy: look at the ratios.",
        facts,
        "\n".join([summary, *(["", "Missed:", "", *missed] if missed else [])]),
        *(table.markdown() for table in tables),
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path, name: str, machine: Mapping[str, str], tables: Sequence[Table]) -> list[str]:
    """Writes the files of a run. Gives their names, and a sentence for what couldn't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.json", folder / f"{name}.md"]
    written[0].write_text(as_json(machine, tables) + "\n")
    written[1].write_text(as_markdown(machine, tables))
    said = [f"written: {path}" for path in written]
    if importlib.util.find_spec("matplotlib") is None:
        return [*said, "no plot: matplotlib is missing (.venv/bin/uv pip install --group plots)"]
    from bench.peers.plot import draw  # noqa: PLC0415 - matplotlib is optional

    plot = folder / f"{name}.svg"
    if draw(plot, tables):
        said.append(f"written: {plot}")
    return said
