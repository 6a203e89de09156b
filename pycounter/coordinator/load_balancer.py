"""Which shard serves what: health, diversion of new operations, and where reads go.

The ring, and so every counter's home, never changes by health. What changes is which shard takes the *next* operation
that was never sent and has no id: an unhealthy shard keeps half of them, a dead one none, and the rest goes to the
healthy shard with the least latency. Every change is an event with its reason, in the status and in the log.

Pure: no tasks, no random numbers, the clock is given. It belongs to one event loop.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pycounter.coordinator.settings import TuningSettings
from pycounter.coordinator.shard_health import SampleWindow, ShardHealth, State
from pycounter.errors import Unavailable

__all__ = ["Decision", "LoadBalancer", "ReadFrom", "Serving"]

_log = logging.getLogger(__name__)

#: Decisions that a person should hear of without having asked: fewer shards serve, or none.
_ALARMS = frozenset({"dead", "degraded", "refusing", "breaker open"})

#: Whom a read asks: the primary as long as it is well, a replica as long as one is, or whoever is next.
ReadFrom = Literal["primary", "replica", "any"]


@dataclass(frozen=True, slots=True)
class Serving:
    """What a shard serves of the new operations whose home it is.

    Attributes:
        state: healthy, unhealthy or dead.
        weight: the share of them that it keeps: 1.0, `unhealthy_weight` or 0.0.
        divert_to: the shard that takes the others; None: nobody can, so an unhealthy shard keeps them, and a dead
            one's are refused.
    """

    state: State
    weight: float
    divert_to: int | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was decided. `time` is the balancer's clock, in seconds."""

    time: float
    shard: str
    what: str
    reason: str


