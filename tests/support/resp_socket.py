"""A RESP client of a few lines on a plain socket, with a parser of its own for RESP2 and RESP3."""

import socket
from typing import Any

from tests.support.rpc_socket import TIMEOUT_S, ConnectionClosed


class RespError(Exception):
    """An error reply; `word` is its first word."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.word = line.partition(" ")[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RespError) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


class Simple(bytes):
    """A simple string (`+OK`), as opposed to a bulk string."""


def command(*arguments: str | bytes | int) -> bytes:
    """The frame of a command."""
    encoded = [argument if isinstance(argument, bytes) else str(argument).encode() for argument in arguments]
    parts = [b"*%d\r\n" % len(encoded)]
    parts += [b"$%d\r\n%s\r\n" % (len(argument), argument) for argument in encoded]
    return b"".join(parts)


class RespSocket:
    """One connection."""

    def __init__(self, address: tuple[str, int], *, timeout_s: float = TIMEOUT_S) -> None:
        self.socket = socket.create_connection(address, timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def __enter__(self) -> "RespSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; more than once does no harm."""
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.socket.sendall(data)

    def begin(self, *arguments: str | bytes | int) -> None:
        """Sends a command."""
        self.send(command(*arguments))

    def outcome(self, *arguments: str | bytes | int) -> Any:
        """Sends a command; gives its reply, an error too."""
        self.begin(*arguments)
        return self.reply()

    def call(self, *arguments: str | bytes | int) -> Any:
        """Sends a command; gives its reply. Raises RespError."""
        reply = self.outcome(*arguments)
        if isinstance(reply, RespError):
            raise reply
        return reply

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionClosed
        self._buffer += data

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count + 2:
            self._more()
        data, end, self._buffer = self._buffer[:count], self._buffer[count : count + 2], self._buffer[count + 2 :]
        assert end == b"\r\n"
        return data

    def reply(self) -> Any:
        """The next reply: int, bytes, Simple, None, list, dict, bool, float or RespError. Raises ConnectionClosed."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        match kind:
            case b"+":
                return Simple(rest)
            case b"-":
                return RespError(rest.decode())
            case b":":
                return int(rest)
            case b"$":
                return None if rest == b"-1" else self._exactly(int(rest))
            case b"*":
                return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
            case b"%":
                return {self.reply(): self.reply() for _ in range(int(rest))}
            case b"~":
                return [self.reply() for _ in range(int(rest))]
            case b"_":
                assert rest == b""
                return None
            case b"#":
                return {b"t": True, b"f": False}[rest]
            case b",":
                return float(rest)
            case b"=":
                return self._exactly(int(rest))[4:]
            case _:
                raise AssertionError(f"no RESP type begins like {line!r}")

    def replies(self, count: int) -> list[Any]:
        """The next replies."""
        return [self.reply() for _ in range(count)]

    def read_to_end(self) -> list[Any]:
        """Every reply until the shard closes the connection."""
        replies = []
        try:
            while True:
                replies.append(self.reply())
        except (ConnectionClosed, ConnectionResetError):
            return replies
