"""A folder damaged behind a server's back: it starts with exactly what was acknowledged, or says what is wrong.

The exceptions, where a log can't know its own end, are those of `docs/durability.md`: see `may_be_lost`. Random places
are drawn from the seed; `--fault-rounds 1000` draws more of them.
"""

import random
import shutil

import pytest

from tests.support.damaged_folder import NAMED, Refused, Started, Story, put_back, start_and_look
from tests.support.log_files import HEADER, records, segments
from tests.support.shard_process import ShardProcess

SETTINGS = {"segment_bytes": 4096, "checkpoint_log_bytes": 1 << 30, "checkpoint_interval_s": 3600.0}
REMEDY = ("restore", "move it elsewhere", "put each shard's files back")
FIELDS = {
    "magic": 0,
    "version": 4,
    "kind": 5,
    "flags": 6,
    "length": 8,
    "index": 12,
    "identity": 16,
    "epoch": 32,
    "writer": 40,
    "number": 48,
    "previous hash": 56,
    "checksum": 64,
    "body": HEADER.size + 3,
    "last byte": -1,
}


class Ground:
    """A folder, a copy of it to come back to, and its story."""

    def __init__(self, folder, launcher, end):
        self.shard = ShardProcess(folder / "shard", launcher=launcher, settings=SETTINGS)
        self.story = Story()
        self.copy = folder / "copy"
        self.shard.start()
        self.story.count(self.shard, 60)
        if end != "killed":
            # A checkpoint, and a log that begins with it.
            assert self.shard.terminate() == 0
            self.shard.start()
            self.story.count(self.shard, 60)
        self.shard.kill()
        self.older = folder / "older"
        shutil.copytree(self.directory, self.older)
        self.shard.start()
        self.story.count(self.shard, 60)
        if end == "stopped":
            assert self.shard.terminate() == 0
        self.shard.kill()
        shutil.copytree(self.directory, self.copy)
        self.end = end

    @property
    def directory(self):
        return self.shard.directory

    @property
    def operations(self):
        return self.story.operations

    def restore(self):
        put_back(self.directory, self.copy)

    def look(self):
        return start_and_look(self.shard)


@pytest.fixture(scope="module", params=["killed", "checkpoint, killed", "stopped"])
def module_ground(request, tmp_path_factory, launcher):
    return Ground(tmp_path_factory.mktemp("damage"), launcher, request.param)


@pytest.fixture
def ground(module_ground):
    module_ground.restore()
    return module_ground


def flip(path, at, bit=0):
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def may_be_lost(ground, path, at, is_cut):
    """The fewest operations that may be counted after damage from byte `at` of a file of the log.

    After an orderly stop, and in all files but the last: all of them. After a kill the last commit of all, where it
    is damaged, looks like one that was being written; and a file that is cut looks like one that never was longer.
    """
    if ground.end == "stopped" or path != segments(ground.directory)[-1]:
        return ground.operations
    touched = next((record for record in records(path) if record.end > at), None)
    if touched is None or not (is_cut or touched.end == path.stat().st_size):
        return ground.operations
    return ground.story.commits.get(touched.commit, 0) - 1 if touched.kind == 1 else 120


def check(ground, result, fewest, what):
    if isinstance(result, Refused):
        assert any(words in result.sentence for words in REMEDY), result
        return
    assert fewest <= result.operations <= ground.operations, f"{what}: {result.operations} of {ground.operations}"


def test_without_damage_it_starts_exact(ground):
    for _ in range(2):
        assert ground.look() == Started(ground.operations)


