"""What one well-behaved client notices of clients that aren't."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial

from bench.peers import peers
from bench.peers.load import Figures, fill, medians, sample
from bench.peers.run import Run
from bench.peers.servers import ROOT, Server
from bench.peers.table import Row, Table

UNDISTURBED = "undisturbed"
TROUBLES = {
    "50 clients, pipeline 64": "pipelines",
    "connecting and leaving": "connections",
    "garbage": "garbage",
    "50 clients that never read": "deaf",
}


def _disturbed(server: Server, kind: str, seconds: float) -> Figures:
    command = [sys.executable, "-m", "bench.peers.trouble", kind, str(server.port), str(seconds + 30)]
    trouble = subprocess.Popen(command, cwd=ROOT)
    try:
        time.sleep(1.0)  # it has to get going
        return _alone(server, seconds)
    finally:
        trouble.kill()
        trouble.wait()


def _alone(server: Server, seconds: float) -> Figures:
    return sample(server, connections=1, pipeline=1, keys=1, seconds=seconds)


def bystander(run: Run) -> Table:
    """Redis beside the shard: trouble and bystander share a core, which both servers feel."""
    servers = {peer.title: run.servers.fresh(peer) for peer in run.present([peers.REDIS, peers.shard("applied")])}
    for server in servers.values():
        fill(server, 100_000)
    seconds = run.pick(2.0, 0.5)
    samplers = {(UNDISTURBED, title): partial(_alone, server, seconds) for title, server in servers.items()}
    for case, kind in TROUBLES.items():
        samplers |= {(case, title): partial(_disturbed, server, kind, seconds) for title, server in servers.items()}
    figures = medians(run, "bystander", samplers)
    for server in servers.values():
        run.servers.discard(server)
    return Table(
        name="bystander",
        title="one client beside others that misbehave",
        workload="RESP INCR of one counter by one connection, the next after each reply, level `applied`. Trouble and "
        "bystander share the load's core.",
        rows=[Row(case, title, dict(values)) for (case, title), values in figures.items()],
        notes=["CPU is that of all the server's work, for one of the bystander's increments."],
    )
