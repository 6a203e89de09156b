"""Clients of every kind at work while the disk fails in every way, heals, and the shard is killed before or after that.

`--crash-kills 5000` does it more often, as for `test_crash.py`, whose clients and checker these are.
"""

import math

import pytest

from tests.support.crash.failing_disk import FailingDiskArena
from tests.support.log_files import check_history

KILLS_A_ROUND = 16


def pytest_generate_tests(metafunc):
    """A round for each so many kills of the crash tests."""
    rounds = math.ceil(metafunc.config.getoption("crash_kills") / 120)
    metafunc.parametrize("round_number", range(rounds))


@pytest.mark.timeout(170)
async def test_a_failing_disk_under_load(tmp_path, disk, seed, round_number):
    arena = FailingDiskArena(tmp_path / "shard", disk, str(seed))
    report = await arena.run(KILLS_A_ROUND)
    print(f"round {round_number}: {report}; {dict(arena.failures)}")
    assert report.acknowledged > 500
    assert report.repeated > 100
    assert arena.failures.total() > KILLS_A_ROUND / 2
    assert check_history(tmp_path / "shard") > 0
