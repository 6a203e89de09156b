"""Tables: rows of figures, ratios, and goals that are met or missed. Markdown and data come from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: A figure's heading, and how it is written.
COLUMNS: Mapping[str, tuple[str, str]] = {
    "per_second": ("operations/s", ",.0f"),
    "speed_ratio": ("speed to {reference}", ".2f"),
    "p50_us": ("p50 us", ",.0f"),
    "p99_us": ("p99 us", ",.0f"),
    "p999_us": ("p99.9 us", ",.0f"),
    "cpu_us": ("CPU us/op", ".3f"),
    "cpu_ratio": ("CPU to {reference}", ".2f"),
    "coordinator_us": ("coordinator's CPU us/op", ".3f"),
    "generator_us": ("generator us/op", ".3f"),
    "nanoseconds": ("ns/op", ",.1f"),
    "time_ratio": ("time to {reference}", ".2f"),
    "seconds": ("seconds", ".2f"),
    "megabytes": ("MB grown", ",.1f"),
    "bytes_per_counter": ("bytes/counter", ".1f"),
    "memory_ratio": ("memory to {reference}", ".2f"),
    "rounds": ("rounds", ".0f"),
}
#: A ratio's figure, by the ratio's name.
RATIOS = {
    "speed_ratio": "per_second",
    "cpu_ratio": "cpu_us",
    "time_ratio": "nanoseconds",
    "memory_ratio": "bytes_per_counter",
}
#: A throughput of so much of the load generator's ceiling meets any goal: no more could have been shown.
CEILING_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A ratio that has to be reached."""

    what: str
    ratio: float
    at_most: float | None = None
    at_least: float | None = None
    #: Of a throughput: its share of the load generator's ceiling.
    ceiling_share: float | None = None

    @property
    def met(self) -> bool:
        """Is it reached?"""
        if self.ceiling_share is not None and self.ceiling_share >= CEILING_SHARE:
            return True
        if self.at_most is not None and self.ratio > self.at_most:
            return False
        return self.at_least is None or self.ratio >= self.at_least

    def __str__(self) -> str:
        bounds = [
            f"{sign} {bound:g}x" for sign, bound in (("<=", self.at_most), (">=", self.at_least)) if bound is not None
        ]
        verdict = "met" if self.met else "MISSED"
        return f"{self.what} {self.ratio:.3g}x, goal {' and '.join(bounds)}: {verdict}"


@dataclass(slots=True)
class Row:
    """One server, or one way of doing it, in one case."""

    case: str
    subject: str
    figures: dict[str, float]
    goals: list[Goal] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a scenario found."""

    name: str
    title: str
    #: What was done, in a sentence or two.
    workload: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    #: The subject that ratios are to.
    reference: str | None = None

    def __post_init__(self) -> None:
        self._add_ratios()

    def _add_ratios(self) -> None:
        bases = {row.case: row.figures for row in self.rows if row.subject == self.reference}
        for row in self.rows:
            base = bases.get(row.case, {})
            for ratio, figure in RATIOS.items():
                if base.get(figure) and figure in row.figures:
                    row.figures[ratio] = row.figures[figure] / base[figure]

    def markdown(self) -> str:
        """The table with its heading, what was done, and notes."""
        shown = [name for name in COLUMNS if any(name in row.figures for row in self.rows)]
        titles = ["case", "subject", *(COLUMNS[name][0].format(reference=self.reference) for name in shown), "goal"]
        lines = [_line(titles), _line(["---"] * len(titles))]
        for row in self.rows:
            cells = [self._cell(row, name) for name in shown]
            lines.append(_line([row.case, row.subject, *cells, "; ".join(str(goal) for goal in row.goals)]))
        parts = [f"## {self.name}: {self.title}", self.workload, "\n".join(lines), *self.notes]
        return "\n\n".join(part for part in parts if part)

    @staticmethod
    def _cell(row: Row, name: str) -> str:
        if name not in row.figures:
            return ""
        text = format(row.figures[name], COLUMNS[name][1])
        return f"{text}x" if name in RATIOS else text

    def data(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {**asdict(row), "goals": [{**asdict(goal), "met": goal.met} for goal in row.goals]} for row in self.rows
        ]
        return {
            "name": self.name,
            "title": self.title,
            "workload": self.workload,
            "reference": self.reference,
            "rows": rows,
            "notes": list(self.notes),
        }


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def ratio(figures: Mapping[str, float], base: Mapping[str, float] | None, name: str) -> float | None:
    """One figure to another server's; None if there is no other."""
    return figures[name] / base[name] if base and base.get(name) else None
