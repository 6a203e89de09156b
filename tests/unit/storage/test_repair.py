"""`repair`: what can be read is kept, what can't is said, and a crash on the way is harmless."""

import os
from pathlib import Path

import pytest

import pycounter
import pycounter.errors
from pycounter.errors import FolderLocked
from pycounter.storage.check import check_folder
from pycounter.storage.repair import plan_repair
from tests.support.folders import (
    COUNTERS,
    counters_in,
    crashed_folder,
    fingerprint,
    flip,
    flip_where,
    log_files,
    stopped_folder,
)


def repair(folder):
    with plan_repair(folder) as plan:
        return plan.action, plan.carry_out()


def identity_of(folder):
    return check_folder(folder).identity


@pytest.fixture
def damaged(tmp_path):
    """A crashed folder; two commits can't be read."""
    folder = crashed_folder(tmp_path / "shard")
    flip_where(log_files(folder)[-1], b"counter 33")
    flip_where(log_files(folder)[-1], b"counter 66")
    return folder


def without(*names):
    return {key: value for key, value in COUNTERS.items() if key not in names}


def test_a_sound_folder_is_left_as_it_is(tmp_path):
    folder = crashed_folder(tmp_path / "shard")
    before = fingerprint(folder)
    assert repair(folder) == ("nothing", None)
    assert fingerprint(folder) == before


def test_a_plan_alone_changes_nothing(damaged):
    before = fingerprint(damaged)
    with plan_repair(damaged) as plan:
        assert plan.action == "rebuild"
        with pytest.raises(FolderLocked):
            pycounter.open(damaged)
    assert fingerprint(damaged) == before


def test_what_can_be_read_is_kept_and_the_folder_starts_as_another_shard(damaged):
    before, identity = fingerprint(damaged), identity_of(damaged)
    action, kept = repair(damaged)
    assert action == "rebuild"
    assert kept is not None
    old = fingerprint(kept)
    assert {name: old[name][1] for name in old} == {name: before[name][1] for name in before if name != "lock"}
    report = check_folder(damaged)
    assert report.is_sound
    assert report.identity != identity
    expected = without(b"counter 33", b"counter 66")
    assert counters_in(damaged) == expected
    with pycounter.open(damaged) as counters:
        assert dict(counters) == {key.decode("utf-8", "surrogateescape"): value for key, value in expected.items()} or (
            {key: counters[key] for key in expected} == expected
        )
        counters.incr("and on")
    assert counters_in(damaged) == {**expected, b"and on": 1}


def test_files_of_others_are_moved_and_nothing_else(tmp_path):
    folder = stopped_folder(tmp_path / "shard")
    identity = identity_of(folder)
    (folder / "log" / "notes.txt").write_text("mine")
    action, kept = repair(folder)
    assert action == "move"
    assert kept is not None
    assert (kept / "notes.txt").read_text() == "mine"
    assert identity_of(folder) == identity
    assert check_folder(folder).is_sound


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def lose_log(folder):
    log_files(folder)[0].unlink()


def lose_checkpoint(folder):
    for path in (folder / "checkpoint").iterdir():
        path.unlink()


def spoil_pages(folder):
    for path in (folder / "checkpoint").glob("*.sst"):
        flip(path, 40)


@pytest.mark.parametrize("damage", [lose_manifest, lose_log, lose_checkpoint, spoil_pages])
def test_all_values_are_found_where_checkpoint_and_log_both_have_them(tmp_path, damage):
    """The log's only file still has every commit of this small shard, and so has the checkpoint."""
    folder = stopped_folder(tmp_path / "shard")
    damage(folder)
    assert repair(folder)[0] == "rebuild"
    assert check_folder(folder).is_sound
    assert counters_in(folder) == COUNTERS


class Crash(BaseException):
    """Stands for kill -9 at a call."""


def test_a_crash_at_any_step_leaves_the_old_state_the_new_one_or_what_a_second_repair_finishes(damaged, monkeypatch):
    """Every rename, removal and making of a folder is the last thing that happens, once."""
    expected = without(b"counter 33", b"counter 66")
    image = damaged.with_name("image")
    os.system(f"cp -a {damaged} {image}")
    calls = {name: getattr(Path, name) for name in ("rename", "mkdir", "write_text")}
    steps = 0
    left = [10**9]

    def counted(name):
        def call(self, *arguments, **options):
            nonlocal steps
            steps += 1
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return calls[name](self, *arguments, **options)

        return call

    for name in calls:
        monkeypatch.setattr(Path, name, counted(name))
    repair(damaged)
    assert steps > 6
    for crash_at in range(steps):
        folder = damaged.with_name(f"crash-{crash_at}")
        os.system(f"cp -a {image} {folder}")
        left[0] = crash_at
        with pytest.raises(Crash):
            repair(folder)
        left[0] = 10**9
        state = check_folder(folder)
        assert not state.is_sound, "the manifest's rename is the last step"
        with pytest.raises(pycounter.errors.DamagedData):
            pycounter.open(folder)
        assert repair(folder)[0] in {"rebuild", "finish"}
        assert counters_in(folder) == expected
        assert check_folder(folder).is_sound
        assert sum(1 for path in folder.rglob("manifest.json")) == 2, "the old one is kept"
