"""Which shards there are and where: the versioned document that servers, clients and the supervisor exchange."""

from pycounter.topology.addresses import Address, format_address, parse_address
from pycounter.topology.topology import WATCH_S, ProcessInfo, ReplicaInfo, ShardInfo, Topology

__all__ = [
    "WATCH_S",
    "Address",
    "ProcessInfo",
    "ReplicaInfo",
    "ShardInfo",
    "Topology",
    "format_address",
    "parse_address",
]
