"""The engine as a Python module."""

import os
from asyncio import Future
from collections import Counter
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, SupportsIndex, TypeAlias, TypedDict, final, type_check_only

from typing_extensions import disjoint_base

__all__ = [
    "DEBUG_BUILD",
    "VERSION",
    "Connection",
    "ConstantReplies",
    "Counters",
    "Fold",
    "FolderReader",
    "FolderWriter",
    "ForeignKeys",
    "HashRing",
    "JournaledCounters",
    "JournaledFolder",
    "LoadGenerator",
    "LoadReport",
    "ReadCache",
    "Replica",
    "Router",
    "RouterConnection",
    "RouterLink",
    "SessionLink",
    "Shard",
    "SimulatedDisk",
    "error_codes",
    "fail_at_exit",
    "glob_matches",
    "serve_constant_replies",
]

DEBUG_BUILD: bool
VERSION: str

@final
class HashRing:
    """A weighted consistent hash ring: which shard is a key's home.

    The home depends only on the shards' names and weights and on the key, in every process and language. A ring
    never changes; `with_shard`, `with_weight` and `without_shard` make another one, in which only the keys have
    moved that the shard gained or lost. Any thread may use it.

    Args:
        shards: names (1 to 255 bytes of UTF-8) and their weights (0.01 to 100), or names alone, of weight 1. A
            weight of 1 takes 2,048 points of 16 bytes; a ring has at most 4,194,304 points.

    Raises:
        ValueError: no shard, a bad name or weight, a name twice, or too many points.
        TypeError: names that aren't str, or weights that aren't numbers.
    """

    def __new__(cls, shards: Mapping[str, float] | Iterable[str]) -> HashRing: ...
    def home(self, key: str | bytes) -> str:
        """The name of the key's home. A str is looked up as its UTF-8.

        Raises:
            TypeError: the key is neither str nor bytes.
            UnicodeEncodeError: a str with lone surrogates.
        """

    def home_many(self, keys: Iterable[str | bytes]) -> list[str]:
        """The names of the keys' homes, in the keys' order. Errors as `home`."""

    def with_shard(self, name: str, weight: float = 1.0) -> HashRing:
        """This ring and one more shard, to which about `weight / (all weights)` of the keys move.

        Raises:
            ValueError: the shard is there already, a bad name or weight, or too many points.
        """

    def with_weight(self, name: str, weight: float) -> HashRing:
        """This ring with another weight for a shard: keys move only to it, or only away from it.

        Raises:
            KeyError: there is no such shard.
            ValueError: a bad weight, or too many points.
        """

    def without_shard(self, name: str) -> HashRing:
        """This ring without a shard, whose keys move to the others.

        Raises:
            KeyError: there is no such shard.
            ValueError: there is no other shard.
        """

    @property
    def shards(self) -> dict[str, float]:
        """The shards' names and weights, in the order of the names' bytes: a new dict."""

    def shares(self) -> dict[str, float]:
        """The share of all possible keys that each shard is the home of; they add up to 1."""

    def digest(self) -> int:
        """A hash of all points: equal in every implementation that places them right (`docs/hash-ring.md`)."""

    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[type[HashRing], tuple[dict[str, float]]]: ...

@final
class ForeignKeys:
    """What a coordinator knows about foreign counters: which shards beside a key's home may hold some of it.

    A shard too many may be named (a counter was deleted, a list isn't known yet), never one too few. Any thread may
    use it. At the beginning nothing is foreign: say `set_all(shard, True)` of shards whose list wasn't read.

    Args:
        shards: how many there are, numbered as `HashRing.shards` lists them.

    Raises:
        IndexError: from whatever takes a shard's number: there is no such shard.
        BadKey: from whatever takes a key: it is none.
    """

    def __new__(cls, shards: int) -> ForeignKeys: ...
    def is_foreign(self, key: str | bytes) -> bool:
        """Whether a shard other than the key's home may hold some of it."""

    def holders(self, key: str | bytes) -> tuple[int, ...]:
        """The shards that may hold some of a key though they aren't its home. The caller adds the home."""

    def count(self, shard: int) -> int:
        """How many hashes are known of a shard."""

    def may_hold_all(self, shard: int) -> bool:
        """Whether a shard is taken to hold any key: its list is full, or not known."""

    def replace(self, shard: int) -> None:
        """A shard's list begins anew. Until `set_all(shard, False)` it may hold any key; what was noted stays."""

    def extend(self, shard: int, hashes: bytes) -> None:
        """Adds hashes of a shard's list, 8 bytes each, little-endian; beyond 1,048,576 it may hold any key."""

    def set_all(self, shard: int, on: bool) -> None:
        """Says that a shard may hold any key, or that its list is known."""

    def note(self, shard: int, key: str | bytes) -> None:
        """Remembers that an operation on a key was diverted to a shard: call it before it is sent."""

    def absorb(
        self, shard: int, *, identity: str, epoch: int, count: int, from_: int, hashes: bytes, full: bool
    ) -> int:
        """Takes in `foreign` of a shard's reply to `health`, and gives the `foreign_from` to ask for next.

        `full` is the reply's `all`. It does what `replace`, `extend` and `set_all` do: another identity or epoch begins
        the list anew, and a shard whose list isn't read to its end may hold any key.
        """

def glob_matches(pattern: bytes, key: bytes) -> bool:
    """Does the whole of `key` match a pattern of `SCAN MATCH`? At most pattern times key steps."""

def error_codes() -> list[tuple[str, bool, str, str]]:
    """(name, retryable, effect, meaning) of every error code; effect is "nothing", "before" or "unknown"."""

