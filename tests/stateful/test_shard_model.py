"""A shard against a dict, with crashes, checkpoints, trims and reopenings as steps.

The engine runs in this process without an event loop: the test decides when a commit is made, so what a crash leaves
is known exactly, and everything is compared exactly. A crash is a copy of the folder as it is on disk at that moment.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pycounter import _native
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import open_folder

I64_MAX = 2**63 - 1
KEYS = [b"a", b"b", b"longer-key-" * 20, "schlüssel".encode()]
IDS = [b"id-%d" % number for number in range(6)]
SESSIONS = [bytes([number]) * 16 for number in (1, 2)]
deltas = st.one_of(st.integers(-3, 3), st.sampled_from([I64_MAX, -I64_MAX - 1]))


@dataclass
class Session:
    acked: int = 0
    last: int = 0
    #: (key, delta) and result of each sequence above `acked`.
    results: dict[int, tuple[tuple[bytes, int], Any]] = field(default_factory=dict)


@dataclass
class Model:
    counters: dict[bytes, int] = field(default_factory=dict)
    ids: dict[bytes, tuple[tuple[str, bytes, int], Any]] = field(default_factory=dict)
    sessions: dict[bytes, Session] = field(default_factory=dict)
    ended: set[bytes] = field(default_factory=set)

    def change(self, method: str, key: bytes, delta: int) -> Any:
        value = self.counters.get(key)
        if method == "delete_all":
            count = len(self.counters)
            self.counters.clear()
            return count
        if method == "incr":
            after = (value or 0) + delta
            if not -I64_MAX - 1 <= after <= I64_MAX:
                return "overflow"
            self.counters[key] = after
            return after
        if value is None:
            return 0
        if method == "delete":
            del self.counters[key]
        else:
            self.counters[key] = 0
        return value


class ShardAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="pycounter-model-"))
        self.generation = 0
        self.live = Model()
        self.durable = Model()
        self.msgid = 0

    def attend(self) -> None:
        """The engine's connection asks for nothing in these tests."""

    @initialize()
    def begin(self) -> None:
        self.open()

    @property
    def folder(self) -> Path:
        return self.base / str(self.generation)

    def open(self) -> None:
        self.shard, self.store = open_folder(
            self.folder, lambda: _native.Shard(self.folder, segment_bytes=4096, results_per_session_max=1000)
        )
        self.shard.start(lambda *_: None)
        self.checkpointer = Checkpointer(self.shard, self.store, log_bytes=1 << 30, interval_s=1e9)
        self.connection = self.shard.connect(self)

    def close(self, *, checkpoint: bool) -> None:
        self.connection.shutdown()
        self.checkpointer.stop(checkpoint=checkpoint)
        self.shard.stop()

    def call(self, method: str, *params: Any) -> Any:
        """Sends a request at level `applied`, so that it is answered before any commit."""
        self.msgid += 1
        frame = msgpack.packb([0, self.msgid, method, list(params)], use_bin_type=True)
        replies = self.connection.feed(frame)
        assert replies is not None, f"no answer to {method}"
        kind, msgid, error, result = msgpack.unpackb(replies, raw=False)
        assert (kind, msgid) == (1, self.msgid)
        return result if error is None else error.partition(":")[0]

    # --- operations ---

    @rule(method=st.sampled_from(["incr", "drain", "delete"]), key=st.sampled_from(KEYS), delta=deltas)
    def change(self, method: str, key: bytes, delta: int) -> None:
        params = [key, delta] if method == "incr" else [key]
        assert self.call(method, *params, {"level": "applied"}) == self.live.change(method, key, delta)

    @rule(
        method=st.sampled_from(["incr", "incr", "drain", "delete", "delete_all"]),
        key=st.sampled_from(KEYS),
        delta=deltas,
        operation_id=st.sampled_from(IDS),
    )
    def change_with_id(self, method: str, key: bytes, delta: int, operation_id: bytes) -> None:
        delta = delta if method == "incr" else 0
        key = b"" if method == "delete_all" else key
        params: list[Any] = {"incr": [key, delta], "delete_all": []}.get(method, [key])
        answer = self.call(method, *params, {"level": "applied", "id": operation_id})
        known = self.live.ids.get(operation_id)
        if known is None:
            expected = self.live.change(method, key, delta)
            self.live.ids[operation_id] = ((method, key, delta), expected)
        elif known[0] == (method, key, delta):
            expected = known[1]
        else:
            expected = "id_reused"
        assert answer == expected

    @rule(
        session=st.sampled_from(SESSIONS),
        offset=st.integers(-6, 2),
        acked=st.integers(-1, 3),
        items=st.lists(st.tuples(st.sampled_from(KEYS), deltas), max_size=8),
        repeat=st.booleans(),
    )
    def apply(self, session: bytes, offset: int, acked: int, items: list[tuple[bytes, int]], repeat: bool) -> None:
        row = self.live.sessions.get(session)
        first = max(1, (row.last if row else 0) + 1 + offset)
        acked_through = max(0, (row.acked if row else 0) + acked)
        if repeat and row is not None:
            # What was sent before comes again, as a client does that got no reply.
            items = [
                row.results[first + index][0] if first + index in row.results else item
                for index, item in enumerate(items)
            ]
        answer = self.call("apply", session, first, acked_through, [list(item) for item in items], "applied")
        refusal = self.refusal(session, row, first, acked_through, len(items))
        if refusal is not None:
            assert answer == refusal
            return
        row = self.live.sessions.setdefault(session, Session())
        row.acked = max(row.acked, acked_through)
        row.results = {sequence: kept for sequence, kept in row.results.items() if sequence > row.acked}
        expected = []
        for sequence, item in enumerate(items, first):
            if sequence > row.last:
                row.last = sequence
                row.results[sequence] = (item, self.live.change("incr", *item))
                expected.append(row.results[sequence][1])
            elif sequence <= row.acked:
                expected.append("already_settled")
            elif row.results[sequence][0] == item:
                expected.append(row.results[sequence][1])
            else:
                expected.append("id_reused")
        got = [result.partition(":")[0] if isinstance(result, str) else result for result in answer["results"]]
        assert got == expected

    def refusal(self, session: bytes, row: Session | None, first: int, acked_through: int, count: int) -> str | None:
        if row is None:
            if session in self.live.ended or first > 1 or count == 0:
                return "session_unknown"
            return "bad_request" if acked_through > 0 else None
        if first > row.last + 1:
            return "sequence_gap"
        return "bad_request" if acked_through > row.last else None

    @rule(session=st.sampled_from(SESSIONS))
    def end_session(self, session: bytes) -> None:
        # At the server's level, so the reply waits for the commit.
        self.msgid += 1
        reply = self.connection.feed(msgpack.packb([0, self.msgid, "bye", [session]], use_bin_type=True))
        if self.live.sessions.pop(session, None) is not None:
            self.live.ended.add(session)
        del reply
        self.commit()

    @rule()
    def flush_all(self) -> None:
        self.connection_resp = self.shard.connect(self)
        self.connection_resp.feed(b"FLUSHALL\r\n")
        self.live.counters.clear()
        self.commit()
        self.connection_resp.shutdown()

    # --- the disk ---

    @rule()
    def commit(self) -> None:
        assert self.shard.wait_durable(30)
        self.shard.release()
        self.durable = copy.deepcopy(self.live)

    @rule()
    def checkpoint(self) -> None:
        self.checkpointer.checkpoint()

    @rule()
    def crash(self) -> None:
        crashed = self.folder
        self.generation += 1
        # A copy takes time, in which the checkpoint store would compact its files away.
        self.checkpointer.stop(checkpoint=False)
        shutil.copytree(crashed, self.folder)
        (self.folder / "lock").unlink()
        # The old process would be gone: its end must not matter to the copy.
        old = (self.connection, self.shard)
        self.open()
        old[0].shutdown()
        old[1].stop()
        shutil.rmtree(crashed)
        self.live = copy.deepcopy(self.durable)

    @rule(checkpoint=st.booleans())
    def stop_and_start(self, checkpoint: bool) -> None:
        self.commit()
        self.close(checkpoint=checkpoint)
        self.open()

    @precondition(lambda self: hasattr(self, "shard"))
    @invariant()
    def counters_are_equal(self) -> None:
        cursor, found = 0, []
        while True:
            cursor, page = self.scan(cursor)
            found += page
            if cursor == 0:
                break
        assert len(found) == len(self.live.counters), "a counter came twice or not at all"
        assert dict(found) == self.live.counters

    def scan(self, cursor: int) -> tuple[int, list[tuple[bytes, int]]]:
        values = self.call("get_many", KEYS, {"level": "applied"})
        for key, value in zip(KEYS, values, strict=True):
            assert value == self.live.counters.get(key, 0)
        stats = self.shard.stats()
        assert stats["counters"] == len(self.live.counters)
        return 0, list(self.live.counters.items())

    def teardown(self) -> None:
        if hasattr(self, "shard"):
            self.close(checkpoint=False)
        shutil.rmtree(self.base, ignore_errors=True)


ShardAgainstDict.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


@pytest.mark.timeout(300)
class TestShardAgainstDict(ShardAgainstDict.TestCase):  # type: ignore[misc, valid-type]
    """Run by pytest."""
