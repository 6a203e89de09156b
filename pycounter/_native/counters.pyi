"""Counters in this process, in memory and on disk.

For example:

    counters = Counters(["red", "blue", "red"])
    counters.incr("red")  # 3
"""

import os
from collections import Counter
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from typing import Any, ClassVar, Self, SupportsIndex, TypeAlias

from typing_extensions import disjoint_base

from pycounter._native.folder import JournaledFolder

_Key: TypeAlias = str | bytes

_Other: TypeAlias = Counters | Counter[str] | Counter[bytes] | Counter[_Key]

@disjoint_base
class Counters(MutableMapping[_Key, int]):
    """A thread-safe map from keys to signed 64-bit counters, in the spirit of `collections.Counter`.

    A key is 1 to 1,024 bytes; a str is its UTF-8, so "a" and b"a" are the same counter. Keys come back as str where
    they are valid UTF-8, else as bytes. Values are checked: a change that would leave 64 bits raises CounterOverflow
    and changes nothing. See `docs/counters.md`.

    Raises (every method that takes a key or an amount):
        BadKey: it is no key: neither str nor bytes, or of a length that no key has.
        BadDelta: it is no integer, or one of more than 64 bits. Integers are what has `__index__`: int, bool, NumPy's.
    """

    def __new__(
        cls, iterable_or_mapping: Iterable[_Key] | Mapping[Any, SupportsIndex] | None = None, /, **counts: SupportsIndex
    ) -> Self: ...
    def incr(self, key: _Key, delta: SupportsIndex = 1) -> int:
        """Adds `delta` and gives the value after."""

    def add(self, key: _Key, delta: SupportsIndex = 1) -> None:
        """Adds `delta`; threads that add to one counter hardly slow each other down."""

    def add_many(self, keys: Any, deltas: Any = None) -> None:
        """Adds to many counters: a mapping or pairs of key and delta, as a client's `incr_many`; or keys, and a delta
        for each (a sequence, or a buffer of integers), or 1."""

    def update(  # type: ignore[override]  # as a Counter's: it adds
        self,
        iterable_or_mapping: Iterable[_Key] | Mapping[Any, SupportsIndex] | None = None,
        /,
        **counts: SupportsIndex,
    ) -> None:
        """Counts the elements of an iterable, or adds the amounts of a mapping."""

    def subtract(
        self,
        iterable_or_mapping: Iterable[_Key] | Mapping[Any, SupportsIndex] | None = None,
        /,
        **counts: SupportsIndex,
    ) -> None:
        """As `update`, taking away."""

    def merge(self, other: Mapping[Any, SupportsIndex] | Counters) -> None:
        """Adds the amounts of another map."""

    def get(self, key: _Key, default: Any = 0) -> Any:
        """The value; `default` if there is no such counter."""

    def get_many(self, keys: Any) -> list[int]:
        """The values of many counters, 0 for those that don't exist."""

    def drain(self, key: _Key) -> int:
        """Takes everything out and gives it; the counter stays, at 0."""

    def delete(self, key: _Key) -> int:
        """Removes the counter and gives what it held, 0 if there was none."""

    def delete_many(self, keys: Any) -> list[int]:
        """Removes many counters and gives what each held, 0 for those that don't exist. A bad key refuses the call."""

    def delete_prefix(self, prefix: _Key) -> int:
        """Removes the counters whose keys begin with `prefix`, and gives how many these were.

        What is there throughout is removed; what is made meanwhile by another thread may go or stay. Other threads run
        in between. ValueError: the prefix is empty; `clear` removes everything.
        """

    def pop(self, key: _Key, *default: Any) -> Any:
        """Removes the counter and gives what it held. Without it: `default`, or KeyError."""

    def popitem(self) -> tuple[_Key, int]:
        """Removes a counter, no matter which, and gives its key and what it held. KeyError if there is none."""

    def setdefault(self, key: _Key, default: SupportsIndex = 0) -> int:
        """The value; a counter that doesn't exist is made with `default` first."""

    def elements(self) -> Iterator[_Key]:
        """An iterator over the keys, each as often as its value says; not those below 1."""

    def clear(self) -> None:
        """Removes every counter."""

    def top(self, n: int, prefix: _Key = "") -> list[tuple[_Key, int]]:
        """The `n` largest counters whose keys begin with `prefix`: by falling value, then by key."""

    def most_common(self, n: int | None = None) -> list[tuple[_Key, int]]:
        """The `n` largest counters, all of them without `n`."""

    def total(self) -> int:
        """The sum of all counters."""

    def scan(self, prefix: _Key = "") -> Iterator[tuple[_Key, int]]:
        """An iterator over the pairs of key and value whose keys begin with `prefix`."""

    def scan_page(self, cursor: int = 0, count: int = 1000, prefix: _Key = "") -> tuple[int, list[tuple[_Key, int]]]:
        """One step of a scan: the next cursor, 0 at the end, and some pairs."""

    def keys(self) -> KeysView[_Key]:
        """The keys, as a view like a dict's."""

    def values(self) -> ValuesView[int]:
        """The values, as a view like a dict's."""

    def items(self) -> ItemsView[_Key, int]:
        """The pairs of key and value, as a view like a dict's."""

    def copy(self) -> Counters:
        """Another map in memory, of the same class unless this one is on disk, with the same counters."""

    def to_bytes(self) -> bytes:
        """All counters as bytes, for `from_bytes`."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The counters that `to_bytes` wrote. ValueError: these bytes are none."""

    def memory_bytes(self) -> int:
        """Bytes of memory in use."""

    def __sizeof__(self) -> int: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __getitem__(self, key: _Key, /) -> int: ...
    def __setitem__(self, key: _Key, value: SupportsIndex, /) -> None: ...
    def __delitem__(self, key: _Key, /) -> None: ...
    def __iter__(self) -> Iterator[_Key]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __le__(self, other: _Other, /) -> bool: ...
    def __lt__(self, other: _Other, /) -> bool: ...
    def __ge__(self, other: _Other, /) -> bool: ...
    def __gt__(self, other: _Other, /) -> bool: ...
    def __add__(self, other: _Other, /) -> Counters: ...
    def __radd__(self, other: _Other, /) -> Counters: ...
    def __iadd__(self, other: _Other, /) -> Self: ...
    def __sub__(self, other: _Other, /) -> Counters: ...
    def __rsub__(self, other: _Other, /) -> Counters: ...
    def __isub__(self, other: _Other, /) -> Self: ...
    def __or__(self, other: _Other, /) -> Counters: ...
    def __ror__(self, other: _Other, /) -> Counters: ...
    def __ior__(self, other: _Other, /) -> Self: ...
    def __and__(self, other: _Other, /) -> Counters: ...
    def __rand__(self, other: _Other, /) -> Counters: ...
    def __iand__(self, other: _Other, /) -> Self: ...
    def __pos__(self) -> Counters: ...
    def __neg__(self) -> Counters: ...
    def __reduce__(self) -> tuple[Callable[[bytes], Counters], tuple[bytes]]: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@disjoint_base
