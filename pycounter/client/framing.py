"""MessagePack-RPC as bytes: pure functions, and a decoder that takes chunks of any size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgpack

from pycounter.errors import BadDelta, BadKey, BadRequest

__all__ = [
    "MSGID_MAX",
    "Item",
    "Key",
    "Level",
    "ProtocolViolation",
    "ReplyDecoder",
    "check_level",
    "notification",
    "pack",
    "request",
    "unpack",
]

Key = str | bytes
#: One increment: key and delta.
Item = tuple[Key, int]
Level = Literal["applied", "durable"]

MSGID_MAX = 0xFFFF_FFFF
_RESPONSE = 1
_LEVELS = ("applied", "durable")


class ProtocolViolation(ConnectionError):
    """The server sent what is no MessagePack-RPC response: the connection can't be used any more."""


def check_level(level: Any) -> Level:
    """A level that somebody gave, if it is one. Raises BadRequest."""
    if level not in _LEVELS:
        raise BadRequest(f"a level is 'durable' or 'applied', not {level!r}: nothing was applied")
    checked: Level = level
    return checked


def request(msgid: int, method: str, params: Sequence[object]) -> bytes:
    """A request's frame."""
    return pack([0, msgid, method, params])


def notification(method: str, params: Sequence[object]) -> bytes:
    """A frame that gets no response."""
    return pack([2, method, params])


def pack(value: object) -> bytes:
    """A value, encoded. Raises BadKey, BadDelta, BadRequest: it can't be sent."""
    try:
        encoded: bytes = msgpack.packb(value)
    except UnicodeEncodeError as error:
        raise BadKey(f"{error.object!r} is no valid text; use bytes: nothing was sent") from error
    except OverflowError as error:
        raise BadDelta("a delta is a signed 64-bit integer: nothing was sent") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"{error}: nothing was sent") from error
    return encoded


def unpack(encoded: bytes) -> Any:
    """An encoded value. A string that is valid UTF-8 comes as str, everything else as bytes."""
    return msgpack.unpackb(encoded, raw=False, strict_map_key=False)


class ReplyDecoder:
    """Responses from chunks of bytes. A string that is valid UTF-8 comes as str, everything else as bytes."""

    __slots__ = ("_unpacker",)

    def __init__(self, reply_bytes_max: int) -> None:
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=reply_bytes_max)

    def feed(self, chunk: bytes) -> Iterator[tuple[int, str | None, Any]]:
        """Every response that is complete now: (msgid, error, result).

        Raises:
            ProtocolViolation: these bytes are no responses.
        """
        try:
            self._unpacker.feed(chunk)
            for message in self._unpacker:
                match message:
                    case [int(kind), int(msgid), None | str() as error, result] if kind == _RESPONSE:
                        yield msgid, error, result
                    case _:
                        raise ProtocolViolation("the server sent something that is no response")
        except (TypeError, ValueError, RecursionError, msgpack.exceptions.UnpackException) as error:
            raise ProtocolViolation(f"the server sent something that is no MessagePack: {error}") from error
