"""The coordinator's hot path.

For example:

    connection = router.connect(owner)
    replies = connection.feed(data)  # once a chunk
"""

from collections.abc import (
    Callable,
    Iterable,
    Sequence,
)
from typing import Any, final

from pycounter._native.caches import ReadCache
from pycounter._native.placement import ForeignKeys, HashRing
from pycounter._native.shard import _Owner

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
