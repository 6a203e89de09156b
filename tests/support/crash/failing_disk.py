"""The arena on a disk that fails while clients work, heals or not, and a kill at either moment."""

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.crash.arena import Arena, Scenario
from tests.support.faulty_disk import Call, Fate, FaultyDisk, Rule
from tests.support.history import Violation
from tests.support.rpc_stream import RpcStream

HEAL_TIMEOUT_S = 30.0
LOG = "/log/"


@dataclass(frozen=True, slots=True)
class Failure:
    """What a disk may do, and how it shows."""

    name: str
    plant: Callable[[FaultyDisk], Rule]
    makes_read_only: bool = True
    """Every commit fails until it is lifted."""
    error: int = 0


def _full_after_half_a_write(disk: FaultyDisk) -> Rule:
    disk.plant(Call.WRITE, Fate.SHORT, count=1, part=LOG)
    return disk.plant(Call.WRITE, error=errno.ENOSPC, part=LOG)


def _fsync_and_cut_fail(disk: FaultyDisk) -> Rule:
    disk.plant(Call.TRUNCATE | Call.RENAME, error=errno.EROFS)
    return disk.plant(Call.SYNC, error=errno.EIO, part=LOG)


FAILURES = [
    Failure("fsync fails", lambda disk: disk.plant(Call.SYNC, error=errno.EIO, part=LOG), error=errno.EIO),
    Failure("full", lambda disk: disk.plant(Call.WRITE, error=errno.ENOSPC, part=LOG), error=errno.ENOSPC),
    Failure("full after half a write", _full_after_half_a_write, error=errno.ENOSPC),
    Failure("writes fail", lambda disk: disk.plant(Call.WRITE, error=errno.EIO, part=LOG), error=errno.EIO),
    # After the first failure the file can't be cut, nor a new one begun.
    Failure("fsync and cut fail", _fsync_and_cut_fail),
    Failure("nothing works", lambda disk: disk.plant(Call.CHANGES | Call.OPEN, error=errno.EIO), error=errno.EIO),
    Failure("one fsync fails", lambda disk: disk.plant(Call.SYNC, count=1, part=LOG), makes_read_only=False),
    Failure("manifest", lambda disk: disk.plant(Call.CHANGES, part="/manifest"), makes_read_only=False),
    Failure("slow", lambda disk: disk.plant(Call.SYNC, Fate.SLEEP, sleep_s=0.15, part=LOG), makes_read_only=False),
    Failure("checkpoint store", lambda disk: disk.plant(Call.CHANGES, part="/checkpoint/"), makes_read_only=False),
]

SCENARIO = Scenario(
    name="failing_disk",
    settings={"checkpoint_log_bytes": 32_768, "checkpoint_interval_s": 0.2, "segment_bytes": 32_768},
    moments={"failing": 1, "healed": 1},
)


class FailingDiskArena(Arena):
    """In each life the disk fails in one way; the shard is killed meanwhile, or once the disk is well again."""

    def __init__(self, folder: Path, disk: FaultyDisk, seed: str) -> None:
        super().__init__(SCENARIO, folder, disk.launcher, seed)
        self.ground.disk_may_fail = True
        self.failures: Counter[str] = Counter()
        self._disk = disk
        disk.watch(folder)

    async def _live(self, moment: str) -> None:
        await self._start()
        await asyncio.sleep(self._random.uniform(0.05, 0.2))
        failure = self._random.choice(FAILURES)
        rule = failure.plant(self._disk)
        if failure.makes_read_only:
            await self._wait_state("read_only", failure)
        await asyncio.sleep(self._random.uniform(0, 0.25))
        self.failures[failure.name] += rule.hits > 0
        if moment == "healed":
            self._disk.lift()
            await self._wait_state("ok", failure)
            await asyncio.sleep(self._random.uniform(0, 0.2))
        if await asyncio.to_thread(self.process.kill) is None:
            raise Violation(f"the shard ended by itself while: {failure.name}")
        self._disk.lift()
        self.ground.withdraw()
        self.report.kills[moment] += 1

    async def _wait_state(self, state: str, failure: Failure) -> None:
        """Waits until `health` says so, and holds its reason against the failure."""
        deadline = time.monotonic() + HEAL_TIMEOUT_S
        stream = await RpcStream.open(await self.ground.address())
        try:
            while (health := await stream.call("health"))[b"state"] != state.encode():
                if time.monotonic() > deadline:
                    raise Violation(f"not {state} after {HEAL_TIMEOUT_S} s, though: {failure.name}; {health!r}")
                await asyncio.sleep(0.01)
        finally:
            stream.close()
        if state == "read_only":
            reason = health[b"reason"].decode()
            words = (str(self.process.directory), os.strerror(failure.error) if failure.error else "")
            if not all(word in reason for word in words):
                raise Violation(f"health gives the reason {reason!r} though: {failure.name}")
