"""Messages as bytes: what is encoded, what is refused, and replies in chunks of any size."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycounter.client.framing import (
    ProtocolViolation,
    ReplyDecoder,
    apply_frame,
    decode_items,
    encode_batches,
    notification,
    request,
)
from pycounter.errors import BadDelta, BadKey, BadRequest, TooLarge

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.binary(max_size=20)
ITEMS = st.lists(st.tuples(KEYS, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=50)


def test_request_and_notification_are_what_the_protocol_says():
    assert request(1, "incr", ("hits",)) == bytes.fromhex("940001a4696e637291a468697473")
    assert msgpack.unpackb(notification("bye", (b"s",))) == [2, "bye", [b"s"]]


def test_apply_frame_is_a_request_like_any_other():
    items: list[tuple[str | bytes, int]] = [("a", 1), (b"\xff", -1)]
    ((_, encoded),) = encode_batches(items, 10, 1000)
    frame = apply_frame(7, b"sixteen bytes id", (3, 2), encoded, "durable")
    assert frame == request(7, "apply", (b"sixteen bytes id", 3, 2, items, "durable"))


@given(ITEMS, st.integers(1, 60), st.integers(100, 400))
def test_batches_hold_every_item_once_in_order_within_the_bounds(items, operations_max, bytes_max):
    batches = encode_batches(items, operations_max, bytes_max)
    assert [item for _, encoded in batches for item in decode_items(encoded)] == items
    for count, encoded in batches:
        assert len(decode_items(encoded)) == count <= operations_max
        assert len(encoded) <= bytes_max


def test_a_changed_list_changes_no_batch():
    items = [("a", 1)]
    ((_, encoded),) = encode_batches(items, 10, 1000)
    items[0] = ("b", 2)
    assert decode_items(encoded) == [("a", 1)]


@pytest.mark.parametrize(
    ("item", "error"),
    [
        (("\ud800", 1), BadKey),
        (("a", 2**64), BadDelta),
        (("a", object()), BadRequest),
        (("k" * 2000, 1), TooLarge),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is_numbered(item, error):
    with pytest.raises(error, match="nothing was sent"):
        encode_batches([("fine", 1), item], 10, 1000)


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
