"""What `collections.Counter` does, done by `Counters` in memory and on disk: arithmetic, comparisons, the methods of a
mutable mapping. What differs is in docs/counters.md, and tested here too.
"""

import copy
import operator
import pickle
from collections import Counter
from collections.abc import Mapping, MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycounter
from pycounter import Counters, errors

AMOUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(-4, 4), max_size=6)
BINARY = [operator.add, operator.sub, operator.or_, operator.and_]
IN_PLACE = [operator.iadd, operator.isub, operator.ior, operator.iand]
COMPARISONS = [operator.eq, operator.ne, operator.le, operator.lt, operator.ge, operator.gt]
HALF: Any = 0.5
MINIMUM, MAXIMUM = -(2**63), 2**63 - 1


@pytest.fixture(params=["memory", "disk"])
def make(request, tmp_path):
    """Makes a map as `Counters` does; the one on disk is the same map each time, emptied."""
    if request.param == "memory":
        yield Counters
        return
    with pycounter.open(tmp_path / "counters", level="applied") as counters:

        def emptied(*arguments, **counts):
            counters.clear()
            counters.update(*arguments, **counts)
            return counters

        yield emptied


@settings(max_examples=60)
@given(left=AMOUNTS, right=AMOUNTS)
def test_arithmetic_and_comparisons(left, right):
    for operation in (*BINARY, *COMPARISONS):
        expected = operation(Counter(left), Counter(right))
        pairs = [(Counters(left), Counters(right)), (Counters(left), Counter(right)), (Counter(left), Counters(right))]
        for one, other in pairs:
            result = operation(one, other)
            assert result == expected, operation
            if operation in BINARY:
                assert type(result) is Counters
                assert dict(result.items()) == dict(expected)
    assert dict((+Counters(left)).items()) == dict(+Counter(left))
    assert dict((-Counters(left)).items()) == dict(-Counter(left))


@pytest.mark.parametrize("operation", IN_PLACE)
def test_arithmetic_in_place(make, operation):
    @settings(max_examples=40)
    @given(left=AMOUNTS, right=AMOUNTS, itself=st.booleans())
    def check(left, right, itself):
        counters, expected = make(left), Counter(left)
        result = operation(counters, counters if itself else Counters(right))
        expected = operation(expected, expected if itself else Counter(right))
        assert result is counters
        assert dict(counters.items()) == dict(expected)

    check()


def test_operators_on_disk_make_maps_in_memory(make):
    counters = make(a=3, b=-1)
    assert type(counters + Counters(a=1)) is Counters
    assert dict((counters + Counters(a=1)).items()) == {"a": 4}
    assert dict((+counters).items()) == {"a": 3}
    assert dict((-counters).items()) == {"b": 1}
    assert counters <= Counters(a=3)
    assert not counters > Counter(a=3)
    assert dict(counters.items()) == {"a": 3, "b": -1}


def test_many_counters_at_once(make):
    left = {f"key {number}": number % 7 - 3 for number in range(20_000)}
    right = {f"key {number}": number % 5 - 2 for number in range(10_000, 30_000)}
    counters = make(left)
    for operation in BINARY:
        assert dict(operation(counters, Counters(right)).items()) == dict(operation(Counter(left), Counter(right)))
    counters |= Counters(right)
    assert dict(counters.items()) == dict(Counter(left) | Counter(right))


@pytest.mark.parametrize("operation", [*BINARY, *IN_PLACE, *COMPARISONS[2:]])
@pytest.mark.parametrize("other", [{"a": 1}, [("a", 1)], 3, None, "a", Counter({1: 1}), Counter[Any]({"a": HALF})])
def test_what_is_no_counter_is_refused(make, operation, other):
    counters = make(a=1)
    with pytest.raises(TypeError):
        operation(counters, other)
    assert dict(counters.items()) == {"a": 1}


def test_equality_with_mappings(make):
    counters = make(a=1, b=0)
    assert counters == {"a": 1}
    assert counters == Counter(a=1, c=0)
    assert counters != {"a": 1, 2: 3}
    assert counters != [("a", 1)]
    assert counters == {"a": 1, b"a": 1}
    assert counters != {"a": 1, b"a": 2}


def test_results_that_leave_64_bits_are_refused():
    with pytest.raises(errors.CounterOverflow):
        Counters(a=MAXIMUM) + Counters(a=1)
    with pytest.raises(errors.CounterOverflow):
        -Counters(a=MINIMUM)


