"""One sample of a server under load, and interleaved rounds of samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bench.peers.run import Run
from bench.peers.servers import BenchError, Server
from pycounter._native import LoadGenerator, LoadReport

#: What was measured, by name.
Figures = dict[str, float]
Case = TypeVar("Case")


def run_checked(server: Server, **workload: Any) -> LoadReport:
    """Runs a workload, every operation of which has to be answered rightly."""
    report = LoadGenerator("127.0.0.1", server.port, **{"protocol": server.peer.protocol, **workload}).run()
    if report.errors or report.unanswered or not report.operations:
        raise BenchError(
            f"{server.peer.name}: {report.errors} errors, {report.unanswered} unanswered, "
            f"{report.operations} right ({workload}): {report.first_error}"
        )
    return report


def sample(server: Server, **workload: Any) -> Figures:
    """Runs a workload and gives its figures; `cpu_us` is the server's processor time for one operation."""
    before = server.cpu_seconds()
    report = run_checked(server, **workload)
    return {
        "per_second": report.per_second,
        "p50_us": report.p50_us,
        "p99_us": report.p99_us,
        "p999_us": report.p999_us,
        "cpu_us": (server.cpu_seconds() - before) / report.operations * 1e6,
        "generator_us": report.cpu_seconds / report.operations * 1e6,
    }


def fill(server: Server, keys: int, **workload: Any) -> None:
    """Makes so many counters."""
    run_checked(server, keys=keys, operations=keys, order="sequential", pipeline=64, **workload)


def medians(run: Run, name: str, samplers: Mapping[Case, Callable[[], Figures]]) -> dict[Case, Figures]:
    """Takes each sample once a round, in turn, and gives each figure's median over the rounds."""
    taken: dict[Case, list[Figures]] = {case: [] for case in samplers}
    for number in range(run.rounds):
        for case, sampler in samplers.items():
            words = case if isinstance(case, tuple) else (case,)
            run.tell(f"{name}: round {number + 1}/{run.rounds}, {', '.join(str(word) for word in words)}")
            taken[case].append(sampler())
    return {
        case: {figure: statistics.median(sample[figure] for sample in samples) for figure in samples[0]}
        for case, samples in taken.items()
    }
