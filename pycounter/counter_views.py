"""What `keys()`, `values()` and `items()` of counters give: views like a dict's, with their set operations.

A view shows the counters as they are when it is asked. Going through one never fails because of changes made
meanwhile; a counter that is there all the time comes exactly once, in no particular order.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from itertools import chain, repeat, starmap

from pycounter._native import Counters


class CounterKeys(KeysView[str | bytes]):
    """The keys."""

    __slots__ = ()
    _mapping: Counters

    def __iter__(self) -> Iterator[str | bytes]:
        return iter(self._mapping)


class CounterValues(ValuesView[int]):
    """The values."""

    __slots__ = ()
    _mapping: Counters

    def __contains__(self, value: object) -> bool:
        return any(value == held for held in self)

    def __iter__(self) -> Iterator[int]:
        return (value for _, value in self._mapping.scan())


class CounterItems(ItemsView[str | bytes, int]):
    """The pairs of key and value."""

    __slots__ = ()
    _mapping: Counters

    def __contains__(self, item: object) -> bool:
        match item:
            case (str() | bytes() as key, value):
                return key in self._mapping and self._mapping[key] == value
        return False

    def __iter__(self) -> Iterator[tuple[str | bytes, int]]:
        return self._mapping.scan()


def elements(counters: Counters) -> Iterator[str | bytes]:
    """Each key as often as its value says."""
    return chain.from_iterable(starmap(repeat, counters.scan()))
