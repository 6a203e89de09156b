"""Clusters as processes that tests start, whose processes they kill, stop and watch one by one.

cluster = start_cluster(shards=4, replicas=1)            # the fixture; ready when it returns
cluster.address                                          # where it serves
cluster.kill_process("shard-1")                          # -9; gone when it returns
cluster.wait_restarted("shard-1")
cluster.send_signal_to("shard-2", signal.SIGSTOP)
cluster.wait_state("shard-2", "stalled")
"""

import contextlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycounter.cluster.control import ask_supervisor
from pycounter.cluster.parent import SUPERVISOR_VARIABLE
from pycounter.topology import ProcessInfo, Topology, parse_address
from tests.support.shard_process import START_TIMEOUT_S, Launcher, Ready, ShardEnded, ShardProcess
from tests.support.waiting import wait_until

STATE_TIMEOUT_S = 60.0


class ClusterProcess(ShardProcess):
    """A supervisor with all its children on one folder, in as many lives as the test wants.

    `start`, `begin`, `kill`, `terminate`, `restart` and `output` are the supervisor's; its children die with it. In
    `ready`, `identity` is the cluster's and `epoch` counts its starts; `said` is the whole ready line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        shards: int = 2,
        replicas: int = 0,
        coordinators: int = 1,
        launcher: Launcher | None = None,
        settings: Mapping[str, str | int | float | bool] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        counts = ["--shards", str(shards), "--replicas", str(replicas), "--coordinators", str(coordinators)]
        super().__init__(directory, launcher=launcher, settings=settings, arguments=[*counts, *arguments])
        self.said: dict[str, Any] = {}
        self._restarts_seen: dict[str, int] = {}
        self._supervisors: set[int] = set()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Ready:
        """Waits for the ready line. Raises ShardEnded where the supervisor ends instead."""
        assert self._child is not None
        self._supervisors.add(self._child.pid)
        line = self._read_line(timeout_s)
        if not line.endswith(b"\n"):
            raise ShardEnded(self.wait(), self.output())
        self.said = json.loads(line)
        host, port = parse_address(self.said["address"])
        self.ready = Ready(host, port, self.said["pid"], "", self.said["cluster"], self.said["starts"])
        return self.ready

    def change_arguments(self, *arguments: str) -> None:
        """Gives later starts more words on the command line."""
        self._arguments += arguments

    # --- what the supervisor says ----------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `pycounter status --json` prints."""
        answer: dict[str, Any] = ask_supervisor(self.directory, {"do": "status"})
        return answer

    def topology(self) -> Topology:
        """The newest topology."""
        return Topology.from_wire(self.status()["topology"])

    def process(self, name: str) -> ProcessInfo:
        """What is known of a process: "shard-0", "shard-0-replica-0", "coordinator-0", "supervisor"."""
        found = self.topology().process(name)
        assert found is not None, f"there is no {name}"
        return found

    def pids(self) -> dict[str, int]:
        """The pids of all processes that are there, the supervisor's included, by name."""
        return {process.name: process.pid for process in self.topology().processes if process.pid}

    def events(self) -> list[str]:
        """What happened since the start, one sentence each."""
        return [event["text"] for event in self.status()["events"]]

    # --- what a test does to its processes -------------------------------------------------------------------------

    def send_signal_to(self, name: str, number: int) -> int:
        """Sends a signal to one process; gives its pid."""
        process = self.process(name)
        assert process.pid, f"{name} doesn't run: {process.reason}"
        self._restarts_seen[name] = process.restarts
        os.kill(process.pid, number)
        return process.pid

    def kill_process(self, name: str) -> int:
        """Kills one process with -9 and waits until it is gone; gives its pid."""
        pid = self.send_signal_to(name, signal.SIGKILL)
        wait_until(lambda: not is_there(pid))
        return pid

    def wait_state(self, name: str, *states: str, timeout_s: float = STATE_TIMEOUT_S) -> ProcessInfo:
        """Waits until a process is in one of these states."""
        found: ProcessInfo = wait_until(
            lambda: process if (process := self.process(name)).state in states else None, timeout_s
        )
        return found

    def wait_restarted(self, name: str, timeout_s: float = STATE_TIMEOUT_S) -> ProcessInfo:
        """Waits until a process that was sent a signal was started again and serves."""

        def serves_again() -> ProcessInfo | None:
            process = self.process(name)
            return process if process.restarts > self._restarts_seen[name] and process.state == "ok" else None

        found: ProcessInfo = wait_until(serves_again, timeout_s)
        return found

    def wait_all_ok(self, timeout_s: float = STATE_TIMEOUT_S) -> Topology:
        """Waits until every process serves."""

        def all_serve() -> Topology | None:
            topology = self.topology()
            return topology if all(process.state == "ok" for process in topology.processes) else None

        found: Topology = wait_until(all_serve, timeout_s)
        return found

    def children_left(self) -> list[int]:
        """The pids of processes that a supervisor of this cluster started and that are there, in any of its lives."""
        return [int(process.name) for process in Path("/proc").glob("[0-9]*") if self._is_child(process)]

    def _is_child(self, process: Path) -> bool:
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            return any(f"{SUPERVISOR_VARIABLE}={pid}".encode() in environment for pid in self._supervisors)
        return False


def is_there(pid: int) -> bool:
    """Does a process with this number run? One that has ended and waits for its parent doesn't."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
