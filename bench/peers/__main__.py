"""Measures PyCounter beside its peers: `python -m bench.peers`. `docs/performance.md` says what and how."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench.peers import machine, peers, results
from bench.peers.debian import install
from bench.peers.run import Run, choose_cores, raise_descriptor_limit
from bench.peers.scenarios import SCENARIOS
from bench.peers.servers import BenchError, Servers
from bench.peers.table import Table
from pycounter import _native


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round and few counters: a look, no figures")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=SCENARIOS, default=list(SCENARIOS), help=", ".join(SCENARIOS)
    )
    parser.add_argument("--install", action="store_true", help="first install missing servers from Debian's packages")
    parser.add_argument(
        "--results", type=Path, default=results.FOLDER, metavar="DIR", help="where to write (default: bench/results)"
    )
    return parser.parse_args()


def _announce_missing(want_install: bool) -> None:
    """One line for each server that isn't there."""
    missing = [peer for peer in peers.OTHERS if peer.missing()]
    if want_install and missing:
        install(missing)
        missing = [peer for peer in missing if peer.missing()]
    for peer in missing:
        print(peer.missing(), file=sys.stderr)


def _measure(names: list[str], run: Run) -> tuple[list[Table], bool]:
    """The tables, and whether every scenario could be measured."""
    tables, whole = [], True
    for name in names:
        try:
            tables.append(SCENARIOS[name](run))
        except BenchError as error:
            run.tell(f"{name} was not measured: {error}")
            whole = False
    return tables, whole


def main() -> int:
    """Runs the comparison. Exit code 1: something could not be measured; goals that are missed don't count."""
    arguments = _arguments()
    if _native.DEBUG_BUILD:
        raise SystemExit("bench.peers: the native module is a debug build: run make setup")
    if shutil.which("taskset") is None:
        raise SystemExit("bench.peers: taskset is missing: apt-get install util-linux")
    # A polite kill ends as Ctrl-C does: with no server and no folder left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _announce_missing(arguments.install)
        facts = machine.describe()
        if machine.file_system(Path(tempfile.gettempdir()).resolve()) == "tmpfs":
            print("the temporary folder is in memory, where an fsync costs nothing: set TMPDIR", file=sys.stderr)
        raise_descriptor_limit()
        cores = choose_cores()
        with Servers(cores.server) as servers:
            run = Run(quick=arguments.quick, servers=servers, cores=cores)
            tables, whole = _measure(arguments.only, run)
    except KeyboardInterrupt:
        print("bench.peers: interrupted; every server is stopped", file=sys.stderr)
        return 130
    except BenchError as error:
        raise SystemExit(f"bench.peers: {error}") from error
    print(results.as_json(facts, tables) if arguments.json else results.as_markdown(facts, tables))
    if tables:
        parts = ["peers", *(["quick"] if arguments.quick else [])]
        parts += [] if arguments.only == list(SCENARIOS) else arguments.only
        for line in results.write(arguments.results, "-".join(parts), facts, tables):
            print(line, file=sys.stderr)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
