"""Clients of one shard."""

import asyncio
import random
from collections.abc import Callable
from typing import Any, ClassVar

from pycounter.client import ClientSettings, SessionClient
from pycounter.errors import CounterOverflow, RpcError
from tests.simulation.callers import PATIENCE_S, Callers, Work, is_refusal
from tests.simulation.ledger import Ledger, Operation, Read, Violation
from tests.simulation.shard_host import ShardHost
from tests.simulation.virtual_loop import VirtualLoop

#: Attempts of a caller that repeats its operation under the same id.
ATTEMPTS_MAX = 5


class SessionCallers(Callers):
    """Callers that share a `SessionClient`."""

    KINDS: ClassVar[dict[str, float]] = {
        "incr": 6,
        "apply": 3,
        "get": 3,
        "total": 1,
        "incr_with_id": 3,
        "incr_bare": 1,
        "drain": 1,
        "drain_with_id": 0.5,
        "flush": 0.5,
        "overflow": 0.3,
    }
    is_alone: ClassVar[bool] = True

    def __init__(
        self,
        loop: VirtualLoop,
        name: str,
        shard: ShardHost,
        chance: random.Random,
        ledger: Ledger,
        work: Work,
        settings: ClientSettings,
        key_of: Callable[[str], str],
        log: Callable[..., None],
    ) -> None:
        super().__init__(loop, name, chance, ledger, work, key_of, log)
        self.client = SessionClient(
            *shard.address, settings=settings, on_lost_tail=self._on_lost_tail, clock=self.clock
        )

    async def _connect(self) -> None:
        if self.chance.random() < 0.5:
            self.client.start()
        else:
            await self.client.connect()

    async def _settle(self) -> None:
        while self.client.unsettled:
            await asyncio.sleep(0.05)
        await self.client.flush(timeout_s=PATIENCE_S)

    async def close(self, *, timeout_s: float | None = None) -> None:
        await self.client.close(timeout_s=timeout_s)

    @property
    def operations_unknown(self) -> int:
        return self.client.statistics.operations_unknown

    async def _apply(self, who: str) -> None:
        await self._count_many(who, self.client.apply)

    async def _get(self, who: str) -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        value = await self._ask(who, self.client.call, "get", read.key)
        if value is not None:
            self.ledger.end_read(read, value)

    async def _total(self, who: str) -> None:
        read = self.ledger.begin_read(who, self.key_of("any"))
        said = await self._ask(who, self.client.call, "total", read.key)
        if said is not None:
            if not said["exact"] or said["missing"] or sum(said["partials"].values()) != said["total"]:
                raise Violation(f"{who}: total of {read.key} is {said}")
            self.ledger.end_read(read, said["total"])

    async def _flush(self, who: str) -> None:
        try:
            await self._limited(self.client.flush)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
        except RpcError as error:
            self.log("%s: flush: %r", who, error)

    async def _incr_bare(self, who: str) -> None:
        """Nothing protects it: it is sent once."""
        operation = self.ledger.begin(who, self.key_of("durable"), "durable")
        await self._count(operation, self._limited(self.client.call, "incr", operation.key, operation.delta))

    async def _incr_with_id(self, who: str) -> None:
        operation = self.ledger.begin(who, self.key_of("durable"), "durable")
        options = {"id": self.chance.randbytes(8)}
        await self._insist(who, ("incr", operation.key, operation.delta, options), operation)

    async def _drain_with_id(self, who: str) -> None:
        drain = self.ledger.begin_drain(who, self.key_of("drained"))
        await self._insist(who, ("drain", drain.key, {"id": self.chance.randbytes(8)}), drain)

    async def _drain(self, who: str) -> None:
        drain = self.ledger.begin_drain(who, self.key_of("drained"))
        try:
            amount = await self._limited(self.client.call, "drain", drain.key)
        except asyncio.CancelledError:
            self.ledger.end_drain(drain, None)
            if self.is_killed:
                raise
        except RpcError as error:
            self.log("%s: drain: %r", who, error)
            if not is_refusal(error):
                self.ledger.end_drain(drain, None)
        else:
            self.ledger.end_drain(drain, amount)

    async def _insist(self, who: str, request: tuple[Any, ...], what: Operation | Read) -> None:
        """Repeats a change under its id until it is answered, and sometimes then: the answer must stay the same."""
        answer: int | None = None
        is_open = False
        try:
            for _ in range(ATTEMPTS_MAX):
                try:
                    result = await self._limited(self.client.call, *request)
                except RpcError as error:
                    self.log("%s: %s: %r", who, request, error)
                    if answer is not None and error.code in {"overflow", "bad_request", "internal"}:
                        raise Violation(f"{who}: {request} was answered {answer}, and now {error!r}") from error
                    # A refusal says nothing about the attempts before it.
                    is_open = is_open or not is_refusal(error)
                    if not error.retryable or (not is_open and self.chance.random() < 0.5):
                        # Nothing was applied, it says: the caller may take it at its word.
                        break
                    await asyncio.sleep(self.chance.random())
                    continue
                self.log("%s: %s: %r", who, request, result)
                if answer is not None and answer != result:
                    raise Violation(f"{who}: {request} was answered {answer}, and now {result}")
                if answer is None:
                    answer = result
                    self._answered(what, result)
                if self.chance.random() < 0.7:
                    return
        except asyncio.CancelledError:
            is_open = True
            if self.is_killed:
                raise
        finally:
            if answer is None:
                self._unanswered(what, is_open=is_open)

    def _answered(self, what: Operation | Read, result: int) -> None:
        if isinstance(what, Operation):
            self.ledger.acknowledge(what, result, "durable", is_whole=True)
        else:
            self.ledger.end_drain(what, result)

    def _unanswered(self, what: Operation | Read, *, is_open: bool) -> None:
        if isinstance(what, Read):
            self.ledger.end_drain(what, None)
        elif is_open:
            self.ledger.give_up(what)
        else:
            self.ledger.refuse(what)

    async def _overflow(self, who: str) -> None:
        """An operation that is refused, each time, and uses its number."""
        key = self.key_of("full")
        try:
            await self._limited(self.client.incr, key, (1 << 63) - 1)
        except asyncio.CancelledError:
            if self.is_killed:
                raise
        except CounterOverflow as error:
            self.log("%s: %r", who, error)
        except RpcError as error:
            self.log("%s: %r", who, error)
