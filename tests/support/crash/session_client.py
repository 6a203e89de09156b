"""A smart client: numbered operations in batches that are pipelined, regrouped, straddled and sent twice."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.crash.ground import REFUSED_KEY, Client, Ground, outcome
from tests.support.history import Level, Operation, Violation
from tests.support.rpc_stream import RpcStream

PAUSE_S = 0.01
BATCH_MAX = 40
BATCHES_IN_FLIGHT_MAX = 8
BAD_ITEMS: list[list[object]] = [
    [b"", 1],
    [b"k" * 1025, 1],
    [b"fine", "one"],
    [b"fine", 2**63],
    [7, 1],
    [b"fine", None],
]
OnError = Callable[[str, int, int], None]
RETRY_CODES = frozenset({"overloaded", "read_only", "sequence_gap"})
SIDE_CODES = frozenset({"sequence_gap", "already_settled", "overloaded", "read_only", "session_unknown"})
"""What a copy on another connection may be told, that comes too early or too late."""


class SessionClient(Client):
    """One session at a time, at the level `durable` or `applied`.

    At `applied` a kill may take acknowledged operations back: `hello` tells by its last sequence, and the client
    reports them lost and opens a new session, as the rules say.
    """

    def __init__(
        self, name: str, ground: Ground, seed: int | str, *, level: Level = "durable", unacknowledged_max: int = 400
    ) -> None:
        super().__init__(name, ground, seed)
        self.level = level
        self.unacknowledged_max = unacknowledged_max
        self._begin_session()

    def _begin_session(self) -> None:
        self.session = self.random.randbytes(16)
        self.items: dict[int, tuple[Operation, list[object]]] = {}
        """By sequence: what was ever sent and is not acknowledged."""
        self.next_sequence = 1
        self.answered: set[int] = set()
        """Answered, though something before it isn't."""
        self.answered_through = 0
        self.answered_max = 0
        self.answered_max_here = 0
        self.answered_epoch = 0
        self.acked_through = 0
        self.sent_through = 0
        """Sent in order on this connection."""
        self.rewind = False

    # --- the life of a connection ----------------------------------------------------------------------------------

    async def live(self, stream: RpcStream) -> None:
        await self._resume(stream)
        side: RpcStream | None = None
        try:
            while True:
                stream.check()
                if self._is_settled():
                    if self.level == "applied":
                        await self._resume(stream)
                    if self.ground.stopping:
                        break
                if self.rewind:
                    await self._drain_replies(stream)
                    self.rewind = False
                    self.sent_through = self.answered_through
                    await asyncio.sleep(PAUSE_S)
                if side is None or side.lost.is_set():
                    side = await RpcStream.open(await self.ground.address())
                    await self.hello(side)
                side.check()
                while stream.in_flight < BATCHES_IN_FLIGHT_MAX and self._send_batch(stream, side):
                    pass
                if stream.in_flight:
                    await stream.wait_changed()
                else:
                    await asyncio.sleep(PAUSE_S)
                if self.random.random() < 0.05:
                    await asyncio.sleep(self.random.uniform(0, 2 * PAUSE_S))
        finally:
            if side is not None:
                if side.failure is not None and not isinstance(side.failure, ConnectionError):
                    raise side.failure
                side.close()

    def _is_settled(self) -> bool:
        return self.answered_through + 1 == self.next_sequence

    async def _drain_replies(self, stream: RpcStream) -> None:
        while stream.in_flight:
            await stream.wait_changed()

    async def _resume(self, stream: RpcStream) -> None:
        """Asks where the session is, and holds the answer against what was promised."""
        said = await self.hello(stream, session=self.session)
        last = said[b"last_sequence"]
        assert last is None or isinstance(last, int)
        last = last or 0
        if last >= self.next_sequence:
            raise Violation(f"{self.name}: the session is at {last}, but only {self.next_sequence - 1} were ever sent")
        if last < (self.answered_max if self.level == "durable" else self._answered_max_of_this_life()):
            raise Violation(f"{self.name}: the session is at {last}, but {self.answered_max} was acknowledged")
        if self.level == "applied":
            await self._settle_applied(stream, last)
        # From somewhere below: what was answered and not yet acknowledged may be sent again.
        self.sent_through = self.random.randint(self.acked_through, self.answered_through)

    def _answered_max_of_this_life(self) -> int:
        return self.answered_max_here if self.answered_epoch == self.epoch else 0

    async def _settle_applied(self, stream: RpcStream, last: int) -> None:
        """`hello` waits for its commit: what it counts is durable, what it doesn't count is lost."""
        for sequence, (operation, _) in self.items.items():
            if sequence <= last and operation.first is None and operation.applied is not None:
                self.history.answer(operation, operation.applied, "durable", self.epoch)
            if sequence > last and operation.first is not None:
                raise Violation(f"{operation} was answered as durable, but the session is at {last}")
        self._forget_acknowledged()
        if last >= self.answered_max:
            return
        if last > self.answered_through:
            # Counted, and not answered yet: the session still knows the answers.
            self._send_range(stream, self.answered_through + 1, last + 1, 0, self._on_main_error, "durable")
            await self._drain_replies(stream)
            if self.rewind:
                raise ConnectionResetError  # the disk fails: the next connection asks again
        for sequence, (operation, _) in self.items.items():
            if sequence > last:
                self.history.abandon(operation, known_lost=True)
            elif operation.first is None:
                raise Violation(f"{operation} is below the session's {last} and has no durable answer")
        self._begin_session()

    # --- sending ---------------------------------------------------------------------------------------------------

    def _send_batch(self, stream: RpcStream, side: RpcStream) -> bool:
        """Sends a batch, perhaps more than once; False if there is nothing to send."""
        if self.random.random() < 0.3:
            self._acknowledge()
        overlap = self.random.randint(0, 10) if self.random.random() < 0.3 else 0
        first = max(self.acked_through, self.sent_through - overlap) + 1
        end = first + self.random.randint(1, BATCH_MAX)
        if not self.ground.stopping:
            while self.next_sequence < end and self.next_sequence - self.acked_through <= self.unacknowledged_max:
                self._make_item()
        end = min(end, self.next_sequence)
        if end <= self.sent_through + 1 and (end <= first or self._is_settled() or self.random.random() < 0.5):
            return False
        self._send_range(stream, first, end, self.acked_through, self._on_main_error)
        self.sent_through = max(self.sent_through, end - 1)
        if self.random.random() < 0.15:
            self._send_range(stream, first, end, self.acked_through, self._on_main_error)
        if self.random.random() < 0.15:
            # A late copy, grouped otherwise, on another connection: it may overtake, or come when all is over.
            copy_first = self.random.randint(first, end - 1)
            copy_end = self.random.randint(copy_first, end - 1) + 1
            self._send_range(side, copy_first, copy_end, 0, self._on_side_error)
        return True

    def _make_item(self) -> None:
        sequence = self.next_sequence
        self.next_sequence += 1
        who = f"{self.name}, session {self.session.hex()}, sequence {sequence}"
        if self.random.random() < 0.02:
            operation, item = Operation(who, REFUSED_KEY, 0), self.random.choice(BAD_ITEMS)
        else:
            key, delta = self.draw_counter()
            operation, item = Operation(who, key, delta), [key, delta]
        self.items[sequence] = (operation, item)
        self.history.attempt(operation)

    def _send_range(
        self,
        stream: RpcStream,
        first: int,
        end: int,
        acked_through: int,
        on_error: OnError,
        wanted_level: Level | None = None,
    ) -> None:
        operations = [self.items[sequence][0] for sequence in range(first, end)]
        items = [self.items[sequence][1] for sequence in range(first, end)]
        session = self.session
        # A durable copy of an applied operation binds: both answers must agree within one life of the shard.
        level: Level = wanted_level or ("durable" if self.random.random() < 0.1 else self.level)

        def on_reply(error: str | None, result: Any) -> None:
            if error is not None:
                on_error(error, first, end)
            elif session == self.session:
                self._on_results(first, operations, result, level)

        stream.send(on_reply, "apply", session, first, acked_through, items, level)

    def _acknowledge(self) -> None:
        """Tells the shard, with the next batch, that some results needn't be kept."""
        if self.answered_through > self.acked_through:
            self.acked_through = self.random.randint(self.acked_through, self.answered_through)
            self._forget_acknowledged()

    def _forget_acknowledged(self) -> None:
        for sequence in [sequence for sequence in self.items if sequence <= self.acked_through]:
            if self.items[sequence][0].first is None:
                continue  # applied, and not yet known to be durable
            del self.items[sequence]

    # --- answers ---------------------------------------------------------------------------------------------------

    def _on_results(self, first: int, operations: list[Operation], result: dict[bytes, Any], level: Level) -> None:
        results = result[b"results"]
        if len(results) != len(operations) or result[b"level"] != level.encode():
            raise Violation(f"{self.name}: {len(operations)} operations at {level} were answered {result!r}")
        if level == "durable":
            self.see_commit(result[b"commit"])
        for sequence, (operation, answer) in enumerate(zip(operations, results, strict=True), first):
            told = outcome(operation, answer)
            if told == "already_settled" and sequence <= self.acked_through:
                continue
            self.history.answer(operation, told, level, self.epoch)
            self._mark_answered(sequence)

    def _mark_answered(self, sequence: int) -> None:
        self.answered_max = max(self.answered_max, sequence)
        self.answered_max_here = max(self._answered_max_of_this_life(), sequence)
        self.answered_epoch = self.epoch
        if sequence <= self.answered_through:
            return
        self.answered.add(sequence)
        while self.answered_through + 1 in self.answered:
            self.answered_through += 1
            self.answered.remove(self.answered_through)

    def _on_main_error(self, error: str, first: int, end: int) -> None:
        code = error.partition(":")[0]
        if code == "session_unknown" and first > 1 and not self.answered_max:
            # The session hasn't begun: its first batch was refused, and this one was sent behind it.
            code = "sequence_gap"
        if not self.may_be_retried(code, RETRY_CODES):
            raise Violation(f"{self.name}: operations {first} to {end - 1} were refused: {error}")
        self.ground.overloaded += code == "overloaded"
        self.rewind = True

    def _on_side_error(self, error: str, first: int, end: int) -> None:
        if not self.may_be_retried(error.partition(":")[0], SIDE_CODES):
            raise Violation(f"{self.name}: a copy of operations {first} to {end - 1} was refused: {error}")

    # --- after the end ---------------------------------------------------------------------------------------------

    async def verify(self, stream: RpcStream) -> None:
        """Everything that the session still keeps is asked for once more. Raises Violation."""
        await self._resume(stream)
        self.rewind = False  # an earlier connection may have ended before it was acted upon
        if self.next_sequence > self.acked_through + 1:
            self._send_range(stream, self.acked_through + 1, self.next_sequence, 0, self._on_main_error)
            await self._drain_replies(stream)
        if self.rewind:
            raise Violation(f"{self.name}: repeating what was answered was refused")
