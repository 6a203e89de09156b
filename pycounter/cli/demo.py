"""The demo: count real words over real TCP while a cluster loses processes again and again, and check every total.

Three kinds of processes: this one, which kills and checks; a cluster in a fresh folder, with its supervisor, shards and
coordinator; and client processes, each of which counts the words of its share of the files. Every second client goes
straight to the shards, the others through the coordinator. What is expected is counted here, on its own, with
`collections.Counter` over the same files.
"""

from __future__ import annotations

import asyncio
import contextlib
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

from pycounter.cluster.control import ask_supervisor
from pycounter.cluster.parent import die_with_parent
from pycounter.coordinator.client import Client
from pycounter.coordinator.connecting import connect
from pycounter.coordinator.shard_routes import key_bytes
from pycounter.errors import PyCounterError, Unavailable
from pycounter.topology import ProcessInfo, Topology

__all__ = ["DemoResult", "run_demo", "stdlib_files"]

WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
HOST = "127.0.0.1"
#: Words that a client sends in one call, and calls that it has outstanding.
CALL_WORDS = 1000
CALLS_OUTSTANDING = 32
START_TIMEOUT_S = 60.0
#: Below the two minutes for which shards know ids.
INCREMENT_TIMEOUT_S = 100.0
RETRY_S = 0.1
#: Nothing counted for so long: something is wrong.
STALL_TIMEOUT_S = 120.0
POLL_S = 0.02
#: Clients run ahead of the next kill by this share of the text at most.
HOLD_SHARE = 0.1
#: Without progress for so long, all clients are held.
HELD_S = 1.0


@dataclass(slots=True)
class DemoResult:
    """What came out. The demo succeeded if `differences` is 0 and as many kills happened as were asked for."""

    files: int = 0
    words: int = 0
    shards: int = 0
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
    shards: int = 2,
    clients: int = 2,
    level: str = "durable",
    files: Sequence[Path] | None = None,
    on_progress: Callable[[float, int, int], None] = lambda _share, _words, _kills: None,
) -> DemoResult:
    """Runs the demo in a temporary folder, which is gone afterwards, as are all processes.

    Args:
        kills: how often a process is killed with -9 on the way: shards and the coordinator in turn.
        shards: of the cluster.
        clients: client processes.
        level: the cluster's: "durable" or "applied". At "applied" a kill may lose what was acknowledged.
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
        with _Cluster(folder, shards, level) as cluster, _Clients(files, clients, cluster.port) as workers:
            return _supervise(cluster, workers, files, kills, on_progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _supervise(
    cluster: _Cluster,
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
    result = DemoResult(files=len(files), kills_planned=kills, level=cluster.level, shards=cluster.shards)
    began = moved = time.monotonic()
    words = 0
    while not workers.are_done():
        share, words_now = workers.progress()
        if words_now > words:
            words, moved = words_now, time.monotonic()
        elif time.monotonic() - moved > STALL_TIMEOUT_S:
            raise PyCounterError(f"nothing was counted for {STALL_TIMEOUT_S:.0f} s. {cluster.last_words()}")
        if result.kills < kills:
            # However little there is to count, it is not all counted before the next kill. Clients whose next
            # portion is beyond that wait, and all progress with them.
            workers.hold_at(moments[result.kills] + HOLD_SHARE)
            if share >= moments[result.kills] or time.monotonic() - moved > HELD_S:
                cluster.kill_one()
                result.kills += 1
                moved = time.monotonic()
        else:
            workers.hold_at(1.0)
        cluster.check()
        on_progress(share, words, result.kills)
        time.sleep(POLL_S)
    result.seconds = time.monotonic() - began
    reports = workers.reports()
    result.resent = sum(report["resent"] for report in reports)
    result.reconnects = sum(report["reconnects"] for report in reports)
    counting.join()
    found = asyncio.run(_read_all(cluster.port))
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
    """Every counter of the cluster."""
    async with connect(f"pycounter://{HOST}:{port}") as client:
        return {key_bytes(key): value async for key, value in client.scan()}


#: The command `pycounter`, in a process that ends with its parent.
_SERVE = (
    "from pycounter.cluster.parent import die_with_parent; die_with_parent(); from pycounter.cli import main; main()"
)


class _Cluster:
    """A cluster on a port of its own choice, whose processes are killed one after the other."""

    def __init__(self, folder: Path, shards: int, level: str) -> None:
        self.shards = shards
        self.level = level
        self.port = 0
        self._data = folder / "cluster"
        self._log_path = folder / "cluster.log"
        self._log: IO[bytes] = self._log_path.open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        # A shard, the coordinator, the next shard, the coordinator ...
        names = (name for shard in range(shards) for name in (f"shard-{shard}", "coordinator-0"))
        self._victims = itertools.cycle(names)

    def __enter__(self) -> _Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            # All its processes end with the supervisor.
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._log.close()

    def _start(self) -> None:
        command = [sys.executable, "-c", _SERVE, "serve", "--json", "--data", str(self._data)]
        command += ["--host", HOST, "--port", "0", "--level", self.level, "--shards", str(self.shards)]
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
        # A cluster that hangs is killed, which ends this line.
        watchdog = threading.Timer(START_TIMEOUT_S, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise PyCounterError(f"the demo's cluster did not start. {self.last_words()}")
        ready = json.loads(line)
        if ready["not_ready"]:
            raise PyCounterError(f"not everything of the demo's cluster could start: {ready['not_ready']}")
        self.port = int(ready["address"].rpartition(":")[2])

    def kill_one(self) -> None:
        """Kill -9 for the next process in turn, and waits until its supervisor has it running again."""
        name = next(self._victims)
        before = self._look(name)
        # No handler runs, nothing is flushed.
        os.kill(before.pid, signal.SIGKILL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while (now := self._look(name)).state != "ok" or now.restarts == before.restarts:
            self.check()
            if time.monotonic() > deadline:
                raise PyCounterError(f"the demo's {name} did not come back: {now.reason}. {self.last_words()}")
            time.sleep(POLL_S)

    def _look(self, name: str) -> ProcessInfo:
        process = Topology.from_wire(ask_supervisor(self._data, {"do": "status"})["topology"]).process(name)
        assert process is not None
        return process

    def check(self) -> None:
        """Raises if the supervisor has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise PyCounterError(f"the demo's cluster ended with {self._process.returncode}. {self.last_words()}")

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
            url = f"pycounter://{HOST}:{port}?route={'coordinator' if number % 2 else 'direct'}"
            process = context.Process(target=_client, args=(share, url, *done, self._hold, there), daemon=True)
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


