"""Processes under test: several threads may wait for the same end."""

import signal
from concurrent.futures import ThreadPoolExecutor

from tests.support.shard_process import ShardProcess, WarmLauncher


def test_any_number_of_threads_may_kill_and_wait(tmp_path):
    launcher = WarmLauncher()
    try:
        shard = ShardProcess(tmp_path / "shard", launcher=launcher)
        shard.start()
        child = shard._child
        assert child is not None
        with ThreadPoolExecutor(8) as threads:
            waits = [threads.submit(child.wait, 60.0) for _ in range(4)]
            kills = [threads.submit(shard.kill) for _ in range(4)]
            assert {wait.result() for wait in waits} == {-signal.SIGKILL}
            assert {kill.result() for kill in kills} <= {-signal.SIGKILL, None}
        assert not shard.is_running
        assert child.wait(0.0) == -signal.SIGKILL
    finally:
        launcher.close()
