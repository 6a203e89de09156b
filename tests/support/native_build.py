"""Builds of the native module beside the installed one, and packages around them that a subprocess can import."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.support.shard_process import ROOT

BUILD_TIMEOUT_S = 900.0


class BuildFailed(Exception):
    """cargo said why."""


def build_native(folder: Path, features: Sequence[str]) -> Path:
    """Builds the module with these cargo features, unoptimised, and copies it to a folder. Raises BuildFailed.

    It shares cargo's folder with the engine's own tests, so that what both depend on is compiled once.
    """
    environment = {**os.environ, "PYO3_PYTHON": sys.executable, "PYO3_BUILD_EXTENSION_MODULE": "1"}
    command = ["cargo", "build", "--locked", "--quiet", "--package", "pycounter-native", "--features"]
    build = subprocess.run(
        [*command, ",".join(features)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if build.returncode != 0:
        raise BuildFailed(build.stderr)
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    library = target / "debug" / "lib_native.so"
    return Path(shutil.copy(library, folder / library.name))


def run_engine_test(name: str, features: Sequence[str], environment: dict[str, str]) -> tuple[bool, str]:
    """Runs one of the engine's tests in a build with these cargo features: whether it passed, and what it said."""
    command = [
        "cargo",
        "test",
        "--locked",
        "--quiet",
        "--package",
        "pycounter-engine",
        "--features",
        ",".join(features),
    ]
    done = subprocess.run(
        [*command, "--test", name],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if done.returncode != 0 and "panicked" not in done.stdout + done.stderr:
        raise BuildFailed(done.stderr)
    return done.returncode == 0, done.stdout + done.stderr


def make_package(folder: Path, library: Path) -> Path:
    """A folder to put on PYTHONPATH: the package as it is here, with `library` for its native module."""
    package = folder / "pycounter"
    package.mkdir(parents=True)
    for source in (ROOT / "pycounter").iterdir():
        if not source.name.startswith(("_native.", "__pycache__")):
            (package / source.name).symlink_to(source)
    (package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").symlink_to(library)
    return folder
