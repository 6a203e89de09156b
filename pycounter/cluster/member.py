"""One process of the cluster as the supervisor sees it: its life, its health, its place in the topology."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pycounter.cluster.child_process import ChildProcess, state_in_proc
from pycounter.cluster.health_probe import HealthProbe
from pycounter.cluster.process_state import Liveness, ProcessRecord
from pycounter.topology import parse_address
from pycounter.topology.topology import State

__all__ = ["Member"]

#: How often everybody is looked at, and how often shards and replicas are asked.
TICK_S = 0.5
PROBE_INTERVAL_S = 1.0
_STOPPED = {"T", "t"}


class Member:
    """A shard, replica or coordinator: started, watched, started again.

    Args:
        record: who it is.
        command: as for `ChildProcess`.
        token: gives what its health is asked with.
        stall_timeout_s: without an answer for so long it counts as stalled.
        on_change: something about it has changed.
        on_ready: it is ready: gets its ready line, after the record was brought up to date.
        on_event: gets sentences about what happens to it.
    """

    def __init__(
        self,
        record: ProcessRecord,
        command: Callable[[], tuple[Sequence[str], Sequence[int]]],
        *,
        token: Callable[[], bytes | None],
        stall_timeout_s: float,
        on_change: Callable[[], None],
        on_ready: Callable[[dict[str, Any]], None],
        on_event: Callable[[str], None],
    ) -> None:
        self.record = record
        self._token = token
        self._on_change = on_change
        self._on_ready = on_ready
        self._on_event = on_event
        self._liveness = Liveness(stall_timeout_s, TICK_S)
        self._probe: HealthProbe | None = None
        self._has_heartbeat = False
        self._health: dict[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self.child = ChildProcess(
            record,
            command,
            on_change=self._changed,
            on_ready=self._ready,
            on_facts=self._facts,
            on_event=on_event,
            with_input=record.kind == "coordinator",
        )

    def look(self) -> None:
        """Looks after it: is it there, does it answer, what does it say of itself?"""
        record = self.record
        if record.ready_at is None:
            return
        is_waiting = self._has_heartbeat if self._probe is None else self._probe.is_waiting
        is_stopped = state_in_proc(record.pid) in _STOPPED
        stalled = self._liveness.look(self._loop.time(), is_waiting=is_waiting, is_stopped=is_stopped)
        before = record.state
        record.looked(stalled, str(self._health.get("state", "")), str(self._health.get("reason", "")))
        if record.state != before:
            self._on_event(_told(record, before))
            self._on_change()

    # --- what the child tells --------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self.record.ready_at is None and self._probe is not None:
            self._probe.close()
            self._probe = None
        self._on_change()

    def _ready(self, said: dict[str, Any]) -> None:
        record = self.record
        address = said.get("address")
        record.ready(
            self._loop.time(),
            address=address if isinstance(address, str) else "",
            identity=str(said.get("identity", "")),
        )
        self._has_heartbeat = False
        self._health = {}
        self._liveness.answered()
        if record.kind != "coordinator" and record.address:
            self._probe = HealthProbe(parse_address(record.address), self._token, PROBE_INTERVAL_S, self._healthy)
        if record.restarts:
            times = "restart" if record.restarts == 1 else "restarts"
            self._on_event(f"{record.name} serves again, after {record.restarts} {times}")
        self._on_ready(said)
        self._on_change()

    def _healthy(self, health: dict[str, Any]) -> None:
        self._liveness.answered()
        self._health = self.record.facts = health

    def _facts(self, said: dict[str, Any]) -> None:
        # From now on silence means something.
        self._has_heartbeat = True
        self._liveness.answered()
        self.record.facts = said


def _told(record: ProcessRecord, before: State) -> str:
    """What a look has changed, for people."""
    if record.kind == "replica" and (before, record.state) == ("starting", "ok"):
        return f"{record.name} has caught up with its shard"
    told = f"{record.name} is {record.state.replace('_', ' ')}"
    return f"{told}: {record.reason}" if record.reason else told
