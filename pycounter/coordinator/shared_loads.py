"""Single flight: who wants a counter that is being loaded already waits for that load instead of beginning another.

A load belongs to a version of its counter, and a write makes a new version: nobody is given what was begun before. One
event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

__all__ = ["SharedLoads"]

Wanted = TypeVar("Wanted", bound=Hashable)
Loaded = TypeVar("Loaded")


class _Load(Generic[Wanted, Loaded]):
    """One load, what it loads, and how many wait for it."""

    __slots__ = ("task", "waiting", "wanted")

    def __init__(self, wanted: list[Wanted], task: asyncio.Task[dict[Wanted, Loaded]]) -> None:
        self.wanted = wanted
        self.task = task
        self.waiting = 0


class SharedLoads(Generic[Wanted, Loaded]):
    """Loads that are under way. `load` gets what nobody loads yet, and gives a value for each."""

    def __init__(self, load: Callable[[Sequence[Wanted]], Coroutine[Any, Any, dict[Wanted, Loaded]]]) -> None:
        self._load = load
        self._loads: dict[Wanted, _Load[Wanted, Loaded]] = {}
        #: So many were given what another had asked for.
        self.shared = 0

    def __len__(self) -> int:
        return len(self._loads)

    async def get(self, wanted: Sequence[Wanted]) -> dict[Wanted, Loaded]:
        """A value for each. Cancelled, it lets the others go on; the last one to leave ends the load."""
        joined: dict[_Load[Wanted, Loaded], None] = {}
        own: list[Wanted] = []
        for each in wanted:
            if (load := self._loads.get(each)) is None:
                own.append(each)
            else:
                joined[load] = None
                self.shared += 1
        if own:
            joined[self._begin(own)] = None
        for load in joined:
            load.waiting += 1
        loaded: dict[Wanted, Loaded] = {}
        try:
            for load in joined:
                loaded.update(await asyncio.shield(load.task))
        finally:
            for load in joined:
                load.waiting -= 1
                if not load.waiting and not load.task.done():
                    self._forget(load)
                    load.task.cancel()
        return {each: loaded[each] for each in wanted}

    def _begin(self, own: list[Wanted]) -> _Load[Wanted, Loaded]:
        load = _Load(own, asyncio.create_task(self._load(own)))
        for each in own:
            self._loads[each] = load
        load.task.add_done_callback(lambda _: self._end(load))
        return load

    def _end(self, load: _Load[Wanted, Loaded]) -> None:
        self._forget(load)
        if not load.task.cancelled():
            # Whoever waits gets it; if nobody does any more, nobody misses it.
            load.task.exception()

    def _forget(self, load: _Load[Wanted, Loaded]) -> None:
        for each in load.wanted:
            if self._loads.get(each) is load:
                del self._loads[each]
