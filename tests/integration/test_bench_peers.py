"""`python -m bench.peers` as it is used: what it prints, and that nothing of it stays."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shard_process import ROOT


@pytest.fixture
def folder(tmp_path):
    """Where it puts its servers' folders."""
    made = tmp_path / "temporary"
    made.mkdir()
    return made


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.peers", "--quick", "--results", str(folder.with_name("results")), *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_stays_after_an_interrupt(folder, number):
    process = start(folder, "--only", "p2")
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("p2: round"):
            break
    servers = children(process.pid)
    assert servers
    assert list(folder.iterdir())
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "interrupted" in said) == (130, True)
    assert [pid for pid in servers if is_alive(pid)] == []
    assert list(folder.iterdir()) == []
    assert not folder.with_name("results").exists()


def test_json_of_a_scenario(folder):
    output, said = start(folder, "--only", "p5", "--json").communicate(timeout=60)
    told = json.loads(output)
    assert [table["name"] for table in told["tables"]] == ["p5"], said
    assert {"CPU", "cores", "kernel", "commit", "pycounter"} <= told["machine"].keys()
    assert all(row["figures"]["nanoseconds"] > 0 for row in told["tables"][0]["rows"])
    assert list(folder.iterdir()) == []
    results = folder.with_name("results")
    assert json.loads((results / "peers-quick-p5.json").read_text()) == told
    assert (results / "peers-quick-p5.md").read_text().count("| `Counters.incr(key)` |") == 2
