"""The client of one shard that counts exactly once through cut connections, crashes and restarts of the shard.

Here is what callers see. `SessionLink`, in Rust, has the rules of exactly once and the futures of who waits;
`link_connection` has the socket. Everything runs on one event loop, asyncio's own or uvloop's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

from pycounter._native import SessionLink, SplitItems
from pycounter.client.backoff import Backoff
from pycounter.client.event_loop import check_loop
from pycounter.client.framing import Item, Key, Level, check_level, pack, unpack
from pycounter.client.link_connection import LinkConnection
from pycounter.client.link_room import LinkRoom
from pycounter.client.lost_tail import LostTail
from pycounter.client.outcomes import Detail, Results, Withdrawn, checked
from pycounter.client.retry import repeat_of
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import BatchHealth, ClientStatistics
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations, Watchers
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.durations import seconds
from pycounter.errors import PyCounterError, RpcError, SessionLost, Unavailable, from_wire
from pycounter.topology.addresses import format_address

__all__ = ["SESSION_BYTES", "SessionClient"]

_log = logging.getLogger(__name__)

SESSION_BYTES = 16
#: Samples of batches that are kept until the end of a turn.
_SAMPLES_MAX = 256


def _withdrawn() -> Withdrawn:
    return Withdrawn("it was taken back before it was sent: nothing was applied")


class SessionClient:
    """Counts at one shard, each operation exactly once.

    Use it as `async with SessionClient(host, port) as client`, or call `connect` and `close`.

    A deadline that passes, or a cancellation, ends the waiting and not the counting: an operation that was sent stays
    in the session until it is settled, and is not to be repeated by the caller; until then it is on the list `unknown`.
    What was never sent is taken back; after a deadline that is `Unavailable`, nothing was applied.

    Args:
        host: the shard's.
        port: the shard's.
        token: the server's, if it has one.
        level: when operations that name no level are acknowledged, `durable` (on disk) or `applied` (in memory).
        tls: how to verify the server, if it speaks TLS.
        identity: the shard's, 32 hex digits. None takes any: where another shard answers than before, what was sent is
            unknown (`SessionLost`), and counting goes on there.
        passage_to: the shard's name, where the address is a coordinator's: it leads the way to that shard.
        alternates: more addresses that lead to the shard. The next one is tried when one can't be reached.
        settings: everything else.
        name: what the shard is called in `unknown`; its address otherwise.
        may_move: the shard may be at another address, which somebody will tell: to meet another one there is no end.
        on_lost_tail: told of operations that were acknowledged at `applied` and lost in a crash; logged otherwise.
        on_unknown: told of operations whose callers wait no longer, and that didn't count or stay unknown for ever;
            `unknown` reports them otherwise.
        on_sample: told of each batch that was answered or cut off: its latency in seconds, and what went wrong.
        on_connection: told when a connection is there (True), and when it is gone.
        clock: time and random numbers, beside the loop's own time.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7400,
        *,
        token: str | bytes | None = None,
        level: Level = "durable",
        tls: ssl.SSLContext | None = None,
        identity: str | None = None,
        passage_to: str | None = None,
        alternates: Sequence[tuple[str, int]] = (),
        settings: ClientSettings | None = None,
        name: str = "",
        may_move: bool = False,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        on_unknown: Callable[[list[UnknownOperation]], None] | None = None,
        on_sample: Callable[[float, RpcError | None], None] | None = None,
        on_connection: Callable[[bool], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        limits = self.settings = settings or ClientSettings()
        self.name = name or f"{format_address(host, port)}"
        #: Operations that were sent, and of which nobody knows yet whether they counted.
        self.unknown = UnknownOperations(self.pending_unknown)
        self._level: Level = check_level(level)
        self._on_lost_tail = on_lost_tail
        self._on_unknown = on_unknown or self.unknown.end
        self._on_sample = on_sample
        self._on_connection = on_connection
        self._wall_s = clock.wall_s
        self._link = SessionLink(
            clock=clock.running_s,
            level=level,
            token=token.encode() if isinstance(token, str) else token,
            passage_to=passage_to,
            timeout_s=limits.call_timeout_s,
            pending_operations_max=limits.pending_operations_max,
            gather_operations_max=limits.coalesced_operations_max,
            gather_s=limits.coalesced_delay_s,
            batch_operations_max=limits.batch_operations_max,
            batch_bytes_max=limits.batch_bytes_max,
            batches_in_flight_max=limits.batches_in_flight_max,
            window_operations_max=limits.window_operations_max,
            unconfirmed_operations_max=limits.unconfirmed_operations_max,
            reply_bytes_max=limits.reply_bytes_max,
            backoff_first_s=limits.backoff_first_s,
            backoff_max_s=limits.backoff_max_s,
            silence_timeout_s=limits.silence_timeout_s,
            session_window_s=limits.session_window_s,
            samples_max=_SAMPLES_MAX if on_sample is not None else 0,
            new_session_id=lambda: clock.random_bytes(SESSION_BYTES),
        )
        self._expected_identity = identity
        if identity is not None:
            self._link.expect_identity(identity)
        self._room = LinkRoom(limits.pending_operations_max, lambda: self._link.unsettled)
        self._connection = LinkConnection(
            self._link,
            ((host, port), *alternates),
            tls=tls,
            connect_timeout_s=limits.connect_timeout_s,
            pauses=Backoff(limits.backoff_first_s, limits.backoff_max_s, clock.random()),
            steady_s=limits.backoff_max_s,
            may_move=may_move,
            on_events=self._look_around,
            on_connection=self._note_connection,
            on_failure=self._fail,
        )
        self._ready = asyncio.Event()
        self._settled = asyncio.Event()
        #: Why no operation is accepted now, and why none can succeed any more.
        self._refusal: RpcError | None = Unavailable("the client is not connected: nothing was applied")
        self._failure: RpcError | None = None
        #: Who is told when a batch is settled, by its mark.
        self._watchers: dict[int, Watchers] = {}
        self._loop: asyncio.AbstractEventLoop

    # --- life ------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except PyCounterError:
            if error is None:
                raise
            _log.exception("closing the client")

    def start(self) -> None:
        """Begins to connect in the background, unless that was begun. Increments wait until it has worked."""
        if not self._connection.is_started and self._failure is None:
            self._loop = asyncio.get_running_loop()
            self._refusal = None
            self._connection.start()

    async def connect(self, *, timeout_s: float | None = None) -> None:
        """Begins to connect and waits until that has worked. Cancelled or too late, it goes on in the background.

        Raises:
            Unavailable: the shard can't be reached in time.
            Unauthenticated: the token is missing or wrong.
            WrongShard: it isn't the shard of the identity that was given.
        """
        self.start()
        timeout_s = seconds(timeout_s, self.settings.connect_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                while not self._connection.is_ready:
                    self._check()
                    self._ready.clear()
                    await self._ready.wait()
        except TimeoutError as late:
            where, trouble = format_address(*self.address), self._connection.trouble or "no answer"
            raise Unavailable(f"can't reach the shard at {where} ({trouble}): nothing was applied") from late

    async def close(self, *, timeout_s: float | None = None) -> None:
        """Waits for what is not settled, says goodbye, and ends the connection. Cancellation ends it at once.

        From its beginning on nothing new is accepted.

        Raises:
            SessionLost: not everything was settled in time, or, at `applied`, known to be durable; the message says how
                much is unknown.
        """
        if not self._connection.is_started:
            return
        timeout_s = seconds(timeout_s, self.settings.close_timeout_s)
        unknown_before = self.statistics.operations_unknown
        refusal = self._refusal = self._failure or Unavailable("the client is closed: nothing was applied")
        try:
            async with asyncio.timeout(timeout_s):
                while self._link.unsettled or self._room.crowd:
                    self._settled.clear()
                    await self._settled.wait()
                while self._link.unconfirmed:
                    await self._confirm(None)
            self._connection.write(self._link.goodbye())
        except (TimeoutError, RpcError) as error:
            _log.debug("closing: %s", error)
        finally:
            self._fail(refusal, "the client was closed")
            await self._connection.close()
        unknown = self.statistics.operations_unknown - unknown_before
        if unknown:
            raise SessionLost(f"closed after {timeout_s} s: it is unknown whether {unknown} operations counted")

    def _check(self) -> None:
        if self._refusal is not None:
            # One object for all callers: without this it would remember each of them.
            raise self._refusal.with_traceback(None)
        check_loop(self._loop)

    # --- counting --------------------------------------------------------------------------------------------------

    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[False] = False,
        timeout_s: float | None = None,
    ) -> int: ...
    @overload
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: Literal[True],
        timeout_s: float | None = None,
    ) -> Detail: ...
    async def incr(
        self,
        key: Key,
        delta: int = 1,
        *,
        level: Level | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int | Detail:
        """Adds to a counter and gives its value after; with `detail`, also the level that was reached.

        Increments of many callers travel together.

        Raises:
            RpcError: it was refused; `effect` says what that means.
            DeadlineExceeded: it was sent and not answered yet; it stays in the session, don't repeat it.
            SessionLost: nobody can tell whether it counted.
        """
        if level is not None:
            check_level(level)
        if timeout_s is not None:
            timeout_s = seconds(timeout_s, 0.0)
        if self._refusal is not None or asyncio.get_running_loop() is not self._loop:
            self._check()
        link, room = self._link, self._room
        reply = self._loop.create_future()
        number = -1 if room.crowd else link.incr(key, delta, reply, level, detail, timeout_s)
        if number < 0:
            deadline = self._deadline(timeout_s)
            await room.enter(1, deadline)
            number = link.incr(key, delta, reply, level, detail, max(0.0, deadline - self._loop.time()))
        try:
            answer = await reply
        except asyncio.CancelledError:
            link.abandon(number, reply)
            raise
        return Detail(*answer) if detail else answer

    async def apply(
        self,
        items: Iterable[Item] | Mapping[Key, int] | Mapping[str, int] | Mapping[bytes, int],
        *,
        level: Level | None = None,
        timeout_s: float | None = None,
    ) -> Results:
        """Adds to many counters, by pairs of key and delta or a mapping. Gives, for each, its value after or its error.

        The items are copied before anything is awaited, so the sequence may be changed afterwards.

        Raises:
            RpcError: no item has a value; the error is one that leaves an outcome open, if there is one.
            DeadlineExceeded: as above: it stays in the session, don't repeat it.
            SessionLost: as above: nobody can tell whether it counted.
        """
        if level is not None:
            check_level(level)
        if timeout_s is not None:
            timeout_s = seconds(timeout_s, 0.0)
        self._check()
        if not isinstance(items, Sequence):
            items = list(items.items() if isinstance(items, Mapping) else items)
        if not items:
            return []
        if self._room.crowd or not self._room.fits(len(items)):
            items, deadline = list(items), self._deadline(timeout_s)
            await self._room.enter(len(items), deadline)
            timeout_s = max(0.0, deadline - self._loop.time())
        reply = self._loop.create_future()
        number = self._link.incr_many(items, reply, level, timeout_s)
        return checked(await self._answer(reply, number))

    async def apply_split(
        self, split: SplitItems, shard: int, *, level: Level | None = None, timeout_s: float | None = None
    ) -> None:
        """Adds to the counters of a shard's part of a list; `split.results` then has its outcomes.

        Raises:
            RpcError: nothing of the part was accepted.
        """
        self._check()
        count = split.count(shard)
        if self._room.crowd or not self._room.fits(count):
            deadline = self._deadline(timeout_s)
            await self._room.enter(count, deadline)
            timeout_s = max(0.0, deadline - self._loop.time())
        reply = self._loop.create_future()
        await self._answer(reply, self._link.incr_split(split, shard, reply, level, timeout_s))

    async def _answer(self, reply: asyncio.Future[Any], number: int) -> Any:
        try:
            return await reply
        except asyncio.CancelledError:
            self._link.abandon(number, reply)
            raise

    def withdraw(self, share: float = 1.0) -> int:
        """Takes back this share of the operations that were never sent: their callers get `Withdrawn`.

        Gives how many these were. What was sent stays: it may have counted, so it can go nowhere else.
        """
        taken = self._link.withdraw(share, _withdrawn)
        self._look_around()
        return taken

    async def flush(self, *, timeout_s: float | None = None) -> None:
        """Waits until everything that is acknowledged now is durable, or reported as lost. For clients at `applied`.

        Raises:
            DeadlineExceeded: it isn't yet.
        """
        self._check()
        await self._confirm(seconds(timeout_s, self.settings.call_timeout_s))

    async def _confirm(self, timeout_s: float | None) -> None:
        reply = self._loop.create_future()
        await self._answer(reply, self._link.confirm(reply, timeout_s))

    async def call(self, method: str, *params: object, timeout_s: float | None = None) -> Any:
        """Calls any other method and gives its result.

        When a connection breaks, reads are sent again, and so is a change that has an operation id in its options, to
        the same shard only. Other changes are not.

        Raises:
            RpcError: the server's.
            UnknownOutcome: it was sent, the reply never came, and it can't be repeated safely.
            DeadlineExceeded: the time ran out.
            Unavailable: the shard couldn't be reached; nothing was applied.
        """
        self._check()
        timeout_s = seconds(timeout_s, self.settings.call_timeout_s)
        reply = self._loop.create_future()
        repeat = repeat_of(method, params)
        number = self._link.call(method, pack(params), repeat, reply, timeout_s, self.settings.id_window_s)
        return unpack(await self._answer(reply, number))

    def _deadline(self, timeout_s: float | None) -> float:
        return self._loop.time() + seconds(timeout_s, self.settings.call_timeout_s)

    # --- what happens ----------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        """Something has happened: there may be room, and news."""
        link = self._link
        if link.news:
            self._tell_news()
        if self._room.crowd:
            self._room.admit()
        elif not self._settled.is_set() and not link.unsettled:
            self._settled.set()
        if self._watchers:
            self._tell_watchers()

    def _tell_news(self) -> None:
        link = self._link
        for session, first, last, operations in link.lost_tails():
            tail = LostTail(session=session, first_sequence=first, last_sequence=last, operations=operations)
            _log.warning(
                "%d operations that were acknowledged at applied were lost in a crash of the shard", tail.count
            )
            if self._on_lost_tail is not None:
                try:
                    self._on_lost_tail(tail)
                except Exception:  # noqa: BLE001 - it is the user's, and the client goes on without it
                    _log.exception("on_lost_tail")
        wall_s = self._wall_s()
        ended = [
            UnknownOperation(
                key=key, delta=delta, shard=self.name, since=wall_s - age_s, counted=None if open_ else False
            )
            for key, delta, age_s, open_ in link.given_up()
        ]
        if ended:
            self._on_unknown(ended)
        if self._on_sample is not None:
            for latency_s, code in link.samples():
                self._on_sample(latency_s, None if code is None else from_wire(code))

    def _tell_watchers(self) -> None:
        """Tells whoever waits for a batch that is settled now."""
        if any(self._watchers.values()):
            pending = {mark for *_, mark in self._link.unknown()}
            for mark in [mark for mark in self._watchers if mark not in pending]:
                for tell in self._watchers.pop(mark):
                    tell()
        self._watchers = {mark: watchers for mark, watchers in self._watchers.items() if watchers}

    def _note_connection(self, is_there: bool) -> None:
        self._ready.set()
        if self._on_connection is not None:
            self._on_connection(is_there)

    def _fail(self, refusal: RpcError, reason: str) -> None:
        """Nothing can succeed any more: what was sent is unknown, what wasn't is refused."""
        self._failure = self._failure or refusal
        self._refusal = self._failure
        self._link.give_up(reason, refusal.wire_text)
        self._room.close(refusal)
        self._ready.set()
        self._look_around()

    # --- what it knows ---------------------------------------------------------------------------------------------

    def pending_unknown(self) -> Iterator[tuple[UnknownOperation, Watchers]]:
        """The operations that `unknown` lists, each with those who are told when it is settled."""
        wall_s = self._wall_s()
        for key, delta, age_s, mark in self._link.unknown():
            operation = UnknownOperation(key=key, delta=delta, shard=self.name, since=wall_s - age_s)
            yield operation, self._watchers.setdefault(mark, [])

    @property
    def statistics(self) -> ClientStatistics:
        """What the client has done so far."""
        done = self._link.statistics()
        return ClientStatistics(
            batches=done["batches"],
            operations=done["operations"],
            operations_settled=done["operations_settled"],
            operations_succeeded=done["operations_succeeded"],
            operations_failed=done["operations_failed"],
            batches_resent=done["batches_resent"],
            operations_resent=done["operations_resent"],
            batches_refused=done["batches_refused"],
            operations_unknown=done["operations_unknown"],
            operations_lost=done["operations_lost"],
            reconnects=max(0, done["greetings"] - 1),
            sessions_renewed=done["sessions_renewed"],
        )

    @property
    def health(self) -> BatchHealth:
        """How the batches fare: unhealthy where too many operations fail, or are not answered."""
        pending, rate = self._link.pending, self._link.success_rate
        settings = self.settings
        return BatchHealth(
            queued=self._link.unsettled - pending,
            pending=pending,
            success_rate=rate,
            is_healthy=pending <= settings.healthy_pending_max and 1.0 - rate <= settings.healthy_failed_share_max,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Where the next connection goes."""
        return self._connection.address

    @address.setter
    def address(self, address: tuple[str, int]) -> None:
        self._connection.address = address

    @property
    def identity(self) -> str | None:
        """The shard's, as it was given or as it said."""
        return self._link.identity or self._expected_identity

    @property
    def epoch(self) -> int | None:
        """The shard's, which rises with each start of its process."""
        return self._link.epoch

    @property
    def commit_seen(self) -> int:
        """The newest commit with which the shard answered an increment; 0: none."""
        return self._link.commit_seen

    @property
    def unconfirmed(self) -> int:
        """Operations that were acknowledged at `applied` and aren't known to be durable yet."""
        return self._link.unconfirmed

    @property
    def unsettled(self) -> int:
        """Operations that were accepted and have no outcome yet, their callers still waiting or not."""
        return self._link.unsettled

    @property
    def is_connected(self) -> bool:
        """Is there a connection now, on which the shard has answered?"""
        return self._connection.is_ready

    @property
    def in_flight_since(self) -> float | None:
        """Since when, in the loop's time, the oldest batch has waited for its answer; None: none is in flight."""
        waited_s = self._link.in_flight_s()
        return None if waited_s is None else self._loop.time() - waited_s

    @property
    def failure(self) -> RpcError | None:
        """Why nothing can succeed any more; None as long as something can."""
        return self._failure

    @property
    def session_id(self) -> bytes:
        """The present session's."""
        return self._link.session_id
