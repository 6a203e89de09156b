"""The shard server: one event loop in front of one shard."""

from pycounter.server.shard_server import ShardServer

__all__ = ["ShardServer"]
