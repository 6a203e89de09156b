"""The demo, as a person runs it, on a few files: real processes, real kills."""

import json
import subprocess
import sys

import pytest


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pycounter", "demo", *options], capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.timeout(110)
def test_every_total_is_right_after_the_kills():
    done = run_demo("--json", "--limit-files", "40", "--kills", "3", "--clients", "2")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["succeeded"]
    assert result["kills"] == 3
    assert result["differences"] == 0
    assert result["words"] > result["counters"] > 100
    assert result["shards"] == 2
    # Whether anything was in flight at a kill is chance, but both clients lost shard-0.
    assert result["reconnects"] >= 2


@pytest.mark.timeout(110)
def test_its_last_lines_say_what_came_out_and_how_to_go_on():
    done = run_demo("--limit-files", "2", "--kills", "1", "--clients", "1")
    assert done.returncode == 0, done.stderr
    for line in ("Every counter is exactly right.", "kill -9               1", "serve --data ./counters --shards 2"):
        assert line in done.stdout


def test_a_wrong_level_is_refused_before_anything_starts():
    done = run_demo("--level", "sometimes")
    assert done.returncode == 2
    assert "durable or applied" in done.stderr
