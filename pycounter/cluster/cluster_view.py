"""What the supervisor publishes: the versioned topology, and the status that people read."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from pycounter.cluster.cluster_folder import ShardEntry
from pycounter.cluster.process_state import ProcessRecord
from pycounter.topology import ProcessInfo, ReplicaInfo, ShardInfo, Topology

__all__ = ["ClusterView"]

#: Topologies of one start: no more come within its life.
VERSIONS_OF_A_START = 1 << 32
#: What happened lately, for `pycounter status`.
EVENTS_MAX = 200


class ClusterView:
    """The topology as it is now, with a version that rises at each change, over restarts too."""

    def __init__(self, cluster: str, starts: int, strict: Sequence[str]) -> None:
        self._cluster = cluster
        self._strict = tuple(strict)
        self._version = starts * VERSIONS_OF_A_START
        self._events: deque[dict[str, str]] = deque(maxlen=EVENTS_MAX)
        self.topology: Topology | None = None

    def note(self, event: str) -> None:
        """Remembers what happened."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._events.append({"at": now, "text": event})

    def update(self, entries: Sequence[ShardEntry], records: dict[str, ProcessRecord], address: str) -> bool:
        """Looks at everything anew. True: the topology has changed."""
        shards = []
        for entry in entries:
            record = records.get(entry.name)
            replicas = tuple(
                ReplicaInfo(name=known.name, address=known.address, state=known.state)
                for replica in entry.replicas
                if (known := records.get(replica.name)) is not None
            )
            shards.append(
                ShardInfo(
                    name=entry.name,
                    address="" if record is None else record.address,
                    identity=(record.identity if record is not None else "") or entry.identity,
                    state="starting" if record is None else record.state,
                    replicas=replicas,
                )
            )
        supervisor = ProcessInfo(name="supervisor", kind="supervisor", state="ok", pid=os.getpid(), address=address)
        topology = Topology(
            version=self._version,
            cluster=self._cluster,
            shards=tuple(shards),
            strict=self._strict,
            processes=(supervisor, *(record.info() for record in records.values())),
        )
        if topology == self.topology:
            return False
        self._version += 1
        self.topology = msgspec.structs.replace(topology, version=self._version)
        return True

    def status(self, records: dict[str, ProcessRecord]) -> dict[str, Any]:
        """What `pycounter status` shows."""
        assert self.topology is not None
        return {
            "topology": self.topology.to_wire(),
            "facts": {name: record.facts for name, record in records.items() if record.facts},
            "events": list(self._events),
        }
