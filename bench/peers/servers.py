"""Server processes: started on a free port and a temporary folder, pinned to a core, and gone in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.peers.peers import Peer
from bench.peers.processes import cpu_seconds, resident_bytes

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 120.0
KILL_TIMEOUT_S = 10.0


class BenchError(Exception):
    """What was to be measured can't be."""


def free_port() -> int:
    """A port that nothing listened on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server. `start` may follow `stop`: the folder stays until the end."""

    def __init__(self, peer: Peer, folder: Path, pin: Sequence[str]) -> None:
        self.peer = peer
        self.folder = folder
        self.port = free_port()
        self._pin = pin
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started, which may have children."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Starts it and waits until it answers. Gives the seconds that this took."""
        command = [*self._pin, *self.peer.command(self.port, self.folder)]
        began = time.perf_counter()
        # A session of its own: Ctrl-C reaches this program only, which then ends its servers in its own order.
        self._process = subprocess.Popen(
            command,
            cwd=ROOT if self.peer.user is None else self.folder,
            env={**os.environ, **self.peer.environment},
            user=self.peer.user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not self.peer.is_ready(self.port):
            if self._process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                raise BenchError(f"{self.peer.name} did not start: {' '.join(command)}")
            time.sleep(0.005)
        return time.perf_counter() - began

    def stop(self) -> None:
        """Has it end in good order: what it has is on its disk then, if it keeps anything."""
        if self._process is not None:
            self._process.send_signal(self.peer.stop_signal)
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def kill(self) -> None:
        """Ends it at once, with whatever it started."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.peer.user is not None:
                # Its children share memory that only it can give back.
                self._process.send_signal(self.peer.stop_signal)
                self._process.wait(KILL_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(KILL_TIMEOUT_S)
        self._process = None

    def cpu_seconds(self) -> float:
        """Processor time since the start."""
        return cpu_seconds(self.pid)

    def resident_bytes(self) -> int:
        """Memory in RAM."""
        return resident_bytes(self.pid)


class Servers:
    """All servers of a run, below one temporary folder. Leaving it kills them and deletes the folder."""

    def __init__(self, server_cpu: int | None) -> None:
        self._pin = [] if server_cpu is None else ["taskset", "-c", str(server_cpu)]
        self._shared: dict[str, Server] = {}
        self._all: list[Server] = []
        self._number = 0

    def __enter__(self) -> Servers:
        self.base = Path(tempfile.mkdtemp(prefix="pycounter-peers-"))
        # PostgreSQL's user has to get through to its own folder.
        self.base.chmod(0o711)
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C must not leave half of them behind.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for server in self._all:
                server.kill()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)
            signal.signal(signal.SIGINT, before)

    def shared(self, peer: Peer) -> Server:
        """The server of this kind that scenarios share: started by the first that asks."""
        if peer.name not in self._shared:
            self._shared[peer.name] = self.fresh(peer)
        return self._shared[peer.name]

    def fresh(self, peer: Peer) -> Server:
        """A new server with nothing in it. Raises BenchError if it can't be started."""
        if missing := peer.missing():
            raise BenchError(missing)
        self._number += 1
        folder = self.base / f"{self._number}-{peer.name}"
        folder.mkdir()
        if peer.prepare is not None:
            peer.prepare(folder)
        server = Server(peer, folder, self._pin)
        self._all.append(server)
        server.start()
        return server

    def discard(self, server: Server) -> None:
        """Kills it and deletes its folder."""
        server.kill()
        self._all.remove(server)
        shutil.rmtree(server.folder, ignore_errors=True)
