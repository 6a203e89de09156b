"""What the documents say is true: their Python runs, their commands exist, their links lead somewhere."""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.repository.sources import ROOT, source_files, where

FENCE = re.compile(r"^```(?P<language>\w*)(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a document, and where it stands."""

    path: Path
    line: int
    language: str
    options: str
    code: str

    def __str__(self) -> str:
        return where(self.path, self.line)


def blocks() -> list[Block]:
    found = []
    for path in source_files(".md"):
        text = path.read_text()
        found += [
            Block(
                path=path,
                line=text.count("\n", 0, match.start()) + 1,
                language=match["language"],
                options=match["options"].strip(),
                code=match["code"],
            )
            for match in FENCE.finditer(text)
        ]
    return found


PYTHON = [block for block in blocks() if block.language in {"python", "py"}]
SHELL = [block for block in blocks() if block.language in {"sh", "bash", "shell", "console"}]


def test_python_in_documents_runs(tmp_path, subtests):
    """Each block is a program of its own, run in an empty folder.

    A block that needs a running server or another system is fenced as `python no-run`; it must compile all the same.
    """
    for number, block in enumerate(PYTHON):
        with subtests.test(block=str(block)):
            program = "\n" * block.line + block.code
            compile(program, str(block.path), "exec")
            if "no-run" in block.options:
                continue
            folder = tmp_path / str(number)
            folder.mkdir()
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{block}:\n{done.stderr}"


def commands() -> list[tuple[Block, list[str]]]:
    """Commands that documents tell a reader to type; in a console block those after the prompt."""
    found = []
    for block in SHELL:
        for line in block.code.replace("\\\n", " ").splitlines():
            if block.language == "console" and not line.startswith("$ "):
                continue
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                found.append((block, words))
    return found


def test_make_targets_in_documents_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wanted = {
        (where(path), name)
        for path in source_files(".md", ".py", ".rs", ".toml")
        for name in re.findall(r"`make ([a-z-]+)", path.read_text())
    }
    for block, words in commands():
        if words[0] == "make":
            wanted |= {(str(block), word) for word in words[1:] if "=" not in word}
    assert {(place, name) for place, name in wanted if name not in targets} == set()


def test_pycounter_commands_in_documents_exist(subtests):
    wanted: dict[str, Block] = {}
    for block, words in commands():
        if words[0].rpartition("/")[2] == "pycounter" and len(words) > 1 and not words[1].startswith("-"):
            wanted.setdefault(words[1], block)
    for name, block in wanted.items():
        with subtests.test(command=name):
            done = subprocess.run(
                [sys.executable, "-c", "from pycounter.cli import main; main()", name, "--help"],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 0, f"{block}: {done.stderr}"


def anchors(path: Path) -> set[str]:
    """Heading anchors, made as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere():
    broken = []
    for path in source_files(".md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            if not file.is_relative_to(ROOT) or not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{where(path)}: {target}")
    assert broken == []


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"])
def test_is_there(name):
    assert (ROOT / name).stat().st_size > 0