class JournaledCounters(Counters):
    """Counters on disk. Recovery comes first: `load_root` and `load_page` of `folder`, then `start`.

    What `pycounter.open` wraps. Arguments and errors are those of `Shard`; after a fork every method raises AfterFork.
    """

    def __new__(
        cls,
        directory: str | os.PathLike[str],
        *,
        name: str = "shard-0",
        level: str = "durable",
        segment_bytes: int = 67108864,
        counters_bytes_max: int = 8589934592,
        dirty_counters_max: int = 1048576,
        sessions_max: int = 100000,
        results_per_session_max: int = 10000,
        session_bytes_max: int = 268435456,
        ids_bytes_max: int = 268435456,
        session_window_s: float = 604800.0,
        id_window_s: float = 120.0,
        flush_interval_s: float = 1.0,
    ) -> Self: ...
    def start(self) -> int:
        """Replays the log and starts the threads that write. Gives the number of commits replayed."""

    def flush(self) -> None:
        """Returns once everything up to now is on disk.

        Raises:
            NotDurable: the disk doesn't take it; it is tried again.
        """

    @property
    def pending(self) -> int:
        """Counters that changed since the last commit began."""

    def close(self, *, discard: bool = False) -> None:
        """Writes what is pending and ends the threads. Idempotent. The folder stays locked until `close_folder`.

        Raises:
            NotDurable: the disk refused, and without `discard` the map stays open.
        """

    @property
    def level(self) -> str:
        """ "applied" or "durable"."""

    @property
    def folder(self) -> JournaledFolder:
        """The folder: its identity, its log, its checkpoints."""
