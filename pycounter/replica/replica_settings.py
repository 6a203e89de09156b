"""What may be set on a replica. Sizes are bytes, times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from pycounter.durations import check_numbers
from pycounter.errors import SettingsError
from pycounter.settings import counters_share
from pycounter.topology import Address, parse_address

__all__ = ["ReplicaSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSettings:
    """A replica's settings.

    Raises:
        SettingsError: a value makes no sense.
    """

    #: The shard to follow: host:port.
    primary: str
    name: str = "replica-0"
    host: str = "127.0.0.1"
    #: 0 lets the system choose.
    port: int = 0
    #: What clients must send, and what the shard is sent.
    token_file: str | None = None
    #: Listen on other than loopback addresses without a token.
    insecure: bool = False
    connections_max: int = 10_000
    idle_timeout_s: float = 300.0
    held_bytes_max: int = 256 << 20
    #: Memory of counters; twice that while a state is taken in beside an old one.
    counters_bytes_max: int = field(default_factory=lambda: counters_share(2))
    #: The shard is asked so often at most, unless there is a lot to take in.
    poll_interval_s: float = 0.010
    #: A question to the shard waits there so long for something new: the lag that a quiet shard's replica shows.
    wait_s: float = 0.040
    #: The shard that doesn't answer for so long can't be reached.
    timeout_s: float = 5.0
    #: The longest pause between two attempts to reach it.
    pause_max_s: float = 1.0
    stop_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        check_numbers(self, may_be_zero={"port", "idle_timeout_s", "wait_s", "stop_timeout_s"})
        try:
            parse_address(self.primary)
        except ValueError as error:
            raise SettingsError(f"--primary: {error}") from error
        if not 1 <= len(self.name) <= 64:
            raise SettingsError(f"name has {len(self.name)} characters, but must have 1 to 64")
        if self.port > 65_535:
            raise SettingsError(f"port is {self.port}, but must be from 0 to 65535")

    @property
    def primary_address(self) -> Address:
        """Where the shard is."""
        return parse_address(self.primary)
