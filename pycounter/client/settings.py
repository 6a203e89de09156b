"""Settings of clients. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass

from pycounter.durations import check_numbers
from pycounter.errors import SettingsError

__all__ = ["ClientSettings", "PoolSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What may be set on a `SessionClient`.

    Raises:
        SettingsError: a value is no number above 0, or two of them contradict each other.
    """

    #: Single increments that one batch takes at most.
    coalesced_operations_max: int = 100
    #: Longest wait to share a batch while another is in flight.
    coalesced_delay_s: float = 0.010
    #: Operations in one request; longer lists are cut into several.
    batch_operations_max: int = 1000
    #: Bytes of the operations in one request; below the server's limit on frames, which is 1 MiB by default.
    batch_bytes_max: int = 512 * 1024
    batches_in_flight_max: int = 8
    #: Numbered and unanswered operations; below the server's bound on results kept for a session, 10,000 by default.
    window_operations_max: int = 9000
    #: Operations accepted and not settled; beyond it callers wait.
    pending_operations_max: int = 50_000
    #: Operations acknowledged at `applied` that are remembered until they are known to be durable.
    unconfirmed_operations_max: int = 200_000
    #: Above so many unanswered operations, or this share of failed ones, a client's batches are unhealthy.
    healthy_pending_max: int = 1000
    healthy_failed_share_max: float = 0.01
    #: The deadline of a call that names none.
    call_timeout_s: float = 60.0
    connect_timeout_s: float = 5.0
    #: With requests in flight and no byte received for so long, the connection is given up.
    silence_timeout_s: float = 30.0
    backoff_first_s: float = 0.05
    backoff_max_s: float = 2.0
    #: How long `close` waits for what is not settled.
    close_timeout_s: float = 10.0
    #: Without an answer for so long the shard may have forgotten the session; below the server's 7 days.
    session_window_s: float = 6 * 24 * 3600.0
    #: So long after it was first sent, an operation under an id is not sent again; below the server's 2 minutes.
    id_window_s: float = 110.0
    #: One reply; a server that sends more is not believed.
    reply_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.window_operations_max < self.batch_operations_max:
            raise SettingsError(
                "window_operations_max must not be below batch_operations_max", setting="window_operations_max"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What may be set on a `Pool`.

    Raises:
        SettingsError: a value is no number above 0.
    """

    connections_max: int = 100
    #: A connection takes so many requests at a time before another one is opened.
    pipeline_depth: int = 32
    #: ... and so many where no other one can be.
    pipeline_max: int = 256
    #: Requests that wait for a connection; one more is refused.
    waiting_max: int = 10_000
    #: A connection without requests is closed after this.
    idle_s: float = 300.0
    #: One that was idle for so long is asked whether it still works before it is used, and has so long to answer.
    check_after_s: float = 10.0
    check_timeout_s: float = 0.5
    connect_timeout_s: float = 5.0
    #: Of a request that names no time.
    request_timeout_s: float = 2.0
    #: A request was late, and no byte came for so long: the connection is given up.
    silence_s: float = 2.0
    #: So long after it was first sent, a change under an id is not sent again; below the server's 2 minutes.
    id_window_s: float = 110.0
    reply_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.pipeline_max < self.pipeline_depth:
            raise SettingsError("pipeline_max must not be below pipeline_depth", setting="pipeline_max")
