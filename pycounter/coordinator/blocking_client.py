"""The client for programs without an event loop: the same names, and each call waits for its answer.

A thread of its own runs the event loop and the `Client` on it. Any thread may call, many at once: their increments
travel together. The thread ends with the client, or with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from pycounter.client import LostTail
from pycounter.client.unknown_operations import UnknownOperation
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.client import Client
from pycounter.coordinator.connect_settings import ConnectOptions, ConnectSettings
from pycounter.coordinator.shard_routes import Key
from pycounter.errors import AfterFork, PyCounterError, Unavailable, UnknownOutcome
from pycounter.topology import Topology

__all__ = ["BlockingClient", "BlockingUnknown", "connect_blocking"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = ParamSpec("_P")
#: Counters of a scan that come over from the loop's thread at a time.
_SCAN_PAGE = 1000
#: Over what `close` may take: the thread itself ends at once then.
_JOIN_GRACE_S = 5.0


class _LoopThread:
    """A daemon thread with an event loop, on which other threads run coroutines."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = _new_loop()
        #: Whoever calls is in the loop's queue before its end, or hears that it has ended.
        self._lock = threading.Lock()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="pycounter client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        # Also where no task is left: the outcome of the last one may be on its way to who waits for it.
        self._loop.run_until_complete(self._end_tasks())
        self._loop.close()

    @staticmethod
    async def _end_tasks() -> None:
        """Somebody waits for each of them, and nothing else would tell."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    @property
    def is_mine(self) -> bool:
        """Is this the process that the thread is in, rather than one forked from it?"""
        return os.getpid() == self._pid

    def call(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a coroutine there and waits for its end. An interrupted wait cancels it."""
        if not self.is_mine:
            raise AfterFork("this client belongs to the parent process: connect again after a fork")
        if threading.current_thread() is self._thread:
            raise RuntimeError("a callback of a blocking client can't call the client: it would wait for itself")
        with self._lock:
            if self._is_stopping:
                raise Unavailable("the client is closed: nothing was applied")
            running: concurrent.futures.Future[_T] = asyncio.run_coroutine_threadsafe(make(), self._loop)
        try:
            return running.result()
        except concurrent.futures.CancelledError as ended:
            raise UnknownOutcome("the client was closed before there was an answer") from ended
        except BaseException:
            # Ctrl-C, or whatever a signal's handler raised: nobody waits any more.
            running.cancel()
            raise

    def stop(self) -> None:
        """Ends the thread. Idempotent."""
        if self.is_mine:
            with self._lock:
                if not self._is_stopping:
                    self._is_stopping = True
                    self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_JOIN_GRACE_S)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, where it is installed: twice as fast."""
    try:
        import uvloop  # noqa: PLC0415 - not everybody has it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class BlockingUnknown:
    """`Client.unknown` for other threads."""

    def __init__(self, thread: _LoopThread, client: Client) -> None:
        self._thread = thread
        self._client = client

    def list(self) -> list[UnknownOperation]:
        """Those of now, the oldest first."""

        async def take() -> Any:
            return self._client.unknown.list()

        operations: list[UnknownOperation] = self._thread.call(take)
        return operations

    def wait(self, *, timeout_s: float | None = None) -> Any:
        """As `UnknownOperations.wait`."""
        return self._thread.call(lambda: self._client.unknown.wait(timeout_s=timeout_s))

    def __iter__(self) -> Iterator[UnknownOperation]:
        return iter(self.list())

    def __len__(self) -> int:
        return len(self.list())


def _blocking(
    method: Callable[Concatenate[Client, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[BlockingClient, _P], _T]:
    """A method of `Client` as one that waits for the answer."""

    @functools.wraps(method)
    def call(self: BlockingClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        given = [_taken(value) for value in args]
        named = {name: _taken(value) for name, value in kwargs.items()}
        return self._call(lambda: method(self._client, *given, **named))

    return call


def _taken(value: Any) -> Any:
    """An argument for the loop's thread. Generators run on the caller's, where they may call the client."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, Collection) else value


