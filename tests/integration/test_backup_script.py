"""The scheduled backup, as its timer starts it."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.repository.sources import ROOT

DAY_S = 24 * 3600


def back_up(folder: Path, port: int, *options: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "deploy/pycounter-backup", folder, "14", "--port", str(port), *options],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def make_old(folder: Path, days: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "backup.json").write_text("{}")
    os.utime(folder, (time.time() - days * DAY_S,) * 2)
    return folder


def test_a_checked_backup_replaces_old_ones(shard, rpc, tmp_path):
    rpc.call("incr", "visits", 5)
    backups = tmp_path / "backups"
    old = make_old(backups / "2026-01-01T00-00-00Z", 30)
    recent = make_old(backups / "2026-01-20T00-00-00Z", 3)
    other = make_old(backups / "my notes", 30)
    done = back_up(backups, shard.address[1])
    assert done.returncode == 0, done.stderr
    (made,) = set(backups.iterdir()) - {recent, other}
    assert "Sound: everything is there and unchanged." in done.stdout
    assert recent.exists()
    assert other.exists()
    assert not old.exists()
    dumped = subprocess.run(
        [sys.executable, "-m", "pycounter", "dump", made], capture_output=True, text=True, timeout=60, check=True
    )
    assert '{"key": "visits", "value": 5}' in dumped.stdout


def test_without_a_new_backup_no_old_one_goes(shard, tmp_path):
    old = make_old(tmp_path / "backups" / "2026-01-01T00-00-00Z", 30)
    port = shard.address[1]
    shard.kill()
    done = back_up(old.parent, port, "--timeout-s", "0.2")
    assert done.returncode != 0
    assert list(old.parent.iterdir()) == [old]
