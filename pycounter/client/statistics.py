"""What a client has done so far."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BatchHealth", "ClientStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHealth:
    """How a client's batches fare now."""

    #: Operations accepted and not sent; sent and not answered.
    queued: int
    pending: int
    success_rate: float
    is_healthy: bool


@dataclass(slots=True, kw_only=True)
class ClientStatistics:
    """Counted by one client since it was made. Batches and operations are counted once, however often they are sent."""

    #: Sent at least once.
    batches: int = 0
    operations: int = 0
    #: Answered, with a value or an error.
    operations_settled: int = 0
    #: Answered with a value; answered with an error, or never to be answered.
    operations_succeeded: int = 0
    operations_failed: int = 0
    #: Sent again, once for each time.
    batches_resent: int = 0
    operations_resent: int = 0
    #: Refused whole by the server, for now or for good.
    batches_refused: int = 0
    #: Reported as unknown: see `pycounter.errors.SessionLost`. Also what was acknowledged at `applied` where nobody can
    #: find out any more whether it lasted; the log tells of it.
    operations_unknown: int = 0
    #: Acknowledged at `applied` and lost in a crash: see `LostTail`.
    operations_lost: int = 0
    #: Connections that came to be, beyond the first.
    reconnects: int = 0
    #: Sessions that were begun, beyond the first.
    sessions_renewed: int = 0