def fail_at_exit() -> None:
    """Makes the process end with status 1, whatever it would have been. For use while the interpreter ends."""

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

@disjoint_base
class JournaledFolder:
    """A locked folder: recovered first, checkpointed later.

    Recovery, in this order: `load_root`, `load_page` for each key that it gave, then `start` of the class that
    extends this one. Checkpoints may be made on another thread than the one that owns the rest.
    """

    @property
    def identity(self) -> str:
        """The shard's identity: 32 hexadecimal digits, made with the folder."""

    @property
    def name(self) -> str:
        """The shard's name, as the manifest has it."""

    @property
    def created(self) -> bool:
        """Was the folder empty before?"""

    @property
    def epoch(self) -> int:
        """The fencing number of this run. RuntimeError before `start`."""

    @property
    def torn_bytes(self) -> int:
        """Bytes that `start` cut from the log's end: a commit that was never acknowledged."""

    @property
    def log_bytes(self) -> int:
        """Bytes of the log's files. StorageError when one can't be measured."""

    @property
    def commits_behind(self) -> int:
        """Durable commits above the checkpoint."""

    def load_root(self, root: bytes | None) -> list[bytes]:
        """Takes the root's row, or None where the store has none. Gives the keys of the pages to load.

        Raises:
            DamagedData: it isn't what the manifest expects.
            FormatTooNew: a newer version wrote it.
        """

    def load_page(self, key: bytes, page: bytes | None) -> None:
        """Takes one page's row, or None where the store lacks it.

        Raises:
            DamagedData: it isn't the one that the root means.
        """

    def close_folder(self) -> None:
        """Unlocks the folder of one that was not started. Idempotent."""

    def roll_log(self) -> None:
        """Has the next commit begin a new file of the log, so that a checkpoint can drop the one before it."""

    def begin_fold(self) -> Fold | None:
        """Reads durable commits, as many as fit into the memory for it. None: there is nothing new."""

    def end_fold(self, fold: Fold) -> None:
        """The fold's root is safe in the store: tells the manifest, and drops the log below it that no pin holds."""

    def read_tail(
        self, identity: str | None, after: int, epoch: int, last_hash: int, index: int, *, upto: int, about_bytes: int
    ) -> tuple[Literal["records", "unknown", "late"], bytes]:
        """What there is for a replica from a place in the history on, up to commit `upto`, which is durable.

        Args:
            identity: of the shard that the place is of.
            after: the last commit that the replica has whole; 0: none.
            epoch: the newest epoch that it knows.
            last_hash: of that commit's last record.
            index: how many records of the next commit it has.
            upto: the newest commit to give.
            about_bytes: at least one record, if there is one.

        Returns:
            "records" and whole records; "unknown" and why the place isn't in this history; "late" where the log begins
            later.
        """

    def pin_log(self, after: int) -> int:
        """Keeps the log above commit `after`, as far as it is there still, until `unpin_log`. Gives the pin."""

    def move_pin(self, pin: int, after: int) -> None:
        """A pin needs only the log above commit `after` from now on."""

    def unpin_log(self, pin: int) -> None:
        """Ends a pin. What it kept goes with the next checkpoint."""

    def read_root(self, row: bytes) -> tuple[int, int, int, list[bytes]]:
        """What a checkpoint's root says: fold, commit, hash of the commit's last record, keys of the pages."""

@final
class ReadCache:
    """Values that were read lately, in two levels, for as long as nobody here has written them.

    A load takes `begin(key)` before it asks the shard, and gives it to `fill` with the value; a write calls `bump`
    when it is sent and again when it is settled. So `get` never gives a value whose load began before such a write.
    Any thread may use it. Keys are 1 to 1,024 bytes; a str is its UTF-8.

    Args:
        l1_entries, l1_ttl_s: most values in level 1, and how long they stay there.
        l2_entries, l2_ttl_s: most values at all, and how old they may grow.
        hot_reads, hot_ttl_s: a key read more often stays in level 1 for so long.
        cold_reads: a key read less often leaves first.
        bytes_max: bytes of the values and their keys.
        clock: for tests and simulations: seconds that only rise, asked at every call. None: the system's.

    Raises:
        ValueError: an argument isn't positive.
        BadKey (every method that takes a key): it is no key.
    """

    def __new__(
        cls,
        l1_entries: int = 10_000,
        l1_ttl_s: float = 1.0,
        l2_entries: int = 100_000,
        l2_ttl_s: float = 10.0,
        hot_reads: int = 1000,
        hot_ttl_s: float = 5.0,
        cold_reads: int = 10,
        bytes_max: int = 67_108_864,
        *,
        clock: Callable[[], float] | None = None,
    ) -> ReadCache: ...
    def get(self, key: str | bytes) -> int | None:
        """The value, or None if none is held that may be returned."""

    def lookup(self, key: str | bytes) -> tuple[int, float] | None:
        """The value and how many seconds ago it was loaded, or None."""

    def bump(self, key: str | bytes) -> None:
        """A write to this key is sent, or settled: values loaded before are no longer returned."""

    def bump_all(self) -> None:
        """A write to every key is sent, or settled."""

    def begin(self, key: str | bytes) -> int:
        """The key's version: to be asked for before the shard is, and given to `fill` with what the shard answers."""

    def fill(self, key: str | bytes, value: int, version: int) -> bool:
        """Keeps a value that was loaded since `version` was the key's version.

        Returns:
            False: the key was written since, or the value is beyond 64 bits, or there is no room.
        """

    def hottest(self, n: int) -> list[tuple[str | bytes, int]]:
        """Up to `n` of the keys whose values are held, those read most first: a list of (key, estimated reads)."""

    def clear(self) -> None:
        """Forgets all values."""

    def statistics(self) -> dict[str, int]:
        """What it has done since it was made (`l1_hits`, `l2_hits`, `misses`, of them `expired` and `stale`,
        `evictions`, `fills`, `fills_refused`) and holds now (`entries`, `l1_entries`, `bytes`): a new dict."""

