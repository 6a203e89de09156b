"""Installs what is missing from Debian's own packages, as root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

from bench.peers.peers import Peer
from bench.peers.servers import BenchError


def install(peers: Sequence[Peer]) -> None:
    """Installs the packages of these; a package that this release doesn't have is named. Raises BenchError."""
    if os.geteuid() != 0:
        raise BenchError("--install needs root: sudo apt-get install " + " ".join(str(peer.package) for peer in peers))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(["apt-get", "update", "--quiet"], env=environment, check=True, stdout=sys.stderr)
        for peer in peers:
            known = subprocess.run(["apt-cache", "show", str(peer.package)], capture_output=True, check=False)
            if known.returncode != 0:
                print(f"{peer.name}: this release of Debian has no package {peer.package}", file=sys.stderr)
                continue
            command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", str(peer.package)]
            subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the packages could not be installed: {error}") from error
