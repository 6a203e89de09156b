"""Clients of a cluster: straight to its shards, or through a coordinator."""

import asyncio
import random
import re
from collections.abc import Callable
from typing import Any, ClassVar

from pycounter._native import ReadCache
from pycounter.client.pool import Pool
from pycounter.coordinator.client import Client
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.errors import BY_CODE, AlreadySettled, RemovalUnsettled, RpcError
from pycounter.topology import Topology
from tests.simulation.callers import PATIENCE_S, Callers, Work, is_refusal
from tests.simulation.ledger import Ledger, Operation, Violation
from tests.simulation.resp_connection import RespConnection
from tests.simulation.virtual_loop import VirtualLoop

#: Attempts of a removal under one id.
ATTEMPTS_MAX = 4
#: The code in the text of a RESP error.
REFUSAL = re.compile(r"\((\w+)\)$")


def raw(who: str) -> str:
    """The caller, as one of a client without a library."""
    return f"raw-{who}"


class ClusterCallers(Callers):
    """Callers that share a `Client`."""

    KINDS: ClassVar[dict[str, float]] = {
        "incr": 8,
        "incr_many": 3,
        "get": 4,
        "get_exact": 2,
        "get_cached": 4,
        "total": 2,
        "removal": 1,
        "scan": 0.3,
        "top": 0.3,
        "flush": 0.3,
        "bare": 2,
        "with_id": 2,
        "notified": 1,
        "resp": 2,
    }

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        topology: Topology | None,
        chance: random.Random,
        ledger: Ledger,
        work: Work,
        settings: ConnectSettings,
        key_of: Callable[[str], str],
        log: Callable[..., None],
    ) -> None:
        super().__init__(loop, name, chance, ledger, work, key_of, log)
        self._settings = settings
        self._topology = topology
        self.client: Client

    async def _connect(self) -> None:
        while True:
            client = Client(
                self._settings,
                topology=self._topology,
                cache=ReadCache(clock=self.loop.time),
                on_lost_tail=self._on_lost_tail,
                clock=self.clock,
            )
            try:
                self.client = await client.open()
            except RpcError as error:
                self.log("%s: not connected yet: %s", self.name, error)
                await asyncio.sleep(0.1)
            else:
                return

    async def _settle(self) -> None:
        loop, began = self.loop, self.loop.time()
        while self.client.unknown or self.client.statistics["pending"] or self.client.statistics["queued"]:
            await asyncio.sleep(0.05)
        await self.client.flush(timeout_s=PATIENCE_S - (loop.time() - began))

    async def close(self, *, timeout_s: float | None = None) -> None:
        if hasattr(self, "client"):
            await self.client.close(timeout_s=timeout_s)

    @property
    def operations_unknown(self) -> int:
        return int(self.client.statistics["unknown"])

    @property
    def _coordinators(self) -> Pool | None:
        """Connections to them, if there are any."""
        return self.client._watch.pool if self.client._watch is not None else None

    # --- calls -----------------------------------------------------------------------------------------------------

    async def _incr_many(self, who: str) -> None:
        await self._count_many(who, self.client.incr_many)

    async def _get(self, who: str, accuracy: str = "recent") -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        value = await self._ask(who, self.client.get, read.key, accuracy=accuracy)
        if value is not None:
            self.ledger.end_read(read, value, is_exact=accuracy == "exact", is_complete=True)

    async def _get_exact(self, who: str) -> None:
        await self._get(who, "exact")

    async def _get_cached(self, who: str) -> None:
        await self._get(who, "cached")

    async def _total(self, who: str) -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        accuracy = self.chance.choice(["recent", "exact", "cached"])
        total = await self._ask(who, self.client.total, read.key, accuracy=accuracy)
        if total is None:
            return
        if total.exact and total.missing:
            raise Violation(f"{who}: the total of {read.key} is exact and lacks {total.missing}")
        if total.partials and sum(total.partials.values()) != total.total:
            raise Violation(f"{who}: the total of {read.key} is no sum: {total}")
        self.ledger.end_read(read, total.total, is_exact=total.exact, is_complete=not total.missing)

    async def _scan(self, who: str) -> None:
        async def scan(**_: object) -> list[tuple[str | bytes, int]]:
            return [row async for row in self.client.scan("counter")]

        self._check_rows(who, await self._ask(who, scan))

    async def _top(self, who: str) -> None:
        async def top(**_: object) -> list[tuple[str | bytes, int]]:
            return await self.client.top(3, "counter")

        self._check_rows(who, await self._ask(who, top))

    def _check_rows(self, who: str, rows: list[tuple[str | bytes, int]] | None) -> None:
        rows = rows or []
        keys = [key for key, _ in rows]
        if len(set(keys)) < len(keys):
            raise Violation(f"{who}: a counter is listed twice: {rows}")
        for key, value in rows:
            self.ledger.check(who, str(key), value)

    async def _flush(self, who: str) -> None:
        await self._ask(who, self.client.flush)

    async def _removal(self, who: str) -> None:
        """Empties a counter, and repeats that under one id until it is settled, or not."""
        key = self.key_of("drained")
        drain = self.ledger.begin_drain(who, key)
        method = self.client.drain if self.chance.random() < 0.7 else self.client.delete
        operation_id = self.chance.randbytes(16)
        is_open, amount = False, None
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    amount = await self._limited(method, key, operation_id=operation_id)
                    self.log("%s: drained %s: %d", who, key, amount)
                    break
                except RpcError as error:
                    self.log("%s: draining %s: %r", who, key, error)
                    is_open = is_open or not is_refusal(error)
                    if not error.retryable and not isinstance(error, RemovalUnsettled):
                        break
                    if not is_open and self.chance.random() < 0.5:
                        return
                await asyncio.sleep(self.chance.random())
        except asyncio.CancelledError:
            is_open = True
            if self.is_killed:
                raise
        finally:
            if amount is not None or is_open:
                self.ledger.end_drain(drain, amount)

    # --- as clients without a library ------------------------------------------------------------------------------
    #
    # The coordinator may divert what they send. The library's client hears of that within a second, and until then its
    # own reads may lack it: to the ledger they are another client.

    async def _bare(self, who: str) -> None:
        """An increment without an id, through the coordinator's own session."""
        if self._coordinators is None:
            return await self._incr(who)
        operation = self.ledger.begin(raw(who), self.key_of("durable"), "durable")

        try:
            value = await self._limited(self._ask_coordinator, "incr", operation.key, operation.delta)
        except asyncio.CancelledError:
            self.ledger.give_up(operation)
            if self.is_killed:
                raise
        except RpcError as error:
            self._failed(operation, error)
        else:
            if value is None:
                self.ledger.give_up(operation)
            else:
                self.log("%s: %d", operation, value)
                self.ledger.acknowledge(operation, value, "durable", is_whole=False)
        return None

    async def _ask_coordinator(self, *request: Any, timeout_s: float = 5.0) -> Any:
        """The answer to one request at a coordinator; None: it was cut off. Raises RpcError."""
        pool = self._coordinators
        assert pool is not None
        try:
            return await pool.request(*request, deadline=self.loop.time() + timeout_s)
        except OSError as error:
            self.log("%s: %r", request, error)
            return None

    async def _with_id(self, who: str) -> None:
        """An increment that is repeated under its id, at whichever coordinator answers."""
        if self._coordinators is None:
            return await self._incr(who)
        operation = self.ledger.begin(raw(who), self.key_of("durable"), "durable")
        request = ("incr", operation.key, operation.delta, {"id": self.chance.randbytes(16)})
        is_open = False
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    value = await self._limited(self._ask_coordinator, *request)
                except RpcError as error:
                    self.log("%s: %r", operation, error)
                    if isinstance(error, AlreadySettled) or (not is_open and is_refusal(error)):
                        self._failed(operation, error)
                        return None
                else:
                    if value is not None:
                        self.log("%s: %d", operation, value)
                        self.ledger.acknowledge(operation, value, "durable", is_whole=False)
                        return None
                is_open = True
                await asyncio.sleep(self.chance.random())
        except asyncio.CancelledError:
            if self.is_killed:
                raise
        finally:
            self.ledger.give_up(operation)
        return None

    async def _resp(self, who: str) -> None:
        """Increments of a Redis client, one behind the other on a connection of their own."""
        if self._coordinators is None:
            return
        address = self.chance.choice(self._settings.addresses)
        try:
            async with asyncio.timeout(2.0):
                _, connection = await self.loop.create_connection(RespConnection, *address)
        except OSError as error:
            self.log("%s: %r", who, error)
            return
        operations = [self.ledger.begin(raw(who), self.key_of("durable")) for _ in range(self.chance.randint(1, 4))]
        try:
            replies = [connection.ask("INCRBY", operation.key, str(operation.delta)) for operation in operations]
            await asyncio.wait(replies, timeout=self.chance.choice([0.01, 1.0, 10.0]))
            for operation, reply in zip(operations, replies, strict=True):
                self._take_reply(operation, reply)
        finally:
            for operation in operations:
                self.ledger.give_up(operation)
            connection.close()

    def _take_reply(self, operation: Operation, reply: asyncio.Future[int | str]) -> None:
        if not reply.done():
            return
        said = reply.result()
        self.log("%s: %s", operation, said)
        if isinstance(said, int):
            self.ledger.acknowledge(operation, said, "durable", is_whole=False)
        elif said.startswith("-") and (code := REFUSAL.search(said)) and BY_CODE[code[1]].effect == "nothing":
            self.ledger.refuse(operation)

    async def _notified(self, who: str) -> None:
        """An increment that nobody waits for."""
        pool = self._coordinators
        if pool is None or not pool._lanes:
            return
        operation = self.ledger.begin(raw(who), self.key_of("durable"), "durable")
        self.ledger.give_up(operation)
        pool._lanes[0].connection.notify("incr", operation.key, operation.delta)
