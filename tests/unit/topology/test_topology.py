"""The topology: what goes over the wire comes back, and what makes no sense is refused with the field's name."""

import copy
import json
import math

import hypothesis
import msgpack
import pytest
from hypothesis import strategies as st

from pycounter import HashRing
from pycounter.errors import TopologyError
from pycounter.topology import ProcessInfo, ReplicaInfo, ShardInfo, Topology

SHARDS = (
    ShardInfo(name="shard-0", address="127.0.0.1:4001", state="ok", identity="ab" * 16),
    ShardInfo(
        name="shard-1",
        address="[::1]:4002",
        state="stalled",
        weight=0.5,
        replicas=(ReplicaInfo(name="shard-1/replica-0", address="127.0.0.1:4003", state="starting"),),
    ),
    ShardInfo(name="shard-2", state="down"),
)
TOPOLOGY = Topology(
    version=3_000_017,
    cluster="cd" * 16,
    shards=SHARDS,
    strict=("order:", "größe:"),
    processes=(
        ProcessInfo(name="supervisor", kind="supervisor", state="ok", pid=17),
        ProcessInfo(name="shard-2", kind="shard", state="down", restarts=2, reason="ended by SIGKILL"),
    ),
)


@pytest.fixture
def document():
    """The document as JSON would give it."""
    return json.loads(json.dumps(TOPOLOGY.to_wire()))


def test_it_comes_back_from_json_and_from_messagepack(document):
    assert Topology.from_wire(document) == TOPOLOGY
    assert Topology.from_wire(msgpack.unpackb(msgpack.packb(TOPOLOGY.to_wire()))) == TOPOLOGY


def test_what_a_shard_alone_sends_is_a_topology():
    shard = {"name": "shard-0", "address": "127.0.0.1:1", "identity": "ab", "state": "read_only", "weight": 1.0}
    topology = Topology.from_wire({"version": 1, "shards": [shard]})
    assert (topology.cluster, topology.strict, topology.processes) == ("", (), ())
    assert topology.shards[0].endpoint == ("127.0.0.1", 1)


def test_fields_of_a_newer_version_are_ignored(document):
    document["zone"] = {"deep": [1, {"er": None}]}
    document["shards"][0]["zone"] = 1
    assert Topology.from_wire(document) == TOPOLOGY


def test_the_ring_has_the_configured_weights_whatever_the_states_are():
    assert TOPOLOGY.ring.digest() == HashRing({"shard-0": 1.0, "shard-1": 0.5, "shard-2": 1.0}).digest()
    assert TOPOLOGY.ring is TOPOLOGY.ring, "made once"


def test_parts_are_found_by_name():
    assert TOPOLOGY.shard("shard-1") is SHARDS[1]
    assert TOPOLOGY.shard("shard-9") is None
    assert TOPOLOGY.process("shard-2") is TOPOLOGY.processes[1]
    assert TOPOLOGY.process("shard-0") is None
    assert SHARDS[1].endpoint == ("::1", 4002)
    assert SHARDS[2].endpoint is None
    assert TOPOLOGY.strict_prefixes == (b"order:", "größe:".encode())


WRONG: dict[str, list[object]] = {
    "version": [None, -1, 2**63, True, 1.5, "1", [1]],
    "cluster": [None, "xyz", "AB", "ab\n", "a" * 65, 7],
    "shards": [None, [], {}, [1], [None], [{}], [{"name": "a"}], [{"state": "ok"}]],
    "strict": [None, "order:", [b"x"], ["x" * 1025], ["ü" * 513], ["\ud800"], ["x"] * 1025],
    "processes": [None, [{"name": "x", "kind": "shard"}], [{"name": "x", "kind": "cat", "state": "ok"}]],
    "shards.0.name": [None, "", "x" * 256, "ü" * 128, "\ud800", 5, "shard-1"],
    "shards.0.address": [None, "somewhere", "host:0", "host:65536", "host:7400x", "::1:7400", "x" * 301, 7400],
    "shards.0.state": [None, "fine", "", 1],
    "shards.0.weight": [None, 0, 0.009, 100.1, math.nan, math.inf, -1, "1"],
    "shards.0.identity": [None, "zz", b"ab"],
    "shards.1.replicas": [None, [{"name": "r"}], [{"name": "r", "state": "ok"}] * 2, [{"name": "", "state": "ok"}]],
    "processes.0.pid": [None, -1, 2**40, "1"],
    "processes.0.restarts": [None, -1],
    "processes.0.reason": [None, "x" * 8193],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{n}")
        for field, values in WRONG.items()
        for n, value in enumerate(values)
    ],
)
def test_a_wrong_field_is_refused_by_name(document, field, value):
    *path, last = [int(part) if part.isdecimal() else part for part in field.split(".")]
    place = document
    for part in path:
        place = place[part]
    place[last] = value
    with pytest.raises(TopologyError, match="this is no topology: "):
        Topology.from_wire(document)


def test_weights_that_no_ring_has_room_for_are_refused(document):
    one = document["shards"][2]
    document["shards"] = [{**one, "name": f"shard-{number}", "weight": 100.0} for number in range(21)]
    with pytest.raises(TopologyError, match="weights"):
        Topology.from_wire(document)
    document["shards"].pop()
    assert len(Topology.from_wire(document).ring.shards) == 20


@pytest.mark.parametrize("document", [None, 5, "x", [], {}, {1: 2}, {b"version": 1}, {"version": 1}])
def test_what_is_no_document_is_refused(document):
    with pytest.raises(TopologyError):
        Topology.from_wire(document)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner))


@hypothesis.given(st.data())
def test_no_document_does_more_than_being_refused(data):
    document = copy.deepcopy(TOPOLOGY.to_wire())
    place = data.draw(st.sampled_from([document, document["shards"][0], document["processes"][0]]))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(VALUES)
    try:
        topology = Topology.from_wire(document)
    except TopologyError:
        return
    assert topology.ring.shards.keys() == {shard.name for shard in topology.shards}
    assert Topology.from_wire(topology.to_wire()) == topology
