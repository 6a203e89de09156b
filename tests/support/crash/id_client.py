"""A raw client: each operation under an id of its own, sent again in any order, alone or in groups, until answered."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from tests.support.crash.ground import DRAINED_KEYS, REFUSED_KEY, Client, Ground, outcome
from tests.support.history import Level, Operation, Violation
from tests.support.rpc_stream import RpcStream

PAUSE_S = 0.01
REQUESTS_IN_FLIGHT_MAX = 24
ANSWERED_KEPT = 300
RETRY_CODES = frozenset({"overloaded", "read_only"})


@dataclass(slots=True, eq=False)
class _Pending:
    operation: Operation
    id: bytes
    born: int | None


class IdClient(Client):
    """Increments and drains under ids."""

    def __init__(self, name: str, ground: Ground, seed: int | str) -> None:
        super().__init__(name, ground, seed)
        self.pending: dict[bytes, _Pending] = {}
        """Not answered as durable."""
        self.answered: deque[_Pending] = deque(maxlen=ANSWERED_KEPT)
        self.retry: list[_Pending] = []
        """Refused for now, or only applied: to be sent again on this connection."""
        self._time_ms = 0
        self._time_at = 0.0
        self._made = 0

    # --- the life of a connection ----------------------------------------------------------------------------------

    async def live(self, stream: RpcStream) -> None:
        said = await self.hello(stream)
        server_time = said[b"time"]
        assert isinstance(server_time, int)
        self._time_ms, self._time_at = server_time, time.monotonic()
        self.retry.clear()
        unanswered = list(self.pending.values())
        self.random.shuffle(unanswered)
        for start in range(0, len(unanswered), 16):
            self._send(stream, unanswered[start : start + 16], "durable")
        side = await RpcStream.open(await self.ground.address())
        try:
            await self.hello(side)
            while self.pending or not self.ground.stopping:
                stream.check()
                side.check()
                while stream.in_flight < REQUESTS_IN_FLIGHT_MAX and self._send_something(stream, side):
                    pass
                if stream.in_flight:
                    await stream.wait_changed()
                else:
                    await asyncio.sleep(PAUSE_S)
        finally:
            if side.failure is not None and not isinstance(side.failure, ConnectionError):
                raise side.failure
            side.close()

    def _send_something(self, stream: RpcStream, side: RpcStream) -> bool:
        if self.retry:
            again = [pending for pending in self.retry if pending.operation.first is None]
            self.retry.clear()
            if again:
                self._send(stream, again, "durable")
                return True
        if self.ground.stopping:
            return False
        count = self.random.randint(1, 8) if self.random.random() < 0.4 else 1
        made = [self._make() for _ in range(count)]
        level: Level = "applied" if self.random.random() < 0.1 else "durable"
        self._send(stream, made, level)
        draw = self.random.random()
        if draw < 0.1:
            self._send(stream, made, "durable")
        elif draw < 0.25:
            self._send(side, made, "durable")
        elif draw < 0.35 and self.answered:
            again = [self.random.choice(self.answered) for _ in range(3)]
            self._send(side, again, "durable")
        return True

    def _make(self) -> _Pending:
        self._made += 1
        operation_id = f"{self.name}:{self._made}:".encode()
        operation_id += self.random.randbytes(self.random.randint(1, 64 - len(operation_id)))
        who = f"{self.name}, id {operation_id!r}"
        draw = self.random.random()
        if draw < 0.01:
            operation = Operation(who, self.random.choice(DRAINED_KEYS), 0, "drain")
        elif draw < 0.02:
            operation = Operation(who, REFUSED_KEY, 0)
        else:
            operation = Operation(who, *self.draw_counter())
        born = None
        if self.random.random() < 0.3:
            born = self._time_ms + int((time.monotonic() - self._time_at) * 1000)
        pending = _Pending(operation, operation_id, born)
        self.pending[operation_id] = pending
        self.history.attempt(operation)
        return pending

    # --- sending ---------------------------------------------------------------------------------------------------

    def _send(self, stream: RpcStream, group: list[_Pending], level: Level) -> None:
        """Sends these, as one request or one by one: how a retry is grouped is nobody's business."""
        alone = [pending for pending in group if pending.operation.kind == "drain"]
        others = [pending for pending in group if pending.operation.kind != "drain"]
        if len(others) == 1 or self.random.random() < 0.3:
            alone += others
            others = []
        frames = [self._encode_one(stream, pending, level) for pending in alone]
        if others:
            frames.append(self._encode_many(stream, others, level))
        stream.write(b"".join(frames))

    def _encode_one(self, stream: RpcStream, pending: _Pending, level: Level) -> bytes:
        detail = self.random.random() < 0.2
        options: dict[str, object] = {"id": pending.id, "level": level}
        if detail:
            options["detail"] = True
        if pending.born is not None:
            options["born"] = pending.born

        def on_reply(error: str | None, result: Any) -> None:
            if error is None and detail:
                if result[b"level"] != level.encode() or result[b"exact"] is not True:
                    raise Violation(f"{pending.operation} at {level} was answered {result!r}")
                if level == "durable":
                    self.see_commit(result[b"commit"])
                result = result[b"value"]
            self._on_answer(pending, result if error is None else error.encode(), level)

        key = _key(pending.operation)
        if pending.operation.kind == "drain":
            return stream.encode(on_reply, "drain", key, options)
        return stream.encode(on_reply, "incr", key, pending.operation.delta, options)

    def _encode_many(self, stream: RpcStream, group: list[_Pending], level: Level) -> bytes:
        # `born` is of the whole request, so it must be right for the oldest.
        born = [pending.born for pending in group if pending.born is not None]
        options: dict[str, object] = {"level": level}
        if len(born) == len(group):
            options["born"] = min(born)

        def on_reply(error: str | None, result: Any) -> None:
            for index, pending in enumerate(group):
                self._on_answer(pending, result[index] if error is None else error.encode(), level)

        items = [
            [
                b"" if pending.operation.key == REFUSED_KEY else pending.operation.key,
                pending.operation.delta,
                pending.id,
            ]
            for pending in group
        ]
        return stream.encode(on_reply, "incr_many", items, options)

    # --- answers ---------------------------------------------------------------------------------------------------

    def _on_answer(self, pending: _Pending, answer: object, level: Level) -> None:
        told = outcome(pending.operation, answer)
        if isinstance(told, str) and self.may_be_retried(told, RETRY_CODES):
            self.ground.overloaded += told == "overloaded"
            self.retry.append(pending)
            return
        if told in {"id_reused", "id_expired", "unknown_outcome", "internal", "bad_request"}:
            raise Violation(f"{pending.operation} was answered {answer!r}")
        self.history.answer(pending.operation, told, level, self.epoch)
        if pending.operation.first is None:
            self.retry.append(pending)
        elif self.pending.pop(pending.id, None) is not None:
            self.answered.append(pending)

    # --- after the end ---------------------------------------------------------------------------------------------

    async def verify(self, stream: RpcStream) -> None:
        """The latest operations are asked for once more. Raises Violation."""
        await self.hello(stream)
        for pending in self.answered:
            self._send(stream, [pending], "durable")
        while stream.in_flight:
            await stream.wait_changed()


def _key(operation: Operation) -> bytes:
    return b"" if operation.key == REFUSED_KEY else operation.key