class BlockingClient:
    """Counts, and reads counters: `Client`, method for method, for any thread. Use it as `with`, or call `close`.

    Ctrl-C ends the waiting, and an increment that was sent is then on the list `unknown`, as with every client. After a
    fork the child has to connect for itself. A client that is still open when the interpreter ends is closed then.

    Args:
        settings: where to and how.
        on_lost_tail: as in `Client`; called on the client's own thread.
        clock: time and random numbers.
    """

    def __init__(
        self,
        settings: ConnectSettings,
        *,
        on_lost_tail: Callable[[LostTail], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._thread = _LoopThread()
        self._closed = threading.Event()
        self._client = Client(settings, on_lost_tail=on_lost_tail, clock=clock)
        #: Increments that were sent, and of which nobody knows yet whether they counted.
        self.unknown = BlockingUnknown(self._thread, self._client)
        try:
            self._thread.call(self._client.open)
        except BaseException:
            self._thread.stop()
            raise
        _open_clients.add(self)

    # --- life ------------------------------------------------------------------------------------------------------

    def close(self, *, timeout_s: float | None = None) -> None:
        """As `Client.close`. In a forked child it does nothing."""
        if self._closed.is_set() or not self._thread.is_mine:
            return
        self._closed.set()
        _open_clients.discard(self)
        try:
            self._thread.call(lambda: self._client.close(timeout_s=timeout_s))
        finally:
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except PyCounterError:
            if error is None:
                raise
            _log.exception("closing the client")

    # --- counting --------------------------------------------------------------------------------------------------

    incr = _blocking(Client.incr)
    incr_many = _blocking(Client.incr_many)
    flush = _blocking(Client.flush)

    # --- reading ---------------------------------------------------------------------------------------------------

    get = _blocking(Client.get)
    get_many = _blocking(Client.get_many)
    total = _blocking(Client.total)
    total_many = _blocking(Client.total_many)
    top = _blocking(Client.top)

    def scan(self, prefix: Key = b"") -> Iterator[tuple[Key, int]]:
        """As `Client.scan`: an iterator."""
        counters = self._client.scan(prefix)
        while page := self._call(lambda: _take(counters, _SCAN_PAGE)):
            yield from page

    # --- removing --------------------------------------------------------------------------------------------------

    drain = _blocking(Client.drain)
    delete = _blocking(Client.delete)
    delete_many = _blocking(Client.delete_many)
    #: `on_progress` is called on the client's own thread.
    delete_prefix = _blocking(Client.delete_prefix)
    delete_all = _blocking(Client.delete_all)
    set = _blocking(Client.set)

    # --- the cluster -----------------------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology:
        """As `Client.topology`."""
        return self._client.topology

    @property
    def route(self) -> str:
        """As `Client.route`."""
        return self._client.route

    @property
    def statistics(self) -> dict[str, int | float | bool]:
        """As `Client.statistics`."""

        async def take() -> dict[str, int | float | bool]:
            return self._client.statistics

        return self._call(take)

    def status(self) -> dict[str, Any]:
        """As `Client.status`."""

        async def take() -> dict[str, Any]:
            return self._client.status()

        return self._call(take)

    def _call(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        if self._closed.is_set() and self._thread.is_mine:
            raise Unavailable("the client is closed: nothing was applied")
        return self._thread.call(make)


async def _take(counters: AsyncIterator[tuple[Key, int]], count: int) -> list[tuple[Key, int]]:
    page: list[tuple[Key, int]] = []
    async for counter in counters:
        page.append(counter)
        if len(page) >= count:
            break
    return page


_open_clients: weakref.WeakSet[BlockingClient] = weakref.WeakSet()


def _close_open_clients() -> None:
    """The interpreter ends: what is not settled has the time of `close`, as otherwise."""
    for client in list(_open_clients):
        try:
            client.close()
        except (PyCounterError, RuntimeError) as error:
            _log.warning("closing a client at the interpreter's end: %s", error)


atexit.register(_close_open_clients)


def _refuse_greenlets() -> None:
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise PyCounterError(
            "connect_blocking needs a real thread, and gevent's monkey.patch_all has replaced threads by greenlets: "
            "use a Redis client or a MessagePack-RPC client on sockets, or count in a process that isn't patched"
        )


def connect_blocking(
    url: str = "pycounter://127.0.0.1:7400",
    *,
    on_lost_tail: Callable[[LostTail], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Unpack[ConnectOptions],
) -> BlockingClient:
    """Connects to a counter service, for programs without an event loop.

        with pycounter.connect_blocking("pycounter://127.0.0.1:7400") as client:
            client.incr("visits")

    Args and errors as `connect`, but that it connects at once.

    Raises:
        PyCounterError: gevent has replaced threads by greenlets, among which the client's event loop would block all.
    """
    _refuse_greenlets()
    return BlockingClient(ConnectSettings.from_url(url, **settings), on_lost_tail=on_lost_tail, clock=clock)
