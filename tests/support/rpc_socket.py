"""A MessagePack-RPC client of a few lines on a plain socket, for tests of the wire.

Independent of `pycounter.client`: it sends whatever bytes a test wants, and shows whatever comes back.
"""

import itertools
import socket
import time
from collections.abc import Iterable
from typing import Any

import msgpack

TIMEOUT_S = 30.0


class RpcError(Exception):
    """The shard answered with an error: `code: message`."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code, _, self.message = text.partition(": ")


class ConnectionClosed(Exception):
    """The shard closed the connection."""


def request(msgid: int, method: str | bytes, *params: object) -> bytes:
    """The frame of a request."""
    return bytes(msgpack.packb([0, msgid, method, list(params)]))


def notification(method: str | bytes, *params: object) -> bytes:
    """The frame of a notification."""
    return bytes(msgpack.packb([2, method, list(params)]))


class RpcSocket:
    """One connection. Keys come back as bytes, whatever they were sent as."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = TIMEOUT_S) -> None:
        self.socket = socket.create_connection(address, timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unpacker = msgpack.Unpacker(raw=True, strict_map_key=False)
        self._msgids = itertools.count(1)

    def __enter__(self) -> "RpcSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; more than once does no harm."""
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.socket.sendall(data)

    def begin(self, method: str | bytes, *params: object) -> int:
        """Sends a request and gives its msgid."""
        msgid = next(self._msgids)
        self.send(request(msgid, method, *params))
        return msgid

    def message(self) -> list[Any]:
        """The next message, text decoded where it is text of the protocol. Raises ConnectionClosed."""
        while True:
            for message in self._unpacker:
                return list(message)
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionClosed
            self._unpacker.feed(data)

    def response(self) -> tuple[int, Any]:
        """The next response: its msgid, and its result or an RpcError (not raised)."""
        kind, msgid, error, result = self.message()
        assert kind == 1
        if error is not None:
            assert result is None
            return msgid, RpcError(error.decode())
        return msgid, result

    def responses(self, count: int) -> list[tuple[int, Any]]:
        """The next responses, in the order in which they come."""
        return [self.response() for _ in range(count)]

    def outcomes(self, msgids: Iterable[int]) -> list[Any]:
        """The results or errors of these requests, in the order of `msgids`, whatever order they come in."""
        wanted = list(msgids)
        found = dict(self.responses(len(wanted)))
        assert sorted(found) == sorted(wanted)
        return [found[msgid] for msgid in wanted]

    def outcome(self, method: str | bytes, *params: object) -> Any:
        """Calls a method; gives its result or its error."""
        return self.outcomes([self.begin(method, *params)])[0]

    def call(self, method: str | bytes, *params: object) -> Any:
        """Calls a method; gives its result. Raises RpcError."""
        outcome = self.outcome(method, *params)
        if isinstance(outcome, RpcError):
            raise outcome
        return outcome

    def is_silent(self, seconds: float = 0.05) -> bool:
        """Does nothing come for this long?"""
        deadline = time.monotonic() + seconds
        before = self.socket.gettimeout()
        try:
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                data = self.socket.recv(65536)
                if data:
                    self._unpacker.feed(data)
                return False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(before)
        return True

    def read_to_end(self) -> list[list[Any]]:
        """Every message until the shard closes the connection."""
        messages = []
        try:
            while True:
                messages.append(self.message())
        except (ConnectionClosed, ConnectionResetError):
            return messages
