"""A well-behaved client beside hostile ones: it counts on, and the server's memory is watched meanwhile."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ShardProcess

KEY = b"bystander"
PAUSE_S = 0.002


def resident_bytes(pid: int) -> int:
    """The memory that a process has in use."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")


class Bystander:
    """Increments a counter of its own, one request after the other, on a connection made before the trouble began.

    `connect` makes the connection where the server wants more than that, such as a token.

    At the end (`with`) every increment must have been answered with the next value, and the server's memory must never
    have grown by more than `growth_bytes`.
    """

    def __init__(
        self,
        shard: ShardProcess,
        *,
        growth_bytes: int,
        connect: Callable[[tuple[str, int]], RpcSocket] = RpcSocket,
    ) -> None:
        assert shard.ready is not None
        self.latencies_s: list[float] = []
        self.peak_bytes = 0
        self._pid = shard.ready.pid
        self._growth_bytes = growth_bytes
        self._rpc = connect(shard.address)
        self._value = self._rpc.call("incr", KEY)
        self._start_bytes = resident_bytes(self._pid)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        answered = len(self.latencies_s)
        if kind is None:
            # The trouble may have been over in a moment: it has to be served after it too.
            deadline = time.monotonic() + 30
            while len(self.latencies_s) < answered + 3 and self._thread.is_alive() and time.monotonic() < deadline:
                time.sleep(PAUSE_S)
        self._ended.set()
        self._thread.join()
        self._rpc.close()
        if kind is None:
            if self._failure is not None:
                raise self._failure
            grown = self.peak_bytes - self._start_bytes
            assert grown <= self._growth_bytes, f"grew by {grown} bytes of at most {self._growth_bytes}"

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                began = time.perf_counter()
                value = self._rpc.call("incr", KEY)
                self.latencies_s.append(time.perf_counter() - began)
                self._value += 1
                assert value == self._value, "an increment was counted twice, or not at all"
                self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid))
                time.sleep(PAUSE_S)
        except BaseException as failure:  # noqa: BLE001 - raised by the test's thread
            self._failure = failure
