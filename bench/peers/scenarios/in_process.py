"""P5: the counter map in the user's process, beside what Python has."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from bench.peers.load import Figures, medians
from bench.peers.run import Run
from bench.peers.table import Goal, Row, Table
from pycounter import Counters

GOALS = {1_000: 4.0, 100_000: 1.7}
INCR, LOCKED = "`Counters.incr(key)`", "`dict` under a lock"
UPDATE, COUNTED = "`Counters.update(list)`", "`collections.Counter.update(list)`"


def _incr(counters: Counters, keys: list[str]) -> None:
    incr = counters.incr
    for key in keys:
        incr(key)


def _locked(counters: dict[str, int], lock: threading.Lock, keys: list[str]) -> None:
    for key in keys:
        with lock:
            counters[key] += 1


def _nanoseconds(work: Callable[[], object], operations: int) -> Figures:
    began = time.thread_time()
    work()
    return {"nanoseconds": (time.thread_time() - began) / operations * 1e9}


def in_process(run: Run) -> Table:
    """Processor time of the one thread, so that a busy machine distorts it less."""
    operations = run.pick(2_000_000, 200_000)
    samplers: dict[tuple[str, str], Callable[[], Figures]] = {}
    for count in GOALS:
        names = [f"counter:{number:012d}" for number in range(count)]
        keys = names * (operations // count)
        for title, work in (
            (INCR, partial(_incr, Counters(names), keys)),
            (LOCKED, partial(_locked, dict.fromkeys(names, 0), threading.Lock(), keys)),
            (UPDATE, partial(Counters(names).update, keys)),
            (COUNTED, partial(Counter(names).update, keys)),
        ):
            samplers[f"{count:,} keys", title] = partial(_nanoseconds, work, operations)
    figures = medians(run, "p5", samplers)
    rows = [Row(case, title, dict(values)) for (case, title), values in figures.items()]
    for row in rows:
        count = int(row.case.split()[0].replace(",", ""))
        beside, goal = {INCR: (LOCKED, GOALS[count]), UPDATE: (COUNTED, 1.0)}.get(row.subject, (None, 0.0))
        if beside is not None:
            speed = figures[row.case, beside]["nanoseconds"] / row.figures["nanoseconds"]
            row.goals.append(Goal(what=f"speed to {beside}", ratio=speed, at_least=goal))
    return Table(
        name="p5",
        title="in one's own process",
        workload=f"One thread, keys of 20 characters in turn, {operations:,} increments a sample; its processor time.",
        rows=rows,
        reference=LOCKED,
    )
