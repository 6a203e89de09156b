"""What every test stands on: one printed seed, uvloop, and no silent skips where CI runs.

The seed drives Hypothesis and the `seed` fixture. It is drawn once a run, shown in the header, and taken from
PYCOUNTER_TEST_SEED to repeat a run. Workers of pytest-xdist inherit it through the environment.
"""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Generator, Mapping

import hypothesis
import pytest
import uvloop

SEED_VARIABLE = "PYCOUNTER_TEST_SEED"
IN_CI = os.environ.get("CI") == "true"

hypothesis.settings.register_profile("default", deadline=None, print_blob=True)
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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draws the run's seed before Hypothesis reads its option, and chooses the profile."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # Begun in the background by a shell: programs under test would ignore Ctrl-C too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    given = config.getoption("hypothesis_seed", default=None)
    if given is not None:
        os.environ[SEED_VARIABLE] = str(given)
    seed = os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(2**32)))
    config.option.hypothesis_seed = seed
    hypothesis.settings.load_profile("ci" if IN_CI else "default")


def pytest_report_header() -> str:
    return f"seed: {os.environ[SEED_VARIABLE]} (the same again: {SEED_VARIABLE}={os.environ[SEED_VARIABLE]})"


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


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed of this test's own: the same for the same run seed, in whatever order tests run."""
    return random.Random(f"{os.environ[SEED_VARIABLE]}:{request.node.nodeid}").getrandbits(64)


@pytest.fixture(scope="session")
def hostile(request: pytest.FixtureRequest) -> int:
    """How many times as much the hostile tests do: `--hostile`."""
    times: int = request.config.getoption("--hostile")
    return times
