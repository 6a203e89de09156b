"""The documentation as a site: built from this repository, and from one whose documents are wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

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
    titles = {entry["location"]: entry["title"] for entry in found}
    assert "docs/reference/clients.html#pycounter.Client.incr" in titles
    assert "docs/reference/counters.html#pycounter.Counters.incr" in titles, "of the native module's stub"
    assert (site / "examples/likes.py").exists(), "what documents link to"


def test_links_that_lead_nowhere_are_refused(copy):
    with (copy / "docs/journal.md").open("a") as document:
        document.write("[x](nothing.md) [y](client.md#nothing)")
    done = build(copy)
    assert done.returncode != 0
    assert "'nothing.md'" in done.stderr
    assert "'#nothing'" in done.stderr
