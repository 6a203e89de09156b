"""A replica behind an event loop: it follows its shard and serves reads, by the protocols of the shard.

Everything is in memory. A replica that was killed has all of it from its shard again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from pycounter._native import VERSION, Replica
from pycounter.net.client_protocol import ClientProtocol
from pycounter.net.clients import Clients
from pycounter.net.listening import bind, listen
from pycounter.net.security import Access, check_exposure
from pycounter.net.server_process import BACKLOG
from pycounter.replica.follower import Follower
from pycounter.replica.replica_settings import ReplicaSettings
from pycounter.topology import WATCH_S, format_address

__all__ = ["ReplicaServer"]

TICK_S = 0.1
#: So many may wait for news of the topology.
WATCHERS_MAX = 10_000


class _ReplicaProtocol(ClientProtocol):
    """The event loop's side of one connection."""

    __slots__ = ("_server",)

    def __init__(self, server: ReplicaServer) -> None:
        super().__init__(server.clients, server.replica.connect)
        self._server = server

    def _take_requests(self) -> None:
        # The engine refuses what a replica doesn't do; only `watch_topology` is left.
        for msgid, _, _ in self._connection.take_requests():
            self._owed += 1
            self._server.answer_later(self, msgid)

    def reply(self, msgid: int | None, error: str | None, result: bytes | None) -> None:
        """Answers such a request."""
        self._owed -= 1
        self._looks = 0
        if msgid is not None and not self._transport.is_closing():
            self._write(self._connection.reply(msgid, error, result))


class ReplicaServer:
    """One replica on one port, for MessagePack-RPC and RESP.

    `run` serves until `stop` is called or a signal comes.

    Raises (constructor):
        SettingsError: the token file is wrong, or the address is exposed without a token.
    """

    def __init__(self, settings: ReplicaSettings) -> None:
        self._access = Access(settings.token_file)
        check_exposure(settings.host, self._access.tokens, insecure=settings.insecure)
        self.settings = settings
        self.clients = Clients(connections_max=settings.connections_max, held_bytes_max=settings.held_bytes_max)
        self._stop = asyncio.Event()
        self._watchers: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: Callable[[dict[str, object]], None], on_stopping: Callable[[], None]) -> None:
        """Serves until stopped. `on_ready` gets address, pid, name and primary, once clients can connect.

        `on_stopping` is called when an orderly stop begins. Until it has caught up once, reads are answered
        `unavailable`.

        Raises:
            PyCounterError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        settings = self.settings
        self.replica = Replica(
            loop.call_soon,
            name=settings.name,
            primary=settings.primary,
            server_version=VERSION,
            tokens=self._access.tokens,
            connections_max=settings.connections_max,
            held_bytes_max=settings.held_bytes_max,
            counters_bytes_max=settings.counters_bytes_max,
        )
        bound = bind(settings.host, settings.port)
        listen(bound)
        host, port, *_ = bound[0].getsockname()
        listeners = [
            await loop.create_server(lambda: _ReplicaProtocol(self), sock=one, backlog=BACKLOG) for one in bound
        ]
        self.replica.set_topology(format_address(host, port))
        self._follower = Follower(self.replica, settings, self._access.token)
        tasks: list[asyncio.Task[None]] = [
            loop.create_task(self._follower.run()),
            loop.create_task(self._tick()),
            loop.create_task(self.clients.close_idle(settings.idle_timeout_s)),
        ]
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        on_ready(
            {
                "address": format_address(host, port),
                "pid": os.getpid(),
                "name": settings.name,
                "primary": settings.primary,
            }
        )
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            # A task that ends does so by a bug: a replica that follows no more must not go on answering.
            await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            on_stopping()
            for listener in listeners:
                listener.close()
            self._stop.set()
            stopped.cancel()
            for task in tasks:
                task.cancel()
            self.clients.stop()
            if self._watchers:
                await asyncio.wait(self._watchers, timeout=settings.stop_timeout_s)
            await self.clients.close(loop.time() + settings.stop_timeout_s)
            self.replica.stop()

    def stop(self) -> None:
        """Orders an orderly stop."""
        self._stop.set()

    def reload(self) -> None:
        """Reads the token file again, for new connections, the one to the shard included. A bad one changes nothing."""
        if self._access.reload():
            self.replica.set_tokens(self._access.tokens)
            self._follower.token = self._access.token

    def answer_later(self, connection: _ReplicaProtocol, msgid: int | None) -> None:
        """Answers `watch_topology`."""
        if len(self._watchers) >= WATCHERS_MAX:
            connection.reply(msgid, f"overloaded: {WATCHERS_MAX} requests of watch_topology are under way", None)
            return
        task = asyncio.get_running_loop().create_task(self._answer_topology(connection, msgid))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _answer_topology(self, connection: _ReplicaProtocol, msgid: int | None) -> None:
        # It never changes: whoever has it gets it again after a while.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), WATCH_S)
        connection.reply(msgid, None, self.replica.topology())

    async def _tick(self) -> None:
        while True:
            self.replica.report(self.clients.refused)
            self.replica.tick()
            await asyncio.sleep(TICK_S)
