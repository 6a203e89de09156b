"""MessagePack-RPC as bytes: pure functions, and a decoder that takes chunks of any size.

A batch is encoded once, when it is accepted: what is sent again is the same bytes, whatever the caller has done to its
list meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgpack

from pycounter.errors import BadDelta, BadKey, BadRequest, TooLarge

__all__ = [
    "MSGID_MAX",
    "Item",
    "Key",
    "Level",
    "ProtocolViolation",
    "ReplyDecoder",
    "apply_frame",
    "check_level",
    "decode_items",
    "encode_batches",
    "notification",
    "request",
]

Key = str | bytes
#: One increment: key and delta.
Item = tuple[Key, int]
Level = Literal["applied", "durable"]

MSGID_MAX = 0xFFFF_FFFF
_RESPONSE = 1
_LEVELS = ("applied", "durable")
_APPLY = msgpack.packb("apply")


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
    return _pack([0, msgid, method, params])


def notification(method: str, params: Sequence[object]) -> bytes:
    """A frame that gets no response."""
    return _pack([2, method, params])


def apply_frame(msgid: int, session: bytes, numbers: tuple[int, int], items: bytes, level: Level) -> bytes:
    """The request `apply` around items that are encoded already; numbers are first_sequence and acked_through."""
    pack = msgpack.packb
    return b"".join(
        (
            b"\x94\x00",
            pack(msgid),
            _APPLY,
            b"\x95",
            pack(session),
            pack(numbers[0]),
            pack(numbers[1]),
            items,
            pack(level),
        )
    )


def encode_batches(items: Sequence[Item], operations_max: int, bytes_max: int) -> list[tuple[int, bytes]]:
    """Cuts items into batches within both bounds: (how many, their bytes), in order.

    Raises:
        BadKey: a key is text that isn't valid Unicode.
        BadDelta: a delta is out of any integer's range.
        BadRequest: an item isn't a key and a delta.
        TooLarge: one item alone is over the bound.
    """
    batches: list[tuple[int, bytes]] = []
    for start in range(0, len(items), operations_max):
        # A whole list needs no copy.
        part = items if len(items) <= operations_max else items[start : start + operations_max]
        _encode_part(part, bytes_max, batches)
    return batches


def decode_items(encoded: bytes) -> list[Item]:
    """The items of an encoded batch."""
    return [(key, delta) for key, delta in msgpack.unpackb(encoded, raw=False)]


def _encode_part(items: Sequence[Item], bytes_max: int, batches: list[tuple[int, bytes]]) -> None:
    encoded = _pack(items)
    if len(encoded) <= bytes_max:
        batches.append((len(items), encoded))
        return
    if len(items) == 1:
        raise TooLarge(f"an increment of {len(encoded)} bytes: nothing was sent")
    half = len(items) // 2
    _encode_part(items[:half], bytes_max, batches)
    _encode_part(items[half:], bytes_max, batches)


def _pack(value: object) -> bytes:
    try:
        encoded: bytes = msgpack.packb(value)
    except UnicodeEncodeError as error:
        raise BadKey(f"{error.object!r} is no valid text; use bytes: nothing was sent") from error
    except OverflowError as error:
        raise BadDelta("a delta is a signed 64-bit integer: nothing was sent") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(f"{error}: nothing was sent") from error
    return encoded


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
