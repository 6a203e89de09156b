"""A rolling restart of a cluster, as its operator starts it."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pycounter
from tests.repository.sources import ROOT


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


async def test_every_process_is_another_one_afterwards_and_every_increment_counted(start_cluster):
    cluster = start_cluster(shards=1, replicas=1)
    cluster.wait_state("shard-0-replica-0", "ok")
    before = {process.name: process.pid for process in cluster.topology().processes}
    restarting = await asyncio.create_subprocess_exec(
        *(ROOT / "deploy/pycounter-rolling-restart", cluster.directory), env=environment(), stdout=subprocess.PIPE
    )
    counted = 0
    async with pycounter.connect("pycounter://{}:{}".format(*cluster.address)) as client:
        ended = asyncio.create_task(restarting.communicate())
        while not ended.done():
            await client.incr("visits", timeout_s=60.0)
            counted += 1
        output, _ = await ended
        assert (await client.total("visits", accuracy="exact")).total == counted
    assert restarting.returncode == 0, output
    assert len(output.splitlines()) == 3
    after = {process.name: process.pid for process in cluster.topology().processes}
    assert {name for name in before if before[name] == after[name]} == {"supervisor"}


def test_without_a_cluster_it_says_so(tmp_path):
    done = subprocess.run(
        [ROOT / "deploy/pycounter-rolling-restart", tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