@final
class Fold:
    """Commits read from the log, on their way into pages. For one thread."""

    @property
    def commit(self) -> int:
        """The last commit folded in."""

    @property
    def commits(self) -> int:
        """How many commits are folded in."""

    @property
    def steps(self) -> int:
        """How many pages are to be rewritten."""

    def old_key(self, step: int) -> bytes | None:
        """The row that `merge` needs for this step; None: no row."""

    def merge(self, step: int, old_page: bytes | None) -> list[tuple[bytes, bytes]]:
        """Merges a step's changes into its page. Gives the rows to put; none of them exists yet."""

    def finish(self) -> tuple[bytes, bytes, list[bytes]]:
        """All steps are merged: the root's key and row, to be put after the pages, and keys that are garbage then."""

@type_check_only
class _Manifest(TypedDict):
    name: str
    epoch: int
    created_at: int

@final
class FolderReader:
    """A shard's folder, or a backup, that is read and not changed. For one thread.

    In this order: `load_root`, `load_page` for each key that it gave, `read_log`; then the rest.

    Args:
        directory: the folder; locked while this is open, if it has a lock.
        backup_of: the identity of the shard whose backup it is; None: it is a shard's own folder.

    Raises:
        FolderLocked: a process has it open.
        FormatTooNew: a newer version wrote it.
    """

    def __new__(cls, directory: str | os.PathLike[str], *, backup_of: str | None = None) -> FolderReader: ...
    @property
    def manifest(self) -> _Manifest | None:
        """What the manifest says. None where it can't be read."""

    @property
    def identity(self) -> str:
        """Whose folder it is."""

    def load_root(self, root: bytes | None) -> list[bytes]:
        """Takes the root's row, or None. Gives the keys of the pages to load."""

    def load_page(self, key: bytes, page: bytes | None) -> None:
        """Takes one page's row, None where the store lacks it or can't give it."""

    def lose_checkpoint(self) -> None:
        """Nothing of the checkpoint can be read."""

    def read_log(self, on_bytes: Callable[[int], object]) -> None:
        """Reads the log. `on_bytes` is told now and then how many bytes were read; what it raises ends the reading."""

    @property
    def damage(self) -> list[tuple[str, Path | None, tuple[int, int] | None]]:
        """What is wrong: a sentence, the file, and its bytes from and to."""

    @property
    def figures(self) -> dict[str, int]:
        """Figures, after everything was read."""

    @property
    def log_bytes(self) -> int:
        """Bytes of the log's files."""

    @property
    def lost(self) -> list[tuple[int, int]]:
        """Commits that were there and can't be read: first and last of each run."""

    @property
    def torn(self) -> tuple[Path, int, int] | None:
        """The torn end of the log: file, bytes to keep, bytes to cut."""

    @property
    def only_foreign_files(self) -> list[Path] | None:
        """Files in the log's folder that no journal made; None if anything else is wrong."""

    @property
    def parts(self) -> int:
        """How many parts the counters come in."""

    def part_key(self, part: int) -> bytes | None:
        """The key of the row that a part needs; None: no row."""

    def read_part(self, part: int, row: bytes | None) -> list[tuple[bytes, int]]:
        """The counters of a part."""

    def count_part(self, part: int, row: bytes | None) -> int:
        """How many counters a part has."""

    def close(self) -> None:
        """Unlocks the folder. Idempotent."""

@final
class FolderWriter:
    """A shard's folder that is made from counters. For one thread. Nothing is written before `finish`.

    Args:
        directory: the folder.
        name: the shard's.
        uptime_ms: of the shard that the counters come from.
    """

    def __new__(cls, directory: str | os.PathLike[str], name: str, uptime_ms: int) -> FolderWriter: ...
    @property
    def identity(self) -> str:
        """The new shard's."""

    def copy(self, reader: FolderReader, part: int, row: bytes | None) -> list[tuple[bytes, bytes]]:
        """Takes a part's counters, in order. Gives rows to put."""

    def finish_rows(self) -> tuple[list[tuple[bytes, bytes]], bytes, bytes]:
        """All parts were copied: the last rows to put, and then the root's key and row."""

    def finish(self) -> None:
        """The rows are in their store, which is closed: makes all of it durable and writes the manifest."""

@type_check_only
class _Owner(Protocol):
    def attend(self) -> None: ...

