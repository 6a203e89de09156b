"""The clients of a server: how many there may be, who is idle, who reads too slowly. It belongs to one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from pycounter.net.descriptors import room_for_connections

if TYPE_CHECKING:
    from pycounter.net.client_protocol import ClientProtocol

__all__ = ["Clients"]

POLL_S = 0.002


class Droppable(Protocol):
    """Somebody to whom bytes are sent."""

    def abort(self) -> None:
        """Closes at once; what hasn't left is dropped."""


class Clients:
    """The clients' connections.

    Args:
        connections_max: how many there may be, as far as the system gives descriptors for them.
        held_bytes_max: replies that wait for clients that don't read them, all together.
    """

    def __init__(self, *, connections_max: int, held_bytes_max: int) -> None:
        #: Nobody is admitted any more, and nothing read.
        self.stopping = False
        #: Clients that weren't let in.
        self.refused = 0
        #: Connections to shards that clients have through this process; each counts as one more connection.
        self.passages = 0
        self._connections_max = room_for_connections(connections_max)
        self._held_bytes_max = held_bytes_max
        self._connections: set[ClientProtocol] = set()
        self._unsent: dict[Droppable, int] = {}
        self._unsent_bytes = 0

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[ClientProtocol]:
        return iter(list(self._connections))

    def admit(self, connection: ClientProtocol) -> bool:
        """Counts a connection in, unless there are too many."""
        # Under TLS there was room when it was accepted.
        if not self.has_room(handshakes=0):
            return False
        self._connections.add(connection)
        return True

    def has_room(self, *, handshakes: int) -> bool:
        """May one more client be accepted, beside those whose handshake isn't done?"""
        if self.stopping or len(self._connections) + self.passages + handshakes >= self._connections_max:
            self.refused += 1
            return False
        return True

    def admit_passage(self) -> bool:
        """Counts a client's connection to a shard in, unless there are too many."""
        if len(self._connections) + self.passages >= self._connections_max:
            self.refused += 1
            return False
        self.passages += 1
        return True

    def forget_passage(self, passage: Droppable) -> None:
        """The connection to the shard is gone."""
        self.passages -= 1
        self.note_unsent(passage, 0)

    def forget(self, connection: ClientProtocol) -> None:
        """The connection is gone."""
        self._connections.discard(connection)
        self.note_unsent(connection, 0)

    def note_unsent(self, connection: Droppable, size: int) -> None:
        """Somebody reads more slowly than bytes come: so many wait there, 0 when it has caught up.

        When such bytes of several fill `held_bytes_max`, the one that leaves most of them unread is dropped:
        reading from others more slowly would not make it read. One alone has a bound of its own.
        """
        self._unsent_bytes += size - self._unsent.pop(connection, 0)
        if size:
            self._unsent[connection] = size
            if self._unsent_bytes > self._held_bytes_max and len(self._unsent) > 1:
                max(self._unsent, key=self._unsent.__getitem__).abort()

    async def close_idle(self, idle_timeout_s: float) -> None:
        """Closes those that are silent for so long; 0: none, ever. Runs until it is cancelled."""
        while idle_timeout_s:
            # The third look that finds nothing new closes: silent for one to one and a half times the setting.
            await asyncio.sleep(idle_timeout_s / 2)
            for connection in self:
                connection.close_if_idle()

    def stop(self) -> None:
        """Begins an orderly stop: nobody is admitted and nothing read, replies still leave."""
        self.stopping = True
        for connection in self:
            connection.stop_reading()

    async def close(self, deadline: float) -> None:
        """Closes all of them once what is written has left, at the latest at the deadline, in the loop's time."""
        loop = asyncio.get_running_loop()
        for connection in self:
            connection.close()
        while self._connections and loop.time() < deadline:  # noqa: ASYNC110 - it ends in moments, or not at all
            await asyncio.sleep(POLL_S)