def _client(paths: list[str], url: str, bytes_done: Any, words_done: Any, hold: Any, report: Any) -> None:
    """A client process."""
    die_with_parent()
    # Ctrl-C is the supervisor's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Lost connections are what this is about: they go into the report, not onto the screen.
    logging.getLogger("pycounter").setLevel(logging.CRITICAL)
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    report.send(asyncio.run(_count_over_tcp(paths, url, bytes_done, words_done, hold)))


async def _count_over_tcp(paths: list[str], url: str, bytes_done: Any, words_done: Any, hold: Any) -> dict[str, int]:
    bytes_total = _size(paths)
    bytes_sent = 0
    room = asyncio.Semaphore(CALLS_OUTSTANDING)
    async with connect(url, increment_timeout_s=INCREMENT_TIMEOUT_S) as client:

        async def send(words: list[bytes], share: int) -> None:
            try:
                await _count_words(client, words)
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
        done = client.statistics
        return {"resent": int(done["batches_resent"]), "reconnects": int(done["reconnects"])}


async def _count_words(client: Client, words: list[bytes]) -> None:
    """Counts each word once. What was refused, because its shard was away, changed nothing: it is tried again."""
    while True:
        try:
            outcomes = await client.incr_many([(word, 1) for word in words])
        except Unavailable as error:
            outcomes = [error] * len(words)
        failed = [
            (word, outcome) for word, outcome in zip(words, outcomes, strict=True) if not isinstance(outcome, int)
        ]
        if not failed:
            return
        for _, outcome in failed:
            if not isinstance(outcome, Unavailable):
                raise outcome
        words = [word for word, _ in failed]
        await asyncio.sleep(RETRY_S)


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
