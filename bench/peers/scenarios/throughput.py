"""P1 to P3: increments over 100,000 keys from 50 connections, at four depths of pipelining."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bench.peers import peers
from bench.peers.load import Figures, fill, medians, sample
from bench.peers.run import Run
from bench.peers.servers import Server
from bench.peers.table import Goal, Row, Table, ratio

PIPELINES = {f"pipeline {depth}": depth for depth in (1, 16, 64, 256)}
KEYS = 100_000
CONNECTIONS = 50
CPU_GOALS = {"pipeline 1": 1.0, "pipeline 16": 0.70, "pipeline 64": 0.35, "pipeline 256": 0.22}
#: MessagePack-RPC may cost so much more than RESP.
PROTOCOL_GOAL = 1.10
FSYNC_GOALS = {"pipeline 1": 1.2, "pipeline 16": 1.9, "pipeline 64": 3.0, "pipeline 256": 5.0}
NO_LOG_GOALS = {"pipeline 64": 1.2, "pipeline 256": 2.5}
#: A depth and a subject.
Case = tuple[str, str]
WORKLOAD = f"Increments of uniformly chosen counters among {KEYS:,}, {CONNECTIONS} connections"


def _measure(run: Run, name: str, subjects: Mapping[str, tuple[Server, Mapping[str, Any]]]) -> dict[Case, Figures]:
    for server in {id(server): server for server, _ in subjects.values()}.values():
        fill(server, KEYS)
    load = {"connections": CONNECTIONS, "keys": KEYS, "seconds": run.seconds}
    samplers = {
        (case, title): partial(sample, server, **load, **workload, pipeline=depth)
        for case, depth in PIPELINES.items()
        for title, (server, workload) in subjects.items()
    }
    return medians(run, name, samplers)


def _rows(figures: Mapping[Case, Figures]) -> list[Row]:
    return [Row(case, title, dict(values)) for (case, title), values in figures.items()]


def applied(run: Run) -> Table:
    """P1."""
    chosen = [
        *run.present([peers.REDIS, peers.VALKEY, peers.MEMCACHED]),
        peers.APPLIED,
        peers.FLOOR,
        peers.CEILING,
    ]
    figures = _measure(run, "p1", {peer.title: (run.servers.shared(peer), {}) for peer in chosen})
    rows = _rows(figures)
    for row in rows:
        cost = ratio(row.figures, figures.get((row.case, peers.REDIS.title)), "cpu_us")
        if row.subject == peers.APPLIED.title and cost is not None:
            row.goals.append(Goal(what="CPU to Redis", ratio=cost, at_most=CPU_GOALS[row.case]))
    return Table(
        name="p1",
        title="RESP, in memory: CPU for an increment",
        workload=f"{WORKLOAD}; RESP INCR, memcached's `ma` with autovivification.",
        rows=rows,
        reference=peers.REDIS.title,
    )


def msgpack(run: Run) -> Table:
    """P2."""
    server = run.servers.shared(peers.APPLIED)
    speech = {"RESP": {"protocol": "resp"}, "MessagePack-RPC": {"protocol": "msgpack-rpc"}}
    subjects: dict[str, tuple[Server, Mapping[str, Any]]] = {
        f"PyCounter, `applied`, {words}": (server, workload) for words, workload in speech.items()
    }
    for peer in (peers.FLOOR, peers.CEILING):
        subjects[f"{peer.title}, MessagePack-RPC"] = (run.servers.shared(peer), speech["MessagePack-RPC"])
    reference, subject = list(subjects)[:2]
    figures = _measure(run, "p2", subjects)
    rows = _rows(figures)
    for row in rows:
        if row.subject == subject and (cost := ratio(row.figures, figures[row.case, reference], "cpu_us")) is not None:
            row.goals.append(Goal(what="CPU to RESP", ratio=cost, at_most=PROTOCOL_GOAL))
    return Table(
        name="p2",
        title="MessagePack-RPC beside RESP",
        workload=f"{WORKLOAD}; `incr` of a key alone, at the server's level `applied`.",
        rows=rows,
        reference=reference,
    )


def durable(run: Run) -> Table:
    """P3."""
    redis = run.present([peers.REDIS_FSYNC, peers.REDIS])
    chosen = [*redis, peers.DURABLE, peers.FLOOR, peers.CEILING]
    figures = _measure(run, "p3", {peer.title: (run.servers.shared(peer), {}) for peer in chosen})
    rows = _rows(figures)
    for row in rows:
        if row.subject != peers.DURABLE.title:
            continue
        share = ratio(row.figures, figures[row.case, peers.CEILING.title], "per_second")
        for peer, goals in ((peers.REDIS_FSYNC, FSYNC_GOALS), (peers.REDIS, NO_LOG_GOALS)):
            speed = ratio(row.figures, figures.get((row.case, peer.title)), "per_second")
            if row.case in goals and speed is not None:
                what = f"speed to {peer.title}"
                row.goals.append(Goal(what=what, ratio=speed, at_least=goals[row.case], ceiling_share=share))
    return Table(
        name="p3",
        title="RESP, every reply after an fsync",
        workload=f"{WORKLOAD}; RESP INCR. Redis without a log, floor and ceiling write nothing.",
        rows=rows,
        reference=peers.REDIS_FSYNC.title,
    )
