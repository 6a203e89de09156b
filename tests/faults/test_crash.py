"""A shard that is killed with -9 at random moments counts every acknowledged operation exactly once.

`pytest tests/faults/test_crash.py --crash-kills 5000` kills it more often. A failure prints the seed of its arena;
`PYCOUNTER_TEST_SEED` brings back the clients and moments of a whole run (not the race between processes).

What is promised, and what is checked, is in `tests/support/history.py`; `test_planted_bugs.py` shows that broken builds
don't get through.
"""

import math

import pytest

from tests.support.crash.arena import Arena, Report, Scenario
from tests.support.crash.scenarios import SCENARIOS
from tests.support.shard_process import ColdLauncher

KILLS_A_ROUND = 30


def pytest_generate_tests(metafunc):
    """Rounds of each scenario until the kills add up; each round is a test with a folder and a seed of its own."""
    if "kills" in metafunc.fixturenames:
        kills = metafunc.config.getoption("crash_kills")
        rounds = math.ceil(kills / (KILLS_A_ROUND * len(SCENARIOS)))
        metafunc.parametrize("round_number", range(rounds))
        metafunc.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
        metafunc.parametrize("kills", [min(KILLS_A_ROUND, math.ceil(kills / len(SCENARIOS)))])


def check_that_it_meant_something(report: Report, scenario: Scenario) -> None:
    """A run in which nothing happened proves nothing."""
    kills = report.kills.total()
    assert report.acknowledged > 20 * kills
    assert report.repeated > 10 * kills
    assert report.reads > kills
    assert len(report.kills) > 1
    if scenario.name in {"checkpoints", "tight_bounds"}:
        assert report.folds >= 3
        assert report.trims >= 1


@pytest.mark.timeout(170)
async def test_kill_9(tmp_path, launcher, seed, scenario, kills, round_number, record_property):
    report = await Arena(scenario, tmp_path / "shard", launcher, str(seed)).run(kills)
    record_property("report", str(report))
    print(f"{scenario.name}, round {round_number}: {report}")
    assert report.kills.total() == kills
    check_that_it_meant_something(report, scenario)


async def test_kill_9_of_a_server_started_as_users_start_it(tmp_path, seed):
    """The others fork theirs from a warm parent."""
    report = await Arena(SCENARIOS[0], tmp_path / "shard", ColdLauncher(), str(seed)).run(4)
    assert report.kills.total() == 4
