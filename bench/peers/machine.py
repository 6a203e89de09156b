"""What the figures were made on and with. No names of hosts or users, no paths."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pycounter._native import VERSION

#: Programs whose versions matter, and how they tell them.
PROGRAMS = {
    "redis": ["redis-server", "--version"],
    "valkey": ["valkey-server", "--version"],
    "memcached": ["memcached", "--version"],
    "postgresql": ["pgbench", "--version"],
}


def _first_match(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1].strip() if match else "unknown"


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [fields for fields in mounts if folder.is_relative_to(fields[1])]
    return max(holding, key=lambda fields: len(fields[1]))[2] if holding else "unknown"


def describe() -> dict[str, str]:
    """Facts for a reader who wants to compare."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    siblings = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")
    facts = {
        "CPU": _first_match(r"^model name\s*:\s*(.*)$", cpuinfo),
        "cores": str(os.cpu_count()),
        # Two of one core share their caches: threads on them hardly contend.
        "siblings of core 0": siblings.read_text().strip() if siblings.exists() else "unknown",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "file system": file_system(Path(tempfile.gettempdir()).resolve()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "commit": _said(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]) or "unknown",
        "pycounter": VERSION,
        "python": platform.python_version(),
    }
    for name, command in PROGRAMS.items():
        if shutil.which(command[0]) is not None:
            facts[name] = _first_match(r"(\d+\.\d+(?:\.\d+)?)", _said(command))
    return facts
