"""What replicas ask for: durable records from any place on, or a checkpoint's pages where the log begins later.

Files are read on a thread of its own, in pieces, so the loop goes on. A request that finds nothing new waits for the
next commit, as long as the replica wants.

Whoever reads a checkpoint needs its pages, which the next checkpoints replace, and the log behind it, which they drop.
Both are kept for it: by a view of the store, and by a pin on the log. So these are few, and end when nobody has asked
for a while.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pycounter._native import Shard
from pycounter.errors import Overloaded, StorageError
from pycounter.storage.checkpoint_store import CheckpointStore, StoreView
from pycounter.storage.recovery import ROOT_KEY

__all__ = ["TailService"]

#: About so many bytes of records or pages in a reply.
CHUNK_BYTES = 256 * 1024
WAIT_MAX_S = 10.0
#: Checkpoints that are being read, each by any number of replicas.
VIEWS_MAX = 4
#: A view ends when nobody has asked for so long ...
VIEW_IDLE_S = 30.0
#: ... or for so long, and another one is wanted; ...
VIEW_IDLE_MIN_S = 1.0
#: or for so long after its last page: who has read it all goes on with the log behind it; ...
VIEW_DONE_S = 3.0
#: and at last after so long: the log grows meanwhile.
VIEW_S = 900.0


@dataclass(slots=True)
class _CheckpointView:
    """A checkpoint as it was when it was first asked for."""

    rows: StoreView
    fold: int
    commit: int
    last_hash: int
    keys: list[bytes]
    pin: int
    began_at: float
    used_at: float = field(default=0.0)
    #: Was the last page asked for last?
    was_read: bool = False


class TailService:
    """Answers `tail`.

    Args:
        shard: started.
        store: its checkpoint.
    """

    def __init__(self, shard: Shard, store: CheckpointStore) -> None:
        self._shard = shard
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "pycounter-tail")
        self._views: list[_CheckpointView] = []
        # The views are made and read on the thread, and ended by the loop too.
        self._lock = threading.Lock()
        self._news: asyncio.Future[None] | None = None
        self._stopping = False

    def on_durable(self) -> None:
        """A commit has ended: whoever waits looks again."""
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    def tick(self) -> None:
        """Ends what nobody needs any more; about ten times a second."""
        if self._views:
            old = self._loop.time() - VIEW_S
            self._end_views(
                lambda view: view.began_at < old or self._is_idle(view, VIEW_DONE_S if view.was_read else VIEW_IDLE_S)
            )

    def stop(self) -> None:
        """Whoever waits is answered."""
        self._stopping = True
        self.on_durable()

    async def close(self) -> None:
        """Ends the thread and all views. Nothing may be asked afterwards."""
        self.stop()
        await asyncio.to_thread(self._thread.shutdown)
        self._end_views(lambda _view: True)

    async def answer(self, request: dict[str, Any]) -> bytes:
        """The encoded answer to a replica: what it has and wants, by name, as the engine parsed it.

        Raises:
            StorageError: the log or the checkpoint can't be read.
            Overloaded: too many checkpoints are being read.
        """
        began_at = self._loop.time()
        until = began_at + min(request["wait_ms"] / 1000, WAIT_MAX_S)
        if request["page"] is not None:
            return self._encode(await self._run(self._read_pages, *request["page"]))
        place = tuple(request[name] for name in ("identity", "after", "epoch", "hash", "index"))
        while True:
            durable = self._shard.durable_commit()
            looked_at = self._loop.time()
            news = self._news = self._news or self._loop.create_future()
            kind, found = await self._run(self._read_records, place, durable)
            if kind == "late":
                return self._encode(await self._run(self._begin_checkpoint))
            if kind == "unknown":
                return self._encode({"anew": found.decode()})
            if not found and not self._stopping:
                await asyncio.wait([news], timeout=max(0.0, until - self._loop.time()))
                if self._shard.durable_commit() > durable and self._loop.time() < until:
                    continue
                if self._shard.durable_commit() == durable:
                    looked_at = self._loop.time()
            waited_ms = int((looked_at - began_at) * 1000)
            return self._encode({"durable": durable, "waited_ms": waited_ms, "records": found})

    def _encode(self, answer: dict[str, Any]) -> bytes:
        shard = self._shard
        return msgspec.msgpack.encode({"identity": shard.identity, "shard": shard.name, "epoch": shard.epoch, **answer})

    async def _run(self, read: Callable[..., Any], *arguments: Any) -> Any:
        return await self._loop.run_in_executor(self._thread, read, *arguments)

    # --- on the thread ---------------------------------------------------------------------------------------------

    def _read_records(self, place: tuple[str | None, int, int, int, int], durable: int) -> tuple[str, bytes]:
        return self._shard.read_tail(*place, upto=durable, about_bytes=CHUNK_BYTES)

    def _begin_checkpoint(self) -> dict[str, Any]:
        # Before the checkpoint is looked at, so that none of the log behind it can go meanwhile.
        pin = self._shard.pin_log(0)
        try:
            rows = self._store.view()
        except BaseException:
            self._shard.unpin_log(pin)
            raise
        try:
            root = rows.get(ROOT_KEY)
            if root is None:
                raise StorageError("the log begins late, and there is no checkpoint")
            fold, commit, last_hash, keys = self._shard.read_root(root)
            self._shard.move_pin(pin, commit)
            view = self._keep(_CheckpointView(rows, fold, commit, last_hash, keys, pin, self._loop.time()))
        except BaseException:
            rows.close()
            self._shard.unpin_log(pin)
            raise
        return self._pages_of(view, 0)

    def _keep(self, view: _CheckpointView) -> _CheckpointView:
        """Keeps it for those who read on, or gives the one that is kept already."""
        self._end_views(lambda known: len(self._views) >= VIEWS_MAX and self._is_idle(known, VIEW_IDLE_MIN_S))
        with self._lock:
            known = next((known for known in self._views if known.fold == view.fold), None)
            if known is None:
                if len(self._views) >= VIEWS_MAX:
                    raise Overloaded(f"{VIEWS_MAX} checkpoints are being read by replicas")
                self._views.append(view)
                return view
        view.rows.close()
        self._shard.unpin_log(view.pin)
        return known

    def _read_pages(self, fold: int, page: int) -> dict[str, Any]:
        with self._lock:
            view = next((view for view in self._views if view.fold == fold), None)
        return self._begin_checkpoint() if view is None else self._pages_of(view, page)

    def _pages_of(self, view: _CheckpointView, page: int) -> dict[str, Any]:
        view.used_at = self._loop.time()
        rows: list[bytes] = []
        size = 0
        for key in view.keys[page:]:
            row = view.rows.get(key)
            if row is None:
                raise StorageError(f"the checkpoint's row {key.hex()} is missing: restore the folder from a backup")
            rows.append(row)
            size += len(row)
            if size >= CHUNK_BYTES:
                break
        view.was_read = page + len(rows) >= len(view.keys)
        checkpoint = {"fold": view.fold, "commit": view.commit, "hash": view.last_hash, "pages": len(view.keys)}
        return {"checkpoint": {**checkpoint, "page": page, "rows": rows}}

    def _is_idle(self, view: _CheckpointView, seconds: float) -> bool:
        return self._loop.time() - max(view.used_at, view.began_at) > seconds

    def _end_views(self, is_over: Callable[[_CheckpointView], bool]) -> None:
        with self._lock:
            ended = [view for view in self._views if is_over(view)]
            self._views = [view for view in self._views if view not in ended]
        for view in ended:
            view.rows.close()
            self._shard.unpin_log(view.pin)
