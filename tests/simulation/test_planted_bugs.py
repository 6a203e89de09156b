"""The simulation finds what it is there for: bugs planted in the real code, each within so many seeds.

The seeds are always the same, so that the time it takes is too.
"""

import os
import shutil
import subprocess
import sys

import pytest

from pycounter.coordinator.settling import Settling
from pycounter.coordinator.shard_set import ShardSet
from pycounter.coordinator.totals import Totals
from tests.simulation.ledger import Violation
from tests.simulation.planted import Bug, planted
from tests.simulation.scenarios import simulate
from tests.support.native_build import build_native, make_package
from tests.support.shard_process import ROOT

SEEDS_MAX = 1500

#: Planted in the native module, by the names that `planted_bug.rs` gives them, with the scenario that shows them, and
#: from which seed on.
LINK_BUGS = [
    ("shard", 1, "link_renews_session"),
    ("shard", 1, "link_forgets_sent"),
    ("shard", 1, "link_takes_sent_for_unsent"),
    ("shard", 1, "link_hides_lost_tail"),
    ("shard", 1, "link_trusts_applied"),
    ("shard", 1, "link_mixes_answers"),
    ("shard", 1, "link_leaves_no_room"),
    ("shard", 1, "link_waits_forever"),
    ("cluster", 1, "link_diverts_sent"),
    ("ids", 3000, "link_trusts_refusals"),
]
CLUSTER_BUGS = [
    Bug(
        "the cache takes the value of a load that was begun before a write",
        Totals,
        "_load",
        "cache.fill(key, total.total, version)",
        "cache.fill(key, total.total, cache.begin(key))",
    ),
    Bug(
        "a removal is repeated under a new id",
        Settling,
        "settle",
        "*change.params(",
        "*type(change)(change.method, change.keys, self._clock.random_bytes(ID_BYTES)).params(",
    ),
    Bug(
        "a diversion is noted only once it was answered",
        ShardSet,
        "server_of",
        "self.foreign.note(other, key)",
        "pass",
    ),
]
#: With the scenario that they are looked for in, and from which seed on.
BUGS = [("cluster", 1, bug) for bug in CLUSTER_BUGS]


def find(bug, scenario, first, count=SEEDS_MAX):
    """How many histories it takes to see that something is wrong, and what is seen."""
    with planted(bug):
        for number in range(first, first + count):
            try:
                simulate(scenario, number)
            except Violation as seen:
                return number - first + 1, str(seen).splitlines()[0]
    return None


@pytest.mark.parametrize(("scenario", "first", "bug"), BUGS, ids=[bug.name for *_, bug in BUGS])
def test_a_planted_bug_is_found(scenario, first, bug):
    found = find(bug, scenario, first)
    assert found is not None, f"not found in {SEEDS_MAX} seeds"
    print(f"{bug.name}: seen after {found[0]} histories: {found[1]}")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package around a native module that can be broken."""
    if shutil.which("cargo") is None:
        pytest.skip("cargo isn't there")
    folder = tmp_path_factory.mktemp("planted")
    return make_package(folder / "package", build_native(folder, ["planted-bugs"]))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("scenario", "first", "bug"), [*LINK_BUGS, ("shard", 1, "")], ids=str)
def test_a_bug_planted_in_a_link_is_found(tmp_path, package, scenario, first, bug):
    environment = {**os.environ, "PYCOUNTER_PLANTED_BUG": bug, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    count = str(SEEDS_MAX if bug else 100)
    command = [sys.executable, "-m", "tests.simulation", scenario, str(first), count, "--stop"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == (1 if bug else 0), done.stdout + done.stderr
    assert ("Violation" in done.stdout) is bool(bug), done.stdout + done.stderr
    print(done.stdout)
