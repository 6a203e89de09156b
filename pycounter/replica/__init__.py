"""A read replica: a process that follows one shard and answers reads."""

from pycounter.replica.replica_server import ReplicaServer
from pycounter.replica.replica_settings import ReplicaSettings

__all__ = ["ReplicaServer", "ReplicaSettings"]
