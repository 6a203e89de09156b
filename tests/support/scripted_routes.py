"""Shards in memory behind the interface that reads, removals and listings see. Each does what the test says.

A call takes as many turns of the loop as `turns` says, so that it can be cancelled in the middle: before it counts, and
between that and its reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from pycounter.errors import DeadlineExceeded, IdReused, Unavailable, UnknownOutcome

#: What a script puts in the way of a call: before it counts ...
REFUSE = "refuse"
#: ... after it, the reply is lost ...
LOSE = "lose"
#: ... or it is never sent on, and the time runs out.
STALL = "stall"
CHANGES = ("incr", "drain", "delete", "delete_all", "delete_many")


class ScriptedShard:
    """One shard or replica: its counters, its ids, and what it is asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters: dict[bytes, int] = {}
        self.ids: dict[bytes, tuple[tuple[object, ...], int]] = {}
        #: (method, params) as they came.
        self.requests: list[tuple[str, tuple[Any, ...]]] = []
        #: What happens to the next calls: one of the words above, an error to be raised before it counts, or a function
        #: that is called with method and params, and None for nothing.
        self.script: list[Any] = []
        self.always: Any = None
        self.turns = 1
        #: Calls that counted, their replies sent or not.
        self.handled = 0
        self.foreign: set[bytes] = set()
        self.is_home: Callable[[bytes], bool] = lambda key: True
        self.foreign_all = False
        self.is_down = False
        self.is_unwell = False
        #: Its newest commit, of a replica; of a shard, the newest that its clients have seen.
        self.commit_seen = 0
        self.commits = 0
        self.time_ms: int | None = 1_000_000
        #: It stood still for so long since it was greeted: who reckons its clock on is ahead of it by this.
        self.stood_still_ms = 0
        #: So many questions for its time get no answer.
        self.times_untold = 0
        #: Of a replica.
        self.lag_ms = 0
        self.page = 3
        #: What `delete_many` answers of these keys instead of deleting them.
        self.refused: dict[bytes, str] = {}

    async def call(self, method: str, *params: Any, timeout_s: float) -> Any:
        """Part of ShardCaller."""
        assert timeout_s > 0
        self.requests.append((method, params))
        fate = self.script.pop(0) if self.script else self.always
        if callable(fate) and not isinstance(fate, type):
            fate = fate(method, params)
        await self._pass_turns()
        if isinstance(fate, Exception):
            raise fate
        if fate == REFUSE:
            raise Unavailable(f"{self.name} can't be reached: nothing was applied")
        if fate == STALL:
            await asyncio.sleep(timeout_s)
            raise DeadlineExceeded(f"{self.name} did not answer in time")
        result = self.handle(method, list(params))
        if method in CHANGES:
            self.commits += 1
            if isinstance(params[-1], dict) and params[-1].get("detail"):
                name = "values" if method == "delete_many" else "value"
                result = {name: result, "exact": True, "level": "durable", "commit": self.commits}
        self.handled += 1
        await self._pass_turns()
        if fate == LOSE:
            raise UnknownOutcome(f"{self.name} was sent it, and the connection ended")
        return result

    def _place(self, key: bytes) -> int:
        return 1 + int.from_bytes(blake2b(key, key=self.name.encode(), digest_size=4).digest()) // 2

    async def _pass_turns(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    def count(self, *methods: str) -> int:
        """How many requests of these methods came."""
        return sum(method in methods for method, _ in self.requests)

    def handle(self, method: str, params: list[Any]) -> Any:
        """What the shard answers when nothing is in the way."""
        options = params.pop() if params and isinstance(params[-1], dict) else {}
        if "min_commit" in options and self.commit_seen < options["min_commit"]:
            raise Unavailable("min_commit is above the newest commit")
        absent = None if options.get("or_nil") else 0
        match method, params:
            case "get", [key]:
                return self.counters.get(key, absent)
            case "get_many", [keys]:
                return [self.counters.get(key, absent) for key in keys]
            case "incr", [key, delta]:
                return self._once(options, ("incr", key, delta), lambda: self.add(key, delta))
            case "drain", [key]:
                return self._once(options, ("drain", key), lambda: self._drain(key))
            case "delete", [key]:
                return self._once(options, ("delete", key), lambda: self.counters.pop(key, 0))
            case "delete_many", [items]:
                return [self._delete_item(key, number) for key, number in items]
            case "delete_all", []:
                return self._once(options, ("delete_all",), self._delete_all)
            case "scan" | "scan_foreign", [cursor, count, prefix]:
                # As a shard does: in the order of a hash of its own, and a cursor is the first hash not yet visited.
                places = sorted((self._place(key), key) for key in self.counters if self._place(key) >= cursor)
                page, rest = places[: min(count, self.page)], places[min(count, self.page) :]
                wanted = [key for _, key in page if key.startswith(prefix)]
                found = [[key, self.counters[key]] for key in wanted if method == "scan" or not self.is_home(key)]
                return [rest[0][0] if rest else 0, found]
            case "top", [n, prefix]:
                rows = [(key, value) for key, value in self.counters.items() if key.startswith(prefix)]
                return [list(row) for row in sorted(rows, key=lambda row: (-row[1], row[0]))[:n]]
            case "health", []:
                foreign = {"count": len(self.foreign), "from": 0, "hashes": b"", "all": self.foreign_all}
                return {"state": "ok", "epoch": 1, "foreign": foreign}
            case "stats", []:
                return {"counters": len(self.counters)}
        raise AssertionError((method, params))

    def add(self, key: bytes, delta: int) -> int:
        """An increment by whomever."""
        self.counters[key] = self.counters.get(key, 0) + delta
        return self.counters[key]

    def _drain(self, key: bytes) -> int:
        taken = self.counters.get(key, 0)
        if key in self.counters:
            self.counters[key] = 0
        return taken

    def _delete_item(self, key: bytes, number: bytes) -> int | str:
        if key in self.refused:
            return self.refused[key]
        return self._once({"id": number}, ("delete", key), lambda: self.counters.pop(key, 0))

    def _delete_all(self) -> int:
        count = len(self.counters)
        self.counters.clear()
        return count

    def _once(self, options: dict[str, Any], print_: tuple[object, ...], apply: Callable[[], int]) -> int:
        if (number := options.get("id")) is None:
            return apply()
        if number in self.ids:
            known, result = self.ids[number]
            if known != print_:
                raise IdReused("this id belongs to another operation")
            return result
        self.ids[number] = (print_, apply())
        return self.ids[number][1]


class ScriptedRoutes:
    """A cluster of such shards. A key's home is its first byte modulo their number. It is its own ForeignKeys."""

    def __init__(self, shards: int, replicas: int = 0) -> None:
        self.shards: Sequence[ScriptedShard] = [ScriptedShard(f"shard-{number}") for number in range(shards)]
        for number, shard in enumerate(self.shards):
            shard.is_home = lambda key, number=number: self.home(key) == number  # type: ignore[misc]
        self.copies = [
            [ScriptedShard(f"replica-{number}-{copy}") for copy in range(replicas)] for number in range(shards)
        ]
        self.known: set[tuple[int, bytes]] = set()

    def home(self, key: bytes) -> int:
        return key[0] % len(self.shards)

    def replicas(self, shard: int) -> Sequence[ScriptedShard]:
        return self.copies[shard]

    def is_down(self, shard: int) -> bool:
        return self.shards[shard].is_down

    def is_unwell(self, shard: int) -> bool:
        return self.shards[shard].is_unwell

    def time_ms(self, shard: int) -> int | None:
        told = self.shards[shard].time_ms
        return None if told is None else told + self.shards[shard].stood_still_ms

    async def ask_time_ms(self, shard: int, *, timeout_s: float) -> int | None:
        assert timeout_s > 0
        one = self.shards[shard]
        if one.times_untold:
            one.times_untold -= 1
            raise Unavailable(f"{one.name} didn't say what time it is")
        return one.time_ms

    def commit_seen(self, shard: int) -> int:
        return self.shards[shard].commit_seen

    def note_commit(self, shard: int, commit: int) -> None:
        self.shards[shard].commit_seen = max(commit, self.shards[shard].commit_seen)

    # --- ForeignKeys -----------------------------------------------------------------------------------------------

    def holders(self, key: bytes) -> tuple[int, ...]:
        return tuple(sorted(shard for shard, known in self.known if known == key and shard != self.home(key)))

    def is_foreign(self, key: bytes) -> bool:
        return bool(self.holders(key))

    def count(self, shard: int) -> int:
        return sum(known == shard for known, _ in self.known)

    def note(self, shard: int, key: bytes) -> None:
        self.known.add((shard, key))

    def divert(self, shard: int, key: bytes, delta: int) -> None:
        """An increment that another shard than the home took."""
        assert shard != self.home(key)
        self.shards[shard].add(key, delta)
        self.shards[shard].foreign.add(key)
        self.note(shard, key)

    def total(self, key: bytes) -> int:
        """What is true."""
        return sum(shard.counters.get(key, 0) for shard in self.shards)

    def requests(self, *methods: str) -> int:
        """How many requests of these methods came, to shards."""
        return sum(shard.count(*methods) for shard in self.shards)


class ScriptedCache:
    """What `_native.ReadCache` promises, without any bound."""

    def __init__(self) -> None:
        self.values: dict[bytes, tuple[int, int]] = {}
        self.versions: dict[bytes, int] = {}
        self.written = 0
        #: Of every value, as it says.
        self.age_s = 0.0

    def get(self, key: bytes) -> int | None:
        value, version = self.values.get(key, (0, -1))
        return value if version == self.begin(key) else None

    def lookup(self, key: bytes) -> tuple[int, float] | None:
        value = self.get(key)
        return None if value is None else (value, self.age_s)

    def begin(self, key: bytes) -> int:
        return self.written + self.versions.get(key, 0)

    def fill(self, key: bytes, value: int, version: int) -> bool:
        if version != self.begin(key):
            return False
        self.values[key] = (value, version)
        return True

    def bump(self, key: bytes) -> None:
        self.versions[key] = self.versions.get(key, 0) + 1

    def on_removal(self, key: bytes | None) -> None:
        """What an owner of `Removals` does."""
        if key is None:
            self.written += 1
        else:
            self.bump(key)
