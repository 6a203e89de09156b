"""Replays one seed, or runs many: `python -m tests.simulation SCENARIO SEED [COUNT [--stop]]`.

With `--stop` the first failure ends it.
"""

import collections
import sys
import time
import traceback

from tests.simulation.scenarios import SCENARIOS, simulate


def replay(scenario: str, seed: int) -> int:
    """Prints the history of a seed, and what is wrong with it."""
    world = SCENARIOS[scenario](seed, is_told=True)
    try:
        report = world.run()
    except Exception:  # noqa: BLE001 - whatever it is, it is what was asked for
        print(*world.history, sep="\n")
        traceback.print_exc()
        return 1
    print(*world.history, sep="\n")
    print(report)
    return 0


def sweep(scenario: str, seed: int, count: int, *, stops: bool = False) -> int:
    """Runs seeds in a row and prints what they came to."""
    began = time.process_time()
    sums: collections.Counter[str] = collections.Counter()
    failures = 0
    for number in range(seed, seed + count):
        try:
            report = simulate(scenario, number)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next seed is run
            failures += 1
            print(f"{number}: {type(error).__name__}: {str(error).splitlines()[0]:.300}")
            if stops:
                break
            continue
        sums.update({name: value for name, value in vars(report).items() if type(value) in {int, float}})
        sums.update(report.troubles)
    took_s = time.process_time() - began
    print(f"{count} seeds in {took_s:.1f} s of one core, {took_s / count * 1000:.1f} ms each, {failures} failed")
    del sums["seed"]
    print(", ".join(f"{name} {value:.0f}" for name, value in sums.items()))
    return 1 if failures else 0


if __name__ == "__main__":
    scenario, seed = sys.argv[1], int(sys.argv[2])
    if len(sys.argv) > 3:
        sys.exit(sweep(scenario, seed, int(sys.argv[3]), stops="--stop" in sys.argv))
    sys.exit(replay(scenario, seed))
