"""`ForeignKeys`: what a coordinator learns of the shards' lists, and what it then answers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycounter._native import ForeignKeys
from pycounter.errors import BadKey


def test_what_was_noted_is_foreign_and_nothing_else():
    keys = ForeignKeys(3)
    assert not keys.is_foreign("a")
    assert keys.holders("a") == ()
    keys.note(2, "a")
    keys.note(0, b"a")
    assert keys.is_foreign(b"a")
    assert keys.holders("a") == (0, 2)
    assert keys.holders("b") == ()
    assert [keys.count(shard) for shard in range(3)] == [1, 0, 1]


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.integers(1, 7))
def test_a_list_is_read_in_parts_and_is_all_keys_until_its_end(hashes, part):
    keys = ForeignKeys(2)
    epoch: dict[str, Any] = {"identity": "i", "epoch": 3, "count": len(hashes), "full": False}
    at = 0
    while True:
        piece = hashes[at : at + part]
        at = keys.absorb(1, from_=at, hashes=b"".join(one.to_bytes(8, "little") for one in piece), **epoch)
        assert keys.may_hold_all(1) == (at < len(hashes))
        assert keys.is_foreign("x") == (at < len(hashes))
        if at == len(hashes):
            break
    assert keys.count(1) == len(hashes)
    epoch |= {"epoch": 4, "count": 1}
    assert keys.absorb(1, from_=at, hashes=b"", **epoch) == 0 or not hashes
    assert keys.holders("x") == (1,)


def test_a_list_that_begins_anew_is_all_keys_until_it_is_known():
    keys = ForeignKeys(1)
    keys.extend(0, bytes(8))
    keys.replace(0)
    assert keys.holders("x") == (0,)
    keys.set_all(0, False)
    assert keys.holders("x") == ()
    assert keys.count(0) == 0


def test_bad_arguments_are_refused():
    keys = ForeignKeys(1)
    for call in (keys.count, keys.replace, keys.may_hold_all):
        with pytest.raises(IndexError, match="there is no shard 1"):
            call(1)
    with pytest.raises(ValueError, match="8 bytes each"):
        keys.extend(0, b"1234567")
    with pytest.raises(BadKey):
        keys.note(0, "")
    with pytest.raises(BadKey):
        keys.is_foreign(1)  # type: ignore[arg-type]
