"""One child through all its lives: started, listened to, started again when it has exited.

It runs on the supervisor's event loop. What it writes to stderr goes on to the supervisor's, with its name before each
line; what it writes to stdout are lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from pycounter.cluster.child_commands import child_environment
from pycounter.cluster.process_state import ProcessRecord, RestartPolicy, exit_reason
from pycounter.errors import PyCounterError

__all__ = ["ChildProcess", "state_in_proc"]

_log = logging.getLogger(__name__)

#: A line of JSON from a child; a longer one is dropped.
LINE_BYTES_MAX = 1 << 20


class ChildProcess:
    """A child that is kept running until `stop`.

    Args:
        record: what is known of it; kept up to date here.
        command: gives the command line of the next start, and descriptors to pass on. Raises PyCounterError or OSError
            where it can't be started; the message is its reason.
        on_change: the record has changed.
        on_ready: it said that it is ready: gets its ready line.
        on_facts: it said something else.
        on_event: gets sentences about what happens to it.
        with_input: does it read a standard input? Then `tell` writes there.
    """

    def __init__(
        self,
        record: ProcessRecord,
        command: Callable[[], tuple[Sequence[str], Sequence[int]]],
        *,
        on_change: Callable[[], None],
        on_ready: Callable[[dict[str, Any]], None],
        on_facts: Callable[[dict[str, Any]], None],
        on_event: Callable[[str], None],
        with_input: bool = False,
    ) -> None:
        self.record = record
        self._command = command
        self._on_change = on_change
        self._on_ready = on_ready
        self._on_facts = on_facts
        self._on_event = on_event
        self._with_input = with_input
        self._policy = RestartPolicy()
        self._loop = asyncio.get_running_loop()
        self._process: Process | None = None
        self._stopping = asyncio.Event()
        self._told = asyncio.Event()
        self._last_told = b""
        self._task = self._loop.create_task(self._keep_running(), name=record.name)

    # --- what others order -----------------------------------------------------------------------------------------

    def tell(self, line: bytes) -> None:
        """Writes a line to its standard input, soon; only the last of several that wait."""
        self._last_told = line
        self._told.set()

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def order_stop(self) -> None:
        """Asks it to end in good order, and has it started no more."""
        self._stopping.set()
        self.send_signal(signal.SIGTERM)
        # One that is stopped would not hear it.
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once, and has it started no more."""
        self._stopping.set()
        self.send_signal(signal.SIGKILL)

    async def stop(self, timeout_s: float) -> bool:
        """Stops it in good order, or by force after so long. False: by force."""
        self.order_stop()
        done, _ = await asyncio.wait([self._task], timeout=timeout_s)
        if not done:
            self._on_event(f"{self.record.name} has not stopped in good order within {timeout_s:g} s: it is killed")
            self.kill()
            await asyncio.wait([self._task])
        return bool(done)

    # --- its lives -------------------------------------------------------------------------------------------------

    async def _keep_running(self) -> None:
        record = self.record
        while not self._stopping.is_set():
            try:
                reason = await self._live()
            except (PyCounterError, OSError) as error:
                reason = f"can't be started: {error}"
            except Exception as error:  # noqa: BLE001 - whatever it is, the process is to be started again
                _log.exception("%s can't be watched: it is killed and started again", record.name)
                reason = f"can't be watched: {error!r}"
            served_s = 0.0 if record.ready_at is None else self._loop.time() - record.ready_at
            record.failed(reason)
            self._on_change()
            if self._stopping.is_set():
                return
            delay_s = self._policy.delay_s(served_s)
            self._on_event(f"{record.name} {reason}; it is started again in {delay_s:.1f} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
            record.restarts += 1

    async def _live(self) -> str:
        """One life. Gives the reason of its end."""
        command, descriptors = self._command()
        self._process = process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE if self._with_input else DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=child_environment(),
            pass_fds=descriptors,
            start_new_session=True,
        )
        if self._stopping.is_set():
            # Ordered while it was being started.
            self.send_signal(signal.SIGTERM)
        self.record.began(process.pid)
        self._on_change()
        tasks = [self._loop.create_task(self._listen(process)), self._loop.create_task(self._relay(process))]
        if self._with_input:
            tasks.append(self._loop.create_task(self._write(process)))
        try:
            # What it said at last is in the pipes: they are read to their ends.
            await asyncio.gather(process.wait(), *tasks[:2])
        finally:
            self._process = None
            for task in tasks:
                task.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return exit_reason(process.returncode, list(self.record.last_lines))

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            try:
                said = json.loads(line)
            except (ValueError, RecursionError):
                said = None
            if not isinstance(said, dict):
                _log.warning("%s wrote something that is no line of JSON: %.200r", self.record.name, line)
            elif said.get("event") == "ready":
                self._on_ready(said)
            else:
                self._on_facts(said)

    async def _relay(self, process: Process) -> None:
        assert process.stderr is not None
        async for line in _lines(process.stderr):
            text = line.decode(errors="replace").rstrip()
            self.record.said(text)
            sys.stderr.write(f"{self.record.name}: {text}\n")
            sys.stderr.flush()

    async def _write(self, process: Process) -> None:
        """What it was told last, each time that it has read what it was told before."""
        assert process.stdin is not None
        self._told.set()
        with contextlib.suppress(ConnectionError):
            while True:
                await self._told.wait()
                self._told.clear()
                if self._last_told:
                    process.stdin.write(self._last_told)
                    await process.stdin.drain()


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines without end; of those that are too long nothing."""
    pending = b""
    is_dropping = False
    while chunk := await reader.read(65_536):
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            if not is_dropping:
                yield line
            is_dropping = False
        if len(pending) > LINE_BYTES_MAX:
            pending, is_dropping = b"", True
    if pending and not is_dropping:
        yield pending


def state_in_proc(pid: int) -> str:
    """The letter of the process's state in /proc, such as "T" for stopped; empty if there is none."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    # The name, in brackets, may hold anything.
    return content.rpartition(b")")[2].split()[0].decode("ascii")
