"""A session and the connections it lives on: one task connects, resumes the session, and connects again.

Batches are sent by whoever makes the next one possible: a caller, or a reply. Everything here runs on one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pycounter.client.applied_tail import LostTail
from pycounter.client.backoff import Backoff
from pycounter.client.coalescer import Coalescer
from pycounter.client.connection import RpcConnection
from pycounter.client.framing import Level, ProtocolViolation, check_level, decode_items
from pycounter.client.hello import HelloReply
from pycounter.client.room import Room
from pycounter.client.session import RETIRED_MAX, SESSION_BYTES, Batch, Next, Session
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import ClientStatistics
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations, Watchers
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.errors import (
    BadRequest,
    Forbidden,
    RpcError,
    Unauthenticated,
    Unavailable,
    WrongShard,
    from_wire,
)

__all__ = ["SessionConnection"]

_log = logging.getLogger(__name__)

#: Said by who isn't the right one, or doesn't let us in: to ask again helps nobody.
_FINAL = (Unauthenticated, Forbidden, WrongShard)


class SessionConnection:
    """The part of `SessionClient` that callers don't see; its arguments are described there."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7400,
        *,
        token: str | bytes | None = None,
        level: Level = "durable",
        tls: ssl.SSLContext | None = None,
        identity: str | None = None,
        settings: ClientSettings | None = None,
        name: str = "",
        may_move: bool = False,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_unknown: Callable[[list[UnknownOperation]], None] | None = None,
        on_sample: Callable[[float, RpcError | None], None] | None = None,
        on_connection: Callable[[bool], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings or ClientSettings()
        self.statistics = ClientStatistics()
        #: Where the next connection goes.
        self.address = (host, port)
        self.identity = identity
        self.name = name or f"{host}:{port}"
        self.epoch: int | None = None
        self._token = token
        self._tls = tls
        self._may_move = may_move
        self._on_lost_tail = on_lost_tail
        self._on_sample = on_sample
        self._on_connection = on_connection
        #: The newest commit with which the shard answered a batch.
        self.commit_seen = 0
        self._running_s = clock.running_s
        self._random = clock.random()
        self._level: Level = level
        self._wall_s = clock.wall_s
        #: Operations that were sent, and of which nobody knows yet whether they counted.
        self.unknown = UnknownOperations(self.pending_unknown)
        self._on_unknown = on_unknown or self.unknown.end
        self._session = Session(
            batches_in_flight_max=self.settings.batches_in_flight_max,
            window_operations_max=self.settings.window_operations_max,
            statistics=self.statistics,
            on_lost_tail=self._report_lost_tail,
            on_given_up=self._note_given_up,
            new_id=lambda: clock.random_bytes(SESSION_BYTES),
        )
        self._connection: RpcConnection | None = None
        self._ready = asyncio.Event()
        self._room = Room(self.settings.pending_operations_max)
        #: Why no operation is accepted any more, and why none can succeed any more.
        self._refusal: RpcError | None = None
        self._failure: RpcError | None = None
        #: Why the last connection didn't come to be.
        self._trouble: Exception | None = None
        self._runner: asyncio.Task[None] | None = None
        self._barrier: asyncio.Task[None] | None = None
        self._pause = Backoff(self.settings.backoff_first_s, self.settings.backoff_max_s, self._random)
        self._resume: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._coalescer = Coalescer(
            self._session,
            self._room,
            operations_max=self.settings.coalesced_operations_max,
            bytes_max=self.settings.batch_bytes_max,
            delay_s=self.settings.coalesced_delay_s,
            timeout_s=self.settings.call_timeout_s,
            on_due=self._pump,
            running_s=clock.running_s,
        )

    # --- the connection ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to connect in the background, unless that was begun. Increments wait until it has worked."""
        if self._runner is None:
            loop = asyncio.get_running_loop()
            self._coalescer.start(loop)
            self._runner = loop.create_task(self._run(), name="pycounter session client")

    def _check(self) -> None:
        if self._failure is not None:
            # One object for all callers: without this it would remember each of them.
            raise self._failure.with_traceback(None)
        if self._runner is None:
            raise Unavailable("the client is not connected: nothing was applied")

    async def _wait_ready(self, deadline: float | None) -> RpcConnection:
        """The present connection, once there is one."""
        while True:
            self._check()
            if self._connection is not None and not self._connection.lost.is_set():
                return self._connection
            self._ready.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._ready.wait()
            except TimeoutError as error:
                host, port = self.address
                raise Unavailable(
                    f"can't reach the shard at {host}:{port} ({self._trouble or 'no answer'}): nothing was applied"
                ) from error

    # --- sending -----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Sends whatever may be sent now."""
        connection = self._connection
        if connection is None or connection.lost.is_set() or self._resume is not None:
            return
        session = self._session
        unconfirmed, bound = session.unconfirmed_operations, self.settings.unconfirmed_operations_max
        if self._barrier is None and (session.retired or unconfirmed >= bound // 2):
            self._barrier = asyncio.create_task(self._confirm_in_background(), name="pycounter confirmation")
        if unconfirmed >= bound or len(session.retired) >= RETIRED_MAX:
            return
        while True:
            if (batch := session.take_next()) is None:
                if session.takes_more(self.settings.coalesced_operations_max) and self._coalescer.make_batch():
                    continue
                break
            batch.sent_at = batch.sent_at or self._wall_s()
            batch.launched_at = connection.time()
            connection.apply(batch, session.id, session.acked_through)
        while session.ended:
            connection.notify("bye", session.ended.pop())

    def _pump_later(self) -> None:
        if self._resume is None:
            self._resume = asyncio.get_running_loop().call_later(self._pause.next_s(), self._go_on)

    def _go_on(self) -> None:
        self._resume = None
        self._pump()

    # --- what the connection tells ---------------------------------------------------------------------------------

    def on_batch_reply(self, batch: Batch, error: str | None, result: Any) -> None:
        """A batch was answered."""
        self._answered_at = self._running_s()
        refusal = from_wire(error) if error is not None else None
        if self._on_sample is not None and self._connection is not None:
            self._on_sample(self._connection.time() - batch.launched_at, refusal)
        if refusal is not None:
            if self._session.on_refusal(batch, refusal) is Next.PAUSE:
                self._pump_later()
            return
        try:
            batch.level_reached = check_level(result.get("level", batch.level))
            batch.commit = int(result.get("commit", 0))
            self.commit_seen = max(self.commit_seen, batch.commit)
            self._session.on_results(batch, result["results"])
        except (TypeError, AttributeError, KeyError, ValueError, BadRequest) as wrong:
            raise ProtocolViolation(f"the server's answer to apply makes no sense: {wrong}") from wrong
        self._pause.reset()

    def on_replies(self) -> None:
        """Replies came: there may be room for more."""
        self._pump()
        if not self._session.in_flight:
            self._coalescer.on_idle()

    def _report_lost_tail(self, tail: LostTail) -> None:
        _log.warning("%d operations that were acknowledged at applied were lost in a crash of the shard", tail.count)
        if self._on_lost_tail is not None:
            try:
                self._on_lost_tail(tail)
            except Exception:  # noqa: BLE001 - it is the user's, and the client goes on without it
                _log.exception("on_lost_tail")

    # --- what nobody knows -----------------------------------------------------------------------------------------

    def pending_unknown(self) -> Iterator[tuple[UnknownOperation, Watchers]]:
        """The operations that `unknown` lists, each with those who are told when it is settled."""
        for batch in self._session.sent():
            places = range(batch.count) if batch.is_ambiguous else batch.abandoned()
            if places:
                for operation in self._operations_of(batch, places):
                    yield operation, batch.watchers

    def _operations_of(self, batch: Batch, places: Sequence[int]) -> list[UnknownOperation]:
        items = decode_items(batch.items)
        return [
            UnknownOperation(key=items[place][0], delta=items[place][1], shard=self.name, since=batch.sent_at)
            for place in places
        ]

    def _note_given_up(self, batch: Batch) -> None:
        # Callers that wait still are told by an exception.
        self._on_unknown(self._operations_of(batch, batch.abandoned()))

    # --- durability of applied operations --------------------------------------------------------------------------

    async def _confirm(self) -> None:
        """Waits until all that is acknowledged now is durable: `hello` waits for the commit that covers it."""
        while True:
            connection = await self._wait_ready(None)
            covered = self._session.acknowledged()
            try:
                await self._greet(connection, self._session.id)
            except ConnectionError:
                # Let the runner see the loss before the next attempt.
                await asyncio.sleep(0)
                continue
            except RpcError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(self._pause.next_s())
                continue
            # On another connection the shard may be another process, and what this one said is settled there.
            if connection is self._connection:
                self._session.confirm(covered)
                self._pump()
            return

    async def _confirm_in_background(self) -> None:
        """A task of its own, so that counting goes on meanwhile; its errors are the next caller's as well."""
        try:
            await self._confirm()
        except RpcError as error:
            _log.warning("can't ask the shard what is durable: %s", error)
            await asyncio.sleep(self._pause.next_s())
        finally:
            self._barrier = None
        self._pump()

    # --- connecting ------------------------------------------------------------------------------------------------

    async def _greet(self, connection: RpcConnection, session: bytes) -> HelloReply:
        """Asks the shard who it is and where a session is. Raises ConnectionError, RpcError."""
        said: dict[str, object] = {"client": "pycounter", "session": session}
        if self._token is not None:
            said["token"] = self._token
        reply = await connection.call("hello", said)
        try:
            return HelloReply.parse(reply)
        except ProtocolViolation as violation:
            connection.refuse(violation)
            raise

    async def _run(self) -> None:
        """The task that connects, for as long as the client lives. Every other task waits for what it makes."""
        try:
            await self._stay_connected()
        except Exception as error:  # noqa: BLE001 - the task's boundary: callers would wait for it in vain
            _log.exception("the client can't go on")
            self._fail(Unavailable(f"the client can't go on: {error!r}"), repr(error))

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self.settings.backoff_first_s, self.settings.backoff_max_s, self._random)
        connected_before = False
        while self._failure is None:
            try:
                connection = await self._open()
            except (OSError, RpcError) as error:
                is_final = isinstance(error, _FINAL) and not (self._may_move and isinstance(error, WrongShard))
                if is_final and isinstance(error, RpcError):
                    self._fail(error, str(error))
                    return
                self._trouble = error
                await asyncio.sleep(backoff.next_s())
                continue
            self.statistics.reconnects += connected_before
            connected_before = True
            opened_at = loop.time()
            self._connection = connection
            self._answered_at = self._running_s()
            self._ready.set()
            self._tell_connection(is_there=True)
            self._pump()
            try:
                await self._watch(connection)
            finally:
                connection.abort()
                self._connection = None
                self._trouble = connection.cause
                if self._session.in_flight and self._on_sample is not None:
                    self._on_sample(0.0, Unavailable("the connection ended"))
                self._session.on_disconnect()
                self._tell_connection(is_there=False)
            # A server that greets and hangs up must not be called in a tight circle.
            if connection.is_useful or loop.time() - opened_at > self.settings.backoff_max_s:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.next_s())

    def _tell_connection(self, *, is_there: bool) -> None:
        if self._on_connection is not None:
            self._on_connection(is_there)

    async def _open(self) -> RpcConnection:
        """A connection on which the shard has said that it is the right one and where the sessions are."""
        if self._answered_at and self._running_s() - self._answered_at > self.settings.session_window_s:
            self._session.expire()
        async with asyncio.timeout(self.settings.connect_timeout_s):
            connection = await RpcConnection.open(
                self, self.address, tls=self._tls, reply_bytes_max=self.settings.reply_bytes_max
            )
        try:
            await self._meet(connection)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _meet(self, connection: RpcConnection) -> None:
        """Learns who answers, and what the shard still has. Raises ConnectionError, TimeoutError, RpcError."""
        # The replies wait for a commit, and with a slow disk that may take longer than a connection should.
        patience_s = self.settings.silence_timeout_s
        session = self._session
        async with asyncio.timeout(patience_s):
            shard = await self._greet(connection, session.id)
        if self.identity is not None and shard.identity != self.identity:
            raise WrongShard(
                f"the shard at {self.address[0]}:{self.address[1]} is {shard.identity}, not {self.identity}: it was "
                f"restored from a backup or is another; nothing is sent to it"
            )
        self.identity = shard.identity
        restarted = self.epoch is not None and shard.epoch != self.epoch
        if restarted or session.is_behind(shard.last_sequence):
            for tail in list(session.retired):
                async with asyncio.timeout(patience_s):
                    left = await self._greet(connection, tail.session)
                session.resolve(tail, left.last_sequence)
        # Only now: should the connection end before, the next one has to ask for the rest.
        self.epoch = shard.epoch
        session.on_resume(shard.last_sequence, restarted=restarted)

    async def _watch(self, connection: RpcConnection) -> None:
        """Returns when the connection has ended or has been silent for too long."""
        loop = asyncio.get_running_loop()
        limit = self.settings.silence_timeout_s
        silent_since: float | None = None
        while not connection.lost.is_set():
            try:
                async with asyncio.timeout(limit / 4):
                    await connection.lost.wait()
            except TimeoutError:
                if not connection.is_waiting:
                    silent_since = None
                    continue
                silent_since = max(silent_since or loop.time(), connection.received_at)
                if loop.time() - silent_since > limit:
                    connection.cause = TimeoutError(f"no answer for {limit} s")
                    return

    def _fail(self, refusal: RpcError, reason: str) -> None:
        """Nothing can succeed any more: what was sent is unknown, what wasn't is refused."""
        self._failure = self._failure or refusal
        self._coalescer.refuse(refusal)
        self._coalescer.stop()
        for batch in self._session.abandon(reason):
            batch.settle(refusal)
        self._room.close(refusal)
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        self._ready.set()
