#!/bin/sh
# Writes requirements-dev.txt from pyproject.toml: every version pinned, every file hashed, for each platform and Python.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --upgrade --group dev --output-file "$new" pyproject.toml
{
    echo "# Made by \`make lock\` from pyproject.toml: don't edit."
    cat "$new"
} >requirements-dev.txt
