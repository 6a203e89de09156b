"""Keeps a replica up with its shard: asks for what is next, hands it to the engine, asks again.

A request names the place in the shard's history from which to go on, so a connection that is lost loses nothing. A
shard that doesn't know the place (it was restored from a backup, or lost its disk) says so, and then the state is
dropped. So it is where what came doesn't continue it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from pycounter._native import Replica
from pycounter.client.backoff import Backoff
from pycounter.client.connection import RpcConnection
from pycounter.client.framing import ProtocolViolation
from pycounter.client.hello import HelloReply
from pycounter.errors import RpcError, StorageError
from pycounter.replica.replica_settings import ReplicaSettings

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

#: A reply has about 256 KiB of records or pages and one more of these, which is below 900,000 bytes.
REPLY_BYTES_MAX = 4 << 20
#: More of it is ready at the shard: ask on without a pause.
LARGE_BYTES = 128 << 10
PAUSE_FIRST_S = 0.02


class Follower:
    """Follows until it is cancelled.

    Args:
        replica: takes in what comes.
        settings: whom to follow, and how.
        token: what the shard wants to be sent.
    """

    def __init__(self, replica: Replica, settings: ReplicaSettings, token: bytes | None) -> None:
        self._replica = replica
        self._settings = settings
        self.token = token
        self._backoff = Backoff(PAUSE_FIRST_S, settings.pause_max_s)
        # The checkpoint that is being read, and the page of it that comes next.
        self._checkpoint: tuple[int, int] | None = None
        self._identity = ""
        self._complaint = ""

    async def run(self) -> None:
        """Follows, whatever happens to the shard."""
        while True:
            try:
                await self._follow()
            except (ProtocolViolation, TimeoutError, RpcError) as error:
                self._lost(error, ended=False)
            except (OSError, EOFError) as error:
                # The system says that nobody is there, or the shard's end of the connection is closed.
                self._lost(error, ended=True)
            except StorageError as error:
                # What came isn't what comes next, or doesn't fit. Nothing of it can be trusted to be whole.
                self._drop(str(error))
                self._lost(error, ended=False)
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> None:
        settings = self._settings
        async with asyncio.timeout(settings.timeout_s):
            connection = await RpcConnection.open(
                lambda: None, settings.primary_address, tls=None, reply_bytes_max=REPLY_BYTES_MAX
            )
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(settings.timeout_s):
                hello = HelloReply.parse(await connection.call("hello", self._hello()))
            if hello.identity != self._identity:
                self._identity, self._checkpoint = hello.identity, None
            _log.info(
                "following shard %s at %s from commit %d on", hello.identity, settings.primary, self._replica.place[1]
            )
            while True:
                asked_at = loop.time()
                async with asyncio.timeout(settings.timeout_s + settings.wait_s):
                    answer = await self._ask(connection)
                is_more = self._take(answer, asked_at)
                self._backoff.reset()
                self._complaint = ""
                if not is_more:
                    await asyncio.sleep(max(0.0, asked_at + settings.poll_interval_s - loop.time()))
        finally:
            connection.abort()

    def _hello(self) -> dict[str, Any]:
        hello: dict[str, Any] = {"client": f"pycounter-replica {self._settings.name}"}
        return hello if self.token is None else {**hello, "token": self.token}

    async def _ask(self, connection: RpcConnection) -> Any:
        identity, after, epoch, last_hash, index = self._replica.place
        options: dict[str, int] = {"hash": last_hash, "index": index, "wait_ms": int(self._settings.wait_s * 1000)}
        if self._checkpoint is not None:
            options |= {"fold": self._checkpoint[0], "page": self._checkpoint[1]}
        return await connection.call("tail", after, epoch, identity, options)

    def _take(self, answer: Any, asked_at: float) -> bool:
        """Hands an answer to the engine. Is there more to be had at once?"""
        match answer:
            case {"identity": str() as identity, "shard": str() as shard, "epoch": int() as epoch}:
                self._replica.primary(identity, shard, epoch)
            case _:
                raise ProtocolViolation("the shard's answer to tail makes no sense")
        match answer:
            case {"records": bytes() as records, "durable": int() as durable, "waited_ms": int() as waited_ms}:
                self._replica.records(records)
                # The shard looked after it was asked, and as long after that as it says.
                loop = asyncio.get_running_loop()
                self._replica.heard(durable, max(0.0, loop.time() - asked_at - waited_ms / 1000))
                return len(records) >= LARGE_BYTES
            case {"checkpoint": {} as checkpoint}:
                self._take_pages(checkpoint)
                return True
            case {"anew": str() as reason}:
                self._drop(f"the shard doesn't know it: {reason}")
                return False
        raise ProtocolViolation("the shard's answer to tail makes no sense")

    def _take_pages(self, checkpoint: dict[Any, Any]) -> None:
        match checkpoint:
            case {
                "fold": int() as fold,
                "commit": int() as commit,
                "hash": int() as last_hash,
                "pages": int() as pages,
                "page": int() as page,
                "rows": list() as rows,
            } if pages == 0 or rows:
                pass
            case _:
                raise ProtocolViolation("the shard's answer to tail makes no sense")
        if page == 0:
            _log.info("taking in the checkpoint at commit %d: %d pages", commit, pages)
            self._replica.begin_checkpoint()
        elif (fold, page) != self._checkpoint:
            raise ProtocolViolation("the shard sent pages that weren't asked for")
        for row in rows:
            self._replica.page(row)
        page += len(rows)
        self._checkpoint = (fold, page) if page < pages else None
        if self._checkpoint is None:
            self._replica.end_checkpoint(commit, last_hash)

    def _drop(self, reason: str) -> None:
        _log.warning("dropping the state and beginning anew: %s", reason)
        self._checkpoint = None
        self._replica.anew()

    def _lost(self, error: Exception, *, ended: bool) -> None:
        reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        self._replica.lost(f"{self._settings.primary}: {reason}", ended)
        if reason != self._complaint:
            self._complaint = reason
            _log.warning("the shard at %s can't be reached: %s", self._settings.primary, reason)
