"""P12: how an increment's cost grows with the number of counters and of connections."""

from __future__ import annotations

from functools import partial

from bench.peers import peers
from bench.peers.load import Figures, fill, medians, sample
from bench.peers.run import Run
from bench.peers.table import Row, Table

CONNECTIONS = (1, 10, 1_000)
KEYS = 100_000
PIPELINE = 64


def growth(run: Run) -> Table:
    """Servers grow on the way, so keys go from few to many."""
    chosen = [*run.present([peers.REDIS]), peers.APPLIED]
    servers = {peer.title: run.servers.fresh(peer) for peer in chosen}
    figures: dict[tuple[str, str], Figures] = {}
    for keys in (1_000, KEYS, run.pick(10_000_000, 1_000_000)):
        for server in servers.values():
            run.tell(f"p12: making {keys:,} counters in {server.peer.name}")
            fill(server, keys)
        load = {"pipeline": PIPELINE, "keys": keys, "seconds": run.seconds}
        figures |= medians(
            run,
            "p12",
            {
                (f"keys: {keys:,}, connections: 50, pipeline {PIPELINE}", title): partial(sample, server, **load)
                for title, server in servers.items()
            },
        )
    for server in servers.values():
        run.servers.discard(server)
    few = {peer.title: run.servers.shared(peer) for peer in chosen}
    for server in few.values():
        fill(server, KEYS)
    figures |= medians(
        run,
        "p12",
        {
            (f"keys: {KEYS:,}, connections: {count:,}, pipeline {pipeline}", title): partial(
                sample, server, connections=count, pipeline=pipeline, keys=KEYS, seconds=run.seconds
            )
            for pipeline in (1, PIPELINE)
            for count in CONNECTIONS
            for title, server in few.items()
        },
    )
    return Table(
        name="p12",
        title="growth: CPU by counters and by connections",
        workload="RESP INCR, uniformly chosen keys, level `applied`. By pipeline: see p1.",
        rows=[Row(case, title, dict(values)) for (case, title), values in figures.items()],
        reference=peers.REDIS.title,
    )
