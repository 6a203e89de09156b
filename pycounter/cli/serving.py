"""What `pycounter serve` does: runs a shard, a replica, or the supervisor of a cluster, until it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Protocol

import uvloop

from pycounter._native import VERSION
from pycounter.cli.terminal import print_json
from pycounter.net.service_manager import ServiceManager
from pycounter.replica.replica_settings import ReplicaSettings
from pycounter.settings import ClusterSettings, ServerSettings

__all__ = ["outlive_hang_up", "serve_cluster", "serve_replica", "serve_shard"]


def outlive_hang_up() -> None:
    """Has SIGHUP not end this process before it serves: then it reads token file and certificate again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _Server(Protocol):
    async def run(self, on_ready: Callable[[dict[str, Any]], None], on_stopping: Callable[[], None]) -> None: ...


def serve_shard(settings: ServerSettings, *, as_json: bool) -> None:
    """One shard alone."""
    from pycounter.server import ShardServer

    def describe(facts: dict[str, Any]) -> str:
        return (
            f"pycounter {VERSION}: shard {facts['shard']} serves {settings.data} at {facts['address']}, "
            f"{facts['level']}, epoch {facts['epoch']}, pid {facts['pid']}. Ctrl-C stops it in good order.\n"
        )

    _serve(lambda: ShardServer(settings), describe, as_json=as_json)


def serve_replica(settings: ReplicaSettings, *, as_json: bool) -> None:
    """One replica of a shard."""
    from pycounter.replica import ReplicaServer

    def describe(facts: dict[str, Any]) -> str:
        return (
            f"pycounter {VERSION}: replica {facts['name']} of {facts['primary']} answers reads at "
            f"{facts['address']} once it has caught up, pid {facts['pid']}. Ctrl-C stops it.\n"
        )

    _serve(lambda: ReplicaServer(settings), describe, as_json=as_json)


def serve_cluster(settings: ClusterSettings, *, as_json: bool) -> None:
    """A cluster: this process becomes its supervisor."""
    from pycounter.cluster.supervisor import Supervisor

    def describe(facts: dict[str, Any]) -> str:
        replicas = f", {len(facts['replicas'])} replicas" if facts["replicas"] else ""
        not_serving = [f"Not serving: {name} {reason}\n" for name, reason in facts["not_ready"].items()]
        return (
            f"pycounter {VERSION}: a cluster of {len(facts['shards'])} shards{replicas} serves {settings.data} at "
            f"{facts['address']}, {facts['level']}, pid {facts['pid']}. Ctrl-C stops it in good order.\n"
            f"What runs: pycounter status --data {settings.data}\n{''.join(not_serving)}"
        )

    _serve(lambda: Supervisor(settings), describe, as_json=as_json)


def _serve(make: Callable[[], _Server], describe: Callable[[dict[str, Any]], str], *, as_json: bool) -> None:
    """Runs a server, made on its loop, and tells of it: the standard output, and a service manager if there is one."""
    manager = ServiceManager.from_environment(os.environ)

    def ready(facts: dict[str, Any]) -> None:
        if as_json:
            print_json({"event": "ready", **facts})
        else:
            sys.stdout.write(describe(facts))
            sys.stdout.flush()
        manager.ready()

    async def serve_until_stopped() -> None:
        async with manager.watched():
            await make().run(ready, manager.stopping)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped())
