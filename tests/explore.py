"""Looks for failures on random seeds: `make explore`, or `python -m tests.explore --seconds 7200`.

Rounds of three kinds of steps, each under a seed of its own: histories of tests/simulation, the Python tests that
depend on a seed, and the engine's property tests. Each failure is printed with the command that repeats it, and its
whole output is kept in `.explore/`. The exit status is 1 if anything failed.

A find becomes a fixed seed in `known_seeds.toml`, or an `@example` of a Hypothesis test.
"""

import argparse
import itertools
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import SEED_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
FINDS = ROOT / ".explore"
#: Histories in one step: about a minute each.
HISTORIES = {"shard": 6000, "ids": 3500, "cluster": 2500, "coordinator": 2000}
TAIL_LINES = 30


@dataclass(frozen=True, slots=True)
class Step:
    """One command, and the variables that decide what it draws."""

    name: str
    command: list[str]
    variables: dict[str, str]

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.variables.items()]
        return " ".join([*words, shlex.join(self.command)])


def steps(chance: random.Random) -> Iterator[Step]:
    """Endless steps, the cheapest kind first."""
    for round_ in itertools.count(1):
        for scenario, count in HISTORIES.items():
            first = str(chance.randrange(10**9))
            command = [sys.executable, "-m", "tests.simulation", scenario, first, str(count)]
            yield Step(f"round {round_}: {count} histories of {scenario}", command, {})
        seed = str(chance.randrange(2**32))
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--explore"]
        command += ["--ignore", "tests/simulation"]
        yield Step(f"round {round_}: Python tests", command, {SEED_VARIABLE: seed})
        command = ["cargo", "test", "--locked", "--quiet", "--workspace", "--exclude", "pycounter-native"]
        yield Step(f"round {round_}: engine tests", command, {"PROPTEST_RNG_SEED": seed})


def explore(seconds: float, chance: random.Random) -> int:
    """Runs steps until the time is over; a step in progress is finished. Returns how many failed."""
    ends = time.monotonic() + seconds
    failed = 0
    for step in steps(chance):
        if time.monotonic() >= ends:
            return failed
        print(f"{time.strftime('%H:%M:%S')} {step.name} ...", end=" ", flush=True)
        began = time.monotonic()
        status, output = run(step)
        print(f"{'ok' if status == 0 else 'FAILED'}, {time.monotonic() - began:.0f} s", flush=True)
        if status != 0:
            failed += 1
            keep(step, output)
    return failed


def run(step: Step) -> tuple[int, str]:
    """Its exit status and output. The step ends with us."""
    environment = {**os.environ, **step.variables}
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    return process.returncode, output


def keep(step: Step, output: str) -> None:
    """Prints a failure's end and how to repeat it, and keeps all of it."""
    FINDS.mkdir(exist_ok=True)
    path = FINDS / f"{time.strftime('%Y%m%d-%H%M%S')}.log"
    path.write_text(f"{step}\n\n{output}")
    print(*(f"    {line}" for line in output.splitlines()[-TAIL_LINES:]), sep="\n")
    print(f"  repeat it: {step}\n  all of it: {path.relative_to(ROOT)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="start no step after this time (default: 600)")
    parser.add_argument("--seed", type=int, help="draw the steps' seeds from this one instead of at random")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"exploring for {options.seconds:.0f} s; the same seeds again: --seed {seed}")
    try:
        failed = explore(options.seconds, random.Random(seed))
    except KeyboardInterrupt:
        print("\ninterrupted: the step in progress was ended")
        return 130
    print(f"{failed} steps failed" if failed else "nothing found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
