"""Follows the topology that a server gives: at once where it can be watched, by asking now and then where not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pycounter.client.backoff import Backoff
from pycounter.client.pool import Pool
from pycounter.clock import Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.errors import DeadlineExceeded, Forbidden, RpcError, TopologyError, Unauthenticated, UnknownMethod
from pycounter.topology import Topology

__all__ = ["TopologyWatch"]

_log = logging.getLogger(__name__)

#: A watch that wasn't answered for so long is asked for again: a server that is gone says nothing either.
_WATCH_S = 30.0
#: Pauses between attempts while no server answers.
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0


class TopologyWatch:
    """The topology of the servers at some addresses. It belongs to one event loop.

    Args:
        settings: the client's: addresses, token, times.
        clock: for jitter.
    """

    def __init__(self, settings: ConnectSettings, clock: Clock) -> None:
        #: To the address that answers; its requests need no others.
        self.pool = Pool(
            *settings.addresses,
            token=settings.token,
            tls=settings.tls,
            is_shard=False,
            settings=settings.pool(),
            clock=clock,
        )
        self._settings = settings
        self._pause = Backoff(_PAUSE_FIRST_S, _PAUSE_MAX_S, clock.random())
        self._task: asyncio.Task[None] | None = None

    async def ask(self, timeout_s: float) -> Topology:
        """The topology now, from the first address that answers.

        Raises:
            RpcError: nobody does, in time, or nobody may be asked.
            TopologyError: the answer is none.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            try:
                said = await self.pool.request("topology", deadline=deadline)
                self._pause.reset()
                return self._parse(said)
            except (Unauthenticated, Forbidden):
                raise
            except (OSError, RpcError) as error:
                failure = error if isinstance(error, RpcError) else DeadlineExceeded(str(error))
            pause_s = self._pause.next_s()
            if loop.time() + pause_s >= deadline:
                raise failure
            await asyncio.sleep(pause_s)

    def follow(self, version: int, on_newer: Callable[[Topology], None]) -> None:
        """Tells of each topology that is newer than this version, from now on."""
        self._task = asyncio.get_running_loop().create_task(self._follow(version, on_newer), name="pycounter topology")

    async def close(self) -> None:
        """Ends it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.pool.close()

    def _parse(self, said: Any) -> Topology:
        return Topology.from_wire(said)

    async def _follow(self, version: int, on_newer: Callable[[Topology], None]) -> None:
        loop = asyncio.get_running_loop()
        can_watch = True
        while True:
            try:
                if can_watch:
                    said = await self.pool.request("watch_topology", version, deadline=loop.time() + _WATCH_S)
                    topology = self._parse(said)
                else:
                    await asyncio.sleep(self._settings.poll_interval_s)
                    topology = await self.ask(self._settings.request_timeout_s)
                self._pause.reset()
            except UnknownMethod:
                can_watch = False
                continue
            except DeadlineExceeded:
                # Nothing new, or nobody there: the next request tells.
                continue
            except (OSError, RpcError, TopologyError) as error:
                _log.debug("the topology: %s", error)
                await asyncio.sleep(self._pause.next_s())
                continue
            if topology.version != version:
                version = topology.version
                on_newer(topology)
            elif can_watch:
                # It was answered though nothing is new: never ask in a tight circle.
                await asyncio.sleep(self._pause.next_s())