@final
class Shard(JournaledFolder):
    """One shard's engine, for the event loop that owns it.

    Args:
        directory: the shard's folder; made if missing, and locked.
        name: given to a new folder.
        level: of operations that name none: a reply leaves once its change is "applied" or "durable".
        server_version: what `hello` says.
        tokens: clients must send one of them first; without any, nobody needs one.
        segment_bytes: the log begins a new file after so many.
        ring: of the shards that this one is among by its name; it lists the counters that aren't at home.
        simulated: where the folder is, in a simulation; then there is no commit thread, and `commit_step` commits.

    All sizes are bytes, all times seconds.

    Raises:
        FolderLocked: another process has the folder.
        FormatTooNew, DamagedData, StorageError: what is in the folder can't be used.
        ValueError: a setting is out of range.
    """

    def __new__(
        cls,
        directory: str | os.PathLike[str],
        *,
        name: str = "shard-0",
        level: str = "durable",
        server_version: str = "",
        tokens: Sequence[bytes] = (),
        segment_bytes: int = 67108864,
        frame_bytes_max: int = 1048576,
        input_bytes_max: int = 268435456,
        connections_max: int = 10000,
        reply_bytes_max: int = 4194304,
        held_bytes_max: int = 268435456,
        counters_bytes_max: int = 8589934592,
        dirty_counters_max: int = 1048576,
        sessions_max: int = 100000,
        results_per_session_max: int = 10000,
        session_bytes_max: int = 268435456,
        ids_bytes_max: int = 268435456,
        session_window_s: float = 604800.0,
        id_window_s: float = 120.0,
        flush_interval_s: float = 1.0,
        ring: HashRing | None = None,
        simulated: SimulatedDisk | None = None,
    ) -> Shard: ...
    @property
    def wake_fd(self) -> int:
        """Readable once a commit has ended: `loop.add_reader(fd, on_wake)`."""

    def start(self, call_soon: Callable[..., object]) -> int:
        """Replays the log and starts the commit thread. Gives the number of commits replayed.

        Raises:
            DamagedData: the log is damaged; the folder is as it was.
        """

    def commit(self) -> bool:
        """Drains what changed into one commit unless one is in flight. The engine schedules this by itself."""

    def commit_step(self) -> bool | None:
        """On a simulated disk: tries to append the commit in flight. True: it is durable. None: there was none."""

    def commit_in_flight(self) -> bool:
        """Is a commit on its way to the disk?"""

    @property
    def failure(self) -> str | None:
        """Why the disk refuses, while it does."""

    @property
    def unwritten_counters(self) -> int:
        """Counters whose changes aren't on disk."""

    def release(self) -> list[tuple[Any, bytes]]:
        """Clears `wake_fd` and gives (owner, bytes to write) for each connection whose replies may go."""

    def connect(self, owner: _Owner, address: str = "") -> Connection:
        """Begins a connection. `owner.attend()` is called on the loop when the connection needs a look.

        `address` is the client's, for CLIENT LIST.
        """

    def tick(self) -> None:
        """Housekeeping, about every 100 ms: expiry, and write-behind of `applied` changes."""

    def set_tokens(self, tokens: Sequence[bytes]) -> None:
        """Replaces the tokens of which clients must send one first. Who is connected stays so."""

    def set_topology(self, address: str) -> None:
        """What `topology` answers: this shard alone, at `address`."""

    def topology(self) -> bytes:
        """What `topology` answers, as an encoded value."""

    def report(
        self,
        *,
        checkpoints: int,
        checkpoints_failed: int,
        checkpoint_failure: str | None,
        log_bytes: int,
        connections_refused: int,
    ) -> None:
        """What only the server counts, for `stats`, `health` and INFO. `checkpoint_failure`: of the last attempt."""

    def health(self) -> dict[str, str | int]:
        """`state` is "ok" or "read_only"; then `reason` says why. `checkpoint_failure`: if the last attempt failed."""

    def stats(self) -> dict[str, str | int]:
        """Every figure that the shard counts, by name."""

    def durable_commit(self) -> int:
        """The newest commit that is on disk."""

    def is_settled(self) -> bool:
        """Is everything on disk, and every reply out?"""

    def wait_durable(self, timeout_s: float) -> bool:
        """Commits until everything is on disk, at most so many seconds. False: the time ran out."""

    def stop(self) -> None:
        """Ends the commit thread and unlocks the folder. Idempotent."""

@final
class Replica:
    """Another shard's counters, kept up with it in memory, and reads of them, for the event loop that owns it.

    Whoever owns it asks the primary (`tail`, see `docs/wire.md`) from `place` on, and hands on the answers here.

    Args:
        call_soon: the loop's.
        name: the replica's own.
        primary: the address of the shard that it follows, as `health` shows it.
        tokens: clients must send one of them first; without any, nobody needs one.
        counters_bytes_max: memory of counters; twice that while a state is taken in beside an old one.

    Raises:
        DamagedData: from whatever takes records or pages: they aren't what comes next. Begin `anew`.
        StorageError: likewise: they don't fit into `counters_bytes_max`.
    """

    def __new__(
        cls,
        call_soon: Callable[..., object],
        *,
        name: str,
        primary: str,
        server_version: str = "",
        tokens: Sequence[bytes] = (),
        frame_bytes_max: int = 1048576,
        input_bytes_max: int = 268435456,
        connections_max: int = 10000,
        reply_bytes_max: int = 4194304,
        held_bytes_max: int = 268435456,
        counters_bytes_max: int = 8589934592,
    ) -> Replica: ...
    def connect(self, owner: _Owner, address: str = "") -> Connection:
        """Begins a client's connection. `owner.attend()` is called on the loop when the connection needs a look."""

    @property
    def place(self) -> tuple[str | None, int, int, int, int]:
        """What to ask the primary for next: identity (None: there is no state), after, epoch, hash, index."""

    def primary(self, identity: str, shard: str, epoch: int) -> None:
        """Who the primary says that it is; another one than before: the state is dropped."""

    def anew(self) -> None:
        """Drops the state: the primary doesn't know it."""

    def begin_checkpoint(self) -> None:
        """Begins to take in a checkpoint. What is here answers until that has caught up."""

    def page(self, row: bytes) -> None:
        """Takes in a page of the checkpoint."""

    def end_checkpoint(self, commit: int, last_hash: int) -> None:
        """All pages are in, and with them everything up to this commit, whose last record has this hash."""

    def records(self, records: bytes) -> int:
        """Takes in whole records. Gives the last whole commit."""

    def heard(self, durable: int, age_s: float) -> None:
        """Commit `durable` was the primary's newest `age_s` ago: if it is here, reads are answered; that's the lag."""

    def lost(self, reason: str, ended: bool) -> None:
        """The primary can't be reached; `ended`: its process has ended, and so the lag stays what it is."""

    def tick(self) -> None:
        """Housekeeping, about every 100 ms."""

    def set_tokens(self, tokens: Sequence[bytes]) -> None:
        """Replaces the tokens of which clients must send one first. Who is connected stays so."""

    def set_topology(self, address: str) -> None:
        """Where this replica serves, for `topology`."""

    def topology(self) -> bytes:
        """What `topology` answers, as an encoded value."""

    def report(self, connections_refused: int) -> None:
        """What only the server counts."""

    def health(self) -> dict[str, str | int]:
        """`state` is "starting" until it has caught up once, then "ok"; `lag_ms` is there with "ok"."""

    def stats(self) -> dict[str, str | int]:
        """Every figure that it counts, by name."""

    def stop(self) -> None:
        """Drops everything. Idempotent."""

