"""P9 to P11: memory for a counter, how long a start takes, and what a checkpoint does to those who wait."""

from __future__ import annotations

import json
import time
from functools import partial

from bench.peers import peers
from bench.peers.load import Figures, fill, medians, sample
from bench.peers.run import Run
from bench.peers.servers import BenchError, Server
from bench.peers.table import Goal, Row, Table, ratio

MEMORY_GOAL = 0.6
START_GOAL = 0.5
CHECKPOINT_GOAL = 2.0
CHECKPOINT_TIMEOUT_S = 60.0
SETTLE_S = 1.0


def _checkpoints(server: Server) -> int:
    """How many checkpoints were begun until the last one that ended, as the shard's folder says."""
    checkpoint = json.loads((server.folder / "manifest.json").read_text())["content"]["checkpoint"]
    return int(checkpoint["fold"]) if checkpoint else 0


def _wait_for_checkpoint(server: Server) -> None:
    """Until the checkpoint hasn't moved for a second, and there is one."""
    deadline = time.monotonic() + CHECKPOINT_TIMEOUT_S
    seen, since = 0, time.monotonic()
    while time.monotonic() < deadline:
        number = _checkpoints(server)
        if number != seen:
            seen, since = number, time.monotonic()
        if seen and time.monotonic() - since > SETTLE_S + 1.0:
            return
        time.sleep(0.05)
    raise BenchError(f"{server.peer.name} made no checkpoint within {CHECKPOINT_TIMEOUT_S:.0f} s")


def _growth(server: Server, keys: int) -> Figures:
    # Buffers and code are there before: what grows then is the counters.
    fill(server, 1_000, connections=10)
    time.sleep(SETTLE_S)
    before = server.resident_bytes()
    fill(server, keys, connections=10)
    if (server.folder / "manifest.json").exists():
        _wait_for_checkpoint(server)
    time.sleep(SETTLE_S)
    grown = server.resident_bytes() - before
    return {"megabytes": grown / 1e6, "bytes_per_counter": grown / keys}


def memory(run: Run) -> Table:
    """P9: fresh servers, once: memory is no noisy figure."""
    keys = run.pick(1_000_000, 200_000)
    rows = []
    for peer in (*run.present([peers.REDIS]), peers.shard("durable", checkpoint_interval_s=1.0)):
        run.tell(f"p9: {keys:,} counters in {peer.name}")
        server = run.servers.fresh(peer)
        rows.append(Row(f"{keys:,} counters", peer.title, _growth(server, keys)))
        run.servers.discard(server)
    if len(rows) > 1:
        share = rows[1].figures["bytes_per_counter"] / rows[0].figures["bytes_per_counter"]
        rows[1].goals.append(Goal(what="memory to Redis", ratio=share, at_most=MEMORY_GOAL))
    return Table(
        name="p9",
        title="memory for a counter",
        workload="Growth of the resident set with so many counters, keys of 16 bytes; PyCounter's after a checkpoint.",
        rows=rows,
        reference=peers.REDIS.title,
        notes=["Tables that double are more or less full at other numbers of counters."],
    )


def start(run: Run) -> Table:
    """P10."""
    keys = run.pick(10_000_000, 500_000)
    redis = peers.saving(peers.REDIS)
    servers = {}
    for peer in (*run.present([redis]), peers.DURABLE):
        run.tell(f"p10: {keys:,} counters into {peer.name}, then an orderly stop")
        server = run.servers.fresh(peer)
        fill(server, keys)
        server.stop()
        servers[peer.title] = server

    def started(server: Server) -> Figures:
        seconds = server.start()
        # Nothing has changed since: what is on disk is still what it was.
        server.kill()
        return {"seconds": seconds}

    figures = medians(run, "p10", {title: partial(started, server) for title, server in servers.items()})
    for server in servers.values():
        run.servers.discard(server)
    rows = [Row(f"{keys:,} counters", title, dict(values)) for title, values in figures.items()]
    share = ratio(rows[-1].figures, figures.get(redis.title), "seconds")
    if share is not None:
        rows[-1].goals.append(Goal(what="time to Redis", ratio=share, at_most=START_GOAL))
    return Table(
        name="p10",
        title="start",
        workload="From starting the process to its first answer to PING, interpreter and imports included. Redis loads "
        "its RDB.",
        rows=rows,
    )


def checkpoint(run: Run) -> Table:
    """P11: two shards of which one checkpoints all the time, so that there is no moment to be missed."""
    keys = run.pick(1_000_000, 200_000)
    never = run.servers.fresh(peers.shard("durable", checkpoint_interval_s=1e9, checkpoint_log_bytes="1000GiB"))
    always = run.servers.fresh(peers.shard("durable", checkpoint_interval_s=0.05))
    calm, busy = "no checkpoint", "checkpoints without a break"
    for server in (never, always):
        run.tell(f"p11: {keys:,} counters")
        fill(server, keys)
    _wait_for_checkpoint(always)
    load = {"connections": 50, "pipeline": 1, "keys": keys, "seconds": run.pick(4.0, 1.5)}
    before = _checkpoints(always)
    figures = medians(run, "p11", {calm: partial(sample, never, **load), busy: partial(sample, always, **load)})
    if _checkpoints(never):
        raise BenchError("the shard that never makes a checkpoint made one")
    ended = _checkpoints(always) - before
    if not ended:
        raise BenchError("no checkpoint ended while its load ran")
    for server in (never, always):
        run.servers.discard(server)
    rows = [Row(f"{keys:,} counters", title, dict(values)) for title, values in figures.items()]
    slower = figures[busy]["p99_us"] / figures[calm]["p99_us"]
    rows[1].goals.append(Goal(what="p99 to no checkpoint", ratio=slower, at_most=CHECKPOINT_GOAL))
    return Table(
        name="p11",
        title="latency while a checkpoint is made",
        workload="Durable RESP INCR, uniformly chosen keys, 50 connections, unpipelined. Changes are all over the "
        "keys, so each checkpoint rewrites nearly every page.",
        rows=rows,
        notes=[f"{ended} checkpoints ended within {run.rounds * load['seconds']:.0f} seconds of load."],
        reference=calm,
    )
