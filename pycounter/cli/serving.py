"""What `pycounter serve` does: runs a shard, or the supervisor of a cluster, until it is stopped."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop

from pycounter._native import VERSION
from pycounter.cli.terminal import print_json
from pycounter.replica.replica_settings import ReplicaSettings
from pycounter.settings import ClusterSettings, ServerSettings

__all__ = ["serve_cluster", "serve_replica", "serve_shard"]


def serve_shard(settings: ServerSettings, *, as_json: bool) -> None:
    """One shard alone."""
    from pycounter.server import ShardServer

    def ready(facts: dict[str, object]) -> None:
        if as_json:
            print_json({"event": "ready", **facts})
        else:
            sys.stdout.write(
                f"pycounter {VERSION}: shard {facts['shard']} serves {settings.data} at {facts['address']}, "
                f"{facts['level']}, epoch {facts['epoch']}, pid {facts['pid']}. Ctrl-C stops it in good order.\n"
            )
            sys.stdout.flush()

    async def serve_until_stopped() -> None:
        await ShardServer(settings).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped())


def serve_replica(settings: ReplicaSettings, *, as_json: bool) -> None:
    """One replica of a shard."""
    from pycounter.replica import ReplicaServer

    def ready(facts: dict[str, object]) -> None:
        if as_json:
            print_json({"event": "ready", **facts})
        else:
            sys.stdout.write(
                f"pycounter {VERSION}: replica {facts['name']} of {facts['primary']} answers reads at "
                f"{facts['address']} once it has caught up, pid {facts['pid']}. Ctrl-C stops it.\n"
            )
            sys.stdout.flush()

    async def serve_until_stopped() -> None:
        await ReplicaServer(settings).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped())


def serve_cluster(settings: ClusterSettings, *, as_json: bool) -> None:
    """A cluster: this process becomes its supervisor."""
    from pycounter.cluster.supervisor import Supervisor

    def ready(facts: dict[str, Any]) -> None:
        if as_json:
            print_json({"event": "ready", **facts})
            return
        replicas = f", {len(facts['replicas'])} replicas" if facts["replicas"] else ""
        sys.stdout.write(
            f"pycounter {VERSION}: a cluster of {len(facts['shards'])} shards{replicas} serves {settings.data} at "
            f"{facts['address']}, {facts['level']}, pid {facts['pid']}. Ctrl-C stops it in good order.\n"
            f"What runs: pycounter status --data {settings.data}\n"
        )
        for name, reason in facts["not_ready"].items():
            sys.stdout.write(f"Not serving: {name} {reason}\n")
        sys.stdout.flush()

    async def serve_until_stopped() -> None:
        await Supervisor(settings).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped())
