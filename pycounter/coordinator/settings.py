"""Settings of coordinators: health and balance, the read cache. Times are seconds."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

from pycounter.durations import check_numbers
from pycounter.errors import SettingsError

__all__ = ["TuningSettings"]

#: Shares of something: above 0, at most 1.
_SHARES = ("health_errors_max", "recovery_ratio", "unhealthy_weight", "target_ratio", "replica_errors_max")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningSettings:
    """What may be set on a coordinator, in a client's process or as a server.

    Raises:
        SettingsError: a value is no number above 0, or two of them contradict each other.
    """

    # --- is a shard healthy ---
    #: Samples (latency, success) that are kept of each shard and each replica.
    health_samples: int = 100
    #: With fewer samples a shard isn't judged: it stays what it is.
    health_samples_min: int = 10
    #: Older samples no longer count.
    health_window_s: float = 30.0
    #: A healthy shard's mean latency is below this ...
    health_latency_max_s: float = 0.050
    #: ... and its share of failed requests below this: among 100 samples, a single failure is too many.
    health_errors_max: float = 0.01
    #: To become healthy again a shard must be below these limits times this.
    recovery_ratio: float = 0.8
    #: ... have so many samples since, and have been unhealthy for so long: twice as long each time that it soon
    #: falls ill again, up to `recovery_max_s`.
    recovery_samples: int = 5
    recovery_s: float = 2.0
    recovery_max_s: float = 60.0
    #: How often an idle shard is asked for its health, and how long that may take.
    probe_interval_s: float = 1.0
    probe_timeout_s: float = 1.0

    # --- is it alive ---
    #: Consecutive failures that open a shard's breaker.
    breaker_failures: int = 5
    #: An open breaker lets a first probe through after this; twice as long after each that fails.
    breaker_open_s: float = 1.0
    breaker_open_max_s: float = 30.0
    #: A cut that is mended sooner changes nothing: what waits meanwhile needn't become foreign.
    disconnected_grace_s: float = 0.25

    # --- what follows from it ---
    #: The share of its never-sent operations that an unhealthy shard keeps.
    unhealthy_weight: float = 0.5
    #: Diverted operations go on to the same healthy shard until another's latency is below this share of its own, and
    #: by so much: a counter on many shards costs every reader.
    target_ratio: float = 0.7
    target_gain_s: float = 0.005
    #: A replica is read while its mean latency is below this and its share of failed reads below that.
    replica_latency_max_s: float = 0.100
    replica_errors_max: float = 0.05
    #: Decisions that are remembered.
    events_max: int = 256

    # --- the read cache ---
    cache_l1_entries: int = 10_000
    cache_l1_ttl_s: float = 1.0
    cache_l2_entries: int = 100_000
    cache_l2_ttl_s: float = 10.0
    #: A counter read more often than this is hot: its value stays in L1 for `cache_hot_ttl_s`.
    cache_hot_reads: int = 1000
    cache_hot_ttl_s: float = 5.0
    #: One read less often than this is cold: it leaves first.
    cache_cold_reads: int = 10
    cache_bytes_max: int = 64 << 20
    #: The hottest counters of the last run that are read again after a start, and in batches of how many.
    cache_warm_keys: int = 1000
    cache_warm_batch: int = 100

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> Self:
        """Settings as a file has them, by name.

        Raises:
            SettingsError: there is no such setting, or its value is no number, or it makes no sense.
        """
        known = {field.name for field in fields(cls)}
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
                hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
                raise SettingsError(f"tuning has no setting {name!r}; {hint}", setting=name)
        return cls(**table)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in _SHARES:
            if getattr(self, name) > 1:
                raise SettingsError(f"{name} is a share: at most 1", setting=name)
        if self.health_samples_min > self.health_samples:
            raise SettingsError("health_samples_min is more than health_samples", setting="health_samples_min")
        if self.recovery_samples > self.health_samples:
            raise SettingsError("recovery_samples is more than health_samples", setting="recovery_samples")
        if self.recovery_s > self.recovery_max_s:
            raise SettingsError("recovery_s is more than recovery_max_s", setting="recovery_s")
        if self.breaker_open_s > self.breaker_open_max_s:
            raise SettingsError("breaker_open_s is more than breaker_open_max_s", setting="breaker_open_s")
