"""P4: one counter that sixteen clients wait for, each for its own fsynced increment."""

from __future__ import annotations

import re
import subprocess
from functools import partial
from pathlib import Path

from bench.peers import peers
from bench.peers.load import Figures, medians, sample
from bench.peers.run import Run
from bench.peers.servers import BenchError, Server
from bench.peers.table import Goal, Row, Table, ratio

CLIENTS = 16
GOAL = 10.0
SETUP = "CREATE TABLE counters (name text PRIMARY KEY, value bigint NOT NULL); INSERT INTO counters VALUES ('hot', 0)"
UPDATE = "UPDATE counters SET value = value + 1 WHERE name = 'hot' RETURNING value;\n"


def _prepare(server: Server) -> Path:
    connection = ["--host", "127.0.0.1", "--port", str(server.port), "--username", "bench"]
    subprocess.run(
        ["psql", *connection, "--quiet", "--no-psqlrc", "--dbname", "postgres", "--command", SETUP],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    script = server.folder.with_name("update.sql")
    script.write_text(UPDATE)
    return script


def _pgbench(server: Server, script: Path, seconds: int) -> Figures:
    before = server.cpu_seconds()
    command = [
        "pgbench",
        *("--host", "127.0.0.1", "--port", str(server.port), "--username", "bench"),
        *("--no-vacuum", "--protocol", "prepared", "--file", str(script)),
        *("--client", str(CLIENTS), "--jobs", "1", "--time", str(seconds), "postgres"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures = {
        name: re.search(pattern, said)
        for name, pattern in (
            ("transactions", r"actually processed: (\d+)"),
            ("failed", r"failed transactions: (\d+)"),
            ("per_second", r"tps = ([\d.]+)"),
        )
    }
    read = {name: float(match[1]) for name, match in figures.items() if match}
    if not read.get("transactions") or read.get("failed") or "per_second" not in read:
        raise BenchError(f"pgbench said nothing usable: {said}")
    return {
        "per_second": read["per_second"],
        "cpu_us": (server.cpu_seconds() - before) / read["transactions"] * 1e6,
    }


def hot_counter(run: Run) -> Table:
    """PostgreSQL locks the row until the fsync; a shard's commit carries everybody's."""
    durable = run.servers.shared(peers.DURABLE)
    seconds = run.pick(3, 1)
    load = {"connections": CLIENTS, "pipeline": 1, "keys": 1, "seconds": seconds}
    samplers = {peers.DURABLE.title: partial(sample, durable, **load)}
    notes = []
    if missing := peers.POSTGRESQL.missing():
        notes.append(missing)
    else:
        server = run.servers.fresh(peers.POSTGRESQL)
        samplers[peers.POSTGRESQL.title] = partial(_pgbench, server, _prepare(server), seconds)
    samplers["ceiling: constant reply, nothing written"] = partial(sample, run.servers.shared(peers.CEILING), **load)
    figures = medians(run, "p4", samplers)
    rows = [Row("1 counter", title, dict(values)) for title, values in figures.items()]
    speed = ratio(rows[0].figures, figures.get(peers.POSTGRESQL.title), "per_second")
    if speed is not None:
        rows[0].goals.append(Goal(what="speed to PostgreSQL", ratio=speed, at_least=GOAL))
    return Table(
        name="p4",
        title="one hot counter, durable",
        workload=f"{CLIENTS} clients, each waits for its reply before the next increment. pgbench: one row by its "
        "primary key, prepared, `RETURNING`.",
        rows=rows,
        notes=notes,
        reference=peers.POSTGRESQL.title,
    )
