"""One shard, as a client sees it: a session for increments, and a pool for everything else.

It belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from pycounter._native import LatestValues, SplitItems
from pycounter.client import LostTail, SessionClient
from pycounter.client.caller import Caller
from pycounter.client.event_loop import check_loop
from pycounter.client.pool import Pool
from pycounter.client.unknown_operations import UnknownOperation
from pycounter.clock import Clock
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.errors import PyCounterError, RpcError, Unavailable, UnknownOutcome
from pycounter.topology import Address, ReplicaInfo, ShardInfo

__all__ = ["HandleOwner", "ReplicaHandle", "ShardHandle"]

_log = logging.getLogger(__name__)

#: A shard without an address can't be asked; nothing listens here.
_NOWHERE: Address = ("127.0.0.1", 9)
#: The values of this many counters at least are remembered, for what an increment elsewhere adds to.
_PARTIALS_MAX = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class HandleOwner:
    """What handles tell, each with the shard's number."""

    #: An attempt's latency in seconds, and what went wrong.
    on_sample: Callable[[int, float, RpcError | None], None]
    #: The same of a read at a replica.
    on_replica_sample: Callable[[int, str, float, RpcError | None], None]
    on_connection: Callable[[int, bool], None]
    on_unknown: Callable[[list[UnknownOperation]], None]
    on_lost_tail: Callable[[LostTail], None] | None


