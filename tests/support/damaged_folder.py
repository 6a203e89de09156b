"""A shard's folder whose whole story is known, to be damaged and started again: exact, refused, or found wanting.

Operation number `n` adds `n` to one of a few counters, so a sum of all counters says how many operations it is made of,
and which they are.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from pycounter.errors import StorageError
from pycounter.storage.check import FolderReport, check_folder
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ShardEnded, ShardProcess

NAMED = re.compile(
    r"(?P<path>\S+\.log) is "
    r"(?:damaged between bytes (?P<start>\d+) and (?P<end>\d+)|readable up to byte (?P<up_to>\d+))"
)
"""The place that a refusal names."""

KEYS = [b"counter %d" % number for number in range(7)]


def values_after(operations: int) -> list[int]:
    """The counters after so many operations: number `n` is on counter `n % 7`."""
    return [sum(range(place, operations + 1, len(KEYS))) for place in range(len(KEYS))]


def operation_id(number: int) -> bytes:
    return b"operation %d" % number


class Story:
    """Counts on a shard, one acknowledged operation after the other, each a commit of its own."""

    def __init__(self) -> None:
        self.operations = 0
        self.commits: dict[int, int] = {}
        """The operation that each commit holds, by number."""

    def count(self, shard: ShardProcess, operations: int) -> None:
        with RpcSocket(shard.address) as rpc:
            self.count_on(rpc, operations)

    def count_on(self, rpc: RpcSocket, operations: int) -> None:
        for _ in range(operations):
            number = self.operations + 1
            options = {"detail": True, "id": operation_id(number)}
            done = rpc.call("incr", KEYS[number % len(KEYS)], number, options)
            self.operations = number
            self.commits[done[b"commit"]] = number


@dataclass(frozen=True, slots=True)
class Refused:
    """The start was refused with this sentence."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Started:
    """It started, with the first so many operations counted."""

    operations: int


def start_or_end(shard: ShardProcess) -> ShardEnded | None:
    """Starts a shard; where it refuses, that."""
    try:
        shard.start()
    except ShardEnded as end:
        return end
    return None


def start_and_look(shard: ShardProcess) -> Refused | Started:
    """Starts the shard and holds it against the oracle, then kills it.

    It must be refused, with status 1, one sentence and an untouched log, or show the state after some number of
    operations. The caller says which number may be.
    """
    before = _log_content(shard.directory)
    report = _check(shard.directory)
    end = start_or_end(shard)
    if end is not None:
        assert end.status == 1, end
        said = end.output.rpartition("--- start")[2].splitlines()[1:]
        sentences = [line for line in said if " INFO " not in line]
        assert len(sentences) == 1, end
        assert re.match(rf"pycounter: .*{shard.directory}", sentences[0]), end
        assert _log_content(shard.directory) == before, f"a refused start changed the log: {sentences[0]}"
        _compare(report, sentences[0])
        return Refused(sentences[0])
    assert report is not None, "a server starts on a folder that can't be checked"
    assert report.is_sound, report
    try:
        with RpcSocket(shard.address) as rpc:
            values = rpc.call("get_many", KEYS)
            operations = next((n for n in range(10_000) if n * (n + 1) // 2 >= sum(values)), 0)
            assert values == values_after(operations), f"no state that ever was: {values}"
            if operations:
                # The memory of what was answered is of the same moment.
                key = KEYS[operations % len(KEYS)]
                repeated = rpc.call("incr", key, operations, {"id": operation_id(operations)})
                assert repeated == values[operations % len(KEYS)]
            return Started(operations)
    finally:
        shard.kill()


def _check(folder: Path) -> FolderReport | None:
    """What `pycounter check` says of it; None where it can't be read at all."""
    try:
        return check_folder(folder)
    except StorageError:
        return None


def _compare(report: FolderReport | None, sentence: str) -> None:
    """A folder that a server refuses isn't sound, and where the server names a place, so does the check."""
    if report is None:
        return
    assert not report.is_sound, (report, sentence)
    named = NAMED.search(sentence)
    if named is not None:
        places = [(damage.file, damage.first_byte) for damage in report.damage]
        path = Path(named["path"])
        start = int(named["start"] or named["up_to"])
        assert any(file is not None and Path(file).name == path.name and first == start for file, first in places), (
            report.damage,
            sentence,
        )


def _log_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "log").glob("*")}


def put_back(folder: Path, copy: Path) -> None:
    """The folder as it was copied."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(copy, folder)
