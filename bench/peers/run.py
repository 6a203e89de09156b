"""One run of the comparison: how long, how often, on which cores, and what is told on the way."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from bench.peers.peers import Peer
from bench.peers.servers import Servers

Size = TypeVar("Size", int, float)


@dataclass(frozen=True, slots=True)
class Cores:
    """Where servers and load run; None where there is one core for all."""

    server: int | None
    load: int | None
    all: tuple[int, ...]


def choose_cores() -> Cores:
    """Pins this process, which makes the load, to its core and says which the servers get."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    if len(cores) == 1:
        return Cores(None, None, cores)
    os.sched_setaffinity(0, {cores[1]})
    return Cores(cores[0], cores[1], cores)


def raise_descriptor_limit() -> None:
    """A thousand connections need as many descriptors; servers inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What scenarios need."""

    quick: bool
    servers: Servers
    cores: Cores

    @property
    def rounds(self) -> int:
        """Interleaved; medians are quoted."""
        return self.pick(3, 1)

    @property
    def seconds(self) -> float:
        """One sample."""
        return self.pick(1.0, 0.2)

    def pick(self, full: Size, quick: Size) -> Size:
        """One of two sizes."""
        return quick if self.quick else full

    def tell(self, text: str) -> None:
        """Progress."""
        print(text, file=sys.stderr, flush=True)

    def present(self, peers: Iterable[Peer]) -> list[Peer]:
        """Those that can be started."""
        return [peer for peer in peers if peer.missing() is None]
