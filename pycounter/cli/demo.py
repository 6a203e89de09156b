"""The demo: count real words over real TCP while the server is killed again and again, and check every total.

Three kinds of processes: this one, which supervises, kills and checks; a durable shard server in a fresh folder; and
client processes, each of which counts the words of its share of the files. What is expected is counted here, on its
own, with `collections.Counter` over the same files.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import IO, Any

from pycounter.client import ClientSettings, SessionClient
from pycounter.errors import PyCounterError

__all__ = ["DemoResult", "run_demo", "stdlib_files"]

WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
HOST = "127.0.0.1"
#: Words that a client sends in one call, and calls that it has outstanding.
CALL_WORDS = 1000
CALLS_OUTSTANDING = 32
START_TIMEOUT_S = 60.0
#: Nothing counted for so long: something is wrong.
STALL_TIMEOUT_S = 120.0
POLL_S = 0.02
#: Clients run ahead of the next kill by this share of the text at most.
HOLD_SHARE = 0.1
#: Without progress for so long, all clients are held.
HELD_S = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class DemoResult:
    """What came out. The demo succeeded if `differences` is 0 and as many kills happened as were asked for."""

    files: int = 0
    words: int = 0
    counters: int = 0
    seconds: float = 0.0
    kills: int = 0
    kills_planned: int = 0
    resent: int = 0
    reconnects: int = 0
    differences: int = 0
    top: list[tuple[str, int]] = field(default_factory=list)
    level: str = "durable"

    @property
    def succeeded(self) -> bool:
        """Is every counter right, after all the kills?"""
        return self.differences == 0 and self.kills >= self.kills_planned and self.words > 0


def stdlib_files(limit: int | None = None) -> list[Path]:
    """Every .py file of the running Python's standard library, site-packages left out; the first `limit` of them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = (path for path in sorted(root.rglob("*.py")) if not {"site-packages", "dist-packages"} & set(path.parts))
    return [path for path in itertools.islice(files, limit) if path.is_file()]


