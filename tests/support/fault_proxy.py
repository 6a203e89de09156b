"""A TCP proxy that does to a connection what networks do: cuts, resets, delays, throttles, swallows.

It runs on the loop of the test, and sees bytes only, so that it can stand before any server.
"""

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass
from types import TracebackType

CHUNK_BYTES = 65_536


@dataclass(kw_only=True)
class Direction:
    """What happens to the bytes that go one way. Changed at any time, it holds for the bytes that come then."""

    #: The connection ends once so many bytes of it have passed.
    cut_after: int | None = None
    #: The cut is a reset; else both sides see an orderly end.
    reset: bool = False
    #: Each chunk comes so much later.
    delay_s: float = 0.0
    #: And up to so much later still, drawn for each chunk. Chunks keep their order.
    jitter_s: float = 0.0
    #: Not faster than this; None is no bound.
    bytes_per_s: float | None = None
    #: Nothing passes any more, and nobody is told.
    swallow: bool = False


class FaultProxy:
    """Stands before `target`. Faults are set per direction and hold for every connection that is made then.

    `cut_after` counts the bytes of one connection. `blackhole()` and `restore()` act on the open ones too.
    """

    def __init__(self, target: tuple[str, int], seed: int = 1) -> None:
        self.target = target
        self.random = random.Random(seed)
        self.to_server = Direction()
        self.to_client = Direction()
        self.connections = 0
        """Made so far."""
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self.bytes_swallowed = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> "FaultProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        while self._tasks:
            for end in self._ends:
                end.transport.abort()
            await asyncio.wait(self._tasks, timeout=0.1)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    def blackhole(self) -> None:
        """From now on nothing passes, either way, and nobody is told."""
        self.to_server.swallow = self.to_client.swallow = True

    def restore(self) -> None:
        """From now on all is well again, for what comes from now on."""
        self.to_server, self.to_client = Direction(), Direction()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            upstream, downstream = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, downstream}
        self._ends |= ends
        ways = [
            asyncio.ensure_future(self._pass(reader, downstream, "to_server")),
            asyncio.ensure_future(self._pass(upstream, writer, "to_client")),
        ]
        reset = False
        try:
            # One way that ends in good order leaves the other open, as TCP does; a cut ends both.
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if not any(way.result() for way in done):
                done, _ = await asyncio.wait(ways)
            reset = any(way.result() == "reset" for way in done)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._ends -= ends
            for end in ends:
                self._end(end, reset=reset)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> str | None:
        """Passes bytes on until their end (None) or a cut ("cut", "reset")."""
        passed = 0
        try:
            while data := await source.read(CHUNK_BYTES):
                direction: Direction = getattr(self, way)
                if direction.delay_s or direction.jitter_s:
                    await asyncio.sleep(direction.delay_s + self.random.uniform(0, direction.jitter_s))
                if direction.bytes_per_s:
                    await asyncio.sleep(len(data) / direction.bytes_per_s)
                if direction.swallow:
                    self.bytes_swallowed += len(data)
                    continue
                is_cut = direction.cut_after is not None and passed + len(data) >= direction.cut_after
                if is_cut and direction.cut_after is not None:
                    data = data[: direction.cut_after - passed]
                sink.write(data)
                await sink.drain()
                passed += len(data)
                setattr(self, f"bytes_{way}", getattr(self, f"bytes_{way}") + len(data))
                if is_cut:
                    return "reset" if direction.reset else "cut"
            if sink.can_write_eof():
                sink.write_eof()
        except (OSError, RuntimeError):
            # uvloop raises RuntimeError where the other end is closed already.
            return "reset"
        return None

    @staticmethod
    def _end(end: asyncio.StreamWriter, *, reset: bool) -> None:
        if not reset:
            end.close()
            return
        connection: socket.socket = end.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may have ended by itself
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.transport.abort()
