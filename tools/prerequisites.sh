#!/bin/sh
# Says in one line what the machine lacks and how to get it.
#
#   prerequisites.sh python   prints the path of a Python that can make the virtual environment
#   prerequisites.sh rust     checks cargo, rustc and the linker behind it
#
# $PYTHON names the Python to use; without it the first one on the PATH that is new enough is taken.
set -eu

python_needed=3.11
cd "$(dirname "$0")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

# Is version $1 at least version $2? Compares major and minor.
at_least() {
    [ "${1%%.*}" -gt "${2%%.*}" ] && return 0
    [ "${1%%.*}" -eq "${2%%.*}" ] || return 1
    have=${1#*.} need=${2#*.}
    [ "${have%%.*}" -ge "${need%%.*}" ]
}

check_platform() {
    case "$(uname -s)" in
    Linux) ;;
    *) fail "PyCounter runs on Linux only, not on $(uname -s): use a Linux machine, container or WSL" ;;
    esac
}

new_enough() {
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 1
    at_least "$version" "$python_needed"
}

find_python() {
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no Python $python_needed or newer as ${PYTHON:-python3}: install one, or name one: make PYTHON=/path/to/python3"
    "$python" -c 'import sys; sys.exit(sys.implementation.name != "cpython")' ||
        fail "$python isn't CPython, which the native module needs: name one: make PYTHON=/path/to/python3"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python can't make virtual environments: install its venv module (Debian and Ubuntu: apt-get install python3-venv)"
    "$python" -c 'import sys; print(sys.executable)'
}

check_rust() {
    rust_needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    for tool in cargo rustc; do
        command -v "$tool" >/dev/null ||
            fail "no $tool on the PATH: install Rust $rust_needed or newer with rustup (and open a new shell), or your system's packages"
    done
    version=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || version=
    [ -n "$version" ] || fail "rustc is there but doesn't start: choose a toolchain: rustup default stable"
    at_least "$version" "$rust_needed" ||
        fail "rustc is $version and Rust $rust_needed or newer is needed: rustup update stable"
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    echo 'fn main() {}' | rustc --crate-name probe -o "$scratch/probe" - 2>/dev/null ||
        fail "rustc can't link a program: install a C compiler (Debian and Ubuntu: apt-get install build-essential)"
}

check_platform
case "${1:-}" in
python) find_python ;;
rust) check_rust ;;
*) fail "usage: tools/prerequisites.sh python|rust" ;;
esac
