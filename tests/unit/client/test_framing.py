"""Messages as bytes: what is encoded, what is refused, and replies in chunks of any size."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycounter.client.framing import (
    ProtocolViolation,
    ReplyDecoder,
    notification,
    pack,
    request,
)
from pycounter.errors import BadDelta, BadKey, BadRequest


def test_request_and_notification_are_what_the_protocol_says():
    assert request(1, "incr", ("hits",)) == bytes.fromhex("940001a4696e637291a468697473")
    assert msgpack.unpackb(notification("bye", (b"s",))) == [2, "bye", [b"s"]]


@pytest.mark.parametrize(
    ("value", "error"),
    [("\ud800", BadKey), (2**64, BadDelta), (object(), BadRequest)],
)
def test_what_cannot_be_encoded_is_refused(value, error):
    with pytest.raises(error, match="nothing was sent"):
        pack(["fine", value])


REPLIES = [[1, 1, None, {"results": [1, "overflow: no"]}], [1, 2**32 - 1, "bad_key: x", None], [1, 3, None, b"\xff"]]


@given(st.lists(st.integers(1, 7), max_size=40))
def test_replies_parse_the_same_however_they_are_cut(sizes):
    data = b"".join(map(msgpack.packb, REPLIES))
    decoder = ReplyDecoder(1 << 20)
    seen: list[Any] = []
    for size in [*sizes, len(data)]:
        seen += decoder.feed(data[:size])
        data = data[size:]
    assert seen == [tuple(reply[1:]) for reply in REPLIES]  # type: ignore[index]


@given(st.binary(max_size=60))
def test_hostile_bytes_give_only_a_protocol_violation(data):
    decoder = ReplyDecoder(1 << 16)
    try:
        for msgid, error, _ in decoder.feed(data):
            assert isinstance(msgid, int)
            assert error is None or isinstance(error, str)
    except ProtocolViolation:
        pass


@pytest.mark.parametrize(
    "message", [7, [], [0, 1, None, None], [1, "x", None, None], [1, 1, 5, None], [1, 1, None], {"a": 1}]
)
def test_what_is_no_response_is_refused(message):
    with pytest.raises(ProtocolViolation):
        list(ReplyDecoder(1000).feed(msgpack.packb(message)))


def test_a_reply_over_the_bound_is_refused():
    with pytest.raises(ProtocolViolation):
        list(ReplyDecoder(1000).feed(msgpack.packb([1, 1, None, b"x" * 2000])))
