"""Shard processes for the tests of this folder."""

from tests.support.fixtures import disk, faulty_disk, launcher, resp, rpc, shard, start_shard

__all__ = ["disk", "faulty_disk", "launcher", "resp", "rpc", "shard", "start_shard"]
