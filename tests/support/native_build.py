"""Builds of the native module beside the installed one, and packages around them that a subprocess can import."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.support.shard_process import ROOT

BUILD_TIMEOUT_S = 900.0


class BuildFailed(Exception):
    """cargo said why."""


def build_native(name: str, features: Sequence[str]) -> Path:
    """Builds the module with these cargo features, unoptimised; gives the library. Raises BuildFailed.

    It goes to a folder of its own below cargo's, so that it and the installed build leave each other's files alone.
    """
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / name
    command = ["cargo", "build", "--locked", "--quiet", "--package", "pycounter-native", "--target-dir", str(target)]
    environment = {**os.environ, "PYO3_PYTHON": sys.executable, "PYO3_BUILD_EXTENSION_MODULE": "1", "CARGO_PROFILE_DEV_DEBUG": "0"}
    if sys.platform == "darwin":
        environment["RUSTFLAGS"] = "-C link-arg=-undefined -C link-arg=dynamic_lookup"
    build = subprocess.run(
        [*command, "--features", ",".join(features)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if build.returncode != 0:
        raise BuildFailed(build.stderr)
    return target / "debug" / ("lib_native.dylib" if sys.platform == "darwin" else "lib_native.so")


def make_package(folder: Path, library: Path) -> Path:
    """A folder to put on PYTHONPATH: the package as it is here, with `library` for its native module."""
    package = folder / "pycounter"
    package.mkdir(parents=True)
    for source in (ROOT / "pycounter").iterdir():
        if not source.name.startswith(("_native.", "__pycache__")):
            (package / source.name).symlink_to(source)
    (package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").symlink_to(library)
    return folder
