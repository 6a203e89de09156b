"""One rule for keys and deltas, on every surface in this process: the table is in `tests/support/values.py`."""

import functools
from typing import Any

import pytest

import pycounter
from pycounter import Counters, errors
from tests.support.values import BAD_DELTAS, BAD_KEYS, DELTAS, FORMS, KEYS


@pytest.fixture(params=["memory", "disk"])
def counters(request, tmp_path):
    if request.param == "memory":
        yield Counters()
        return
    with pycounter.open(tmp_path / "counters", level="applied") as counters:
        yield counters


#: Every way to give a delta.
GIVE_DELTA: dict[str, Any] = {
    "incr": lambda counters, key, delta: counters.incr(key, delta),
    "add": lambda counters, key, delta: counters.add(key, delta),
    "set": lambda counters, key, delta: counters.__setitem__(key, delta),
    "setdefault": lambda counters, key, delta: counters.setdefault(key, delta),
    "add_many": lambda counters, key, delta: counters.add_many([key], [delta]),
    "add_many pairs": lambda counters, key, delta: counters.add_many([(key, delta)]),
    "add_many mapping": lambda counters, key, delta: counters.add_many({key: delta}),
    "update": lambda counters, key, delta: counters.update({key: delta}),
    "merge": lambda counters, key, delta: counters.merge({key: delta}),
}
#: Every way to give a key.
GIVE_KEY: dict[str, Any] = {
    **{
        name: functools.partial(lambda give, counters, key: give(counters, key, 1), give)
        for name, give in GIVE_DELTA.items()
    },
    "update keys": lambda counters, key: counters.update([key]),
    "add_many keys": lambda counters, key: counters.add_many([key]),
    "subtract": lambda counters, key: counters.subtract([key]),
    "get": lambda counters, key: counters.get(key),
    "getitem": lambda counters, key: counters[key],
    "get_many": lambda counters, key: counters.get_many([key]),
    "drain": lambda counters, key: counters.drain(key),
    "delete": lambda counters, key: counters.delete(key),
    "delete_many": lambda counters, key: counters.delete_many([key]),
    "del": lambda counters, key: counters.__delitem__(key),
    "pop": lambda counters, key: counters.pop(key, 0),
}


@pytest.mark.parametrize("way", GIVE_DELTA)
def test_deltas(counters, way):
    for delta, amount in DELTAS:
        counters.clear()
        GIVE_DELTA[way](counters, "k", delta)
        assert counters["k"] == amount, delta
        assert type(counters["k"]) is int
    counters.clear()
    for delta in BAD_DELTAS:
        # What is set is no delta: an integer that no counter can hold is one that leaves the range.
        is_integer = hasattr(delta, "__index__")
        wanted = errors.CounterOverflow if is_integer and way in ("set", "setdefault") else errors.BadDelta
        with pytest.raises(wanted):
            GIVE_DELTA[way](counters, "k", delta)
        assert len(counters) == 0, delta


@pytest.mark.parametrize("way", GIVE_KEY)
def test_keys(counters, way):
    for key, held in KEYS:
        counters.clear()
        counters.incr(held, 5)
        GIVE_KEY[way](counters, key)
        assert set(counters.get_many([held])) <= {0, 1, 4, 5, 6}
        assert len(counters) <= 1, key
    counters.clear()
    for key in BAD_KEYS:
        if type(key) is bytearray and way in ("update", "merge", "add_many mapping"):
            continue  # no dict has such a key
        with pytest.raises(errors.BadKey):
            GIVE_KEY[way](counters, key)
        assert len(counters) == 0, key
        if type(key) is not bytearray:
            assert key not in counters


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_many_increments(counters, form):
    counters.add_many(FORMS[form]())
    assert dict(counters) == {"a": 1, "b": 2}


@pytest.mark.parametrize("bad", [("a",), ("a", 1, 2), [], ()], ids=repr)
def test_what_is_no_pair(counters, bad):
    with pytest.raises(errors.BadKey) as caught:
        counters.add_many([("ok", 1), bad, ("never", 1)])
    assert vars(caught.value)["index"] == 1
    assert dict(counters) == {"ok": 1}


def test_an_error_of_somebodys_own_is_passed_on(counters):
    class Broken:
        def __index__(self):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        counters.incr("k", Broken())
