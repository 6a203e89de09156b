"""P6: one counter that two threads add to, striped, beside one atomic. In Rust, without the interpreter's lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from bench.peers.run import Run
from bench.peers.servers import ROOT, BenchError
from bench.peers.table import Goal, Row, Table

GOAL = 2.5
TITLES = {"striped": "striped cell", "unstriped": "cell without stripes", "atomic": "one atomic, `fetch_add`"}


def contention(run: Run) -> Table:
    """Runs `rust/engine/benches/hot_counter.rs`, which takes turns and medians itself."""
    if len(run.cores.all) < 2:
        raise BenchError("p6 needs two cores")
    run.tell("p6: cargo bench, which builds it first where it isn't built")
    command = ["cargo", "bench", "--locked", "--quiet", "--package", "pycounter-engine", "--bench", "hot_counter"]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYO3_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            check=True,
            # This process has one core to itself; the threads need two.
            preexec_fn=lambda: os.sched_setaffinity(0, run.cores.all),
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"p6: {' '.join(command)} failed: {error}") from error
    rows = [
        Row(f"threads: {said['threads']}", TITLES[said["name"]], {"nanoseconds": said["ns"], "rounds": said["rounds"]})
        for said in json.loads(done.stdout)
        if said["rounds"]
    ]
    notes = ["Where two threads hurt an atomic little, the machine's two cores may be one core's halves."]
    contended = {row.subject: row for row in rows if row.case == "threads: 2"}
    if {TITLES["striped"], TITLES["atomic"]} <= contended.keys():
        striped, atomic = contended[TITLES["striped"]], contended[TITLES["atomic"]]
        speed = atomic.figures["nanoseconds"] / striped.figures["nanoseconds"]
        striped.goals.append(Goal(what="speed to one atomic", ratio=speed, at_least=GOAL))
    else:
        notes.append("Others used the cores: there was no round in which both threads had one each.")
    return Table(
        name="p6",
        title="one hot counter, two threads without the interpreter's lock",
        workload="Wall time for each addition of both threads together; only rounds in which each thread had a core.",
        rows=rows,
        notes=notes,
        reference=TITLES["atomic"],
    )
