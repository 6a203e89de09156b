"""Open files: enough for the connections, and some kept for the disk."""

from __future__ import annotations

import logging
import resource

__all__ = ["room_for_connections"]

_log = logging.getLogger(__name__)

#: For the log, the checkpoint store and a backup. A shard whose clients took these could not write.
DESCRIPTORS_RESERVED = 512


def room_for_connections(wanted: int) -> int:
    """Raises the process's limit of open files for so many connections, and gives how many there is room for."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + DESCRIPTORS_RESERVED
    if limit != resource.RLIM_INFINITY and limit < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return wanted
    room = max(limit - DESCRIPTORS_RESERVED, limit // 2)
    _log.warning(
        "at most %d connections instead of %d: the system allows this process %d open files (ulimit -Hn)",
        room,
        wanted,
        limit,
    )
    return room
