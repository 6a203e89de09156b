"""What a fork does to stores: none is open, and RocksDB has no threads, while the process is copied.

RocksDB keeps a pool of threads in each process, for all its databases and for good. A forked child has the pool's
records but none of its threads, so what it hands to the pool is never done: it would wait for ever when it closes a
folder of its own. So before a fork each store is closed and the pool is emptied. In the parent a store is opened again
by its next use; a child makes threads of its own once it opens a folder.

A fork waits for the call into RocksDB that is under way, not for a whole checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rocksdict import Env

__all__ = ["gate", "register"]

#: How long a fork waits for the pool's threads to end. They have nothing to do, so that takes milliseconds.
_PATIENCE_S = 5.0
_PAUSE_S = 0.001


class Store(Protocol):
    """What a fork needs of a store."""

    lock: threading.RLock

    def rest(self) -> None:
        """Closes it until it is used again. Raises nothing."""

    def disown(self) -> None:
        """In a forked child: it is the parent's."""


#: Held while a folder is being locked or a store is being opened, and through a fork.
gate = threading.RLock()
_stores: weakref.WeakSet[Store] = weakref.WeakSet()
#: Through a fork: the stores whose locks are held, the pool's threads that there were, whether garbage was collected.
_resting: list[Store] = []
_threads: dict[str, int] = {}
_collecting: list[bool] = []


def register(store: Store) -> None:
    """Has forks look after a store. To be called with the gate held."""
    _stores.add(store)


def _pool() -> dict[str, int]:
    """How many threads the pool has, by their names."""
    counts: dict[str, int] = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            name = (task / "comm").read_text().strip()
            if name.startswith("rocksdb:"):
                counts[name] = counts.get(name, 0) + 1
    return counts


def _setters() -> dict[str, Callable[[int], None]]:
    env = Env()
    return {
        "rocksdb:low": env.set_background_threads,
        "rocksdb:high": env.set_high_priority_background_threads,
        "rocksdb:bottom": env.set_bottom_priority_background_threads,
    }


def _before() -> None:
    gate.acquire()
    # A map that is collected now would wait for its checkpoint thread, which may wait for a lock that we take.
    _collecting.append(gc.isenabled())
    gc.disable()
    for store in list(_stores):
        store.lock.acquire()
        _resting.append(store)
        store.rest()
    _threads.update(_pool())
    if not _threads:
        return
    for set_threads in _setters().values():
        set_threads(0)
    deadline = time.monotonic() + _PATIENCE_S
    while _pool() and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)


def _after_in_parent() -> None:
    # Databases of the program's own, if it has any, go on as before.
    setters = _setters() if _threads else {}
    for name, count in _threads.items():
        if name in setters:
            setters[name](count)
    _release()


def _after_in_child() -> None:
    for store in _resting:
        store.disown()
    _stores.clear()
    _release()


def _release() -> None:
    _threads.clear()
    while _resting:
        _resting.pop().lock.release()
    if _collecting.pop():
        gc.enable()
    gate.release()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
