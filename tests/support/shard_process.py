"""Shard servers as processes that tests start, kill with -9 and start again on the same folder."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.waiting import is_readable

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 60.0


class ShardEnded(Exception):
    """The shard ended before it was ready: its status and what it wrote to stderr."""

    def __init__(self, status: int, output: str) -> None:
        super().__init__(f"the shard ended with status {status} before it was ready:\n{output}")
        self.status = status
        self.output = output


@dataclass(frozen=True, slots=True)
class Ready:
    """What the ready line says."""

    host: str
    port: int
    pid: int
    shard: str
    identity: str
    epoch: int


class Child(Protocol):
    """A process that was started."""

    pid: int

    def wait(self, timeout_s: float) -> int:
        """Its exit status, negative for a signal. Raises TimeoutError."""


class Launcher(Protocol):
    """Starts `pycounter` commands."""

    def spawn(self, arguments: Sequence[str], stdout: int, stderr: int) -> Child: ...


def package_environment(package: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which `pycounter` is imported from the folder `package`, or as it is here."""
    merged = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
    if package is not None:
        merged["PYTHONPATH"] = str(package)
    return merged


class _PopenChild:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self._process = process

    def wait(self, timeout_s: float) -> int:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.pid} runs still") from error


class ColdLauncher:
    """A new interpreter for each start, as users start it."""

    def __init__(self, *, package: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._package = package or ROOT
        self._environment = package_environment(package, environment or {})

    def spawn(self, arguments: Sequence[str], stdout: int, stderr: int) -> Child:
        command = [sys.executable, "-m", "pycounter", *arguments]
        return _PopenChild(
            subprocess.Popen(
                command,
                cwd=self._package,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        )


class _WarmChild:
    def __init__(self, launcher: "WarmLauncher", pid: int) -> None:
        self.pid = pid
        self._launcher = launcher
        # The launcher reaps nothing unasked, so the number can't have gone to another process.
        self._ended = os.pidfd_open(pid)
        self._status: int | None = None
        #: Several threads may wait for the child; one of them reaps it.
        self._reaping = threading.Lock()

    def wait(self, timeout_s: float) -> int:
        if not is_readable(self._ended, timeout_s):
            raise TimeoutError(f"process {self.pid} is still running")
        with self._reaping:
            if self._status is None:
                self._status = self._launcher.reap(self.pid)
        return self._status

    def __del__(self) -> None:
        # Not earlier: any number of threads may be waiting on it.
        os.close(self._ended)


class WarmLauncher:
    """Forks each start from a process that has imported everything: see `warm_launcher.py`."""

    def __init__(self, *, package: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            program = Path(__file__).with_name("warm_launcher.py")
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(program), str(theirs.fileno())],
                env=package_environment(package or ROOT, environment or {}),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def _ask(self, request: object, descriptors: Sequence[int] = ()) -> dict[str, int]:
        with self._lock:
            try:
                socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
                answer = self._requests.recv(4096)
            except OSError as error:
                answer = str(error).encode()
        try:
            decoded = json.loads(answer)
        except ValueError:
            raise RuntimeError(f"the launcher ended, status {self._process.poll()}: {answer!r}") from None
        assert isinstance(decoded, dict)
        return decoded

    def spawn(self, arguments: Sequence[str], stdout: int, stderr: int) -> Child:
        return _WarmChild(self, self._ask({"spawn": list(arguments)}, [stdout, stderr])["pid"])

    def reap(self, pid: int) -> int:
        """The exit status of a child that has ended."""
        return self._ask({"reap": pid})["status"]

    def close(self) -> None:
        """Kills what still runs."""
        self._requests.close()
        self._process.wait(END_TIMEOUT_S)


class ShardProcess:
    """One shard on one folder, in as many lives as the test wants.

    `settings` go to a TOML file that is passed by `--config`, `arguments` to the command line.
    """

    def __init__(
        self,
        directory: Path,
        *,
        launcher: Launcher | None = None,
        settings: Mapping[str, str | int | float | bool] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.log = directory.with_name(f"{directory.name}.stderr")
        self.ready: Ready | None = None
        self.starts = 0
        self._launcher = launcher or ColdLauncher()
        self._config = directory.with_name(f"{directory.name}.toml")
        self._config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (settings or {}).items()))
        self._arguments = list(arguments)
        self._child: Child | None = None
        self._stdout = -1
        #: Several threads may wait for a life's end; one of them clears it.
        self._ending = threading.Lock()

    def __enter__(self) -> "ShardProcess":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> Ready:
        """Starts the shard and waits until it is ready."""
        self.begin()
        return self.wait_ready()

    def begin(self) -> None:
        """Starts the shard and returns at once."""
        assert self._child is None, "it runs already"
        self.starts += 1
        self.ready = None
        self._stdout, theirs = os.pipe()
        arguments = ["serve", "--data", str(self.directory), "--port", "0", "--json", "--config", str(self._config)]
        with self.log.open("ab", buffering=0) as log:
            log.write(f"--- start {self.starts}\n".encode())
            try:
                self._child = self._launcher.spawn([*arguments, *self._arguments], theirs, log.fileno())
            finally:
                os.close(theirs)

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Ready:
        """Waits for the ready line. Raises ShardEnded where the shard ends instead."""
        line = self._read_line(timeout_s)
        if not line.endswith(b"\n"):
            raise ShardEnded(self.wait(), self.output())
        said = json.loads(line)
        host, _, port = said["address"].rpartition(":")
        self.ready = Ready(host.strip("[]"), int(port), said["pid"], said["shard"], said["identity"], said["epoch"])
        return self.ready

    def _read_line(self, timeout_s: float) -> bytes:
        deadline = time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            if not is_readable(self._stdout, max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"the shard is not ready after {timeout_s} s:\n{self.output()}")
            read = os.read(self._stdout, 4096)
            if not read:
                break
            line += read
        return line

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        assert self.ready is not None, "it isn't ready"
        return self.ready.host, self.ready.port

    @property
    def is_running(self) -> bool:
        """Was it started, and neither killed nor waited for?"""
        return self._child is not None

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if (child := self._child) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Waits for its end; gives the exit status, negative for a signal. Raises TimeoutError."""
        assert self._child is not None, "it doesn't run"
        return self._wait(self._child, timeout_s)

    def _wait(self, child: Child, timeout_s: float) -> int:
        status = child.wait(timeout_s)
        with self._ending:
            if self._child is child:
                self._child = None
                os.close(self._stdout)
                self.ready = None
        return status

    def kill(self) -> int | None:
        """Kills it with -9 and waits until it is gone; gives the status, None if it didn't run."""
        child = self._child
        if child is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        return self._wait(child, END_TIMEOUT_S)

    def restart(self) -> Ready:
        """Kills it with -9 and starts it again."""
        self.kill()
        return self.start()

    def terminate(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Asks it to end in good order; gives the exit status."""
        self.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    # --- what is known from outside --------------------------------------------------------------------------------

    def output(self, lines: int = 40) -> str:
        """The last lines that it wrote to stderr, over all its lives."""
        try:
            text = self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
