"""Shard processes for the tests of this folder."""

from tests.support.fixtures import (
    connect,
    disk,
    fault_rounds,
    faulty_disk,
    launcher,
    resp,
    rpc,
    shard,
    shared_shard,
    start_cluster,
    start_shard,
    start_shared_shard,
)

__all__ = [
    "connect",
    "disk",
    "fault_rounds",
    "faulty_disk",
    "launcher",
    "resp",
    "rpc",
    "shard",
    "shared_shard",
    "start_cluster",
    "start_shard",
    "start_shared_shard",
]
