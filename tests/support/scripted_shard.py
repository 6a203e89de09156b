"""A server in the test's own event loop that speaks MessagePack-RPC and answers as the test says.

By itself it is a small shard: it counts in memory, and keeps sessions and their results.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Self

import msgpack

from pycounter.errors import RpcError, SessionUnknown, UnknownMethod

#: What a handler returns instead of a result: nothing is answered; the connection is cut.
SILENCE = object()
CUT = object()


class Raw(bytes):
    """What a handler returns to have these bytes sent instead of a reply."""


class ScriptedShard:
    """Use as `async with`. `handlers` has for each method what is called with its parameters; replace what you like."""

    def __init__(self) -> None:
        self.identity = "a" * 32
        self.epoch = 1
        self.totals: Counter[Any] = Counter()
        #: The values that were answered, by session.
        self.sessions: dict[bytes, list[int]] = {}
        self.ended: list[bytes] = []
        #: Every request as it came: (method, params).
        self.requests: list[tuple[str, list[Any]]] = []
        self.connections = 0
        self.handlers: dict[str, Callable[..., Any]] = {
            "hello": self.hello,
            "apply": self.apply,
            "bye": self.bye,
            "get": lambda key, *_: self.totals[key],
            "incr": self.incr,
        }
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.vanish()

    async def listen(self) -> None:
        """Listens, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def vanish(self) -> None:
        """Stops to listen and cuts every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Cuts every connection."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self._port

    def count(self, method: str) -> int:
        """How many requests of this method came."""
        return sum(name == method for name, _ in self.requests)

    # --- the small shard -------------------------------------------------------------------------------------------

    def hello(self, said: dict[str, Any]) -> Any:
        """Part of the small shard."""
        known = self.sessions.get(said["session"])
        last = None if known is None else len(known)
        return {"identity": self.identity, "epoch": self.epoch, "last_sequence": last}

    def incr(self, key: Any, delta: int = 1, *_: object) -> Any:
        """Part of the small shard."""
        self.totals[key] += delta
        return self.totals[key]

    def apply(self, session: bytes, first: int, acked_through: int, items: list[Any], level: str) -> Any:
        """Part of the small shard."""
        if first > 1 and session not in self.sessions:
            raise SessionUnknown("no")
        results = self.sessions.setdefault(session, [])
        for number, (key, delta) in enumerate(items, first):
            assert acked_through < number <= len(results) + 1
            if number > len(results):
                results.append(self.incr(_text(key), delta))
        return {"results": results[first - 1 : first - 1 + len(items)], "level": level, "commit": 1}

    def bye(self, session: bytes) -> None:
        """Part of the small shard."""
        self.sessions.pop(session, None)
        self.ended.append(session)

    # --- the wire --------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        unpacker = msgpack.Unpacker(raw=False)
        try:
            while chunk := await reader.read(1 << 16):
                unpacker.feed(chunk)
                for message in unpacker:
                    self._handle(message, writer)
        except ConnectionError:
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _handle(self, message: list[Any], writer: asyncio.StreamWriter) -> None:
        *_, method, params = message
        self.requests.append((method, params))
        error = result = None
        try:
            if method not in self.handlers:
                raise UnknownMethod(method)
            result = self.handlers[method](*params)
        except RpcError as refusal:
            error = refusal.wire_text
        if message[0] == 2 or result is SILENCE:
            return
        if result is CUT:
            writer.transport.abort()
        elif isinstance(result, Raw):
            writer.write(result)
        else:
            writer.write(msgpack.packb([1, message[1], error, result]))


def _text(key: Any) -> Any:
    """Sessions send every key as bytes."""
    try:
        return key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        return key
