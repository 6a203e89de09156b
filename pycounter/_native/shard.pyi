"""The shard and the replica behind a server's sockets.

For example:

    connection = shard.connect(owner)
    replies = connection.feed(data)  # once a chunk
"""

import os
from collections.abc import (
    Callable,
    Sequence,
)
from typing import Any, Protocol, final, type_check_only

from pycounter._native.folder import JournaledFolder, SimulatedDisk
from pycounter._native.placement import HashRing

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
