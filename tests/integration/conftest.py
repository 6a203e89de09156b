"""Shard processes for the tests of this folder."""

from tests.support.fixtures import launcher, resp, rpc, shard, start_shard

__all__ = ["launcher", "resp", "rpc", "shard", "start_shard"]
