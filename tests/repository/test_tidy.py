"""Style as tests: what reviewers would otherwise say again and again.

Formats, lints, types and layers are `make lint`'s; here is what those tools don't know.
"""

import ast
import os
import re
from pathlib import Path

import pytest

from tests.repository.sources import ROOT, source_files, text_files, where

LINES_MAX = 600
FUNCTION_LINES_MAX = 100

# Put together from parts, so that this file passes its own test.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~}])/(?:root|home|Users|work)" + r"/\w",
    "a registry's address": "|".join(
        re.escape(host.replace("_", "."))
        for host in ["pypi_org", "pythonhosted_org", "static_crates_io", "registry_npmjs_org", "proxy_golang_org"]
    )
    + r"|(?:^|[^-\w])(?:index\.)?crates"
    + r"\.io(?!-index)",
    "work left to do": r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX"]) + r")\b",
    "a stub": r"\b(?:" + "|".join(["to" + "do!", "unimple" + "mented!", "NotImplemented" + "Error"]) + ")",
}
LOCK_FILES = {"Cargo.lock"}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what):
    pattern = re.compile(FORBIDDEN[what])
    found = [
        where(path, number)
        for path, text in text_files()
        if path.name not in LOCK_FILES
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == [], f"{what} in {found}"


def test_lock_files_name_no_index_but_the_default_one():
    for path in source_files(".lock"):
        sources = set(re.findall(r'^source = "(.*)"$', path.read_text(), re.MULTILINE))
        assert sources <= {"registry+https://github.com/rust-lang/crates.io-index"}, where(path)
    options = re.findall(r"^ *-(?!-hash=).*", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert options == [], "requirements-dev.txt pins and hashes; where pip looks is the user's to say"


def test_text_is_clean():
    found = []
    for path, text in text_files():
        if "\r" in text:
            found.append(f"{where(path)}: carriage returns")
        if text and not text.endswith("\n"):
            found.append(f"{where(path)}: no newline at the end")
        found += [
            f"{where(path, number)}: space at the end"
            for number, line in enumerate(text.split("\n"), 1)
            if line != line.rstrip() and path.suffix not in {".txt"}
        ]
    assert found == []


def test_every_python_module_says_what_it_is():
    missing = [
        where(path)
        for path in source_files(".py", under="pycounter")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert missing == [], "these modules have no docstring"


def test_every_rust_file_says_what_it_is():
    missing = [
        where(path)
        for path in source_files(".rs", under="rust")
        if not re.match(r"(?:#!\[.*\]\n|\s)*//! ", path.read_text())
    ]
    assert missing == [], "these files don't start with a //! header"


def code_lines(path: Path) -> int:
    """Lines of a file; those of a Rust file's inline tests count apart, and the longer part counts."""
    lines = path.read_text().splitlines()
    if path.suffix == ".rs":
        for number, line in enumerate(lines[1:], 1):
            if line.startswith("mod tests {") and "cfg(" in lines[number - 1]:
                return max(number, len(lines) - number)
    return len(lines)


def test_no_file_is_too_long():
    lengths = {where(path): code_lines(path) for path in source_files(".py", ".pyi", ".rs")}
    too_long = {name: lines for name, lines in lengths.items() if lines > LINES_MAX}
    assert too_long == {}, f"at most {LINES_MAX} lines: split by what a reader looks for"


def test_no_python_function_is_too_long():
    too_long = [
        f"{where(path, node.lineno)}: {node.name}"
        for path in source_files(".py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert too_long == [], f"at most {FUNCTION_LINES_MAX} lines"


def test_a_broad_except_gives_its_reason():
    """Ruff refuses a broad except; where a task's boundary needs one, the exemption says why."""
    bare = [
        where(path, number)
        for path in source_files(".py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"#\s*noqa:[^#]*\bBLE001\b(?!\s*[-:,#(]\s*\w{2,}.*\s\w)", line)
    ]
    assert bare == [], "write: # noqa: BLE001 - the reason"


def test_no_room_is_named_after_nothing():
    names = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    found = [
        where(path) for path in source_files(".py", ".rs") if names & {path.stem, *path.relative_to(ROOT).parts[:-1]}
    ]
    assert found == [], "a name says what is inside"


def test_scripts_can_be_run():
    scripts = [path for path, text in text_files() if text.startswith("#!") and path.suffix in {"", ".sh"}]
    assert (ROOT / ".ci/run") in scripts
    assert [where(path) for path in scripts if not os.access(path, os.X_OK)] == []


def test_no_toolchain_is_forced_on_the_reader():
    """Cargo.toml says the oldest Rust that works; which newer one runs is the reader's."""
    assert not [path for path in source_files() if path.name.startswith("rust-toolchain")]


def test_every_make_target_is_documented():
    lines = (ROOT / "Makefile").read_text().splitlines()
    phony = {name for line in lines if line.startswith(".PHONY:") for name in line.split()[1:]}
    documented = {line.split(":")[0] for line in lines if re.match(r"[a-z-]+:.*## \w", line)}
    assert phony - documented == {"force"}