@final
class SimulatedDisk:
    """Files and clock of a simulated shard: nothing leaves memory, and a seed decides what failing power leaves.

    A shard on it that was killed is opened again as `Shard(directory, simulated=disk)`.

    Args:
        seed: of every decision, and of the identity of a shard that is made here.
    """

    def __new__(cls, seed: int) -> SimulatedDisk: ...
    def set_clock(self, elapsed_s: float) -> None:
        """Sets the clock of shards on this disk, to seconds after its beginning."""

    @property
    def operations(self) -> int:
        """How many file operations there were."""

    def fail_next(self, count: int) -> None:
        """Has the next so many operations fail, each done in part or not at all; 0: no more fail."""

    def die_after(self, count: int) -> None:
        """Has the process die in so many operations from now: that one is done in part, the later ones not at all."""

    def kill(self) -> None:
        """The process is gone: what it wrote is there. Faults end."""

    def crash(self) -> None:
        """The power fails: of what was not fsynced anything may be there. Faults end."""

@final
class Connection:
    """A client's connection: unparsed input, replies that wait, and what the protocol remembers."""

    @property
    def closing(self) -> bool:
        """Write what is left, then close."""

    @property
    def crowded(self) -> bool:
        """Stop reading until this is false again."""

    @property
    def reads_on(self) -> bool:
        """May it be read from though the client reads nothing? Then `crowded` decides as ever."""

    def note_unread(self, unread: bool) -> None:
        """The client reads nothing, or goes on reading: then `feed` must be called, with nothing if need be."""

    @property
    def owed(self) -> bool:
        """Is there a reply that the client still has to get?"""

    @property
    def authenticated(self) -> bool:
        """Has the client sent the token, or is none needed?"""

    @property
    def protocol(self) -> str:
        """ "msgpack-rpc", "resp2", "resp3", or "" before the first byte."""

    def feed(self, data: bytes) -> bytes | None:
        """Takes a chunk as it came from the socket: one call a chunk. Gives what to write at once.

        `feed(b"")` goes on with input that was left because replies piled up, or its turn was over.
        """

    def finish(self) -> None:
        """The client sends nothing more: what it sent is still answered, then `closing` is true."""

    def take_requests(self) -> list[tuple[int | None, str, Any]]:
        """Rare requests that Python answers: (msgid or None, method, argument).

        The argument is a backup's folder, the known version of the topology, or what a replica has and wants by name.
        """

    def reply(self, msgid: int, error: str | None, result: bytes | None) -> bytes:
        """The encoded answer to such a request: `error` is "code: message", or `result` an encoded value."""

    def shutdown(self) -> None:
        """The transport is gone: drops what the client was owed. Idempotent."""

