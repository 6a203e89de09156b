"""What it costs to be able to repeat an operation: ids and sessions beside plain increments."""

from __future__ import annotations

from functools import partial

from bench.peers import peers
from bench.peers.load import fill, medians, sample
from bench.peers.run import Run
from bench.peers.table import Row, Table

KEYS = 100_000
CONNECTIONS = 10
#: Increments that a connection has under way, in each way of asking.
IN_FLIGHT = 800
WAYS = {
    "plain `incr`": {"operation": "incr", "pipeline": IN_FLIGHT},
    "`incr` under an id": {"operation": "incr-with-id", "pipeline": IN_FLIGHT},
    "`apply`, 100 in a batch": {"operation": "apply", "pipeline": IN_FLIGHT // 100, "batch": 100},
}


def exactness(run: Run) -> Table:
    """At both levels."""
    # Ids are kept for minutes, whatever the rate: they get the room that these rates need.
    servers = {level: run.servers.fresh(peers.shard(level, ids_bytes_max="4GiB")) for level in ("applied", "durable")}
    for server in servers.values():
        fill(server, KEYS)
    load = {"protocol": "msgpack-rpc", "connections": CONNECTIONS, "keys": KEYS, "seconds": run.seconds}
    figures = medians(
        run,
        "exactness",
        {
            (level, way): partial(sample, server, **{**load, **workload})
            for level, server in servers.items()
            for way, workload in WAYS.items()
        },
    )
    for server in servers.values():
        run.servers.discard(server)
    return Table(
        name="exactness",
        title="ids and sessions beside plain increments",
        workload=f"MessagePack-RPC, {KEYS:,} keys, {CONNECTIONS} connections, {IN_FLIGHT} increments under way each.",
        rows=[Row(f"`{level}`", way, dict(values)) for (level, way), values in figures.items()],
        reference=next(iter(WAYS)),
        notes=["Only an increment under an id or in a session can be repeated after a cut connection."],
    )
