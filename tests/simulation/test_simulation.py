"""Thousands of histories of clients and shards, each from one seed, and what must hold in all of them."""

import os
import random
import subprocess
import sys
import tomllib

import pytest

from tests.simulation.scenarios import SCENARIOS, simulate
from tests.support.shard_process import ROOT

#: So many parts, for the worker processes of a test run.
PARTS = 4
#: In each part.
SEEDS = {"shard": 350, "ids": 25, "cluster": 60, "coordinator": 40}


def known_seeds():
    known = tomllib.loads((ROOT / "tests" / "known_seeds.toml").read_text())["simulation"]
    return [(scenario, number) for scenario, numbers in known.items() for number in numbers]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("scenario", SEEDS)
def test_every_history_keeps_every_promise(scenario, part, seed, request):
    first, count = random.Random(seed).randrange(10**9), SEEDS[scenario] * request.config.getoption("--histories")
    print(f"seeds from {first}")
    acknowledged = kills = 0
    for number in range(first, first + count):
        report = simulate(scenario, number)
        acknowledged += report.acknowledged
        kills += report.kills
    assert acknowledged > 5 * count, "nearly nothing was counted: the simulation tests nothing"
    assert kills > count, "nearly nobody died: the simulation tests nothing"


@pytest.mark.parametrize(("scenario", "number"), known_seeds())
def test_a_history_that_failed_once_keeps_every_promise(scenario, number):
    simulate(scenario, number)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_seed_is_one_history_in_every_process(scenario, seed):
    number = random.Random(seed).randrange(10**9)
    digests = {simulate(scenario, number).digest, simulate(scenario, number).digest}
    script = f"from tests.simulation.scenarios import simulate; print(simulate({scenario!r}, {number}).digest)"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        told = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        digests.add(told.stdout.strip())
    assert len(digests) == 1, f"seed {number} has several histories"
