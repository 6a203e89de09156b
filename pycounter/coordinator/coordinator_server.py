"""A coordinator's process: it accepts raw clients on inherited sockets, serves, and stops in good order.

Threads: the loop's, which owns everything.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack

from pycounter.coordinator.coordinator_protocol import CoordinatorProtocol
from pycounter.coordinator.passage import connect_passage
from pycounter.coordinator.routing import Routing
from pycounter.coordinator.supervisor_pipe import SupervisorPipe
from pycounter.errors import Overloaded, RpcError, Unavailable
from pycounter.net.clients import Clients
from pycounter.net.security import Access
from pycounter.net.server_process import BACKLOG, hand_over_quickly
from pycounter.net.tls_listener import TlsListener
from pycounter.settings import CoordinatorSettings
from pycounter.topology import Topology, format_address

if TYPE_CHECKING:
    from pycounter._native import Router

__all__ = ["CoordinatorServer"]

_log = logging.getLogger(__name__)

FACTS_S = 0.5
PASSAGES_LOOK_S = 0.002
#: So long a start waits for its shards before it takes clients, who would wait too.
LINK_TIMEOUT_S = 1.0
#: Requests that Python is answering, those that only wait for a newer topology left aside.
REQUESTS_MAX = 2_000


class CoordinatorServer:
    """One coordinator.

    `run` serves until `stop` is called, a signal comes, or the supervisor's pipe ends.

    Args:
        settings: everything.
        input_fd: the supervisor's topologies come from here.
        output_fd: facts go there.

    Raises (constructor):
        SettingsError: token or TLS files are wrong.
        OSError: the folder can't be made.
    """

    def __init__(self, settings: CoordinatorSettings, *, input_fd: int = 0, output_fd: int = 1) -> None:
        self.settings = settings
        Path(settings.data).mkdir(parents=True, exist_ok=True)
        access = self._access = Access(settings.token_file, settings.tls_cert, settings.tls_key)
        self._tls: TlsListener | None = None
        if access.tls is not None:
            self._tls = TlsListener(
                access.tls,
                lambda: CoordinatorProtocol(self),
                self._has_room,
                handshake_timeout_s=settings.handshake_timeout_s,
            )
        self.clients = Clients(connections_max=settings.connections_max, held_bytes_max=settings.held_bytes_max)
        self.router: Router
        self._routing: Routing | None = None
        self._topology: Topology | None = None
        self._told = asyncio.Event()
        self._pipe = SupervisorPipe(self._take_topology, self.stop, input_fd=input_fd, output_fd=output_fd)
        self._requests: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()

    async def run(self, on_ready: Callable[[dict[str, object]], None]) -> None:
        """Serves until stopped. `on_ready` gets address, pid and name, once clients can connect.

        Raises:
            OSError: a socket can't be listened on.
        """
        loop = asyncio.get_running_loop()
        hand_over_quickly()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._pipe.start()
        topology = await self._wait_first()
        if topology is None:
            return
        routing = self._routing = Routing(topology, self.settings, self._access.tokens)
        self.router = routing.router
        routing.start()
        housekeeping = [
            loop.create_task(self.clients.close_idle(self.settings.idle_timeout_s)),
            loop.create_task(self._tell_facts(routing)),
        ]
        close_listener: Callable[[], None] | None = None
        try:
            await routing.wait_linked(LINK_TIMEOUT_S)
            if not self._stop.is_set():
                sockets = [socket.socket(fileno=descriptor) for descriptor in self.settings.listen_fds]
                close_listener = await self._listen(sockets)
                host, port = sockets[0].getsockname()[:2]
                self.router.set_port(port)
                on_ready({"address": format_address(host, port), "pid": os.getpid(), "name": self.settings.name})
            await self._stop.wait()
        finally:
            if close_listener is not None:
                close_listener()
            await self._drain(routing)
            for task in housekeeping:
                task.cancel()
            self._pipe.close()
            await routing.close()

    def stop(self) -> None:
        """Orders an orderly stop: accept nothing, answer what is in."""
        self._stop.set()

    def reload(self) -> None:
        """Reads token file and certificate again, for connections from now on. Bad ones change nothing."""
        if not self._access.reload():
            return
        if self._routing is not None:
            self._routing.set_tokens(self._access.tokens)
        if self._tls is not None and self._access.tls is not None:
            self._tls.context = self._access.tls

    def answer_later(
        self, connection: CoordinatorProtocol, token: int, method: str, params: bytes, protocol: str
    ) -> None:
        """Answers a request that the router left to Python."""
        tasks = self._watching if method == "watch_topology" else self._requests
        if len(self._requests) >= REQUESTS_MAX and tasks is self._requests:
            refusal = Overloaded(f"{REQUESTS_MAX} requests that take all shards are under way already")
            connection.answer(token, refusal.wire_text, b"")
            return
        task = asyncio.get_running_loop().create_task(self._answer(connection, token, method, params, protocol))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _answer(
        self, connection: CoordinatorProtocol, token: int, method: str, params: bytes, protocol: str
    ) -> None:
        assert self._routing is not None
        try:
            if method == "passage":
                await self._open_passage(connection, *msgpack.unpackb(params))
                return
            result = await self._routing.requests.answer(method, params, protocol)
        except RpcError as error:
            connection.answer(token, error.wire_text, b"")
        except Exception as error:  # noqa: BLE001 - the request's boundary: the client would wait for ever
            _log.exception("%s can't be answered", method)
            connection.answer(token, f"internal: {error!r}", b"")
        else:
            connection.answer(token, None, result)

    async def _open_passage(self, connection: CoordinatorProtocol, to: bytes) -> None:
        assert self._routing is not None
        name = to.decode(errors="replace")
        passage = await connect_passage(
            connection,
            self.clients,
            name,
            self._routing.place_of(name),
            timeout_s=self.settings.request_timeout_s,
        )
        if passage.closing:
            raise Unavailable(f"{name} has closed the connection: nothing was applied")
        if not connection.begin_passage(passage):
            passage.abort()
            raise Unavailable("the connection is being closed: nothing was applied")

    # --- life ------------------------------------------------------------------------------------------------------

    async def _wait_first(self) -> Topology | None:
        """The first topology; None: it is stopped before."""
        stopped = asyncio.get_running_loop().create_task(self._stop.wait())
        told = asyncio.get_running_loop().create_task(self._told.wait())
        await asyncio.wait([told, stopped], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        stopped.cancel()
        return None if self._stop.is_set() else self._topology

    def _take_topology(self, topology: Topology) -> None:
        self._topology = topology
        self._told.set()
        if self._routing is not None:
            self._routing.update(topology)

    async def _listen(self, sockets: Sequence[socket.socket]) -> Callable[[], None]:
        """Accepts clients. Gives what ends that. The sockets themselves are the supervisor's."""
        loop = asyncio.get_running_loop()
        servers: list[asyncio.Server | TlsListener] = []
        remote = []
        for listener in sockets:
            if listener.family == socket.AF_UNIX:
                # What leaves no machine needs no TLS.
                servers.append(
                    await loop.create_unix_server(lambda: CoordinatorProtocol(self), sock=listener, backlog=BACKLOG)
                )
            elif self._tls is not None:
                remote.append(listener)
            else:
                servers.append(
                    await loop.create_server(lambda: CoordinatorProtocol(self), sock=listener, backlog=BACKLOG)
                )
        if self._tls is not None:
            self._tls.adopt(remote)
            servers.append(self._tls)

        def close() -> None:
            for server in servers:
                server.close()

        return close

    def _has_room(self) -> bool:
        """May one more TLS client be accepted?"""
        return self.clients.has_room(handshakes=0 if self._tls is None else self._tls.handshakes)

    async def _tell_facts(self, routing: Routing) -> None:
        while True:
            self._pipe.tell(
                {
                    "event": "facts",
                    "clients": len(self.clients),
                    "clients_refused": self.clients.refused,
                    "passages": self.clients.passages,
                    "requests": len(self._requests),
                    **routing.facts(),
                }
            )
            await asyncio.sleep(FACTS_S)

    async def _drain(self, routing: Routing) -> None:
        """Answers what is in, within the time for it, and says goodbye to clients."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.stop_timeout_s
        self.clients.stop()
        # No client waits for a reply for longer than this.
        patience = min(deadline, loop.time() + self.settings.request_timeout_s + FACTS_S)
        if not await routing.wait_settled(patience):
            _log.warning("stopping before every shard has answered: some clients don't know what became of a request")
        await self.end_requests()
        # Shards close passages once they have answered what came.
        while self.clients.passages and loop.time() < patience:  # noqa: ASYNC110 - it ends in moments, or not at all
            await asyncio.sleep(PASSAGES_LOOK_S)
        await self.clients.close(deadline)

    async def end_requests(self) -> None:
        """Answers none of those that are left."""
        left = [*self._requests, *self._watching]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _log.error("stopped by a second signal")
            os._exit(1)
        self.stop()