def run_demo(
    *,
    kills: int = 3,
    clients: int = 2,
    level: str = "durable",
    files: Sequence[Path] | None = None,
    on_progress: Callable[[float, int, int], None] = lambda _share, _words, _kills: None,
) -> DemoResult:
    """Runs the demo in a temporary folder, which is gone afterwards, as are all processes.

    Args:
        kills: how often the server is killed with -9 on the way.
        clients: client processes.
        level: the server's: "durable" or "applied". At "applied" a kill may lose what was acknowledged.
        files: what to count; the standard library by default.
        on_progress: gets the share done (0 to 1), the words acknowledged, and the kills so far, often.

    Raises:
        PyCounterError: a process of the demo failed; the message has its last words.
    """
    files = stdlib_files() if files is None else files
    if not files:
        raise PyCounterError("there are no files to count")
    folder = Path(tempfile.mkdtemp(prefix="pycounter-demo-"))
    try:
        with _Server(folder, level) as server, _Clients(files, clients, server.port) as workers:
            return _supervise(server, workers, files, kills, on_progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _supervise(
    server: _Server,
    workers: _Clients,
    files: Sequence[Path],
    kills: int,
    on_progress: Callable[[float, int, int], None],
) -> DemoResult:
    expected: Counter[bytes] = Counter()
    counting = threading.Thread(target=_count, args=(files, expected), name="expected", daemon=True)
    counting.start()
    # Spread over the run, each at a random moment of its part.
    moments = [(number + random.uniform(0.2, 0.8)) / kills for number in range(kills)]
    result = DemoResult(files=len(files), kills_planned=kills, level=server.level)
    began = moved = time.monotonic()
    words = 0
    while not workers.are_done():
        share, words_now = workers.progress()
        if words_now > words:
            words, moved = words_now, time.monotonic()
        elif time.monotonic() - moved > STALL_TIMEOUT_S:
            raise PyCounterError(f"nothing was counted for {STALL_TIMEOUT_S:.0f} s. {server.last_words()}")
        if result.kills < kills:
            # However little there is to count, it is not all counted before the next kill. Clients whose next
            # portion is beyond that wait, and all progress with them.
            workers.hold_at(moments[result.kills] + HOLD_SHARE)
            if share >= moments[result.kills] or time.monotonic() - moved > HELD_S:
                server.kill()
                result.kills += 1
                server.start()
                moved = time.monotonic()
        else:
            workers.hold_at(1.0)
        server.check()
        on_progress(share, words, result.kills)
        time.sleep(POLL_S)
    result.seconds = time.monotonic() - began
    reports = workers.reports()
    result.resent = sum(report["resent"] for report in reports)
    result.reconnects = sum(report["reconnects"] for report in reports)
    counting.join()
    found = asyncio.run(_read_all(server.port))
    result.words = expected.total()
    result.counters = len(found)
    result.differences = sum(found.get(key, 0) != expected.get(key, 0) for key in found.keys() | expected.keys())
    result.top = [(key.decode("ascii"), count) for key, count in Counter(found).most_common(10)]
    on_progress(1.0, result.words, result.kills)
    return result


def _words(path: Path) -> list[bytes]:
    return WORD.findall(path.read_bytes())


def _count(files: Sequence[Path], into: Counter[bytes]) -> None:
    for path in files:
        into.update(_words(path))


async def _read_all(port: int) -> dict[bytes, int]:
    """Every counter of the server."""
    found: dict[bytes, int] = {}
    async with SessionClient(HOST, port) as client:
        cursor = 0
        while True:
            cursor, page = await client.call("scan", cursor, 10_000)
            found.update((key.encode() if isinstance(key, str) else key, value) for key, value in page)
            if cursor == 0:
                return found


def die_with_parent() -> None:
    """For a child process: not to outlive its parent, even if that is killed with -9."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


#: The command `pycounter`, in a process that ends with its parent.
_SERVE = "from pycounter.cli.demo import die_with_parent; die_with_parent(); from pycounter.cli import main; main()"


class _Server:
    """The shard server: started on a port of its own choice, later again on the same."""

    def __init__(self, folder: Path, level: str) -> None:
        self.level = level
        self.port = 0
        self._data = folder / "shard"
        self._log_path = folder / "server.log"
        self._log: IO[bytes] = self._log_path.open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Server:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        command = [sys.executable, "-c", _SERVE, "serve", "--json", "--data", str(self._data)]
        command += ["--host", HOST, "--port", str(self.port), "--level", self.level]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYCOUNTER_")}
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        # Recovery ends by itself; a server that hangs is killed, which ends this line.
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise PyCounterError(f"the demo's server did not start. {self.last_words()}")
        self.port = int(json.loads(line)["address"].rpartition(":")[2])

    def kill(self) -> None:
        """Kill -9: no handler runs, nothing is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    def check(self) -> None:
        """Raises if it exited without being killed by us."""
        if self._process is not None and self._process.poll() is not None:
            raise PyCounterError(f"the demo's server exited with {self._process.returncode}. {self.last_words()}")

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        text = self._log_path.read_text(errors="replace").strip()
        return f"Its last words: {text[-2000:]}" if text else "It said nothing."


class _Clients:
    """The client processes. Each has its share of the files and a pipe for its report."""

    def __init__(self, files: Sequence[Path], count: int, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._bytes_total = sum(path.stat().st_size for path in files) or 1
        self._processes = []
        self._pipes = []
        self._done: list[tuple[Synchronized[int], Synchronized[int]]] = []
        self._hold = context.Value("d", 0.0)
        for number in range(count):
            here, there = context.Pipe(duplex=False)
            done = (context.Value("Q", 0), context.Value("Q", 0))
            share = [str(path) for path in files[number::count]]
            process = context.Process(target=_client, args=(share, port, *done, self._hold, there), daemon=True)
            self._processes.append(process)
            self._pipes.append((here, there))
            self._done.append(done)

    def __enter__(self) -> _Clients:
        for process, (_, there) in zip(self._processes, self._pipes, strict=True):
            process.start()
            there.close()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def progress(self) -> tuple[float, int]:
        """The share of the bytes whose words are acknowledged, and how many words those are."""
        done_bytes = sum(done.value for done, _ in self._done)
        return min(1.0, done_bytes / self._bytes_total), sum(words.value for _, words in self._done)

    def hold_at(self, share: float) -> None:
        """Lets each client send up to this share of its text."""
        self._hold.value = share

    def are_done(self) -> bool:
        """Have all ended? Raises if one failed."""
        for process in self._processes:
            if process.exitcode not in {None, 0}:
                raise PyCounterError(f"a client process of the demo failed with exit code {process.exitcode}")
        return all(process.exitcode == 0 for process in self._processes)

    def reports(self) -> list[dict[str, int]]:
        """What each client counted of itself."""
        return [here.recv() for here, _ in self._pipes]


def _client(paths: list[str], port: int, bytes_done: Any, words_done: Any, hold: Any, report: Any) -> None:
    """A client process."""
    die_with_parent()
    # Ctrl-C is the supervisor's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Lost connections are what this is about: they go into the report, not onto the screen.
    logging.getLogger("pycounter").setLevel(logging.CRITICAL)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    report.send(asyncio.run(_count_over_tcp(paths, port, bytes_done, words_done, hold)))


async def _count_over_tcp(paths: list[str], port: int, bytes_done: Any, words_done: Any, hold: Any) -> dict[str, int]:
    bytes_total = _size(paths)
    bytes_sent = 0
    settings = ClientSettings(backoff_max_s=0.2, call_timeout_s=600.0)
    room = asyncio.Semaphore(CALLS_OUTSTANDING)
    async with SessionClient(HOST, port, settings=settings) as client:

        async def send(words: list[bytes], share: int) -> None:
            try:
                for outcome in await client.apply([(word, 1) for word in words]):
                    if not isinstance(outcome, int):
                        raise outcome
            finally:
                room.release()
            with bytes_done.get_lock():
                bytes_done.value += share
            with words_done.get_lock():
                words_done.value += len(words)

        async with asyncio.TaskGroup() as tasks:
            for words, share in _portions(paths):
                bytes_sent += share
                # The last portion waits until all kills are over.
                while bytes_sent > hold.value * bytes_total:  # noqa: ASYNC110 - another process lets go
                    await asyncio.sleep(POLL_S)
                await room.acquire()
                tasks.create_task(send(words, share))
        statistics = client.statistics
        return {"resent": statistics.operations_resent, "reconnects": statistics.reconnects}


def _size(paths: list[str]) -> int:
    return sum(Path(path).stat().st_size for path in paths)


def _portions(paths: list[str]) -> Iterator[tuple[list[bytes], int]]:
    """Each word of the files once, in lists of `CALL_WORDS`, each with the bytes of text that it completes."""
    pending: list[bytes] = []
    size = 0
    for path in paths:
        pending += _words(Path(path))
        size += Path(path).stat().st_size
        while len(pending) >= CALL_WORDS:
            yield pending[:CALL_WORDS], size
            del pending[:CALL_WORDS]
            size = 0
    if pending:
        yield pending, size
