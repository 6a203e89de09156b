"""The systemd units, as systemd reads them."""

import re
import shutil
import subprocess

import pytest

from tests.repository.sources import ROOT

UNITS = sorted((ROOT / "deploy/systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
#: Of 100: below 20 systemd calls a service's exposure OK, and a smile stands beside it.
EXPOSURE_MAX = 20

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze (package systemd)")


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def units(tmp_path):
    """The units, with a program that is there in the place of ours."""
    for unit in UNITS:
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text()))
    return [tmp_path / unit.name for unit in UNITS]


def test_systemd_has_nothing_to_say_about_them(units):
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_would_say_what_is_wrong(units):
    units[0].write_text(units[0].read_text().replace("[Service]", "[Service]\nProtectEverything=yes"))
    assert "ProtectEverything" in analyze("verify", "--man=no", *units).stderr


@pytest.mark.parametrize("service", SERVICES, ids=[unit.name for unit in SERVICES])
def test_they_may_do_little(service):
    done = analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}", service)
    assert done.returncode == 0, done.stdout[-500:]