class ReplicaHandle:
    """A read replica of a shard."""

    def __init__(self, info: ReplicaInfo, caller: Caller) -> None:
        self.name = info.name
        #: How far it is behind its primary, as far as it is known.
        self.lag_ms = 0
        self._caller = caller

    def update(self, address: Address | None, identity: str | None) -> None:
        """Where it is now (None: as before), and which shard it is a replica of."""
        pool = self._caller.pool
        if address is not None:
            pool.address = address
        if identity is not None and identity != pool.identity:
            pool.identity = identity
            pool.cut()

    def set_token(self, token: bytes | None) -> None:
        """What new connections are sent."""
        self._caller.pool.token = token

    async def call(self, method: str, *params: object, timeout_s: float) -> Any:
        """The result of a read. Errors as `Caller.call`."""
        return await self._caller.call(method, *params, timeout_s=timeout_s)

    async def ask_lag(self, *, timeout_s: float) -> None:
        """Learns how far it is behind. Raises RpcError, OSError."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        said = await self._caller.pool.request("health", deadline=deadline)
        if isinstance(said, dict) and isinstance(lag_ms := said.get("lag_ms"), int | float):
            self.lag_ms = int(lag_ms)

    async def close(self) -> None:
        """Closes its connections."""
        await self._caller.pool.close()


class ShardHandle:
    """One shard: where increments go (`session`), and everything else (`call`).

    Args:
        number: of the shard, in the ring's order.
        info: what the topology says.
        settings: the client's.
        is_alone: it is the only one, without cluster, and reached as the client's address is.
        is_through: it is reached through coordinators, at the client's addresses.
        clock: time and random numbers.
        owner: who is told.
    """

    def __init__(
        self,
        number: int,
        info: ShardInfo,
        *,
        settings: ConnectSettings,
        is_alone: bool,
        is_through: bool,
        clock: Clock,
        owner: HandleOwner,
    ) -> None:
        self.number = number
        self.name = info.name
        #: As the topology has it now.
        self.info = info
        self.replicas: dict[str, ReplicaHandle] = {}
        self._partials = LatestValues(_PARTIALS_MAX)
        self._settings = settings
        self._is_alone = is_alone
        #: Where to ask for a passage; empty: straight to the shard.
        self._coordinators = settings.addresses if is_through else ()
        #: Where the shard is, whatever the topology says; empty: where that says.
        self._reached_at = settings.addresses if is_alone or is_through else ()
        self._tls = settings.tls if is_alone or is_through else None
        self._clock = clock
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        #: As `commit_seen`, of changes that don't go through the session.
        self._commit_seen = 0
        self._is_started = False
        self._is_closed = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._pool = self._new_pool(info)
        self._caller = Caller(
            self._pool,
            policy=settings.retry(),
            clock=clock,
            on_sample=lambda latency_s, failure: owner.on_sample(number, latency_s, failure),
        )
        self.session = self._new_session()
        self._update_replicas(info)

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to connect, in the background."""
        self._is_started = True
        if self.info.endpoint is not None and not self._is_closed:
            self.session.start()

    def update(self, info: ShardInfo) -> None:
        """What the topology says of it now: another address, another identity, other replicas."""
        before, self.info = self.info, info
        if info.endpoint is not None and info.endpoint != before.endpoint and not self._reached_at:
            self._pool.address = self.session.address = info.endpoint
        identity = self.session.identity
        if (info.identity and identity and info.identity != identity) or self._is_beyond_hope(before):
            _log.warning("%s is another shard now (%s): what was unanswered is unknown", self.name, info.identity)
            self._leave_session()
            self._pool.identity = info.identity or None
            self._pool.cut()
        if self._is_started:
            self.start()
        self._update_replicas(info)

    def set_token(self, token: bytes | None) -> None:
        """What new connections to the shard and its replicas are sent; the session keeps what it has."""
        self._settings = replace(self._settings, token=token)
        self._pool.token = token
        for replica in self.replicas.values():
            replica.set_token(token)

    def accept_another(self) -> None:
        """Another shard answers at the only address there is: counts there from now on, in a session of its own."""
        self.info = msgspec.structs.replace(self.info, identity="")
        self._leave_session()
        self._pool.identity = None
        self._pool.cut()
        self.start()

    def _is_beyond_hope(self, before: ShardInfo) -> bool:
        """Did the session meet another shard than it should, and does the topology now know more?"""
        return self.session.failure is not None and (self.info.identity, self.info.address) != (
            before.identity,
            before.address,
        )

    def _new_pool(self, to: ShardInfo | ReplicaInfo) -> Pool:
        reached_at = self._reached_at if isinstance(to, ShardInfo) else self._coordinators
        return Pool(
            *(reached_at or [to.endpoint or _NOWHERE]),
            token=self._settings.token,
            tls=self._tls,
            # Another shard's may be at a replica's address by now.
            identity=self.info.identity or None,
            passage_to=to.name if self._coordinators else None,
            settings=self._settings.pool(),
            clock=self._clock,
        )

    def _new_session(self) -> SessionClient:
        (host, port), *alternates = self._reached_at or [self.info.endpoint or _NOWHERE]
        owner, number = self._owner, self.number
        return SessionClient(
            host,
            port,
            token=self._settings.token,
            level=self._settings.level,
            tls=self._tls,
            identity=self.info.identity or None,
            passage_to=self.name if self._coordinators else None,
            alternates=alternates,
            settings=self._settings.session(),
            name=self.name,
            may_move=not self._is_alone,
            on_lost_tail=owner.on_lost_tail,
            on_unknown=owner.on_unknown,
            on_sample=lambda latency_s, failure: owner.on_sample(number, latency_s, failure),
            on_connection=lambda is_there: owner.on_connection(number, is_there),
            clock=self._clock,
        )

    def _leave_session(self) -> None:
        """The shard of this session is gone for good: its operations end as unknown, and a new session begins."""
        self._commit_seen = 0
        old, self.session = self.session, self._new_session()
        task = asyncio.get_running_loop().create_task(_close(old, 0.0), name="pycounter closing a session")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def _update_replicas(self, info: ShardInfo) -> None:
        wanted = {replica.name: replica for replica in info.replicas if replica.endpoint is not None}
        for name in [name for name in self.replicas if name not in wanted]:
            task = asyncio.get_running_loop().create_task(self.replicas.pop(name).close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for name, replica in wanted.items():
            if name in self.replicas:
                self.replicas[name].update(None if self._coordinators else replica.endpoint, info.identity or None)
            else:
                self.replicas[name] = ReplicaHandle(replica, self._replica_caller(replica))

    def _replica_caller(self, replica: ReplicaInfo) -> Caller:
        owner, number, name = self._owner, self.number, replica.name
        return Caller(
            self._new_pool(replica),
            policy=self._settings.retry(),
            clock=self._clock,
            on_sample=lambda latency_s, failure: owner.on_replica_sample(number, name, latency_s, failure),
        )

    async def close(self, *, timeout_s: float) -> None:
        """Waits for what is not settled, and closes every connection. Raises SessionLost as a session does."""
        self._is_closed = True
        try:
            await self.session.close(timeout_s=timeout_s)
        finally:
            await self._pool.close()
            for replica in self.replicas.values():
                await replica.close()
            await asyncio.gather(*self._leaving, return_exceptions=True)

    # --- asking ----------------------------------------------------------------------------------------------------

    async def call(self, method: str, *params: object, timeout_s: float) -> Any:
        """The result of a request; reads and changes with an id are sent again within the time, to this shard only.

        Raises:
            Unavailable: nothing was applied.
            UnknownOutcome, DeadlineExceeded: it was sent, and nobody knows.
            RpcError: the shard's own.
        """
        check_loop(self._loop)
        if not self.info.address:
            raise Unavailable(f"nobody knows yet where {self.name} is: nothing was applied")
        return await self._caller.call(method, *params, timeout_s=timeout_s)

    async def order_backup(self, directory: str, *, timeout_s: float) -> None:
        """Has the shard write a backup. Sent once, and how long it takes says nothing of how well the shard is.

        Raises:
            RpcError: the shard's own, or it wasn't sent.
            UnknownOutcome, DeadlineExceeded: the shard may be writing it.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._pool.request("backup", directory, deadline=deadline)
        except OSError as error:
            raise UnknownOutcome("the connection ended before the backup was made") from error

    async def ask_health(self, foreign_from: int | None, *, timeout_s: float) -> Any:
        """One request `health`, never repeated. Raises RpcError, OSError."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        params = () if foreign_from is None else ({"foreign_from": foreign_from},)
        return await self._pool.request("health", *params, deadline=deadline)

    @property
    def identity(self) -> str | None:
        """The shard's, as soon as somebody knows it."""
        return self.session.identity or self._pool.identity

    @property
    def is_connected(self) -> bool:
        """Has the session a connection?"""
        return self.session.is_connected

    @property
    def time_ms(self) -> int | None:
        """The shard's clock now, at the latest: it may have stood still; None where it never answered."""
        said = self._pool.server_time_ms
        if said is None:
            return None
        return said + int((self._clock.running_s() - self._pool.greeted_s) * 1000)

    @property
    def commit_seen(self) -> int:
        """The newest commit with which the shard answered a change of this client; 0: none."""
        return max(self.session.commit_seen, self._commit_seen)

    def note_commit(self, commit: int) -> None:
        """A change that didn't go through the session was answered with this commit."""
        self._commit_seen = max(self._commit_seen, commit)

    async def ask_time_ms(self, *, timeout_s: float) -> int | None:
        """The shard's clock a moment ago, as it said itself; None where it doesn't say. Raises RpcError."""
        return await self._pool.ask_time_ms(deadline=asyncio.get_running_loop().time() + timeout_s)

    # --- what it holds ---------------------------------------------------------------------------------------------

    def note_value(self, key: str | bytes, value: int) -> None:
        """Remembers what an increment here gave."""
        self._partials.note(key, value)

    def note_split(self, split: SplitItems) -> None:
        """The same of a list's increments here."""
        self._partials.note_split(split, self.number)

    def forget(self, key: bytes | None) -> None:
        """What it held of a counter was taken; None: of every counter."""
        self._partials.forget(key)

    def last_known(self, key: bytes) -> int:
        """The value that a counter had here when this client last saw it; 0 if it never did."""
        return self._partials.get(key) or 0


async def _close(session: SessionClient, timeout_s: float) -> None:
    try:
        await session.close(timeout_s=timeout_s)
    except PyCounterError as error:
        _log.warning("%s: %s", session.name, error)
