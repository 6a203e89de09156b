"""What is known of one process, and when it is started again: no input or output, no clock of its own.

A process that has exited is replaced; one that only stalls is left alone, for it may still hold what nobody else has,
and two of it would be two writers.
"""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pycounter.client.backoff import Backoff
from pycounter.topology import ProcessInfo
from pycounter.topology.topology import ProcessKind, State

__all__ = ["Liveness", "ProcessRecord", "RestartPolicy", "exit_reason"]

#: Lines of stderr that are kept, and characters of each.
LAST_LINES = 5
LINE_CHARACTERS_MAX = 400
#: Who served for so long starts its delays from the shortest again.
STEADY_S = 10.0
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
#: These say nothing of the process: somebody else sent them.
_SENT_SIGNALS = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def exit_reason(status: int, last_lines: list[str]) -> str:
    """Why a process ended, for people.

    Args:
        status: its exit code, negative for a signal.
        last_lines: what it wrote to stderr at last.
    """
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        reason = f"ended by {name}"
        if -status in _SENT_SIGNALS:
            return reason
    else:
        reason = f"ended with exit code {status}"
    # The sentence that a command ends with says more than the log lines before it.
    ours = [line.removeprefix("pycounter: ") for line in last_lines if line.startswith("pycounter: ")]
    said = ours[-1:] or last_lines[-1:]
    return f"{reason}: {said[0].strip()}" if said else reason


class RestartPolicy:
    """How long to wait before a process is started again."""

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)

    def delay_s(self, served_s: float) -> float:
        """The delay after a run that served for so long, 0 if it was never ready."""
        if served_s >= STEADY_S:
            self._backoff.reset()
        return self._backoff.next_s()


class Liveness:
    """Tells a process that stalls from one that answers.

    Silence is counted while somebody waits for an answer, a tick for each look at most: a watcher that was stopped
    itself has not heard a silence.
    """

    def __init__(self, stall_timeout_s: float, tick_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._step_max_s = tick_s
        self._silence_s = 0.0
        self._looked_at: float | None = None

    def answered(self) -> None:
        """It answered, or nothing was asked."""
        self._silence_s = 0.0

    def look(self, now: float, *, is_waiting: bool, is_stopped: bool) -> str:
        """Why the process counts as stalled; empty if it doesn't.

        Args:
            now: the time in seconds.
            is_waiting: is an answer due?
            is_stopped: does the system say that it is stopped?
        """
        elapsed = 0.0 if self._looked_at is None else min(now - self._looked_at, self._step_max_s)
        self._looked_at = now
        self._silence_s = self._silence_s + elapsed if is_waiting else 0.0
        if is_stopped:
            return "stopped by a signal: SIGCONT lets it go on; it is not replaced while it is there"
        if self._silence_s >= self._stall_timeout_s:
            return f"has not answered for {self._stall_timeout_s:g} s or more; it is not replaced while it is there"
        return ""


@dataclass(slots=True)
class ProcessRecord:
    """One process through all its lives."""

    name: str
    kind: ProcessKind
    state: State = "starting"
    pid: int = 0
    address: str = ""
    #: A shard's or replica's, from its ready line.
    identity: str = ""
    restarts: int = 0
    #: Why it is in this state or was started again.
    reason: str = ""
    #: Why its last life ended; empty if this is the first.
    last_end: str = ""
    #: When it was ready, None if it isn't.
    ready_at: float | None = None
    #: Did its last life end before it was ready?
    can_not_start: bool = False
    #: Has it been ready, or failed, at least once?
    is_settled: bool = False
    #: What it says of itself: the last `health` or facts.
    facts: dict[str, Any] = field(default_factory=dict)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    def began(self, pid: int) -> None:
        """A process was started."""
        self.pid = pid
        # One that has not come as far as serving is down until it does, however often it is tried.
        self.state = "down" if self.can_not_start else "starting"
        self.ready_at = None
        self.facts = {}
        self.last_lines.clear()

    def said(self, line: str) -> None:
        """It wrote a line to stderr."""
        self.last_lines.append(line[:LINE_CHARACTERS_MAX])

    def ready(self, now: float, *, address: str, identity: str) -> None:
        """It serves."""
        self.state = "ok"
        self.can_not_start = False
        self.address = address
        self.identity = identity
        self.ready_at = now
        self.is_settled = True
        self.reason = self.last_end
        if self.kind == "replica":
            # It can be asked, and doesn't answer reads before it has caught up with its shard.
            self.state = "starting"

    def looked(self, stalled: str, health: str, health_reason: str) -> None:
        """What a look at it gave: why it counts as stalled, and the state and reason that it gives itself."""
        if self.ready_at is None:
            return
        if stalled:
            self.state, self.reason = "stalled", stalled
        elif health in {"read_only", "starting"}:
            self.state = "read_only" if health == "read_only" else "starting"
            self.reason = health_reason or self.last_end
        elif self.state in {"stalled", "read_only"}:
            self.state, self.reason = "ok", f"it was {self.state.replace('_', ' ')}, and has recovered"
        elif health == "ok" and self.state == "starting":
            self.state, self.reason = "ok", self.last_end

    def failed(self, reason: str) -> None:
        """It ended, or could not be started."""
        self.state = "down"
        self.can_not_start = self.ready_at is None
        self.pid = 0
        self.reason = self.last_end = reason
        self.ready_at = None
        self.is_settled = True
        self.facts = {}

    def info(self) -> ProcessInfo:
        """As the topology has it."""
        return ProcessInfo(
            name=self.name,
            kind=self.kind,
            state=self.state,
            pid=self.pid,
            restarts=self.restarts,
            reason=self.reason,
            address=self.address,
        )
