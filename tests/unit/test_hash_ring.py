"""The hash ring as Python sees it: the vectors that every language shares, and what it promises."""

import copy
import json
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycounter._native import HashRing

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "hash_ring.json").read_text(encoding="utf-8"))
KEYS = [f"key:{number}" for number in range(20_000)]

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
weights = st.floats(0.01, 3.0)
rings = st.dictionaries(names, weights, min_size=1, max_size=6)
keys = st.text(st.characters(exclude_categories=["Cs"])) | st.binary()


@pytest.mark.parametrize("vector", VECTORS["rings"], ids=lambda vector: f"{len(vector['shards'])} shards")
def test_homes_are_those_of_the_vectors(vector):
    ring = HashRing({shard["name"]: shard["weight"] for shard in vector["shards"]})
    assert f"{ring.digest():#018x}" == vector["digest"]
    keys = [bytes.fromhex(home["key_hex"]) for home in vector["homes"]]
    homes = [home["home"] for home in vector["homes"]]
    assert [ring.home(key) for key in keys] == homes
    assert ring.home_many(keys) == homes
    # Six rings were made in one order and must not depend on it.
    backwards = HashRing({shard["name"]: shard["weight"] for shard in reversed(vector["shards"])})
    assert backwards == ring
    assert backwards.digest() == ring.digest()


@given(rings, st.lists(keys, max_size=20))
def test_text_counts_as_its_utf8(shards, some):
    ring = HashRing(shards)
    as_bytes = [key.encode() if isinstance(key, str) else key for key in some]
    assert ring.home_many(some) == ring.home_many(iter(as_bytes)) == [ring.home(key) for key in some]
    assert {ring.home(key) for key in some} <= set(shards)


@given(rings, names, weights)
def test_another_shard_takes_keys_and_gives_them_back(shards, name, weight):
    shards.pop(name, None)
    if not shards:
        return
    before = HashRing(shards)
    after = before.with_shard(name, weight)
    some = KEYS[:300]
    for old, new in zip(before.home_many(some), after.home_many(some), strict=True):
        assert new in (old, name)
    again = after.without_shard(name)
    assert again == before
    assert again.digest() == before.digest()


@given(rings)
def test_a_ring_survives_pickling_and_copying(shards):
    ring = HashRing(shards)
    for other in (pickle.loads(pickle.dumps(ring)), copy.copy(ring), copy.deepcopy(ring), HashRing(ring.shards)):
        assert other == ring
        assert hash(other) == hash(ring)
        assert other.digest() == ring.digest()
    assert ring.shards == shards
    assert list(ring.shards) == sorted(shards, key=str.encode)


def test_equality_is_of_names_and_weights():
    ring = HashRing(["a", "b"])
    assert ring == HashRing({"b": 1, "a": 1.0})
    assert ring != HashRing({"a": 1.0, "b": 1.5})
    assert ring != HashRing(["a", "c"])
    assert ring != ["a", "b"]
    assert repr(ring) == "HashRing({'a': 1.0, 'b': 1.0})"
    assert eval(repr(ring), {"HashRing": HashRing}) == ring


def test_shares_follow_weights_and_keys_follow_shares():
    ring = HashRing({"small": 1.0, "large": 3.0})
    shares = ring.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["large"] == pytest.approx(0.75, rel=0.1)
    assert ring.home_many(KEYS).count("large") / len(KEYS) == pytest.approx(shares["large"], abs=0.02)


def test_another_weight_moves_keys_one_way():
    before = HashRing(["a", "b", "c"])
    after = before.with_weight("b", 2.0)
    moved = [(old, new) for old, new in zip(before.home_many(KEYS), after.home_many(KEYS), strict=True) if old != new]
    assert {new for _, new in moved} == {"b"}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 2 - 1 / 3, rel=0.2)


@pytest.mark.parametrize(
    ("shards", "error"),
    [
        ({}, ValueError),
        ([], ValueError),
        (["a", "a"], ValueError),
        ([""], ValueError),
        (["x" * 256], ValueError),
        ({"a": 0.0}, ValueError),
        ({"a": -1.0}, ValueError),
        ({"a": 100.5}, ValueError),
        ({"a": float("nan")}, ValueError),
        ({"a": float("inf")}, ValueError),
        ({str(number): 100.0 for number in range(22)}, ValueError),
        (["\ud800"], UnicodeEncodeError),
        ("abc", TypeError),
        (7, TypeError),
        ([7], TypeError),
        ({"a": "heavy"}, TypeError),
    ],
)
def test_bad_rings_are_refused(shards, error):
    with pytest.raises(error):
        HashRing(shards)


def test_bad_changes_are_refused_and_change_nothing():
    ring = HashRing(["a"])
    with pytest.raises(KeyError, match="no shard"):
        ring.without_shard("b")
    with pytest.raises(KeyError, match="no shard"):
        ring.with_weight("b", 1.0)
    with pytest.raises(ValueError, match="at least one shard"):
        ring.without_shard("a")
    with pytest.raises(ValueError, match="already"):
        ring.with_shard("a")
    with pytest.raises(ValueError, match="weight"):
        ring.with_shard("b", 0)
    assert ring == HashRing(["a"])


def test_bad_keys_are_refused():
    ring = HashRing(["a"])
    for key in (7, None, bytearray(b"a"), ["a"]):
        with pytest.raises(TypeError, match="str or bytes"):
            ring.home(key)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        ring.home("\ud800")
    with pytest.raises(TypeError):
        ring.home_many(["a", 7])  # type: ignore[list-item]


def test_threads_share_a_ring():
    ring = HashRing(["a", "b", "c"])
    expected = ring.home_many(KEYS)
    found = []
    threads = [threading.Thread(target=lambda: found.append(ring.home_many(KEYS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