def test_the_methods_of_a_mutable_mapping(make):
    counters = make("abcaba")
    assert issubclass(type(counters), MutableMapping)
    assert issubclass(type(counters), Mapping)
    assert sorted(counters.elements()) == sorted("abcaba")
    assert sorted(counters) == ["a", "b", "c"]
    assert (counters["a"], counters["none"], counters.get("none"), counters.get("none", 7)) == (3, 0, 0, 7)
    counters["a"] += 1
    counters["b"] -= 2
    del counters["c"]
    del counters["c"]
    assert dict(counters.items()) == {"a": 4, "b": 0}
    assert counters.pop("a") == 4
    assert counters.pop("a", 11) == 11
    with pytest.raises(KeyError):
        counters.pop("a")
    assert (counters.setdefault("d", 5), counters.setdefault("d", 6), counters.setdefault("e")) == (5, 5, 0)
    assert "e" in counters
    taken = dict(counters.popitem() for _ in range(3))
    assert taken == {"b": 0, "d": 5, "e": 0}
    with pytest.raises(KeyError):
        counters.popitem()
    counters.update(["x"], x=2)
    counters.update(None)
    counters.subtract({"x": 5}, y=1)
    assert dict(counters.items()) == {"x": -2, "y": -1}
    assert list(counters.elements()) == []
    assert counters.total() == -3
    counters.clear()
    assert len(counters) == 0
    assert not counters
    assert Counter(make(a=3)) == Counter(a=3)
    assert dict(make(a=3)) == {"a": 3}


def test_names_of_arguments_are_keys_like_others(make):
    names = {"self": 1, "iterable": 2, "iterable_or_mapping": 3, "counts": 4}
    counters = make(**names)
    counters.subtract(**names)
    counters.update(**names)
    assert dict(counters.items()) == names


def test_setdefault_on_disk_lasts(tmp_path):
    with pycounter.open(tmp_path) as counters:
        counters.setdefault("a", 3)
        counters.__ior__(Counters(b=2))
    with pycounter.open(tmp_path) as counters:
        assert dict(counters.items()) == {"a": 3, "b": 2}


class Sub(Counters):
    pass


def test_copies():
    counters = Sub("abca")
    for other in (counters.copy(), copy.copy(counters), copy.deepcopy(counters), pickle.loads(pickle.dumps(counters))):
        assert type(other) is Sub
        other["a"] += 1
        assert (other["a"], counters["a"]) == (3, 2)
    assert type(counters + counters) is Counters
    shown = repr(Counters("abca"))
    assert dict(eval(shown).items()) == {"a": 2, "b": 1, "c": 1}


def test_a_map_on_disk_is_copied_into_memory(tmp_path):
    with pycounter.open(tmp_path) as counters:
        counters["a"] = 3
        held = counters.copy()
    assert type(held) is Counters
    assert held["a"] == 3
    assert repr(counters) == "<DurableCounters, closed>"
    assert "begin_fold" not in dir(counters)


@pytest.mark.parametrize("before", [-1, MINIMUM, -5])
def test_taking_away_the_least_amount_works_if_the_result_fits(make, before):
    counters = make()
    counters["k"] = before
    counters.subtract({"k": MINIMUM})
    assert counters["k"] == before - MINIMUM
    counters["k"] = before
    counters.subtract(Counters(k=MINIMUM))
    assert counters["k"] == before - MINIMUM


def test_taking_away_the_least_amount_is_refused_if_the_result_does_not_fit(make):
    counters = make(k=0)
    with pytest.raises(errors.CounterOverflow):
        counters.subtract({"k": MINIMUM})
    with pytest.raises(errors.CounterOverflow):
        counters.subtract({"new": MINIMUM})
    assert dict(counters.items()) == {"k": 0}


def test_documented_differences_from_counter():
    with pytest.raises(errors.BadKey):
        Counters([1, 2])  # type: ignore[list-item]
    with pytest.raises(errors.BadDelta):
        Counters(a=0.5)  # type: ignore[arg-type]
    assert not hasattr(Counters, "fromkeys")
    assert repr(Counters({f"{number:02}": 1 for number in range(30)})).endswith("... 10 more})")
    assert Counters({b"a": 1, "a": 2})["a"] == 3
    assert Counters(ba=1, ab=1).most_common() == [("ab", 1), ("ba", 1)]
