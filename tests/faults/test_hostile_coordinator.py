"""The bytes that no client sends, to a coordinator: answers that parse, or the connection's end; others go on."""

import random

import pytest

from tests.faults.test_hostile_bytes import answers, mutated, resp_frames, rpc_frames
from tests.support.rpc_socket import RpcSocket


@pytest.fixture
def cluster(start_cluster):
    return start_cluster(shards=2)


@pytest.mark.parametrize("frames", [rpc_frames, resp_frames])
def test_bytes_of_any_kind(cluster, hostile, seed, frames):
    rng = random.Random(seed)
    before = cluster.pids()
    with RpcSocket(cluster.address) as bystander:
        for number in range(300 * hostile):
            made_up = frames(rng)
            answers(cluster, made_up, rng)
            answers(cluster, mutated(made_up, rng), rng)
            assert bystander.call("incr", b"a bystander's") == number + 1
        assert bystander.call("delete", b"a bystander's") == 300 * hostile
    assert cluster.pids() == before, "no process ended"
