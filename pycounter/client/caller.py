"""Calls that are sent again where that is safe: reads always, changes under their id, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from pycounter.client.pool import Pool
from pycounter.client.retry import BEFORE_THE_ID, READS, RetryPolicy, repeat_of
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.durations import seconds
from pycounter.errors import DeadlineExceeded, RpcError, Unavailable, UnknownOutcome

__all__ = ["Caller"]

#: They say nothing about an attempt before; the last two where they aren't tried again.
_SAYS_NOTHING = BEFORE_THE_ID | {"unavailable", "overloaded"}


class Caller:
    """Calls methods of one server over a pool of connections. It belongs to one event loop.

    Args:
        pool: the connections.
        policy: how often, and after what.
        clock: time and random numbers.
        on_sample: told of each attempt that was sent: its latency in seconds, and the error that it ended with.
    """

    def __init__(
        self,
        pool: Pool,
        *,
        policy: RetryPolicy | None = None,
        clock: Clock = SYSTEM_CLOCK,
        on_sample: Callable[[float, RpcError | None], None] | None = None,
    ) -> None:
        self.pool = pool
        self.policy = policy or RetryPolicy()
        self._clock = clock
        self._random: random.Random = clock.random()
        self._on_sample = on_sample

    async def call(self, method: str, *params: object, timeout_s: float | None = None) -> Any:
        """Calls a method and gives its result. What travels again travels under the same id, to the same shard.

        A change under an id of which an attempt stays unanswered is sent again until the time runs out, as long as the
        shard keeps the id: only the shard can tell what became of it.

        Raises:
            RpcError: the server's.
            UnknownOutcome, DeadlineExceeded: it was sent, and nobody knows.
            Unavailable: nothing was applied.
        """
        loop = asyncio.get_running_loop()
        timeout_s = seconds(timeout_s, self.pool.settings.request_timeout_s)
        deadline = loop.time() + timeout_s
        has_id = repeat_of(method, params) == "same_shard"
        pauses = self.policy.pauses(self._random)
        retries = 0
        begun_s = self._clock.running_s()
        is_ambiguous = False
        while True:
            attempt_deadline = deadline
            if is_ambiguous:
                left_s = begun_s + self.pool.settings.id_window_s - self._clock.running_s()
                if left_s <= 0:
                    raise UnknownOutcome(f"{method} was not answered for longer than the shard keeps its id")
                # It may wait for a connection, and must not leave once the shard may have forgotten its id.
                attempt_deadline = min(deadline, loop.time() + left_s)
            try:
                return await self._attempt(method, params, attempt_deadline)
            except OSError as error:
                if not has_id and method not in READS:
                    raise UnknownOutcome(f"{method} was sent, but the connection ended before its reply") from error
                is_ambiguous = is_ambiguous or has_id
                failure: RpcError = Unavailable(f"the connection ended before {method} was answered")
            except DeadlineExceeded:
                raise
            except RpcError as error:
                failure = error
                if is_ambiguous and error.code in _SAYS_NOTHING and not self.policy.may_pass(error):
                    raise UnknownOutcome(f"{method} was sent and not answered, then: {error}") from error
                is_ambiguous = is_ambiguous or (has_id and error.effect == "unknown")
                if not self.policy.may_pass(error) or (not has_id and error.effect == "unknown"):
                    raise
            retries += 1
            pause_s = pauses.next_s()
            if (retries > self.policy.retries and not is_ambiguous) or loop.time() + pause_s >= deadline:
                if is_ambiguous:
                    raise UnknownOutcome(f"{method} was sent and not answered, then: {failure}") from failure
                raise failure
            await asyncio.sleep(pause_s)

    async def _attempt(self, method: str, params: tuple[object, ...], deadline: float) -> Any:
        begun = asyncio.get_running_loop().time()
        try:
            result = await self.pool.request(method, *params, deadline=deadline)
        except OSError as error:
            self._sample(begun, Unavailable(str(error)))
            raise
        except RpcError as error:
            self._sample(begun, error)
            raise
        self._sample(begun, None)
        return result

    def _sample(self, begun: float, failure: RpcError | None) -> None:
        if self._on_sample is not None:
            self._on_sample(asyncio.get_running_loop().time() - begun, failure)
