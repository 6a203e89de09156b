"""The plot: for each table with several cases, the figure that its goals are about, by case and subject."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.peers.table import Table

#: Which figures a table is about, where that isn't throughput.
FIGURES = {
    "p1": ("cpu_us",),
    "p2": ("cpu_us",),
    "p12": ("cpu_us",),
    "p8": ("cpu_us",),
    "shards": ("cpu_us",),
    "totals": ("p50_us",),
    "batches": ("per_second", "p99_us"),
}
LABELS = {"per_second": "operations/s", "cpu_us": "server CPU, us/operation", "p50_us": "p50, us", "p99_us": "p99, us"}
WIDTH = 0.8


def draw(path: Path, tables: Sequence[Table]) -> bool:
    """Draws those tables that have a throughput or a cost for several cases. False: there is none."""
    chosen = [
        (table, name)
        for table in tables
        for name in FIGURES.get(table.name, ("per_second",))
        if len({row.case for row in table.rows}) > 1 and all(name in row.figures for row in table.rows)
    ]
    if not chosen:
        return False
    mpl.use("svg")
    figure, axes = plt.subplots(len(chosen), 1, figsize=(10, 4 * len(chosen)), squeeze=False, layout="constrained")
    for (table, name), axis in zip(chosen, axes[:, 0], strict=True):
        cases = list(dict.fromkeys(row.case for row in table.rows))
        subjects = list(dict.fromkeys(row.subject for row in table.rows))
        values = {(row.case, row.subject): row.figures[name] for row in table.rows}
        for number, subject in enumerate(subjects):
            places = [at + WIDTH * (number - (len(subjects) - 1) / 2) / len(subjects) for at in range(len(cases))]
            heights = [values.get((case, subject), 0.0) for case in cases]
            axis.bar(places, heights, WIDTH / len(subjects), label=subject.replace("`", ""))
        axis.set_yscale("log")
        labels = [case.replace("`", "").replace(", ", "\n") for case in cases]
        axis.set_xticks(range(len(cases)), labels, fontsize="small")
        axis.set_title(f"{table.name}: {table.title}")
        axis.set_ylabel(LABELS[name])
        axis.legend(fontsize="small")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    plt.close(figure)
    # matplotlib ends lines of coordinates with a space.
    path.write_text("".join(line.rstrip() + "\n" for line in drawn.getvalue().splitlines()), encoding="utf-8")
    return True
