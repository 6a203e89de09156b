"""Load for benchmarks, and a server that costs nothing.

For example:

    report = LoadGenerator("127.0.0.1", 7400, seconds=1.0).run()
"""

from typing import Literal, Self, final

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