class LoadBalancer:
    """The health of all shards, and what follows from it.

    Args:
        names: the shards' names, in the order of their numbers here.
        settings: the limits.
        clock: seconds that only rise, such as the loop's `time`.
    """

    def __init__(self, names: Sequence[str], settings: TuningSettings, clock: Callable[[], float]) -> None:
        if not names:
            raise ValueError("a coordinator needs at least one shard")
        self._names = tuple(names)
        self._settings = settings
        self._clock = clock
        self._events: deque[Decision] = deque(maxlen=settings.events_max)
        self._shards = [ShardHealth(settings, partial(self._note, shard)) for shard in range(len(self._names))]
        self._replicas: list[dict[str, SampleWindow]] = [{} for _ in self._names]
        self._serving = [Serving("healthy", 1.0, None)] * len(self._names)
        self._states: list[State] = ["healthy"] * len(self._names)
        self._targets: list[int | None] = [None] * len(self._names)
        # What an unhealthy shard's turns add up to: it keeps an operation each time that makes a whole.
        self._turns = [0.0] * len(self._names)
        self._read_turns = [0] * len(self._names)
        self._diverted = [0] * len(self._names)
        self._refused = 0
        self._judge_at = math.inf
        self._version = self._version_told = 0
        self._is_degraded = False
        now = clock()
        for health in self._shards:
            health.since = now

    # --- what is heard ---

    def record(self, shard: int, latency_s: float, ok: bool) -> None:
        """A request's latency in seconds, and whether the shard answered as a shard should (`is_shard_failure`)."""
        self._shards[shard].record(self._clock(), latency_s, ok)
        self._follow(shard)

    def record_many(self, samples: Iterable[tuple[int, float, bool]]) -> None:
        """As `record`, for each (shard, latency_s, ok)."""
        now = self._clock()
        for shard, latency_s, ok in samples:
            self._shards[shard].record(now, latency_s, ok)
            self._follow(shard)

    def record_probe(self, shard: int, latency_s: float, ok: bool) -> None:
        """The outcome of a probe that `probes_due` asked for."""
        self._shards[shard].record_probe(self._clock(), latency_s, ok)
        self._follow(shard)

    def record_replica(self, shard: int, replica: str, latency_s: float, ok: bool) -> None:
        """A read at a replica. Only replicas that `set_replicas` named are remembered."""
        window = self._replicas[shard].get(replica)
        if window is not None:
            window.add(self._clock(), latency_s, ok)

    def set_connected(self, shard: int, is_connected: bool) -> None:
        """The connection to a shard was made, or is gone. A shard counts as connected until this is first called."""
        self._shards[shard].set_connected(self._clock(), is_connected)
        self._follow(shard)

    def set_writable(self, shard: int, is_writable: bool) -> None:
        """False: the shard says that it is `read_only`. It gets no new operations, and is still read."""
        self._shards[shard].set_writable(self._clock(), is_writable)
        self._follow(shard)

    def set_replicas(self, shard: int, replicas: Iterable[str]) -> None:
        """The replicas that a shard has now; what was known of others is forgotten."""
        known, settings = self._replicas[shard], self._settings
        self._replicas[shard] = {
            name: known[name] if name in known else SampleWindow(settings.health_samples, settings.health_window_s)
            for name in replicas
        }

    def tick(self) -> bool:
        """Lets time pass: to be called at least each second. True if `serving` has changed since the last tick."""
        now = self._clock()
        for shard, health in enumerate(self._shards):
            health.judge(now)
            self._follow(shard)
        self._rethink()
        changed = self._version != self._version_told
        self._version_told = self._version
        return changed

    def probes_due(self) -> list[int]:
        """The shards to ask for their `health` now, each at most once an interval; `record_probe` wants the outcome."""
        now = self._clock()
        return [shard for shard, health in enumerate(self._shards) if health.probe_due(now)]

    # --- what follows ---

    @property
    def serving(self) -> list[Serving]:
        """What each shard serves, by its number: a new list."""
        self._let_time_pass()
        return list(self._serving)

    @property
    def version(self) -> int:
        """Another number whenever `serving` is another one."""
        self._let_time_pass()
        return self._version

    @property
    def events(self) -> list[Decision]:
        """The latest decisions, oldest first."""
        return list(self._events)

    def divert(self, home: int) -> int | None:
        """Who takes the next new operation, which was never sent and has no id, of this home.

        Returns:
            another shard's number; None: it stays at home.

        Raises:
            Unavailable: the home can't take it, and nobody else can.
        """
        self._let_time_pass()
        serving = self._serving[home]
        if serving.weight >= 1.0:
            return None
        if serving.divert_to is None:
            if serving.weight > 0.0:
                return None
            self._refused += 1
            raise Unavailable(f"no shard can take it: {self._names[home]} is dead: {self._shards[home].reason}")
        self._turns[home] += serving.weight
        if self._turns[home] >= 1.0:
            self._turns[home] -= 1.0
            return None
        self._diverted[home] += 1
        return serving.divert_to

    def decide_read(self, home: int, replicas: Sequence[str] = (), read_from: ReadFrom = "primary") -> str | None:
        """Who is read: the primary while it is well, else a replica that is, else the primary.

        Args:
            home: the shard.
            replicas: those of its replicas that can be read now, as far as the topology knows.
            read_from: `primary` as above; `replica`: the well replica with the least latency, else the primary; `any`:
                each in its turn that is well.

        Returns:
            a replica's name; None: the primary.
        """
        self._let_time_pass()
        if read_from == "primary" and self._is_read_well(home):
            return None
        well = [name for name in replicas if self._is_replica_well(home, name)]
        if not well:
            return None
        if read_from == "any":
            choices = [*well, None] if self._is_read_well(home) else well
            self._read_turns[home] += 1
            return choices[self._read_turns[home] % len(choices)]
        return min(well, key=lambda name: self._replica_mean(home, name))

    def status(self) -> list[dict[str, Any]]:
        """What `pycounter status` shows of each shard (`docs/operations.md`)."""
        now = self._clock()
        self.serving  # noqa: B018 - lets the time pass
        return [self._shard_status(shard, now) for shard in range(len(self._names))]

    def events_status(self) -> list[dict[str, Any]]:
        """The latest decisions, oldest first, as dicts: `age_s`, `shard`, `what`, `reason`."""
        now = self._clock()
        return [
            {"age_s": round(now - event.time, 3), "shard": event.shard, "what": event.what, "reason": event.reason}
            for event in self._events
        ]

    @property
    def refused(self) -> int:
        """Operations that nobody could take."""
        return self._refused

    # --- inside ---

    def _let_time_pass(self) -> None:
        now = self._clock()
        if now >= self._judge_at:
            for shard, health in enumerate(self._shards):
                health.judge(now)
                self._follow(shard)
            self._rethink()

    def _follow(self, shard: int) -> None:
        """What a shard's state means for all: nothing as long as it is the same."""
        health = self._shards[shard]
        self._judge_at = min(self._judge_at, health.next_judgement_at)
        if health.state != self._states[shard]:
            self._states[shard] = health.state
            self._rethink()

    def _rethink(self) -> None:
        """Weights and targets anew."""
        for shard, state in enumerate(self._states):
            weight = {"healthy": 1.0, "unhealthy": self._settings.unhealthy_weight, "dead": 0.0}[state]
            target = None if weight >= 1.0 else self._target(shard)
            before = self._serving[shard]
            if (state, weight, target) == (before.state, before.weight, before.divert_to):
                continue
            self._serving[shard] = Serving(state, weight, target)
            self._version += 1
            if target != before.divert_to or weight != before.weight:
                self._turns[shard] = 0.0
                self._note_diversion(shard, self._serving[shard])
        self._judge_at = min(health.next_judgement_at for health in self._shards)
        self._note_degradation()

    def _target(self, home: int) -> int | None:
        """The healthy shard with the least latency; for a dead home, without a healthy one, an unhealthy one.

        None too if the home is only slow and no other shard is much faster: where all are slow, diversion would scatter
        counters and help nobody.
        """
        kinds: tuple[State, ...] = ("healthy", "unhealthy") if self._states[home] == "dead" else ("healthy",)
        for kind in kinds:
            able = [shard for shard, state in enumerate(self._states) if state == kind and shard != home]
            if able:
                best = min(able, key=self._mean)
                if self._is_only_slow(home) and math.isfinite(self._mean(best)) and not self._is_worth(best, home):
                    return None
                current = self._serving[home].divert_to
                return current if current in able and not self._is_worth(best, current) else best
        return None

    def _is_worth(self, best: int, current: int) -> bool:
        """Is it so much faster? To stay is better than to scatter a home's counters over many shards for little."""
        before, after = self._mean(current), self._mean(best)
        return after < before * self._settings.target_ratio and before - after >= self._settings.target_gain_s

    def _is_only_slow(self, shard: int) -> bool:
        health = self._shards[shard]
        errors_max = self._settings.health_errors_max * self._settings.recovery_ratio
        return health.state == "unhealthy" and len(health.window) > 0 and health.window.error_rate < errors_max

    def _mean(self, shard: int) -> float:
        mean_s = self._shards[shard].window.mean_s
        return math.inf if mean_s is None else mean_s

    def _replica_mean(self, shard: int, replica: str) -> float:
        window = self._replicas[shard].get(replica)
        mean_s = window.mean_s if window is not None else None
        return math.inf if mean_s is None else mean_s

    def _is_read_well(self, shard: int) -> bool:
        health = self._shards[shard]
        # Not by its state: a shard that takes no changes can be read, and a cut needs no grace to read elsewhere.
        return health.connected is not False and health.breaker == "closed" and self._is_well(health.window)

    def _is_replica_well(self, shard: int, replica: str) -> bool:
        window = self._replicas[shard].get(replica)
        if window is None:
            return True
        window.expire(self._clock())
        return self._is_well(window)

    def _is_well(self, window: SampleWindow) -> bool:
        limits = self._settings
        mean_s = window.mean_s or 0.0
        return mean_s < limits.replica_latency_max_s and window.error_rate < limits.replica_errors_max

    def _note(self, shard: int, what: str, reason: str) -> None:
        event = Decision(self._clock(), self._names[shard], what, reason)
        self._events.append(event)
        level = logging.WARNING if what in _ALARMS else logging.INFO
        _log.log(level, "%s: %s: %s", event.shard, what, reason)

    def _note_diversion(self, shard: int, serving: Serving) -> None:
        if serving.divert_to is not None:
            mean_s = self._shards[serving.divert_to].window.mean_s
            known = "no samples yet" if mean_s is None else f"mean {mean_s * 1e3:.1f} ms"
            self._note(
                shard,
                "diverting",
                f"keeps {serving.weight:.0%} of its new operations, {self._names[serving.divert_to]} takes the others: "
                f"the least latency of those that are {self._states[serving.divert_to]} ({known})",
            )
        elif serving.weight >= 1.0:
            self._note(shard, "serving", "keeps all its new operations")
        elif serving.weight > 0.0:
            self._note(shard, "serving", "keeps all its new operations: no other shard would take them better")
        else:
            self._note(shard, "refusing", "no shard can take its new operations")

    def _note_degradation(self) -> None:
        alive = [shard for shard, state in enumerate(self._states) if state != "dead"]
        is_degraded = len(alive) <= 1 < len(self._names)
        if is_degraded and not self._is_degraded:
            if alive:
                self._note(alive[0], "degraded", "the only shard that takes new operations")
        elif self._is_degraded and not is_degraded:
            self._note(alive[0], "no longer degraded", f"{len(alive)} shards take new operations")
        self._is_degraded = is_degraded

    def _shard_status(self, shard: int, now: float) -> dict[str, Any]:
        health, serving = self._shards[shard], self._serving[shard]
        mean_s = health.window.mean_s
        return {
            "shard": self._names[shard],
            "state": serving.state,
            "reason": health.reason,
            "since_s": round(now - health.since, 3),
            "weight": serving.weight,
            "divert_to": None if serving.divert_to is None else self._names[serving.divert_to],
            "diverted": self._diverted[shard],
            "breaker": health.breaker,
            "connected": health.connected,
            "writable": health.writable,
            "latency_ms": None if mean_s is None else round(mean_s * 1e3, 3),
            "error_rate": health.window.error_rate,
            "samples": len(health.window),
            "probes": health.probes,
            "probes_failed": health.probes_failed,
            "replicas": [
                {
                    "name": name,
                    "latency_ms": None if window.mean_s is None else round(window.mean_s * 1e3, 3),
                    "error_rate": window.error_rate,
                    "samples": len(window),
                    "read": self._is_replica_well(shard, name),
                }
                for name, window in self._replicas[shard].items()
            ],
        }
