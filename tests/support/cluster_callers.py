"""Callers of a cluster that go on whatever is killed: smart clients, raw clients with ids, clients of RESP."""

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from typing import Any

import pycounter
from pycounter.errors import RpcError, SessionLost
from tests.support.cluster_ledger import Ledger
from tests.support.history import Violation
from tests.support.resp_socket import command
from tests.support.rpc_socket import RpcError as RawRpcError
from tests.support.rpc_stream import RpcStream

PAUSE_S = 0.01
#: An answer that takes longer than this ends a connection: what stands still is not waited for, but tried again.
ANSWER_TIMEOUT_S = 5.0
KEYS = 40
Address = tuple[str, int]


class Caller(ABC):
    """Works until told to stop, then until nothing of its own is open that could be settled."""

    def __init__(self, name: str, address: Address, ledger: Ledger, seed: int | str, token: str | None = None) -> None:
        self.name = name
        self.address = address
        self.ledger = ledger
        self.random = random.Random(f"{seed}:{name}")
        self.token = token
        self.stopping = False

    @abstractmethod
    async def run(self) -> None:
        """Raises Violation."""

    def draw(self) -> tuple[bytes, int]:
        """A counter that all callers of this kind share, and a delta."""
        kind = type(self).__name__.encode()
        return b"%s:%d" % (kind, int(self.random.paretovariate(0.7)) % KEYS), self.random.randint(1, 3)


class SmartCaller(Caller):
    """`pycounter.connect`: single increments, lists, exact reads."""

    route = "direct"
    outstanding = 24

    async def run(self) -> None:
        url = f"pycounter://{self.address[0]}:{self.address[1]}?route={self.route}"
        async with pycounter.connect(url, token=self.token) as client, asyncio.TaskGroup() as tasks:
            for _ in range(self.outstanding):
                tasks.create_task(self._work(client))
            tasks.create_task(self._read(client))

    async def _work(self, client: Any) -> None:
        while not self.stopping:
            items = [self.draw() for _ in range(self.random.choice((1, 1, 1, 5, 40)))]
            for key, delta in items:
                self.ledger.attempt(key, delta)
            try:
                if len(items) == 1:
                    results: list[object] = [await client.incr(*items[0], timeout_s=60)]
                else:
                    results = list(await client.incr_many(items, timeout_s=60))
            except RpcError as error:
                results = [error] * len(items)
            for (key, delta), result in zip(items, results, strict=True):
                self._account(key, delta, result)
            if isinstance(results[0], RpcError):
                await asyncio.sleep(PAUSE_S)

    def _account(self, key: bytes, delta: int, result: object) -> None:
        if isinstance(result, SessionLost):
            raise Violation(f"{self.name}: a session was lost though every folder is whole: {result}")
        if not isinstance(result, RpcError):
            self.ledger.acknowledge(key, delta)
        elif result.effect == "nothing":
            self.ledger.refuse(key, delta)

    async def _read(self, client: Any) -> None:
        seen: dict[bytes, int] = {}
        while not self.stopping:
            key, _ = self.draw()
            floor = max(self.ledger.floor(key), seen.get(key, 0))
            with contextlib.suppress(RpcError):
                total = await client.total(key, accuracy="exact", timeout_s=5)
                if not total.missing:
                    self.ledger.check_read(self.name, key, total.total, floor)
                    seen[key] = total.total
            await asyncio.sleep(PAUSE_S)


class ThroughCoordinator(SmartCaller):
    """The same through the coordinator, under ids."""

    route = "coordinator"


class IdCaller(Caller):
    """A raw client: each increment under an id, sent again through whatever coordinator answers, until settled."""

    group = 16

    async def run(self) -> None:
        open_: dict[bytes, tuple[bytes, int]] = {}
        while open_ or not self.stopping:
            with contextlib.suppress(OSError, TimeoutError):
                stream = await RpcStream.open(self.address)
                try:
                    await self._live(stream, open_)
                finally:
                    stream.close()
            await asyncio.sleep(PAUSE_S)

    async def _live(self, stream: RpcStream, open_: dict[bytes, tuple[bytes, int]]) -> None:
        if self.token is not None:
            await asyncio.wait_for(stream.call("hello", {"token": self.token}), ANSWER_TIMEOUT_S)
        while open_ or not self.stopping:
            while not self.stopping and len(open_) < self.group:
                key, delta = self.draw()
                open_[self.random.randbytes(16)] = (key, delta)
                self.ledger.attempt(key, delta)
            waiting = [asyncio.ensure_future(self._settle(stream, id_, open_)) for id_ in list(open_)]
            try:
                await asyncio.wait_for(asyncio.gather(*waiting), ANSWER_TIMEOUT_S)
            finally:
                for task in waiting:
                    task.cancel()

    async def _settle(self, stream: RpcStream, id_: bytes, open_: dict[bytes, tuple[bytes, int]]) -> None:
        key, delta = open_[id_]
        try:
            await stream.call("incr", key, delta, {"id": id_})
        except RawRpcError as error:
            if error.code not in {"unavailable", "unknown_outcome", "deadline", "overloaded", "read_only"}:
                raise Violation(f"{self.name}: an increment under an id was answered {error}") from None
            await asyncio.sleep(PAUSE_S)
            return
        del open_[id_]
        self.ledger.acknowledge(key, delta)


class RespCaller(Caller):
    """Pipelines of INCRBY without ids: what was not answered stays open for ever."""

    pipeline = 16
    nothing_applied = (b"(unavailable)", b"(overloaded)", b"(read_only)")

    async def run(self) -> None:
        while not self.stopping:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(*self.address)
                try:
                    await self._live(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(PAUSE_S)

    async def _live(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.token is not None:
            writer.write(command("AUTH", self.token))
            await asyncio.wait_for(reader.readuntil(b"\r\n"), ANSWER_TIMEOUT_S)
        while not self.stopping:
            items = [self.draw() for _ in range(self.random.randint(1, self.pipeline))]
            for key, delta in items:
                self.ledger.attempt(key, delta)
            writer.write(b"".join(command("INCRBY", key, delta) for key, delta in items))
            for key, delta in items:
                line = await asyncio.wait_for(reader.readuntil(b"\r\n"), ANSWER_TIMEOUT_S)
                if line.startswith(b":"):
                    self.ledger.acknowledge(key, delta)
                elif any(code in line for code in self.nothing_applied):
                    self.ledger.refuse(key, delta)
                elif not any(code in line for code in (b"(unknown_outcome)", b"(deadline)")):
                    raise Violation(f"{self.name}: INCRBY was answered {line!r}")
            await asyncio.sleep(0)