@pytest.mark.timeout(600)
def test_a_flipped_bit_in_each_field(ground, seed, fault_rounds):
    """Of the first, a middle and the last record, in the last file and in others."""
    paths = segments(ground.directory)
    places = [
        (path, record, field)
        for path in sorted({paths[0], paths[len(paths) // 2], paths[-1]})
        for record in {place: records(path)[place] for place in (0, len(records(path)) // 2, -1)}.values()
        for field in FIELDS
    ]
    for path, record, field in random.Random(seed).sample(places, min(fault_rounds, len(places))):
        at = (record.end if FIELDS[field] < 0 else record.start) + FIELDS[field]
        if at >= record.end:
            continue  # the record that opens an epoch has no body
        fewest = may_be_lost(ground, path, at, is_cut=False)
        flip(path, at)
        result = ground.look()
        check(ground, result, fewest, f"{field} of {record}")
        if fewest == ground.operations:
            assert isinstance(result, Refused), record
            named = NAMED.search(result.sentence)
            assert named, result
            assert named["path"] == str(path), result
            assert int(named["start"] or named["up_to"]) == record.start, result
            assert named["end"] is None or int(named["end"]) >= record.end, result
        ground.restore()


@pytest.mark.timeout(600)
def test_random_bytes_of_the_log(ground, seed, fault_rounds):
    draw = random.Random(seed)
    for _ in range(fault_rounds):
        path = draw.choice([*segments(ground.directory), segments(ground.directory)[-1]])
        size = path.stat().st_size
        at = draw.randrange(size)
        kind = draw.choice(["flip", "cut", "zeros", "zeros to the end", "junk"])
        is_cut = kind in {"cut", "zeros to the end"}
        fewest = may_be_lost(ground, path, at, is_cut)
        content = bytearray(path.read_bytes())
        if kind == "flip":
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "junk":
            fewest, content = ground.operations, content + draw.randbytes(draw.randint(1, 500))
        else:
            end = size if is_cut else min(size, at + draw.randint(1, 600))
            content[at:end] = bytes(end - at)
            if end > records(path)[-1].start:
                # With the last commit gone nothing says how many there were from here on.
                fewest = may_be_lost(ground, path, at, is_cut=True)
        path.write_bytes(content)
        check(ground, ground.look(), fewest, f"{kind} at {at} of {path.name} ({ground.end}, seed {seed})")
        ground.restore()


def test_a_torn_end_is_cut_and_said(ground):
    """What a crash in the middle of an append leaves: half a record, or its length with nothing in it."""
    if ground.end == "stopped":
        return  # then nothing was being written
    last = segments(ground.directory)[-1]
    record = records(last)[-1]
    for tail in (last.read_bytes()[record.start : record.end - 5], bytes(4096), b"PyCr", b"\0"):
        last.write_bytes(last.read_bytes() + tail)
        assert ground.look() == Started(ground.operations)
        assert f"{len(tail)} bytes" in ground.shard.output(5)
        ground.restore()


def test_a_log_that_lost_its_end_at_a_commits_edge(ground, fault_rounds):
    """After an orderly stop it is noticed. After a kill it can't be: see docs/durability.md."""
    last = segments(ground.directory)[-1]
    found = records(last)
    for record in found[1 :: max(1, 3 * len(found) // fault_rounds)]:
        last.write_bytes(last.read_bytes()[: record.start])
        result = ground.look()
        if ground.end == "stopped":
            assert isinstance(result, Refused), result
        else:
            assert result == Started(ground.story.commits[record.commit] - 1)
        ground.restore()


def damage_segments(paths):
    """Whole files lost, emptied, doubled, exchanged: what, and who does it."""
    first, middle, last = paths[0], paths[len(paths) // 2], paths[-1]
    for name, path in (("first", first), ("middle", middle), ("last", last)):
        yield f"{name} deleted", path.unlink
        yield f"{name} emptied", lambda path=path: path.write_bytes(b"")
        yield f"{name} doubled", lambda path=path: shutil.copy(path, path.with_stem(f"{int(path.stem) + 1:020}"))
        yield f"{name} again as the newest", lambda path=path: shutil.copy(path, path.with_stem(f"{10**6:020}"))
        yield f"{name} doubled within", lambda path=path: path.write_bytes(path.read_bytes() * 2)
    if len(paths) > 1:
        yield "two exchanged", lambda: exchange(first, last)
        yield "middle over last", lambda: shutil.copy(middle, last)
        yield "last over first", lambda: shutil.copy(last, first)
    yield "all deleted", lambda: [path.unlink() for path in paths]
    yield "folder deleted", lambda: shutil.rmtree(first.parent)


def exchange(one, other):
    aside = one.with_suffix(".aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_whole_files_of_the_log(ground, seed, fault_rounds):
    names = [name for name, _ in damage_segments(segments(ground.directory))]
    for index in sorted(random.Random(seed).sample(range(len(names)), min(fault_rounds, len(names)))):
        name = names[index]
        paths = segments(ground.directory)
        _, damage = list(damage_segments(paths))[index]
        damage()
        result = ground.look()
        fewest = ground.operations
        if ground.end != "stopped" and name in {"last emptied"}:
            # A file that a crash left empty looks like this.
            fewest = 0
        check(ground, result, fewest, name)
        ground.restore()


@pytest.mark.timeout(600)
def test_the_checkpoints_files(ground, seed, fault_rounds):
    """Whatever RocksDB makes of its damaged files, the pages' hashes decide."""
    draw = random.Random(seed)
    names = sorted(path.name for path in (ground.directory / "checkpoint").iterdir() if not path.name.startswith("LO"))
    for number in range(max(fault_rounds, len(names) + 1)):
        name = names[number % len(names)]
        path = ground.directory / "checkpoint" / name
        content = path.read_bytes()
        kind = draw.choice(["flip", "cut", "zeros"]) if number >= len(names) else "missing"
        if kind == "missing" or not content:
            path.unlink()
        elif kind == "flip":
            flip(path, draw.randrange(len(content)), draw.randrange(8))
        elif kind == "cut":
            path.write_bytes(content[: draw.randrange(len(content))])
        else:
            at = draw.randrange(len(content))
            path.write_bytes(content[:at] + bytes(len(content) - at))
        check(ground, ground.look(), ground.operations, f"{kind} of {name} ({ground.end}, seed {seed})")
        ground.restore()


def test_all_of_the_checkpoint_lost(ground):
    for damage in (shutil.rmtree, empty_folder):
        damage(ground.directory / "checkpoint")
        check(ground, ground.look(), ground.operations, "all of the checkpoint")
        ground.restore()


def empty_folder(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def test_the_manifest(ground, seed, fault_rounds):
    draw = random.Random(seed)
    path = ground.directory / "manifest.json"
    size = path.stat().st_size
    for number in range(fault_rounds):
        if number == 0:
            path.unlink()
        elif number % 3:
            flip(path, draw.randrange(size), draw.randrange(8))
        else:
            path.write_bytes(path.read_bytes()[: draw.randrange(size)])
        check(ground, ground.look(), ground.operations, "manifest")
        ground.restore()


PARTS = ["log", "checkpoint", "manifest.json"]


def replace_part(ground, source, part):
    target = ground.directory / part
    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source / part, target)
    else:
        shutil.copy(source / part, target)


def test_parts_of_another_shards_folder(ground, start_shard):
    other = start_shard(settings=SETTINGS, name="other")
    theirs = Story()
    theirs.count(other, 60)
    assert other.terminate() == 0
    other.start()
    theirs.count(other, 60)
    other.kill()
    for part in PARTS:
        replace_part(ground, other.directory, part)
        result = ground.look()
        check(ground, result, ground.operations, f"{part} of another shard")
        assert isinstance(result, Refused), part
        ground.restore()
    for path in segments(ground.directory):
        shutil.copy(segments(other.directory)[0], path)
        result = ground.look()
        assert isinstance(result, Refused), path
        assert str(path) in result.sentence
        ground.restore()


def test_an_older_copy(ground):
    """Whole, it is an older state and starts as such. A part of it isn't taken for the present."""
    put_back(ground.directory, ground.older)
    older = ground.operations - 60
    assert ground.look() == Started(older)
    ground.restore()
    for part in PARTS:
        replace_part(ground, ground.older, part)
        result = ground.look()
        check(ground, result, ground.operations, f"an older {part}")
        ground.restore()