@final
class Router:
    """The hot path of a coordinator: raw clients' requests to shards and back, for the event loop that owns it.

    Shards are numbered as `ring.shards` lists them: in the order of their names' bytes.

    Args:
        ring: which shard is a key's home.
        foreign: a `ForeignKeys` for as many shards: which keys other shards than the home may hold.
        cache: a `ReadCache` for reads that ask for `accuracy: cached`, used by this thread alone; None: shards answer.
        clock: seconds of a clock that never goes back, the loop's `time`.
        level: of operations that name none; the shards' level has to be the same.
        server_version: what `hello` says, and ...
        name: ... this coordinator's, and ...
        identity: ... the cluster's.
        tokens: clients must send one of them first, and shards are sent the first; without any, nobody needs one.
        strict: keys that begin so are served by their home only.
        queue_bytes_max: of increments and calls that wait for one shard; what comes beyond is `overloaded`.
        request_timeout_s: what isn't answered after it is `unavailable` if it was never sent, else `deadline`.
        new_session_id: makes 16 random bytes; None: the system's random numbers.

    The other bounds are a shard's; a session's are a `SessionClient`'s. Not thread-safe, but for `stats`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __new__(
        cls,
        ring: HashRing,
        foreign: ForeignKeys,
        cache: ReadCache | None = None,
        *,
        clock: Callable[[], float],
        level: str = "durable",
        server_version: str = "",
        name: str = "coordinator-0",
        identity: str = "",
        tokens: Sequence[bytes] = (),
        strict: Iterable[bytes] = ...,
        frame_bytes_max: int = 1048576,
        input_bytes_max: int = 268435456,
        connections_max: int = 10000,
        reply_bytes_max: int = 4194304,
        held_bytes_max: int = 268435456,
        queue_bytes_max: int = 67108864,
        request_timeout_s: float = 2.0,
        batch_operations_max: int = 1000,
        batch_bytes_max: int = 524288,
        batches_in_flight_max: int = 8,
        window_operations_max: int = 9000,
        new_session_id: Callable[[], bytes] | None = None,
    ) -> Router: ...
    def start(self, call_soon: Callable[..., object], on_flush: Callable[[], object]) -> None:
        """Goes to work: `call_soon(on_flush)` when `flush` has something to give, `call_soon(owner.attend)` too."""

    def stop(self) -> None:
        """Calls nothing any more. Idempotent."""

    def connect(self, owner: _Owner, address: str = "") -> RouterConnection:
        """Begins a client's connection. `owner.attend()` is called on the loop when the connection needs a look."""

    def link(self, shard: int) -> RouterLink:
        """The one connection to a shard, to be told what becomes of it. IndexError: there is no such shard."""

    def flush(self) -> list[tuple[Any, bytes]]:
        """(owner, bytes to write) for links and clients' connections that have something to send."""

    def set_serving(self, serving: Sequence[tuple[float, int]]) -> None:
        """For each shard its serving weight (1.0, 0.5; 0.0 is a dead one), and who takes what it doesn't, or -1.

        ValueError: not one for each shard, or no such shard to take it.
        """

    def set_tokens(self, tokens: Sequence[bytes]) -> None:
        """Replaces the tokens of clients; shards are sent the first from their next connection on."""

    def set_topology(self, topology: bytes) -> None:
        """What `topology` answers: the encoded document."""

    def tick(self, now: float) -> None:
        """Housekeeping, about every 50 ms: requests whose time ran out. `now` is the clock's."""

    def is_settled(self) -> bool:
        """Is no client owed a reply, and no shard's answer missing?"""

    def take_unserved(self, *, unsent: bool = False) -> list[tuple[bytes, int]]:
        """Increments that came as notifications and that no shard takes: (key, delta), for the host to keep.

        None of them was sent. With `unsent` also those that wait for a shard: the router ends.
        """

    def forget(self, key: bytes | None) -> None:
        """A removal of a key's counter, or of all counters, is settled: what shards were known to hold is gone."""

    def set_port(self, port: int) -> None:
        """The port that clients reach it at, for INFO."""

    def info(self, sections: Sequence[bytes], keyspace: str) -> str:
        """The text of INFO's sections; all of them where none is named. `keyspace` is what stands in that one."""

    def samples(self) -> list[tuple[int, float, bool]]:
        """(shard, seconds until it answered, was it no error) since the last call; at most some hundred."""

    def stats(self) -> dict[str, str | int]:
        """Every figure that the router counts, by name. Any thread may ask."""

