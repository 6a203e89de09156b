"""PyCounter's cluster as a server that is measured: its processes apart, and proxies that make ways longer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from bench.peers.load import Figures, run_checked
from bench.peers.processes import cpu_seconds
from bench.peers.servers import ROOT, BenchError, Server
from pycounter.cluster.control import ask_supervisor
from pycounter.topology import Topology, format_address


def topology_of(server: Server) -> Topology:
    """As the supervisor knows it now."""
    return Topology.from_wire(ask_supervisor(server.folder, {"do": "status"})["topology"])


class Processes:
    """The processor time of a cluster's processes, by their kind, since this was made."""

    def __init__(self, server: Server) -> None:
        self._pids: dict[str, list[int]] = {}
        for process in topology_of(server).processes:
            if process.pid:
                self._pids.setdefault(process.kind, []).append(process.pid)
        if not self._pids.get("coordinator") or not self._pids.get("shard"):
            raise BenchError("the cluster has no coordinator, or no shard")
        self._before = {kind: self._seconds(kind) for kind in self._pids}

    def _seconds(self, kind: str) -> float:
        # The supervisor's children have lines of their own.
        return 0.0 if kind == "supervisor" else sum(cpu_seconds(pid) for pid in self._pids[kind])

    def microseconds(self, operations: int) -> Figures:
        """For one operation: `cpu_us` of all together, `coordinator_us` of the coordinators alone."""
        spent = {kind: self._seconds(kind) - before for kind, before in self._before.items()}
        return {
            "cpu_us": sum(spent.values()) / operations * 1e6,
            "coordinator_us": spent["coordinator"] / operations * 1e6,
        }


def sample_cluster(server: Server, **workload: object) -> Figures:
    """As `load.sample`, through the coordinator."""
    processes = Processes(server)
    report = run_checked(server, **workload)
    return {
        "per_second": report.per_second,
        "p50_us": report.p50_us,
        "p99_us": report.p99_us,
        "p999_us": report.p999_us,
        **processes.microseconds(report.operations),
        "generator_us": report.cpu_seconds / report.operations * 1e6,
    }


@contextmanager
def delayed(topology: Topology, delay_s: float) -> Iterator[Topology]:
    """The same shards, each behind a proxy that makes a round trip so much longer."""
    ports = [shard.endpoint[1] for shard in topology.shards if shard.endpoint is not None]
    with _proxies(ports, delay_s) as proxies:
        shards = tuple(
            msgspec.structs.replace(shard, address=format_address("127.0.0.1", port))
            for shard, port in zip(topology.shards, proxies, strict=True)
        )
        yield msgspec.structs.replace(topology, shards=shards)


@contextmanager
def _proxies(ports: Sequence[int], delay_s: float) -> Iterator[list[int]]:
    command = [sys.executable, "-m", "bench.peers.delay_proxies", str(delay_s), *map(str, ports)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError("the proxies did not start")
        yield json.loads(line)
    finally:
        process.kill()
        process.wait()
