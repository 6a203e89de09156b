"""Shard processes for the tests of this folder."""

from tests.support.fixtures import (
    emptied_shard,
    launcher,
    resp,
    rpc,
    shard,
    shared_shard,
    start_cluster,
    start_shard,
    start_shared_cluster,
    start_shared_shard,
)

__all__ = [
    "emptied_shard",
    "launcher",
    "resp",
    "rpc",
    "shard",
    "shared_shard",
    "start_cluster",
    "start_shard",
    "start_shared_cluster",
    "start_shared_shard",
]
