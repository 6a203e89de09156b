"""What is installed is what the repository says: one version, and dependencies that are used and declared."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib

import pytest

import pycounter
from pycounter import _native
from tests.repository.sources import ROOT, source_files

DISTRIBUTION = "pycounter-engine"


def toml(name: str) -> dict:
    return tomllib.loads((ROOT / name).read_text())


VERSION = toml("Cargo.toml")["workspace"]["package"]["version"]


def test_the_installed_version_is_the_sources():
    assert importlib.metadata.version(DISTRIBUTION) == pycounter.__version__ == VERSION


def test_cargo_lock_has_the_version():
    locked = {package["name"]: package["version"] for package in toml("Cargo.lock")["package"]}
    assert locked["pycounter-engine"] == locked["pycounter-native"] == VERSION


def test_the_changelog_begins_with_the_version():
    headings = re.findall(r"^## \[(\d[^\]]*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0][0] == VERSION
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", date) for _, date in headings[1:])


def test_the_oldest_python_is_the_same_everywhere():
    project = toml("pyproject.toml")
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["mypy"]["python_version"] == oldest
    assert project["tool"]["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert f"python_needed={oldest}\n" in (ROOT / "tools/prerequisites.sh").read_text()


def test_linux_is_the_one_system_that_is_named_and_others_are_refused_in_a_sentence():
    systems = [one for one in toml("pyproject.toml")["project"]["classifiers"] if one.startswith("Operating System")]
    assert systems == ["Operating System :: POSIX :: Linux"]
    for command in [
        [sys.executable, "-c", "import sys; sys.platform = 'darwin'; import pycounter"],
        ["sh", "-c", "uname() { echo Darwin; }; . tools/prerequisites.sh python"],
    ]:
        end = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert end.returncode == 1
        assert "PyCounter runs on Linux only, not on " in end.stderr.splitlines()[-1], end.stderr


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_requirement_is_locked():
    project = toml("pyproject.toml")
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE))
    wanted = {requirement_name(one) for one in project["project"]["dependencies"] + project["dependency-groups"]["dev"]}
    assert wanted - locked == set(), "run `make lock`"


def imported() -> set[str]:
    """Top-level modules of others that the package imports, wherever in a file."""
    names = set()
    for path in source_files(".py", under="pycounter"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"pycounter"}


def test_dependencies_are_declared_and_used():
    project = toml("pyproject.toml")["project"]
    extras = [one for extra in project.get("optional-dependencies", {}).values() for one in extra]
    declared = {requirement_name(one) for one in [*project["dependencies"], *extras]}
    distributions = importlib.metadata.packages_distributions()
    used = {requirement_name(distributions[name][0]) if name in distributions else name for name in imported()}
    assert used - declared == set(), "imported and not declared"
    assert declared - used == set(), "declared and not imported"


def test_the_console_script_exists():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="pycounter")
    assert [script.value for script in scripts] == ["pycounter.cli:main"]
    assert callable(next(iter(scripts)).load())


@pytest.mark.parametrize("name", ["py.typed", "_native/__init__.pyi", "_native/link.pyi"])
def test_the_package_is_typed(name):
    assert (ROOT / "pycounter" / name).exists()


def test_the_native_module_is_a_release_build():
    assert _native.DEBUG_BUILD is False


def test_the_source_archive_holds_all_that_a_build_needs(tmp_path):
    maturin = [sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path)]
    done = subprocess.run(maturin, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"pycounter_engine-{VERSION}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = [path for folder in ("pycounter", "rust/engine", "rust/bindings") for path in source_files(under=folder)]
    needed = {str(path.relative_to(ROOT)) for path in sources}
    needed |= {"Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    assert needed - held == set()
    assert not {name for name in held if name.endswith(".so")}


def test_a_wheel_for_this_machine_alone_is_refused(tmp_path):
    wheel = tmp_path / f"pycounter_engine-{VERSION}-cp311-cp311-linux_x86_64.whl"
    wheel.touch()
    done = subprocess.run(
        [ROOT / "tools/try_wheel.sh", wheel, sys.executable], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "has no manylinux tag" in done.stderr
