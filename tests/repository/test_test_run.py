"""The test run itself: skips fail in CI, a hanging test ends, the seed repeats, coroutines run on uvloop."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.sources import ROOT


@pytest.fixture
def run(tmp_path):
    """Runs pytest on one file of text, with this repository's conftest and configuration, and gives what it printed."""

    def run_pytest(text: str, *arguments: str, **environment: str) -> str:
        shutil.copy(ROOT / "tests/conftest.py", tmp_path)
        shutil.copy(ROOT / "tests/known_seeds.toml", tmp_path)
        shutil.copy(ROOT / "pyproject.toml", tmp_path)
        Path(tmp_path, "test_one.py").write_text(text)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in {"CI", "PYCOUNTER_TEST_SEED", "PYTEST_ADDOPTS"} and not name.startswith("PYTEST_XDIST")
        }
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, "test_one.py"],
            cwd=tmp_path,
            env=inherited | environment,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    return run_pytest


SKIPS = """
import pytest

def test_skipped():
    pytest.skip("no reason")

@pytest.mark.skip
def test_marked():
    pass

@pytest.mark.xfail
def test_known_bug():
    assert False
"""


def test_a_skip_is_allowed_on_a_desk(run):
    assert "2 skipped, 1 xfailed" in run(SKIPS)


def test_a_skip_fails_in_ci(run):
    output = run(SKIPS, CI="true")
    assert "1 failed, 1 xfailed, 1 error" in output
    assert "CI doesn't accept: Skipped: no reason" in output


def test_a_skipped_module_fails_in_ci(run):
    text = "import pytest\npytest.importorskip('no_such_module')\n"
    assert "1 skipped" in run(text)
    assert "1 error" in run(text, CI="true")


SHOWS_SEED = """
import hypothesis, hypothesis.strategies as st

@hypothesis.settings(database=None)
@hypothesis.given(st.integers(0, 2**64))
def test_drawn(number):
    print("drawn", number)

def test_fixture(seed):
    print("own", seed)
"""


def drawn(output: str) -> list[str]:
    return re.findall(r"^(?:drawn|own) \d+$", output, re.MULTILINE)


def test_every_run_is_the_same(run):
    assert drawn(run(SHOWS_SEED, "-s")) == drawn(run(SHOWS_SEED, "-s"))


def test_exploring_runs_only_tests_that_depend_on_the_seed(run):
    text = SHOWS_SEED + "\ndef test_plain():\n    print('plain')\n"
    assert "plain" in run(text, "-s")
    explored = run(text, "-s", "--explore")
    assert "plain" not in explored
    assert "1 deselected" in explored
    assert len(drawn(explored)) > 50


def test_a_printed_seed_repeats_the_run(run):
    first = run(SHOWS_SEED, "-s")
    seed = re.search(r"^seed: (\d+) ", first, re.MULTILINE)
    assert seed is not None
    again = run(SHOWS_SEED, "-s", PYCOUNTER_TEST_SEED=seed[1])
    other = run(SHOWS_SEED, "-s", PYCOUNTER_TEST_SEED=str(int(seed[1]) + 1))
    assert len(drawn(first)) > 50
    assert drawn(first) == drawn(again) != drawn(other)


def test_a_hanging_test_is_ended(run):
    text = "import time, pytest\n@pytest.mark.timeout(1)\ndef test_hangs():\n    time.sleep(50)\n"
    assert "Timeout (>1.0s)" in run(text)


async def test_coroutines_run_on_uvloop():
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
