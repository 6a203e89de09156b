"""The status as text: every process, what coordinators see, and what happened."""

from pycounter.cli.status_table import status_table
from pycounter.topology import ProcessInfo, ShardInfo, Topology

SHARDS = (
    ShardInfo(name="shard-0", address="127.0.0.1:4001", state="ok"),
    ShardInfo(name="shard-1", address="127.0.0.1:4002", state="stalled"),
)
PROCESSES = (
    ProcessInfo(name="supervisor", kind="supervisor", state="ok", pid=1, address="127.0.0.1:7400"),
    ProcessInfo(name="shard-0", kind="shard", state="ok", pid=22, restarts=3, reason="ended by SIGKILL"),
    ProcessInfo(name="shard-1", kind="shard", state="stalled", pid=333, reason="has not answered"),
    ProcessInfo(name="shard-0-replica-0", kind="replica", state="ok", pid=4444),
    ProcessInfo(name="coordinator-0", kind="coordinator", state="down", reason="x" * 1000),
)
TOPOLOGY = Topology(version=7, cluster="ab" * 16, shards=SHARDS, processes=PROCESSES)
COORDINATOR = {
    "state": "degraded",
    "clients": 1,
    "shards": [
        {"shard": "shard-0", "state": "healthy", "weight": 1.0, "divert_to": None, "diverted": 0, "latency_ms": 1.25},
        {"shard": "shard-1", "state": "dead", "weight": 0.0, "divert_to": "shard-0", "diverted": 17, "latency_ms": None}
        | {"error_rate": 0.5, "reason": "no answers"},
    ],
    "events": [{"age_s": 2.5, "shard": "shard-1", "what": "dead", "reason": "no answers"}],
}


def test_a_cluster():
    answer = {
        "topology": TOPOLOGY.to_wire(),
        "address": "127.0.0.1:7400",
        "facts": {"coordinator-0": COORDINATOR, "shard-0-replica-0": {"lag_ms": 12}},
        "events": [{"at": "2026-01-01T00:00:00.000Z", "text": f"event {number}"} for number in range(20)],
    }
    lines = status_table(answer, events=2).splitlines()
    assert lines[0] == "Cluster abababab at 127.0.0.1:7400: 2 shards, 1 of them serving."
    rows = {line.split()[0]: line.split(maxsplit=5) for line in lines[2:7]}
    assert rows["supervisor"] == ["supervisor", "ok", "1", "127.0.0.1:7400"]
    assert rows["shard-0"] == ["shard-0", "ok", "22", "-", "3", "ended by SIGKILL"]
    assert rows["shard-1"] == ["shard-1", "stalled", "333", "-", "0", "has not answered"]
    assert rows["shard-0-replica-0"][5] == "12 ms behind"
    assert rows["coordinator-0"][2] == "-"
    assert len(lines[6]) < 250, "a long reason is cut"
    assert lines[7:13] == [
        "",
        "coordinator-0 is degraded, with 1 client:",
        "  SHARD    HEALTH   WEIGHT  DIVERTS TO  DIVERTED  LATENCY  ERRORS",
        "  shard-0  healthy  1.0     -           0         1.2 ms   0.0%",
        "  shard-1  dead     0.0     shard-0     17        -        50.0%   no answers",
        "  2.5 s ago, shard-1: dead (no answers)",
    ]
    assert lines[-2:] == ["  2026-01-01T00:00:00.000Z  event 18", "  2026-01-01T00:00:00.000Z  event 19"]


def test_a_shard_alone():
    shard = {"name": "shard-0", "address": "127.0.0.1:7400", "state": "ok", "weight": 1.0, "identity": "ab"}
    lines = status_table({"topology": {"version": 1, "shards": [shard]}}, events=5).splitlines()
    assert lines[0] == "One shard, shard-0, without a cluster."
    assert lines[2].split() == ["shard-0", "ok", "-", "127.0.0.1:7400"]