@final
class SessionLink:
    """A client's connection to one shard and the exactly-once session on it, for the event loop that owns it.

    It holds the futures of its callers. Times are seconds on `clock`.
    """

    def __new__(
        cls,
        *,
        clock: Callable[[], float],
        level: str = "durable",
        token: bytes | None = None,
        client: str = "pycounter",
        passage_to: str | None = None,
        timeout_s: float = 60.0,
        pending_operations_max: int = 50_000,
        gather_operations_max: int = 100,
        gather_s: float = 0.01,
        batch_operations_max: int = 1000,
        batch_bytes_max: int = 524_288,
        batches_in_flight_max: int = 8,
        window_operations_max: int = 9000,
        unconfirmed_operations_max: int = 200_000,
        reply_bytes_max: int = 67_108_864,
        backoff_first_s: float = 0.05,
        backoff_max_s: float = 1.0,
        silence_timeout_s: float = 30.0,
        session_window_s: float = 518_400.0,
        samples_max: int = 0,
        new_session_id: Callable[[], bytes] | None = None,
    ) -> SessionLink: ...
    def start(self, call_soon: Callable[[Callable[[], None]], object], on_flush: Callable[[], None]) -> None:
        """Starts: asks `call_soon` to call `on_flush` once in each turn that has something to flush."""

    def stop(self) -> None:
        """Calls nothing any more. Idempotent."""

    def incr(
        self,
        key: str | bytes,
        delta: int,
        future: Future[Any],
        level: str | None = None,
        detail: bool = False,
        timeout_s: float | None = None,
    ) -> int:
        """Adds to a counter. The future gets the value, or (value, level, commit) with `detail`.

        Returns the slot for `abandon`, or -1 if there is no room and nothing was done.

        Raises:
            BadKey, BadDelta: it can't be sent.
        """

    def incr_many(
        self, items: Iterable[object], future: Future[Any], level: str | None = None, timeout_s: float | None = None
    ) -> int:
        """Adds to many counters: pairs of key and delta. The future gets a list: each item's value, or its error.

        It doesn't check for room: see `fits`.
        """

    def call(
        self,
        method: str,
        params: bytes,
        repeat: str,
        future: Future[Any],
        timeout_s: float | None = None,
        id_window_s: float = 110.0,
    ) -> int:
        """Sends any other request; `params` is an encoded array. The future gets the encoded result.

        `repeat` says when to send it again if no reply comes: `always`, `same_shard` (for `id_window_s`) or `never`.
        """

    def confirm(self, future: Future[Any], timeout_s: float | None = None) -> int:
        """The future gets None once all that is acknowledged now is durable, or reported as lost."""

    def abandon(self, slot: int, future: Future[Any]) -> None:
        """Stops waiting for this future: an unsent operation is taken back, a sent one stays until it is settled."""

    def fits(self, count: int) -> bool:
        """Whether there is room for this many increments. A list larger than all room goes alone."""

    def withdraw(self, share: float, refusal: Callable[[], Exception]) -> int:
        """Takes back this share of the unsent increments; their futures fail with what `refusal` returns."""

    def connected(self) -> None:
        """A connection was made: `flush` gives what to write first."""

    def feed(self, data: bytes) -> None:
        """Takes a chunk from the shard, and settles futures. What may be sent then leaves at the end of the turn.

        Raises:
            ConnectionError: the shard sent nonsense. RpcError: it refused the greeting. WrongShard: it is another.
                The connection can't be used any more: close it, and call `lost`.
        """

    def flush(self) -> bytes | None:
        """The bytes to write now."""

    def tick(self) -> bytes | None:
        """Handles deadlines that have passed, and returns the bytes to write now."""

    def next_wake(self) -> float | None:
        """Seconds until `tick` is due, if that is sooner than it said before."""

    def lost(self, reason: str) -> None:
        """Reports that the connection ended or couldn't be established, and why."""

    def expect_identity(self, identity: str) -> None:
        """Sets the only identity to accept from now on."""

    def goodbye(self) -> bytes:
        """The bytes that end a settled session; write them before closing the connection."""

    def give_up(self, reason: str, refusal: str) -> None:
        """Gives up: sent operations fail as unknown, the rest with `refusal`, which is `code: message`."""

    @property
    def ready(self) -> bool:
        """Whether the shard has identified itself on the current connection."""

    @property
    def silent(self) -> bool:
        """Whether replies are due and nothing has arrived for so long that the connection should be closed."""

    @property
    def identity(self) -> str | None:
        """The shard's, once it was met."""

    @property
    def epoch(self) -> int | None:
        """The shard's, which rises with each start of its process."""

    @property
    def commit_seen(self) -> int:
        """The newest commit that holds an increment of the session; 0 if none."""

    @property
    def session_id(self) -> bytes:
        """The present session's id."""

    @property
    def unsettled(self) -> int:
        """Increments that were accepted and not settled."""

    @property
    def pending(self) -> int:
        """Unsettled increments that were sent."""

    @property
    def unconfirmed(self) -> int:
        """Increments that were acknowledged at `applied` and are not known to be durable."""

    @property
    def success_rate(self) -> float:
        """The share of the latest increments that didn't fail with their batch; 1.0 where there are none."""

    def in_flight_s(self) -> float | None:
        """Seconds that the oldest batch in flight has waited; None if none is in flight."""

    @property
    def last_error(self) -> str:
        """Why the last connection ended, or what the shard last refused for now; may be empty."""

    @property
    def news(self) -> bool:
        """Whether `lost_tails`, `given_up` or `samples` has anything new."""

    def unknown(self) -> list[tuple[str | bytes, int, float, int]]:
        """Increments that were sent and whose outcome nobody knows now.

        Each as key, delta, seconds since it was sent, and the mark of its batch. A mark that is gone is settled.
        """

    def given_up(self) -> list[tuple[str | bytes, int, float, bool]]:
        """Increments given up since the last call, with nobody waiting: key, delta, age, whether it is unknown."""

    def lost_tails(self) -> list[tuple[bytes, int, int, list[tuple[str | bytes, int]]]]:
        """Increments acknowledged at `applied` and lost in a crash: session, first and last number, operations."""

    def samples(self) -> list[tuple[float, str | None]]:
        """Each batch since the last call: its latency in seconds, and the code of its refusal."""

    def statistics(self) -> dict[str, int]:
        """Figures since it was made, by name."""

@final
class RouterLink:
    """A coordinator's one connection to a shard. It holds the session there, which outlives the connection."""

    def connected(self, owner: Any) -> None:
        """There is a connection: `flush` gives what to write on it, as (owner, bytes)."""

    def feed(self, data: bytes) -> list[tuple[Any, bytes]]:
        """Takes a chunk from the shard. Gives (owner, bytes to write) for clients' connections.

        Raises:
            ValueError: the shard broke the protocol: drop the connection, `lost` comes then.
        """

    def lost(self) -> None:
        """The connection is gone. What was never sent waits for the next one, until its time runs out."""

    def note_error(self, error: str) -> None:
        """Why no connection could be made: told to those whose time runs out."""

    def goodbye(self) -> bytes:
        """The end of a settled session, to be written before the connection is closed. Nothing may be asked then."""

    @property
    def ready(self) -> bool:
        """Is it connected, and has the shard said hello?"""

    @property
    def silent(self) -> bool:
        """Whether replies are due and nothing has arrived for so long that the connection should be closed."""

    @property
    def identity(self) -> str | None:
        """The shard's, as it said hello."""

    @property
    def commit_seen(self) -> int:
        """The newest commit of the shard that holds an increment of the session, as far as it was answered; 0: none."""

    def status(self) -> dict[str, str | int]:
        """`ready`, `identity`, `epoch`, `last_error` and figures, by name."""

