"""The crash test sees builds that were broken on purpose, each by one promise: see `rust/engine/src/planted_bug.rs`."""

import shutil

import pytest

from tests.support.crash.arena import Arena
from tests.support.crash.scenarios import SCENARIOS
from tests.support.history import Violation
from tests.support.native_build import build_native, make_package, run_engine_test
from tests.support.shard_process import WarmLauncher

BUGS = [
    "reply_before_commit",
    "session_rows_left_out",
    "results_lost_at_checkpoint",
    "duplicate_answered_before_its_commit",
]
KILLS_MAX = 40


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package around a build that can be broken."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo isn't there")
    folder = tmp_path_factory.mktemp("planted")
    return make_package(folder / "package", build_native(folder, ["planted-bugs"]))


async def run_arena(folder, package, seed, bug, kills):
    # Commits wait a little before they are written, as on a slow disk: the moments that matter get longer.
    environment = {"PYCOUNTER_PLANTED_BUG": bug, "PYCOUNTER_PLANTED_DELAY_MS": "5", "PYTHONWARNINGS": "ignore"}
    launcher = WarmLauncher(package=package, environment=environment)
    try:
        return await Arena(SCENARIOS[0], folder, launcher, str(seed)).run(kills)
    finally:
        launcher.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", BUGS)
async def test_a_broken_build_is_seen(tmp_path, package, seed, bug):
    with pytest.raises(Violation) as seen:
        await run_arena(tmp_path / "shard", package, seed, bug, KILLS_MAX)
    print(f"{bug}: {seen.value}")


@pytest.mark.timeout(900)
async def test_the_same_build_without_a_bug_is_not(tmp_path, package, seed):
    report = await run_arena(tmp_path / "shard", package, seed, "", 10)
    assert report.acknowledged > 0


LINK_BUGS = [
    "link_renews_session",
    "link_forgets_sent",
    "link_takes_sent_for_unsent",
    "link_hides_lost_tail",
    "link_trusts_applied",
    "link_mixes_answers",
    "link_leaves_no_room",
    "link_waits_forever",
    "link_diverts_sent",
    "link_trusts_refusals",
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("bug", ["", *LINK_BUGS])
def test_the_model_of_a_link_sees_a_broken_session(bug):
    if shutil.which("cargo") is None:
        pytest.skip("cargo isn't there")
    passed, said = run_engine_test("shard_link_model", ["planted-bugs"], {"PYCOUNTER_PLANTED_BUG": bug})
    assert passed is not bool(bug), said
    if bug:
        assert "panicked at rust/engine/tests/shard_link_model" in said, said
