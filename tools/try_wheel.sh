#!/bin/sh
# Checks a wheel as a stranger would: its tag, then an empty virtual environment without Rust or a compiler on the
# PATH and away from this checkout, a count in a process and on disk, and the demo.
#
#   try_wheel.sh WHEEL PYTHON
set -eu

wheel=$(realpath "$1")
python=$2

case "$wheel" in
*-manylinux_*) ;;
*)
    echo "error: $wheel has no manylinux tag: it needs libraries that other systems may lack (see maturin's messages)" >&2
    exit 1
    ;;
esac
glibc=$(basename "$wheel" | sed -n 's/.*manylinux_\([0-9]*\)_\([0-9]*\)_.*/\1.\2/p')

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/environment"
(
    cd "$scratch"
    PATH="$scratch/environment/bin"
    unset PYTHONPATH
    python -m pip install --quiet --disable-pip-version-check --only-binary :all: "$wheel"
    python -I - <<'PROGRAM'
import shutil
import tempfile

import pycounter

assert not any(map(shutil.which, ("cargo", "rustc", "cc"))), "this was to be tried without a compiler"
counters = pycounter.Counters()
assert counters.incr("visits", 3) == 3
folder = tempfile.mkdtemp(dir=".")
with pycounter.open(folder) as stored:
    stored.incr("visits")
with pycounter.open(folder) as stored:
    assert stored["visits"] == 1
PROGRAM
    pycounter demo --limit-files 40 --kills 2
)
echo "$(basename "$wheel") works in an empty environment; it needs glibc $glibc or newer"