@final
class RouterConnection:
    """A raw client's connection at a coordinator."""

    @property
    def closing(self) -> bool:
        """Write what is left, then close."""

    @property
    def crowded(self) -> bool:
        """Stop reading until this is false again."""

    @property
    def reads_on(self) -> bool:
        """May it be read from though the client reads nothing? Then `crowded` decides as ever."""

    def note_unread(self, unread: bool) -> None:
        """The client reads nothing, or goes on reading: then `feed` must be called, with nothing if need be."""

    @property
    def owed(self) -> bool:
        """Is there a reply that the client still has to get? One to `watch_topology` doesn't count."""

    @property
    def authenticated(self) -> bool:
        """Has the client sent the token, or is none needed?"""

    @property
    def protocol(self) -> str:
        """ "msgpack-rpc", "resp2", "resp3", or "" before the first byte."""

    def feed(self, data: bytes) -> bytes | None:
        """Takes a chunk as it came from the socket: one call a chunk. Gives what to write at once.

        `feed(b"")` goes on with input that was left because replies piled up.
        """

    def finish(self) -> None:
        """The client sends nothing more: what it sent is still answered, then `closing` is true."""

    def take_requests(self) -> list[tuple[int, str, bytes, str]]:
        """Rare requests that Python answers, each by one call of `answer`: (token, method, params, protocol).

        `params` is an encoded array. From MessagePack-RPC ("msgpack-rpc") it is the client's, checked: `total`,
        `total_many`, `drain`, `delete`, `delete_all`, `scan`, `top`, `stats`, `health`, `watch_topology`, `backup`;
        also `get` and `get_many` when a shard that may hold the key is dead. A request waits until all before it are
        answered, but for `stats`, `health` and `watch_topology`. `passage` with the number of a shard is a `hello` that
        names the shard: `hand_over` follows, or an `answer` that says why not and ends the connection.

        From RESP ("resp2", "resp3") what comes behind it waits until it is answered, and params and results are:

        | method | params | result |
        | --- | --- | --- |
        | get | [key] | the value, or nil where there is no counter |
        | mget | keys | an array of such |
        | exists | keys | how many |
        | scan | [cursor, count, pattern or nil, other_type] | [next cursor, [key, ...]] |
        | dbsize | [] | how many |
        | type | [key] | does it exist: true or false |
        | flushall | [] | anything |
        | info | sections, Keyspace among them | the text |

        `other_type` is true where TYPE asked for something that isn't a string: nothing matches.
        """

    def answer(self, token: int, error: str | None, result: bytes) -> bytes | None:
        """Answers such a request: `error` is "code: message", or `result` one encoded value.

        Gives what to write at once. None: nothing, the connection may be gone.
        """

    def hand_over(self) -> tuple[bytes, bool] | None:
        """Ends a connection that asked for a `passage`, if it still waits for one.

        Gives what the shard is to be sent first, the `hello` as it came and all behind it; and whether the client has
        finished.
        """

    def shutdown(self) -> None:
        """The transport is gone: drops what the client was owed. Idempotent."""

@final
class LoadReport:
    """What came out of a run: each operation sent is right, an error, or unanswered."""

    @property
    def operations(self) -> int:
        """Operations that were answered, and rightly."""

    @property
    def errors(self) -> int:
        """Operations that were answered with an error, or with what can't be an answer."""

    @property
    def unanswered(self) -> int:
        """Operations that were sent and never answered."""

    @property
    def first_error(self) -> str | None:
        """What went wrong first."""

    @property
    def seconds(self) -> float:
        """From the first request to the last reply."""

    @property
    def per_second(self) -> float:
        """Right answers a second."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time of the generating thread."""

    @property
    def p50_us(self) -> float:
        """The median latency, from when a request's batch was sent to when its reply was read."""

    @property
    def p99_us(self) -> float: ...
    @property
    def p999_us(self) -> float: ...
    @property
    def max_us(self) -> float: ...

@final
class LoadGenerator:
    """Loads a server of counters and checks every reply.

    Each connection sends `pipeline` requests, waits for all their replies, and sends the next.

    Args:
        protocol: memcached's are its meta commands. Only "msgpack-rpc" has "incr-with-id" and "apply".
        operation: "apply" sends increments of a session of each connection, `batch` in a request; an operation is one.
        keys: how many there are to choose from, up to 100,000,000. Each has 16 bytes.
        order: "sequential": one after the other, so that as many operations as keys touch each once.
        operations: the run ends after so many ...
        seconds: ... or begins nothing more after this time. One of the two has to be given.

    Raises:
        ValueError: what can't be run.
    """

    def __new__(
        cls,
        host: str,
        port: int,
        *,
        protocol: Literal["resp", "msgpack-rpc", "memcached"] = "resp",
        operation: Literal["incr", "incr-with-id", "apply", "get"] = "incr",
        connections: int = 50,
        pipeline: int = 1,
        batch: int = 100,
        keys: int = 100_000,
        order: Literal["uniform", "sequential"] = "uniform",
        operations: int | None = None,
        seconds: float | None = None,
        seed: int = 1,
    ) -> Self: ...
    def run(self) -> LoadReport:
        """Runs the workload on the calling thread, without the interpreter's lock.

        It ends after 30 seconds without any reply. A signal's exception ends it too.

        Raises:
            OSError: a connection can't be made.
        """

    def stop(self) -> None:
        """Has `run` end soon, from another thread: replies under way are waited for."""

@final
class ConstantReplies:
    """The floor of a server: one connection whose increments are parsed and all answered by 1."""

    def __new__(cls) -> Self: ...
    def feed(self, data: bytes) -> bytes:
        """The replies to a chunk of a connection's bytes. Raises ValueError for other requests than increments."""

def serve_constant_replies(port: int) -> None:
    """Serves constant replies on 127.0.0.1 until a signal's exception: what it reaches is LoadGenerator's ceiling."""
