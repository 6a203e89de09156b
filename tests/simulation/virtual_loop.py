"""An event loop whose time passes only when nobody has anything to do.

Callbacks run in the order in which they were scheduled, as on every asyncio loop; which of two timers comes first is
decided by their times, and between equal ones by the seed. Each callback takes a moment that the seed decides. What is
run in an executor runs whole, as one callback, at a moment that the seed decides.
"""

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any

BEGIN_S = 1000.0
#: A callback takes up to this.
MOMENT_S = 20e-6
EXECUTOR_DELAY_S = 0.05


class Stuck(AssertionError):
    """Nothing can happen any more, or too much does."""


class _Task(asyncio.Task[Any]):
    """With a number for its hash, so that sets of tasks have one order in every process."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class _Future(asyncio.Future[Any]):
    """The same."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs coroutines in virtual time.

    Args:
        chance: decides what is left open.
        events_max: so many callbacks are too many: somebody spins.
    """

    def __init__(self, chance: random.Random, events_max: int) -> None:
        super().__init__()
        self._chance = chance
        self._now = BEGIN_S
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._timer_number = 0
        self._events_max = events_max
        self.events = 0
        #: Called with each new time.
        self.on_advance: Callable[[float], None] = lambda now: None
        #: What nobody caught.
        self.problems: list[str] = []
        #: Decides who is reached by `create_connection`.
        self.connector: Callable[..., Coroutine[Any, Any, Any]] | None = None
        self._numbers = 0
        self.set_exception_handler(self._note_problem)

    @staticmethod
    def _note_problem(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        assert isinstance(loop, VirtualLoop)
        text = f"{context.get('message')}: {context.get('exception')!r}"
        for name in ("task", "future", "handle"):
            if name in context:
                text += f" in {context[name]!r}"
        loop.problems.append(text)

    def end(self) -> None:
        """Forgets what would have come, and with it everybody in it."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._timers.clear()
        self.on_advance = lambda now: None
        self.connector = None
        self.close()

    # --- what asyncio asks a loop for ------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def number(self) -> int:
        """Another one each time."""
        self._numbers += 1
        return self._numbers

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:  # type: ignore[override]
        self._check_closed()  # type: ignore[attr-defined]
        task = _Task.__new__(_Task)
        task.number = self.number()
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future.__new__(_Future)
        future.number = self.number()
        future.__init__(loop=self)  # type: ignore[misc]
        return future

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timer_number += 1
        heapq.heappush(self._timers, (when, self._chance.random(), self._timer_number, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Its turn passes unused."""

    def _write_to_self(self) -> None:
        """There is no selector to wake."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        done: asyncio.Future[Any] = self.create_future()

        def run() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except Exception as error:  # noqa: BLE001 - it is the caller's
                done.set_exception(error)

        self.call_later(self._chance.random() * EXECUTOR_DELAY_S, run)
        return done

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        assert self.connector is not None
        return await self.connector(protocol_factory, host, port, options)

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        if not ready:
            while timers and timers[0][3].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("everybody waits for somebody else")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[3]
            if not timer.cancelled():
                ready.append(timer)
        self.on_advance(self._now)
        count = len(ready)
        self.events += count
        if self.events > self._events_max:
            raise Stuck(f"more than {self._events_max} callbacks: somebody spins")
        self._now += count * MOMENT_S * self._chance.random()
        for _ in range(count):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()
