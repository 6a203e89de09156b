"""What a shard says of itself, and of a session, when it is greeted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from pycounter.client.framing import ProtocolViolation

__all__ = ["HelloReply"]


@dataclass(frozen=True, slots=True)
class HelloReply:
    """The reply to `hello`. It waits for the newest commit: all that the session counts in it is durable."""

    identity: str
    epoch: int
    #: The last number of the session that was named; None: the shard doesn't know the session.
    last_sequence: int | None
    #: The shard's uptime, on which the age of an operation's id is counted; None: it didn't say.
    time_ms: int | None = None

    @classmethod
    def parse_any(cls, said: Any) -> Self:
        """As `parse`, of a server that may be none of the shards: these have no epoch. Raises ProtocolViolation."""
        if isinstance(said, dict):
            said = {"identity": "", "epoch": 0} | {name: value for name, value in said.items() if value is not None}
        return cls.parse(said)

    @classmethod
    def parse(cls, said: Any) -> Self:
        """Checks what the server sent. Raises ProtocolViolation."""
        match said:
            case {"identity": str() as identity, "epoch": int() as epoch}:
                last, time_ms = said.get("last_sequence"), said.get("time")
                if last is None or (type(last) is int and last >= 0):
                    return cls(identity, epoch, last, time_ms if type(time_ms) is int else None)
        raise ProtocolViolation("the server's answer to hello makes no sense")
