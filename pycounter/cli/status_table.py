"""A cluster's status as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pycounter.topology import ProcessInfo, ShardInfo, Topology

__all__ = ["is_serving", "status_table"]

HEADER = ("NAME", "STATE", "PID", "ADDRESS", "RESTARTS", "")
#: A reason's characters in a line; `--json` has all.
REASON_CHARACTERS = 160
DECISIONS_SHOWN = 5
#: What a coordinator sees of a shard.
BALANCE_HEADER = ("SHARD", "HEALTH", "WEIGHT", "DIVERTS TO", "DIVERTED", "LATENCY", "ERRORS", "")


def status_table(answer: dict[str, Any], *, events: int) -> str:
    """Lines for people.

    Args:
        answer: the supervisor's, or only a topology.
        events: how many of the last events are shown.
    """
    topology = Topology.from_wire(answer["topology"])
    facts: dict[str, dict[str, Any]] = answer.get("facts", {})
    lines = [_headline(topology, answer)]
    rows = [_process_row(process, facts.get(process.name, {})) for process in topology.processes]
    lines += _table([HEADER, *(rows or [_shard_row(shard) for shard in topology.shards])])
    for name, said in facts.items():
        lines += _coordinator_lines(name, said)
    recent = answer.get("events", [])[-events:]
    if recent:
        lines += ["", "Lately:", *(f"  {event['at']}  {event['text']}" for event in recent)]
    return "\n".join(lines) + "\n"


def is_serving(answer: dict[str, Any]) -> bool:
    """Whether every process of a supervisor's answer, or every shard of a topology, serves."""
    topology = Topology.from_wire(answer["topology"])
    states = [shard.state for shard in topology.shards] + [process.state for process in topology.processes]
    return all(state == "ok" for state in states)


def _headline(topology: Topology, answer: dict[str, Any]) -> str:
    if not topology.cluster:
        return f"One shard, {topology.shards[0].name}, without a cluster."
    serving = sum(shard.state == "ok" for shard in topology.shards)
    where = f" at {answer['address']}" if "address" in answer else ""
    all_of_them = "all serving" if serving == len(topology.shards) else f"{serving} of them serving"
    return f"Cluster {topology.cluster[:8]}{where}: {len(topology.shards)} shards, {all_of_them}."


def _process_row(process: ProcessInfo, facts: dict[str, Any]) -> tuple[str, ...]:
    notes = [process.reason[:REASON_CHARACTERS]] if process.reason else []
    if "lag_ms" in facts:
        notes.insert(0, f"{facts['lag_ms']} ms behind")
    pid = str(process.pid) if process.pid else "-"
    restarts = "" if process.kind == "supervisor" else str(process.restarts)
    return process.name, process.state, pid, process.address or "-", restarts, "; ".join(notes)


def _shard_row(shard: ShardInfo) -> tuple[str, ...]:
    return shard.name, shard.state, "-", shard.address or "-", "", ""


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows whose last column has no width of its own."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _coordinator_lines(name: str, facts: dict[str, Any]) -> list[str]:
    """What a coordinator sees of the shards, and what it decided."""
    shards = [_balance_row(shard) for shard in facts.get("shards", [])]
    if not shards:
        return []
    clients = facts.get("clients", 0)
    lines = ["", f"{name} is {facts.get('state', '?')}, with {clients} client{'' if clients == 1 else 's'}:"]
    lines += [f"  {line}" for line in _table([BALANCE_HEADER, *shards])]
    lines += [
        f"  {event['age_s']:.1f} s ago, {event['shard']}: {event['what']} ({event['reason']})"
        for event in facts.get("events", [])[-DECISIONS_SHOWN:]
    ]
    return lines


def _balance_row(shard: dict[str, Any]) -> tuple[str, ...]:
    latency = "-" if shard.get("latency_ms") is None else f"{shard['latency_ms']:.1f} ms"
    diverted = str(shard.get("diverted", 0))
    errors = f"{shard.get('error_rate', 0.0):.1%}"
    to = shard.get("divert_to") or "-"
    reason = "" if shard["state"] == "healthy" else shard.get("reason", "")
    return shard["shard"], shard["state"], str(shard["weight"]), to, diverted, latency, errors, reason
