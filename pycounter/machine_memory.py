"""How much memory this process may use: the machine's, or less where a control group (a container) has a limit."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["memory_bytes"]

#: By the kind of a group in /proc/self/cgroup: where the groups are mounted, and the file with the limit.
_UNIFIED = ("", "memory.max")
_LEGACY = ("memory", "memory.limit_in_bytes")


def memory_bytes(root: Path = Path("/")) -> int:
    """The machine's memory, or the lowest limit of the control groups that this process is in, in bytes.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(root)])


def _group_limits(root: Path) -> list[int]:
    """The limits of this process's group and of those above it, of both versions of control groups."""
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = _LEGACY if controllers else _UNIFIED
        group = Path(path)
        # A container may see its own group at the top though the path is the one outside.
        for folder in (group, *group.parents):
            limit = _read(root / "sys/fs/cgroup" / mount / folder.relative_to("/") / name).strip()
            if limit.isdecimal() and int(limit) > 0:
                limits.append(int(limit))
    return limits


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
