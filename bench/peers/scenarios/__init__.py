"""What is compared. The names are those of the goals in `docs/performance.md`."""

from collections.abc import Callable, Mapping

from bench.peers.run import Run
from bench.peers.scenarios import (
    bystander,
    clients,
    cluster,
    contention,
    exactness,
    growth,
    hot_counter,
    in_process,
    storage,
    throughput,
)
from bench.peers.table import Table

SCENARIOS: Mapping[str, Callable[[Run], Table]] = {
    "p1": throughput.applied,
    "p2": throughput.msgpack,
    "p3": throughput.durable,
    "p4": hot_counter.hot_counter,
    "p5": in_process.in_process,
    "p6": contention.contention,
    "p7": clients.clients_compared,
    "p8": cluster.coordinator,
    "p9": storage.memory,
    "p10": storage.start,
    "p11": storage.checkpoint,
    "p12": growth.growth,
    "exactness": exactness.exactness,
    "bystander": bystander.bystander,
    "batches": clients.batches,
    "shards": cluster.shards,
    "totals": cluster.totals,
}
