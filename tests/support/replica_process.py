"""Replicas as processes that tests start, kill with -9 and start again."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.shard_process import END_TIMEOUT_S, START_TIMEOUT_S, Child, ColdLauncher, Launcher
from tests.support.waiting import is_readable


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ReplicaProcess:
    """One replica, in as many lives as the test wants; after the first always on the same port."""

    def __init__(
        self, log: Path, primary: tuple[str, int], *, launcher: Launcher | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self.log = log
        self.port = 0
        self._primary = f"{primary[0]}:{primary[1]}"
        self._launcher = launcher or ColdLauncher()
        self._arguments = list(arguments)
        self._child: Child | None = None
        self._stdout = -1

    def __enter__(self) -> "ReplicaProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.port

    def start(self) -> dict[str, object]:
        """Starts it and waits for its ready line."""
        assert self._child is None, "it runs already"
        self._stdout, theirs = os.pipe()
        words = ["replica", "serve", "--json", "--primary", self._primary, "--port", str(self.port)]
        with self.log.open("ab", buffering=0) as log:
            try:
                self._child = self._launcher.spawn([*words, *self._arguments], theirs, log.fileno())
            finally:
                os.close(theirs)
        deadline = time.monotonic() + START_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n"):
            assert is_readable(self._stdout, max(0.0, deadline - time.monotonic())), self.output()
            read = os.read(self._stdout, 4096)
            assert read, self.output()
            line += read
        said: dict[str, object] = json.loads(line)
        self.port = int(str(said["address"]).rpartition(":")[2])
        return said

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, number)

    def kill(self) -> None:
        """Kills it with -9, if it runs."""
        if self._child is not None:
            self.send_signal(signal.SIGKILL)
            self._end()

    def terminate(self) -> int:
        """Asks it to end in good order; gives the exit status."""
        self.send_signal(signal.SIGTERM)
        return self._end()

    def _end(self) -> int:
        assert self._child is not None
        status = self._child.wait(END_TIMEOUT_S)
        self._child = None
        os.close(self._stdout)
        return status

    def output(self) -> str:
        """What it wrote to stderr, over all its lives."""
        return self.log.read_text(errors="replace")
