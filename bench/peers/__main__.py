"""Compares a PyCounter shard with redis-server: `python -m bench.peers`.

Four servers, started on free ports and temporary folders: redis-server without and with `appendfsync always`, and a
shard at `applied` and at `durable`. The load is redis-benchmark's INCR from 50 connections over 100,000 keys. Servers
run on one processor and the load on another, rounds are interleaved, medians are printed. Machines are noisy and
differ: look at the ratios. CPU per operation is the server process's own, from /proc: a slow client can't distort it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pycounter import _native

CONNECTIONS = 50
KEYS = 100_000
#: Operations a round, by pipeline depth: about a second or two each.
OPERATIONS = {1: 60_000, 16: 600_000, 64: 1_500_000, 256: 3_000_000}
SERVERS = ("redis", "redis-fsync", "applied", "durable")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    port: int
    pid: int


@dataclass(frozen=True, slots=True)
class Figure:
    per_second: float
    cpu_us: float


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command(name: str, port: int, folder: Path) -> list[str]:
    if name.startswith("redis"):
        append = ["--appendonly", "yes", "--appendfsync", "always"] if name == "redis-fsync" else ["--appendonly", "no"]
        return ["redis-server", "--port", str(port), "--dir", str(folder), "--save", "", *append]
    return [sys.executable, "-m", "pycounter", "serve", "--data", str(folder), "--port", str(port), "--level", name]


@contextlib.contextmanager
def _running(name: str, base: Path, cpu: str | None) -> Iterator[Server]:
    folder, port = base / name, _free_port()
    folder.mkdir()
    pin = ["taskset", "-c", cpu] if cpu else []
    process = subprocess.Popen(
        [*pin, *_command(name, port, folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench.peers: {name} did not start: {' '.join(_command(name, port, folder))}")
            time.sleep(0.05)
        yield Server(name, port, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def _measure(server: Server, pipeline: int, operations: int, cpu: str | None) -> Figure:
    before = _cpu_seconds(server.pid)
    output = subprocess.run(
        [
            *(["taskset", "-c", cpu] if cpu else []),
            "redis-benchmark",
            *("-p", str(server.port), "-t", "incr", "-c", str(CONNECTIONS), "-r", str(KEYS)),
            *("-P", str(pipeline), "-n", str(operations), "-q"),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    used = _cpu_seconds(server.pid) - before
    rates = re.findall(r"INCR: ([\d.]+) requests per second", output.replace("\r", "\n"))
    if not rates:
        raise SystemExit(f"bench.peers: redis-benchmark said nothing usable of {server.name}: {output!r}")
    return Figure(float(rates[-1]), used / operations * 1e6)


def _table(results: dict[int, dict[str, Figure]]) -> str:
    lines = [
        "| pipeline | server | operations/s | to Redis, no log | to Redis, fsync | CPU us/op | to Redis, no log |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    titles = {
        "redis": "Redis, no log",
        "redis-fsync": "Redis, `appendfsync always`",
        "applied": "PyCounter, `applied`",
        "durable": "PyCounter, `durable` (fsynced)",
    }
    for pipeline, figures in results.items():
        plain, fsync = figures["redis"], figures["redis-fsync"]
        for name in SERVERS:
            figure = figures[name]
            lines.append(
                f"| {pipeline} | {titles[name]} | {figure.per_second:,.0f} "
                f"| {figure.per_second / plain.per_second:.2f}x | {figure.per_second / fsync.per_second:.2f}x "
                f"| {figure.cpu_us:.2f} | {figure.cpu_us / plain.cpu_us:.2f}x |"
            )
    return "\n".join(lines)


def main() -> None:
    """Runs the comparison and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of a tenth: a look, no figures")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; medians are printed (default: 3)")
    parser.add_argument("--pipelines", default="1,16,64,256", help="pipeline depths (default: 1,16,64,256)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    if _native.DEBUG_BUILD:
        raise SystemExit("bench.peers: the native module is a debug build: run make setup")
    for tool in ("redis-server", "redis-benchmark"):
        if shutil.which(tool) is None:
            raise SystemExit(f"bench.peers: {tool} is missing: apt-get install redis-server redis-tools")
    pipelines = [int(depth) for depth in arguments.pipelines.split(",")]
    rounds, share = (1, 10) if arguments.quick else (arguments.rounds, 1)
    two = (os.cpu_count() or 1) > 1 and shutil.which("taskset") is not None
    server_cpu, load_cpu = ("0", "1") if two else (None, None)
    samples: dict[int, dict[str, list[Figure]]] = {depth: {name: [] for name in SERVERS} for depth in pipelines}
    base = Path(tempfile.mkdtemp(prefix="pycounter-peers-"))
    try:
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(_running(name, base, server_cpu)) for name in SERVERS]
            for server in servers:
                _measure(server, 64, 2 * KEYS, load_cpu)
            for number in range(rounds):
                for depth in pipelines:
                    for server in servers:
                        print(f"round {number + 1}/{rounds}, pipeline {depth}, {server.name} ...", file=sys.stderr)
                        operations = OPERATIONS.get(depth, 300_000) // share
                        samples[depth][server.name].append(_measure(server, depth, operations, load_cpu))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    results = {
        depth: {
            name: Figure(
                statistics.median(figure.per_second for figure in figures),
                statistics.median(figure.cpu_us for figure in figures),
            )
            for name, figures in by_name.items()
        }
        for depth, by_name in samples.items()
    }
    if arguments.json:
        rows = [
            {"pipeline": depth, "server": name, "per_second": figure.per_second, "cpu_us": figure.cpu_us}
            for depth, figures in results.items()
            for name, figure in figures.items()
        ]
        print(json.dumps(rows, indent=2))
    else:
        print(_table(results))


if __name__ == "__main__":
    main()
