"""Many counters deleted by one call: those of a list, and those whose keys begin with a prefix.

Each counter is deleted under an id made of the call's id and the counter's key. So a call that is repeated under its
id, in whatever order and however far it came before, deletes no counter twice within the time for which shards keep
ids: one that was deleted and made anew since stays.

One event loop. Cancelled, it stops repeating: what was sent may have been applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from pycounter.client.outcomes import Results, checked
from pycounter.coordinator.crowd import Crowd
from pycounter.coordinator.listing import PAGE, Listing
from pycounter.coordinator.settling import ID_BYTES, Attempt, Deletions, Settled, Settling
from pycounter.coordinator.shard_routes import Key, ShardRoutes, key_bytes, prefix_bytes
from pycounter.coordinator.totals import request_parts
from pycounter.durations import seconds
from pycounter.errors import BadRequest, RpcError

__all__ = ["BulkRemovals"]

#: What an item of a request has beside its key: its id, and what tells where each begins.
_BESIDE_KEY = ID_BYTES + 6


class BulkRemovals:
    """Deletes many counters.

    Args:
        routes: the shards.
        settling: repeats what is sent to them.
        listing: finds counters by prefix.
        on_removal: told of a key that is removed, when it is sent and when it is settled.
    """

    def __init__(
        self, routes: ShardRoutes, settling: Settling, listing: Listing, *, on_removal: Callable[[bytes], object]
    ) -> None:
        self._routes = routes
        self._settling = settling
        self._listing = listing
        self._on_removal = on_removal

    # --- a list ----------------------------------------------------------------------------------------------------

    async def delete_many(
        self, keys: Iterable[Key], *, operation_id: bytes | None = None, timeout_s: float | None = None
    ) -> Results:
        """Deletes the counters of a list, each on its own, by few requests to each shard.

        Args:
            keys: which. One that comes again is deleted already: its amount is 0.
            operation_id: from an earlier attempt (`RemovalUnsettled`), or a new one; None: one is made.
            timeout_s: for all of it.

        Returns:
            For each key, in order, the amount that was removed, or the error that `delete` would have raised.

        Raises:
            Unavailable: a shard is known to be down: nothing was applied.
            RpcError: nothing was deleted, as far as is known: what `delete` would have raised.
        """
        if isinstance(keys, str | bytes | bytearray):
            raise TypeError("keys are a list of keys, not one str or bytes: for one counter there is delete")
        outcomes: dict[bytes, int | RpcError] = {}
        places = [_encoded(key) for key in keys]
        wanted = list(dict.fromkeys(key for key in places if isinstance(key, bytes)))
        if wanted:
            attempt = self._settling.begin("delete_many", operation_id, None, timeout_s)
            for part in request_parts(wanted, beside=_BESIDE_KEY):
                outcomes.update(await self._delete_everywhere(part, attempt))
        results: Results = []
        for key in places:
            if isinstance(key, RpcError):
                results.append(key)
            else:
                results.append(outcomes[key])
                if not isinstance(outcomes[key], RpcError):
                    outcomes[key] = 0
        return checked(results)

    async def _delete_everywhere(self, keys: Sequence[bytes], attempt: Attempt) -> dict[bytes, int | RpcError]:
        async with Crowd() as group:
            settling = [
                group.create_task(self._delete(shard, keys, attempt, attempt.deadline))
                for shard in range(len(self._routes.shards))
            ]
        outcomes: dict[bytes, int | RpcError] = {}
        for key, *settled in zip(keys, *[task.result() for task in settling], strict=True):
            try:
                outcomes[key] = self._settling.sum("delete_many", attempt.operation_id, settled).taken
            except RpcError as error:
                outcomes[key] = error
        return outcomes

    # --- a prefix --------------------------------------------------------------------------------------------------

    async def delete_prefix(
        self,
        prefix: Key,
        *,
        operation_id: bytes | None = None,
        on_progress: Callable[[int], object] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Deletes every counter whose key begins with `prefix`, on all shards at once, a page at a time on each.

        A counter that is there from the beginning to the end is deleted. One that is made meanwhile, or made anew after
        it was deleted, may be deleted or stay. An increment that comes meanwhile is deleted with its counter or makes
        it anew; none is lost in between.

        Args:
            prefix: of the keys; not empty.
            operation_id: from an earlier attempt (`RemovalUnsettled`), or a new one; None: one is made.
            on_progress: told how many were deleted so far, after each page.
            timeout_s: for all of it; None: as long as each page is settled in its time.

        Returns:
            How many counters were deleted, by this attempt: one that lay on two shards counts twice.

        Raises:
            Unavailable: a shard is known to be down: nothing was applied.
            RemovalUnsettled: not all is deleted, or nobody knows it; repeat it under the same id to go on.
            RpcError: it was refused: nothing was applied.
        """
        wanted = prefix_bytes(prefix)
        if not wanted:
            raise BadRequest("a prefix to delete by isn't empty, and delete_all deletes everything: nothing was sent")
        loop = asyncio.get_running_loop()
        attempt = self._settling.begin("delete_prefix", operation_id, None, timeout_s)
        end = None if timeout_s is None else loop.time() + seconds(timeout_s, 0.0)
        progress = _Progress(on_progress)
        async with Crowd() as group:
            walks = [
                group.create_task(self._walk(shard, wanted, attempt, end, progress))
                for shard in range(len(self._routes.shards))
            ]
        return self._settling.sum("delete_prefix", attempt.operation_id, [task.result() for task in walks]).taken

    async def _walk(
        self, shard: int, prefix: bytes, attempt: Attempt, end: float | None, progress: _Progress
    ) -> Settled:
        """Deletes what one shard holds. Gives how many these were, and what went wrong."""
        done, cursor = Settled(), 0
        while True:
            try:
                cursor, page = await self._page(shard, cursor, prefix, self._settling.deadline(end))
            except RpcError as error:
                done.error = error
                return done
            for part in request_parts(page, beside=_BESIDE_KEY):
                settled = await self._delete(shard, part, attempt, self._settling.deadline(end))
                failed = [one for one in settled if one.error is not None]
                done.value += len(settled) - len(failed)
                done.commit = max(done.commit, *(one.commit for one in settled))
                progress.add(len(settled) - len(failed))
                if failed:
                    worst = next((one for one in failed if one.is_unknown), failed[0])
                    done.error, done.is_unknown = worst.error, worst.is_unknown
                    return done
            if not cursor:
                return done

    async def _page(self, shard: int, cursor: int, prefix: bytes, deadline: float) -> tuple[int, list[bytes]]:
        """The next keys. A shard that is away for a moment is waited for."""
        loop, pause = asyncio.get_running_loop(), self._settling.pauses()
        while True:
            try:
                cursor, page = await self._listing.page(shard, cursor, PAGE, prefix)
                return cursor, [key for key, _ in page]
            except RpcError as error:
                pause_s = pause.next_s()
                if not error.retryable or loop.time() + pause_s >= deadline:
                    raise
            await asyncio.sleep(pause_s)

    async def _delete(self, shard: int, keys: Sequence[bytes], attempt: Attempt, deadline: float) -> list[Settled]:
        """Deletes counters on one shard, each under its id."""
        change = Deletions([(key, _id_of(attempt.operation_id, key)) for key in keys])
        for key in keys:
            self._on_removal(key)
        try:
            return await self._settling.settle(shard, change, level=None, age_ms=attempt.age_ms, deadline=deadline)
        finally:
            for key in keys:
                self._on_removal(key)


class _Progress:
    """Sums up what the shards have done."""

    def __init__(self, tell: Callable[[int], object] | None) -> None:
        self._tell = tell
        self._count = 0

    def add(self, count: int) -> None:
        self._count += count
        if self._tell is not None:
            self._tell(self._count)


def _id_of(operation_id: bytes, key: bytes) -> bytes:
    return blake2b(key, key=operation_id, digest_size=ID_BYTES).digest()


def _encoded(key: Key) -> bytes | RpcError:
    try:
        return key_bytes(key)
    except RpcError as error:
        return error
