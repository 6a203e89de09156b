"""`check`: everything that a start reads is read, nothing is changed, and all damage is named."""

import pytest

import pycounter
from pycounter.errors import DamagedData, FolderLocked, StorageError
from pycounter.storage.check import check_folder
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


@pytest.fixture(params=[stopped_folder, crashed_folder])
def folder(request, tmp_path):
    return request.param(tmp_path / "shard")


def test_a_sound_folder_is_reported_and_left_as_it_is(folder):
    before = fingerprint(folder)
    report = check_folder(folder)
    assert fingerprint(folder) == before
    assert report.is_sound
    assert (report.kind, report.counters, report.torn, report.lost_commits) == ("shard", len(COUNTERS), None, ())
    assert report.log_bytes == sum(path.stat().st_size for path in log_files(folder))
    assert counters_in(folder) == COUNTERS
    with pycounter.open(folder) as counters:
        assert {key: counters[key] for key in COUNTERS} == COUNTERS
        assert "to be deleted" not in counters


def test_a_folder_that_is_open_is_refused(tmp_path):
    with pycounter.open(tmp_path / "shard") as counters:
        counters.incr("a")
        with pytest.raises(FolderLocked):
            check_folder(tmp_path / "shard")
    assert check_folder(tmp_path / "shard").is_sound


def test_a_folder_of_something_else_is_no_shard(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for nothing in (tmp_path, tmp_path / "missing", tmp_path / "notes.txt"):
        with pytest.raises(StorageError, match="no shard's folder"):
            check_folder(nothing)


def test_a_torn_end_is_normal(tmp_path):
    folder = crashed_folder(tmp_path / "shard")
    last = log_files(folder)[-1]
    size = last.stat().st_size
    last.write_bytes(last.read_bytes()[:-3])
    report = check_folder(folder)
    assert report.is_sound
    assert report.torn is not None
    assert (report.torn.file, report.torn.keep_bytes + report.torn.cut_bytes) == (str(last), size - 3)


def refusal(folder):
    """What a start says."""
    with pytest.raises(DamagedData) as refused:
        pycounter.open(folder)
    return str(refused.value)


def test_damage_in_the_log_is_named_as_a_start_names_it(tmp_path):
    folder = crashed_folder(tmp_path / "shard")
    last = log_files(folder)[-1]
    first, second = flip_where(last, b"counter 33"), flip_where(last, b"counter 66")
    before = fingerprint(folder)
    report = check_folder(folder)
    assert fingerprint(folder) == before
    assert not report.is_sound
    assert [damage.file for damage in report.damage] == [str(last)] * 2
    for damage, at in zip(report.damage, (first, second), strict=True):
        assert damage.first_byte is not None
        assert damage.end_byte is not None
        assert damage.first_byte <= at < damage.end_byte
    assert report.damage[0].what == refusal(folder)
    assert [end - start for start, end in report.lost_commits] == [0, 0]
    assert report.commits_behind_damage > 0
    assert report.counters == len(COUNTERS) - 2, "what is behind the damage is read"


def test_every_kind_of_damage_that_a_start_refuses_is_found(tmp_path):
    def lost_log(folder):
        log_files(folder)[0].unlink()

    def foreign_file(folder):
        (folder / "log" / "notes.txt").write_text("mine")

    def no_manifest(folder):
        (folder / "manifest.json").unlink()

    def flipped_manifest(folder):
        flip_where(folder / "manifest.json", b"identity")

    def no_checkpoint(folder):
        for path in (folder / "checkpoint").iterdir():
            path.unlink()

    def flipped_pages(folder):
        for path in (folder / "checkpoint").glob("*.sst"):
            flip(path, 40)

    for damage in (lost_log, foreign_file, no_manifest, flipped_manifest, no_checkpoint, flipped_pages):
        folder = stopped_folder(tmp_path / damage.__name__)
        damage(folder)
        before = fingerprint(folder)
        report = check_folder(folder)
        assert not report.is_sound, damage.__name__
        assert fingerprint(folder) == before
        refusal(folder)
