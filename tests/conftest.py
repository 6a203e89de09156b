"""The basis of every test: one fixed seed, uvloop, and no silent skips in CI.

The seed drives Hypothesis, the `seed` fixture and Python's `random`. It is the same in each run, so that a run is the
same each time; PYCOUNTER_TEST_SEED sets another, as `make explore` does. Workers of pytest-xdist inherit it through the
environment.
"""

import asyncio
import os
import random
import signal
import tomllib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import hypothesis
import pytest
import uvloop

SEED_VARIABLE = "PYCOUNTER_TEST_SEED"
DEFAULT_SEED = "1"
IN_CI = os.environ.get("CI") == "true"
#: Values of the `seed` fixture that failed once, by node id.
KNOWN_SEEDS: dict[str, list[int]] = tomllib.loads(Path(__file__).with_name("known_seeds.toml").read_text())["tests"]

# Without a database of earlier failures, which would make one run depend on another.
hypothesis.settings.register_profile("default", deadline=None, print_blob=True, database=None)
hypothesis.settings.register_profile(
    "ci",
    parent=hypothesis.settings.get_profile("default"),
    derandomize=False,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-kills", type=int, default=120, metavar="N", help="kill shards with -9 about N times in the crash tests"
    )
    parser.addoption(
        "--cluster-events",
        type=int,
        default=12,
        metavar="N",
        help="how many processes to kill or to stop in the test of a whole cluster",
    )
    parser.addoption(
        "--fault-rounds",
        type=int,
        default=12,
        metavar="N",
        help="how many places to damage, and calls to fail or to kill at, in each such test of tests/faults",
    )
    parser.addoption(
        "--hostile", type=int, default=1, metavar="N", help="N times as many bytes and connections in the hostile tests"
    )
    parser.addoption("--histories", type=int, default=1, metavar="N", help="N times as many histories are simulated")
    parser.addoption("--explore", action="store_true", help="run only the tests that depend on the seed")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Sets the run's seed before Hypothesis reads its option, and chooses the profile."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Begun in the background by a shell: programs under test would ignore Ctrl-C too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    given = config.getoption("hypothesis_seed", default=None)
    if given is not None:
        os.environ[SEED_VARIABLE] = str(given)
    config.option.hypothesis_seed = os.environ.setdefault(SEED_VARIABLE, DEFAULT_SEED)
    hypothesis.settings.load_profile("ci" if IN_CI else "default")


def pytest_report_header() -> str:
    return f"seed: {os.environ[SEED_VARIABLE]} (set {SEED_VARIABLE} for another)"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Adds the seeds that failed once to a test's own."""
    known = KNOWN_SEEDS.get(metafunc.definition.nodeid, [])
    if known:
        metafunc.parametrize("seed", [None, *known], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--explore`, keeps the tests that a seed changes."""
    if config.getoption("--explore"):
        kept = [item for item in items if _depends_on_seed(item)]
        config.hook.pytest_deselected(items=[item for item in items if not _depends_on_seed(item)])
        items[:] = kept


def _depends_on_seed(item: pytest.Item) -> bool:
    function = getattr(item, "function", None)
    is_stateful = hasattr(getattr(item, "cls", None), "settings")  # the TestCase of a state machine
    return is_stateful or hypothesis.is_hypothesis_test(function) or "seed" in getattr(item, "fixturenames", ())


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Coroutine tests run on the loop that the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test skipped in CI is a failure: CI has everything that tests need."""
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI doesn't accept: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI doesn't accept: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


@pytest.fixture(autouse=True)
def _seeded_random(request: pytest.FixtureRequest) -> None:
    """Seeds Python's `random`, from which the product draws its jitter."""
    random.seed(f"{os.environ[SEED_VARIABLE]}:{request.node.nodeid}")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for this test alone: it depends on the run's seed, and not on the order of tests."""
    own = random.Random(f"{os.environ[SEED_VARIABLE]}:{request.node.nodeid}").getrandbits(64)
    chosen: int = own if getattr(request, "param", None) is None else request.param
    print(f"seed of this test: {chosen}")
    return chosen


@pytest.fixture(scope="session")
def hostile(request: pytest.FixtureRequest) -> int:
    """How many times as much the hostile tests do: `--hostile`."""
    times: int = request.config.getoption("--hostile")
    return times
