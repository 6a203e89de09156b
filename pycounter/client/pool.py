"""Connections to one server, shared by all who call it. It belongs to one event loop.

Requests are pipelined, and replies are told apart by their msgid: a request whose caller has left keeps its place on
its connection until its reply came, and nobody else can take that reply. A connection takes `pipeline_depth` requests
before another one is opened. Whoever finds no place waits in turn, no longer than its own deadline.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

from pycounter.client.connection import RpcConnection
from pycounter.client.hello import HelloReply
from pycounter.client.settings import PoolSettings
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import DeadlineExceeded, Forbidden, Overloaded, RpcError, Unauthenticated, Unavailable, WrongShard
from pycounter.topology.addresses import format_address

__all__ = ["Pool", "PoolStatistics"]

_log = logging.getLogger(__name__)

#: How long a server's clock reading stays valid.
TIME_AGE_S = 4.0
#: Permanent errors: retrying cannot help.
_FINAL = (Unauthenticated, Forbidden, WrongShard)


class PoolStatistics:
    """Counted since the pool was made."""

    __slots__ = ("checks", "checks_failed", "expired", "opened", "requests", "waited")

    def __init__(self) -> None:
        self.opened = 0
        self.requests = 0
        #: Requests that had to wait for a connection.
        self.waited = 0
        #: Connections that were asked whether they still work, and those that didn't.
        self.checks = 0
        self.checks_failed = 0
        #: Connections that were closed because nobody used them.
        self.expired = 0


class _Lane:
    """A connection and who is on it."""

    __slots__ = ("connection", "is_checked", "reserved", "used_at")

    def __init__(self, connection: RpcConnection, now: float) -> None:
        self.connection = connection
        #: Promised to callers that haven't sent yet.
        self.reserved = 0
        self.used_at = now
        #: Somebody asks it just now whether it still works.
        self.is_checked = False

    @property
    def load(self) -> int:
        return self.connection.unanswered + self.reserved


class Pool:
    """Connections to one server.

    Args:
        addresses: the server's host and port, or several servers', any of which will do: the next one is tried when
            one can't be reached.
        token: the server's, if it has one.
        tls: how to verify it, if it speaks TLS.
        identity: the shard's; another one under the address gets nothing. None takes the first that answers.
        passage_to: the name of a shard or replica, where the addresses are coordinators', which lead the way to it.
        is_shard: False: whoever answers is the right one, now and later.
        settings: everything else.
        clock: time that outlasts the loop.
        on_hello: told of each greeting that a server answered.
    """

    def __init__(
        self,
        *addresses: tuple[str, int],
        token: str | bytes | None = None,
        tls: ssl.SSLContext | None = None,
        identity: str | None = None,
        passage_to: str | None = None,
        is_shard: bool = True,
        settings: PoolSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_hello: Callable[[HelloReply], None] | None = None,
    ) -> None:
        self.settings = settings or PoolSettings()
        self.statistics = PoolStatistics()
        #: Where the next connection goes.
        self.address = addresses[0]
        self.identity = identity
        #: The server's time, as it last told it in `hello`, and when that was, by `clock.running_s`.
        self.server_time_ms: int | None = None
        self.greeted_s = 0.0
        self.token = token
        self._passage_to = passage_to
        self._tls = tls
        self._addresses = addresses
        self._is_shard = is_shard
        self._clock = clock
        self._on_hello = on_hello
        self._lanes: list[_Lane] = []
        self._opening: set[asyncio.Task[RpcConnection]] = set()
        self._waiters: deque[asyncio.Future[_Lane]] = deque()
        self._closed: RpcError | None = None
        self._sweep: asyncio.TimerHandle | None = None

    # --- requests --------------------------------------------------------------------------------------------------

    async def request(self, method: str, *params: object, deadline: float) -> Any:
        """Sends one request and gives its result. It is sent once at most.

        Args:
            method: its name.
            params: its parameters.
            deadline: in the loop's time.

        Raises:
            Unavailable, Overloaded, WrongShard, Unauthenticated: it wasn't sent.
            ConnectionError: it was sent, and the connection ended before the reply.
            DeadlineExceeded: it was sent, and no reply came in time.
            RpcError: the server's.
        """
        loop = asyncio.get_running_loop()
        lane = await self._lease(deadline)
        if loop.time() >= deadline:
            lane.reserved -= 1
            self._serve()
            raise Unavailable(f"the time ran out before {method} was sent")
        connection = lane.connection
        try:
            # From here to the first await of `call` nothing else runs: the place is taken by the request itself.
            lane.reserved -= 1
            lane.used_at = loop.time()
            self.statistics.requests += 1
            async with asyncio.timeout_at(deadline):
                return await connection.call(method, *params)
        except TimeoutError as late:
            if loop.time() - connection.received_at > self.settings.silence_s:
                connection.cause = TimeoutError("no answer")
                self._drop(lane)
            raise DeadlineExceeded(f"{method} was not answered in time") from late
        finally:
            # What can't be encoded has left its place without a reply that would tell.
            self._serve()

    async def ask_time_ms(self, *, deadline: float) -> int | None:
        """The server's time, as it told it at most `TIME_AGE_S` ago; None: it doesn't tell.

        It stands still whenever the server does, so it can't be reckoned on from what it was.

        Raises:
            Unavailable: it didn't answer.
            RpcError: the server's.
        """
        if self.server_time_ms is None or self._clock.running_s() - self.greeted_s > TIME_AGE_S:
            try:
                said = await self.request("hello", self._greeting(), deadline=deadline)
            except (OSError, DeadlineExceeded) as error:
                raise Unavailable(f"the server didn't say what time it is: {error}") from error
            self._note_hello(HelloReply.parse_any(said))
        return self.server_time_ms

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._lanes)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiters)

    async def close(self) -> None:
        """Closes every connection; whoever waits gets `Unavailable`, and whoever has sent a lost connection."""
        self._closed = self._closed or Unavailable("the pool is closed: nothing was sent")
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._refuse_waiters(self._closed)
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.connection.abort()
        await asyncio.gather(*opening, return_exceptions=True)

    def cut(self) -> None:
        """Drops every connection: the server is another one now, or somewhere else."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.connection.abort()

    # --- places ----------------------------------------------------------------------------------------------------

    async def _lease(self, deadline: float) -> _Lane:
        """A connection with a place reserved on it."""
        while True:
            self._check()
            lane = None if self._waiters else self._find()
            if lane is None:
                lane = await self._wait(deadline)
            if lane.connection.lost.is_set():
                lane.reserved -= 1
            elif not self._is_stale(lane) or await self._works(lane, deadline):
                return lane

    async def _wait(self, deadline: float) -> _Lane:
        if len(self._waiters) >= self.settings.waiting_max:
            raise Overloaded(f"{len(self._waiters)} requests wait for a connection already: nothing was sent")
        waiter: asyncio.Future[_Lane] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.statistics.waited += 1
        self._grow()
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was served in the very turn in which its caller left.
                waiter.result().reserved -= 1
                self._serve()
            if isinstance(error, TimeoutError):
                host, port = self.address
                raise Unavailable(f"no connection to {format_address(host, port)} in time: nothing was sent") from error
            raise

    def _find(self) -> _Lane | None:
        """The least loaded connection that has a place, with the place reserved."""
        best: _Lane | None = None
        load = self.settings.pipeline_max
        for lane in self._lanes:
            if not lane.is_checked and not lane.connection.lost.is_set() and lane.load < load:
                best, load = lane, lane.load
                if not load:
                    break
        if best is None:
            return None
        if load >= self.settings.pipeline_depth:
            self._grow()
        best.reserved += 1
        return best

    def _serve(self) -> None:
        """Gives places to who waits, in turn."""
        while self._waiters:
            if self._waiters[0].done():
                self._waiters.popleft()
                continue
            lane = self._find()
            if lane is None:
                return
            self._waiters.popleft().set_result(lane)

    def _refuse_waiters(self, error: RpcError) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)

    def _check(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)

    # --- connections -----------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """One more connection, unless one is being opened that somebody's place can be on."""
        if len(self._lanes) + len(self._opening) >= self.settings.connections_max:
            return
        if len(self._opening) * self.settings.pipeline_depth <= len(self._waiters) or not self._opening:
            self._open_one()

    def _open_one(self) -> None:
        address = self.address
        task = asyncio.get_running_loop().create_task(self._connect(address), name="pycounter pool connection")
        self._opening.add(task)
        task.add_done_callback(lambda task: self._on_opened(task, address))

    def _on_opened(self, task: asyncio.Task[RpcConnection], address: tuple[str, int]) -> None:
        # First: whoever is refused may ask again, and needs a new attempt then.
        self._opening.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and address != self.address:
            # The server has moved, or another attempt has found this one dead: that says nothing of the next address.
            if self._waiters:
                self._grow()
        elif isinstance(error, _FINAL):
            self._refuse_waiters(error)
        elif isinstance(error, OSError | RpcError):
            self._note_unreachable(error)
        elif error is not None:
            self._refuse_waiters(Unavailable(f"no connection can be made: {error!r}"))
        elif self._closed is not None:
            task.result().abort()
        else:
            self._admit(task.result())

    def _note_unreachable(self, error: Exception) -> None:
        _log.debug("connecting to %s: %s", self.address, error)
        host, port = self.address
        if len(self._addresses) > 1:
            tried = self._addresses.index(self.address)
            self.address = self._addresses[(tried + 1) % len(self._addresses)]
        if not self._lanes and not self._opening:
            reason = str(error) or type(error).__name__
            self._refuse_waiters(Unavailable(f"can't reach {format_address(host, port)} ({reason}): nothing was sent"))

    def _admit(self, connection: RpcConnection) -> None:
        loop = asyncio.get_running_loop()
        self.statistics.opened += 1
        connection.on_lost = self._on_lost
        self._lanes.append(_Lane(connection, loop.time()))
        if connection.lost.is_set():
            self._on_lost(connection)
            return
        if self._sweep is None:
            self._sweep = loop.call_later(self.settings.idle_s / 4, self._close_idle)
        self._serve()

    def _greeting(self) -> dict[str, object]:
        said: dict[str, object] = {"client": "pycounter"}
        if self.token is not None:
            said["token"] = self.token
        if self._passage_to is not None:
            said["shard"] = self._passage_to
        return said

    def _note_hello(self, hello: HelloReply) -> None:
        self.server_time_ms, self.greeted_s = hello.time_ms, self._clock.running_s()

    async def _connect(self, address: tuple[str, int]) -> RpcConnection:
        """A connection on which the server was greeted. Raises OSError, RpcError."""
        async with asyncio.timeout(self.settings.connect_timeout_s):
            connection = await RpcConnection.open(
                self._on_replies, address, tls=self._tls, reply_bytes_max=self.settings.reply_bytes_max
            )
            try:
                hello = HelloReply.parse_any(await connection.call("hello", self._greeting()))
                if address != self.address:
                    raise ConnectionError("the server has moved meanwhile")
                if self.identity is not None and hello.identity != self.identity:
                    raise WrongShard(
                        f"the server at {format_address(*address)} is {hello.identity}, not {self.identity}"
                    )
            except BaseException:
                connection.abort()
                raise
        # A replica that has yet to hear of its shard has none.
        if self._is_shard and hello.identity:
            self.identity = hello.identity
        self._note_hello(hello)
        if self._on_hello is not None:
            self._on_hello(hello)
        return connection

    def _is_stale(self, lane: _Lane) -> bool:
        """Was it idle for so long that it may be half open?"""
        idle_s = asyncio.get_running_loop().time() - max(lane.connection.received_at, lane.used_at)
        return lane.load == 1 and idle_s > self.settings.check_after_s

    async def _works(self, lane: _Lane, deadline: float) -> bool:
        """Asks a connection that was idle. If it doesn't work, it is dropped, and the place on it given back."""
        self.statistics.checks += 1
        lane.is_checked = True
        try:
            async with asyncio.timeout(self.settings.check_timeout_s):
                await lane.connection.call("ping")
        except (OSError, RpcError):
            self.statistics.checks_failed += 1
            lane.reserved -= 1
            self._drop(lane)
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable("the time ran out before a connection worked: nothing was sent") from None
            return False
        except BaseException:
            lane.reserved -= 1
            raise
        finally:
            lane.is_checked = False
            self._serve()
        return True

    def _drop(self, lane: _Lane) -> None:
        if lane in self._lanes:
            self._lanes.remove(lane)
        lane.connection.abort()

    def _close_idle(self) -> None:
        self._sweep = None
        loop = asyncio.get_running_loop()
        for lane in list(self._lanes):
            if lane.connection.lost.is_set():
                self._lanes.remove(lane)
            elif not lane.load and loop.time() - lane.used_at > self.settings.idle_s:
                self.statistics.expired += 1
                self._drop(lane)
        if self._lanes:
            self._sweep = loop.call_later(self.settings.idle_s / 4, self._close_idle)

    # --- what connections tell -------------------------------------------------------------------------------------

    def _on_replies(self) -> None:
        """Replies came: there may be places."""
        if self._waiters:
            self._serve()

    def _on_lost(self, connection: RpcConnection) -> None:
        self._lanes = [lane for lane in self._lanes if lane.connection is not connection]
        if self._waiters and self._closed is None:
            self._serve()
            if self._waiters:
                self._grow()
