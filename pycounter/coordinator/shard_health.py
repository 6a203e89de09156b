"""What is known of one shard's health: its latest samples, its breaker, and the state that follows.

No clock and no tasks inside: whoever owns it passes the time, and is told of each change with the reason. It belongs
to one event loop.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal

from pycounter.coordinator.settings import TuningSettings
from pycounter.errors import RpcError

__all__ = ["Breaker", "SampleWindow", "ShardHealth", "State", "is_shard_failure"]

#: Healthy serves all its new operations, unhealthy a part of them, dead none.
State = Literal["healthy", "unhealthy", "dead"]
Breaker = Literal["closed", "open", "half-open"]

#: Answers that tell of the request, not of the shard.
_CALLERS_FAULTS = frozenset(
    {
        *(
            "bad_request",
            "unknown_method",
            "bad_key",
            "bad_delta",
            "overflow",
            "too_large",
            "unauthenticated",
            "forbidden",
        ),
        *("already_settled", "id_reused", "id_expired"),
    }
)
#: Slower than this is as bad as this: a sample that is no number, or absurd, spoils no mean.
_LATENCY_MAX_S = 3600.0


def is_shard_failure(error: RpcError) -> bool:
    """Does this answer count against the shard that gave it, or that gave none?"""
    return error.code not in _CALLERS_FAULTS


class SampleWindow:
    """The latest samples of a shard: a bounded number, none older than the window."""

    __slots__ = ("_age_s", "_samples", "_samples_max", "errors", "sum_us")

    def __init__(self, samples_max: int, age_s: float) -> None:
        self._samples: deque[tuple[float, int, bool]] = deque()
        self._samples_max = samples_max
        self._age_s = age_s
        #: In whole microseconds, so that adding and taking away leaves no error behind.
        self.sum_us = 0
        #: Failures among them.
        self.errors = 0

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, now: float, latency_s: float, ok: bool) -> None:
        """One more sample; the oldest leaves if there are too many."""
        known = _LATENCY_MAX_S if math.isnan(latency_s) else min(max(latency_s, 0.0), _LATENCY_MAX_S)
        latency_us = round(known * 1e6)
        self._samples.append((now, latency_us, ok))
        self.sum_us += latency_us
        self.errors += not ok
        if len(self._samples) > self._samples_max:
            self._drop_oldest()
        self.expire(now)

    def expire(self, now: float) -> None:
        """Drops what is older than the window."""
        while self._samples and now - self._samples[0][0] > self._age_s:
            self._drop_oldest()

    def clear(self) -> None:
        """Forgets all of them."""
        self._samples.clear()
        self.sum_us = self.errors = 0

    @property
    def mean_s(self) -> float | None:
        """The mean latency in seconds, failures included; None without samples."""
        return self.sum_us / len(self._samples) / 1e6 if self._samples else None

    @property
    def error_rate(self) -> float:
        """Failures among the samples, 0 to 1."""
        return self.errors / len(self._samples) if self._samples else 0.0

    def _drop_oldest(self) -> None:
        _, latency_us, ok = self._samples.popleft()
        self.sum_us -= latency_us
        self.errors -= not ok


class ShardHealth:
    """One shard: healthy, unhealthy or dead, and why.

    It is judged by its latest samples, with hysteresis: below the limits times `recovery_ratio`, for a while, it is
    healthy again. It is dead while its connection is cut for longer than the grace, while its breaker isn't closed,
    or while it takes no changes. Coming back from the dead it is unhealthy first: half its load proves it.

    Args:
        settings: the limits.
        note: called as `note(what, reason)` for every change, in words for people.
    """

    def __init__(self, settings: TuningSettings, note: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._note = note
        self.window = SampleWindow(settings.health_samples, settings.health_window_s)
        self.breaker: Breaker = "closed"
        #: True, False, or None while nobody has said.
        self.connected: bool | None = None
        #: False while the shard refuses changes because of its disk.
        self.writable = True
        self.state: State = "healthy"
        self.since = 0.0
        self.probes = 0
        self.probes_failed = 0
        self._failures = 0
        self._open_s = settings.breaker_open_s
        self._open_until = 0.0
        self._probe_at = -math.inf
        self._cut_at: float | None = None
        self._was_connected = False
        # The judgement of the samples alone, kept while the shard is dead.
        self._is_sick = False
        self._sick_since = 0.0
        self._samples_since_sick = 0
        self._recovered_at = -math.inf
        self._recovery_s = settings.recovery_s

    # --- what is heard ---

    def record(self, now: float, latency_s: float, ok: bool) -> None:
        """An ordinary request's latency, and whether the shard answered as a shard should."""
        self._sample(now, latency_s, ok)
        if ok and self.state == "healthy" and self._cut_at is None and not self._exceeds(1.0):
            # The hot path: a shard that is well stays well.
            self._failures = 0
            return
        if ok:
            self._failures = 0
            if self.breaker == "open":
                # It answers: ask it at once instead of waiting for the time of the probe.
                self._open_until = now
            elif self.breaker == "half-open":
                self._close_breaker(now, "it answers again")
        elif self.breaker == "closed":
            self._failures += 1
            if self._failures >= self._settings.breaker_failures:
                self._open_breaker(now, f"{self._failures} failures in a row")
        self.judge(now)

    def record_probe(self, now: float, latency_s: float, ok: bool) -> None:
        """A probe's outcome: as a request's, and what a breaker that isn't closed goes by."""
        self.probes += 1
        self.probes_failed += not ok
        if self.breaker == "closed":
            self.record(now, latency_s, ok)
            return
        self._sample(now, latency_s, ok)
        if ok:
            self._close_breaker(now, "a probe was answered")
        else:
            self._open_s = min(self._open_s * 2, self._settings.breaker_open_max_s)
            self._open_breaker(now, "a probe failed")
        self.judge(now)

    def set_connected(self, now: float, is_connected: bool) -> None:
        """The connection was made, or is gone."""
        if is_connected:
            if self._cut_at is not None and self._is_cut(now) and self._was_connected:
                self.window.clear()
                self._fall_sick(now)
            self._cut_at = None
            self._was_connected = True
        elif self._cut_at is None:
            self._cut_at = now
        self.connected = is_connected
        self.judge(now)

    def set_writable(self, now: float, is_writable: bool) -> None:
        """Does the shard take changes?"""
        self.writable = is_writable
        self.judge(now)

    def probe_due(self, now: float) -> bool:
        """Is it time to ask for its health? If so the next time is an interval later."""
        if self.breaker == "open":
            if now < self._open_until:
                return False
            self.breaker = "half-open"
            self._note("breaker half-open", "one probe may try")
        elif now - self._probe_at < self._settings.probe_interval_s:
            return False
        self._probe_at = now
        return True

    # --- what follows ---

    def judge(self, now: float) -> None:
        """Draws the conclusions: called after everything that is heard, and as time passes."""
        self.window.expire(now)
        self._judge_samples(now)
        state = self._conclusion(now)
        if state != self.state:
            self.state, self.since = state, now
            self._note(state, self.reason)

    @property
    def reason(self) -> str:
        """Why it is what it is, for people."""
        if self.state == "dead":
            if self.connected is False:
                return "the connection is cut" if self._was_connected else "it can't be connected to"
            return "it takes no changes: read_only" if self.breaker == "closed" else f"its breaker is {self.breaker}"
        if self.state == "unhealthy" and not (len(self.window) and self._exceeds(self._settings.recovery_ratio)):
            return f"it has yet to prove itself ({self._described()})"
        return self._described()

    @property
    def next_judgement_at(self) -> float:
        """When the state may change though nothing is heard: the end of a cut's grace, or infinity."""
        if self._cut_at is None or self.state == "dead":
            return math.inf
        return self._cut_at + self._settings.disconnected_grace_s

    def _conclusion(self, now: float) -> State:
        if self._is_cut(now) or self.breaker != "closed" or not self.writable:
            return "dead"
        return "unhealthy" if self._is_sick else "healthy"

    def _judge_samples(self, now: float) -> None:
        window, settings = self.window, self._settings
        if not self._is_sick:
            if len(window) >= settings.health_samples_min and self._exceeds(1.0):
                self._fall_sick(now)
        elif (
            self._samples_since_sick >= settings.recovery_samples
            and len(window) >= settings.recovery_samples
            and now - self._sick_since >= self._recovery_s
            and not self._exceeds(settings.recovery_ratio)
        ):
            self._is_sick = False
            self._recovered_at = now

    def _exceeds(self, ratio: float) -> bool:
        window, limits = self.window, self._settings
        samples = len(window)
        if not samples:
            return False
        is_slow = window.sum_us >= limits.health_latency_max_s * ratio * samples * 1e6
        return is_slow or window.errors >= limits.health_errors_max * ratio * samples

    def _fall_sick(self, now: float) -> None:
        # Ill again soon after it recovered: believed only after twice the time, so that it can't go to and fro.
        settings = self._settings
        if now - self._recovered_at < settings.recovery_max_s:
            self._recovery_s = min(self._recovery_s * 2, settings.recovery_max_s)
        else:
            self._recovery_s = settings.recovery_s
        self._is_sick, self._sick_since, self._samples_since_sick = True, now, 0

    def _sample(self, now: float, latency_s: float, ok: bool) -> None:
        self.window.add(now, latency_s, ok)
        self._samples_since_sick += 1

    def _open_breaker(self, now: float, reason: str) -> None:
        self.breaker = "open"
        self._open_until = now + self._open_s
        self._note("breaker open", f"{reason}; the next probe in {self._open_s:g} s")

    def _close_breaker(self, now: float, reason: str) -> None:
        self.breaker = "closed"
        self._failures = 0
        self._open_s = self._settings.breaker_open_s
        # What it did before says nothing about what came back.
        self.window.clear()
        self._fall_sick(now)
        self._note("breaker closed", reason)

    def _is_cut(self, now: float) -> bool:
        return self._cut_at is not None and now - self._cut_at >= self._settings.disconnected_grace_s

    def _described(self) -> str:
        mean_s = self.window.mean_s
        if mean_s is None:
            return "no samples yet"
        return f"mean {mean_s * 1e3:.1f} ms, {self.window.errors} of {len(self.window)} failed"
