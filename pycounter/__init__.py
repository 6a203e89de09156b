"""PyCounter: a counter engine that counts every acknowledged increment exactly once.

Four ways in:

- ``pycounter.Counters()``: a thread-safe counter map in this process;
- ``pycounter.open(path)``: the same, durable on disk;
- ``pycounter serve``: a shard on raw TCP, for MessagePack-RPC and for every Redis client;
- ``pycounter.client``: a session client that counts exactly once whatever is cut or killed.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any

if sys.platform != "linux":
    raise ImportError(f"PyCounter runs on Linux only, not on {sys.platform}: use a Linux machine, container or WSL")

from pycounter._native import DEBUG_BUILD, VERSION

__version__ = VERSION
__all__ = [
    "BlockingClient",
    "Client",
    "Counters",
    "HashRing",
    "__version__",
    "connect",
    "connect_blocking",
    "open",
]

if DEBUG_BUILD:  # pragma: no cover
    warnings.warn("pycounter._native is a debug build: many times slower than a release build", stacklevel=2)

if TYPE_CHECKING:
    from pycounter._native import Counters, HashRing
    from pycounter.coordinator.blocking_client import BlockingClient, connect_blocking
    from pycounter.coordinator.client import Client
    from pycounter.coordinator.connecting import connect
    from pycounter.embedded import open  # noqa: A004

#: Imported on first use, so that `import pycounter` stays quick.
_HOMES = {
    "BlockingClient": "pycounter.coordinator.blocking_client",
    "Client": "pycounter.coordinator.client",
    "Counters": "pycounter._native",
    "HashRing": "pycounter._native",
    "connect": "pycounter.coordinator.connecting",
    "connect_blocking": "pycounter.coordinator.blocking_client",
    "open": "pycounter.embedded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
