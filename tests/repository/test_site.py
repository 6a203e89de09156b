"""The documentation as a site: built from this repository, and from one whose documents are wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pycounter
from tests.repository.sources import ROOT, source_files


@pytest.fixture
def copy(tmp_path):
    """A copy of the repository, as far as the site is built from it."""
    for path in [
        *source_files(".md"),
        *source_files(".py", ".pyi", ".yml", ".svg", ".toml"),
        *source_files(under="deploy"),
    ]:
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def build(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "tools/build_site.py"], capture_output=True, text=True, timeout=100, check=False
    )


def test_it_has_every_document_and_is_searchable(copy):
    done = build(copy)
    assert done.returncode == 0, done.stderr
    site = copy / "target/site"
    for document in (copy / "docs").rglob("*.md"):
        assert (site / document.relative_to(copy)).with_suffix(".html").exists(), document.name
    found = json.loads((site / "search/search_index.json").read_text())["docs"]
    listed = {location.partition("#")[2] for location in (entry["location"] for entry in found)}
    public = {f"pycounter.{name}" for name in pycounter.__all__ if name != "__version__"}
    for kind in (pycounter.Client, pycounter.BlockingClient, pycounter.Counters, pycounter.HashRing):
        public |= {f"pycounter.{kind.__name__}.{name}" for name in vars(kind) if not name.startswith("_")}
    assert public - listed == set(), "docs/reference lacks these"
    assert (site / "examples/likes.py").exists(), "what documents link to"


def test_links_that_lead_nowhere_are_refused(copy):
    with (copy / "docs/journal.md").open("a") as document:
        document.write("[x](nothing.md) [y](client.md#nothing)")
    done = build(copy)
    assert done.returncode != 0
    assert "'nothing.md'" in done.stderr
    assert "'#nothing'" in done.stderr
