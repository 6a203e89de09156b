//! What a journal makes of files that were damaged, cut, lost, swapped or mixed up behind its back.
//!
//! The property: an opening either refuses with an error, or delivers a run of commits from the first on, which ends
//! before the first damaged byte, and that only if the damage reaches the last commit of all: then nothing that is left
//! tells it from the torn end of a log.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use crate::journal::entry::Entry;
use crate::journal::error::JournalError;
use crate::journal::files::FileSystem;
use crate::journal::manifest::MANIFEST_NAME;
use crate::journal::record::{HEADER_BYTES, Position};
use crate::journal::recovery::{JournalOptions, Recovered, Started, open};
use crate::journal::simulated_files::SimulatedFiles;
use crate::journal::{Appender, Checkpoint, Journal, LogFigures, examine};

const FOLDER: &str = "/shard";

/// Opens and reads. An examination of the same files must agree: damage where this refuses, and none where not.
fn replay(files: &SimulatedFiles) -> Result<(Vec<i64>, Recovered), JournalError> {
    if !files.list(Path::new(FOLDER)).unwrap().contains(&manifest_path()) {
        return replay_only(files);
    }
    let examined = look(files, Position::START);
    let result = replay_only(files);
    match (&result, &examined) {
        (Ok((values, recovered)), Ok(examined)) => {
            assert!(examined.damage.is_empty(), "an opening takes it, but: {:?}", examined.damage);
            assert_eq!((&examined.values, &examined.figures.torn), (values, &recovered.torn));
            assert_eq!(examined.figures.last_commit, recovered.end.commit);
            assert!(examined.figures.lost.is_empty());
        }
        (Err(error), Ok(examined)) => {
            // Where it can go on, its first finding is the opening's.
            let first = examined.damage.first().map(ToString::to_string);
            assert_eq!(first, Some(error.to_string()));
        }
        (Err(error), Err(other)) => assert_eq!(error.to_string(), other.to_string()),
        (Ok(_), Err(error)) => panic!("an opening takes it, but: {error}"),
    }
    result
}

/// What an examination says.
struct Examined {
    values: Vec<i64>,
    figures: LogFigures,
    damage: Vec<JournalError>,
}

fn look(files: &SimulatedFiles, from: Position) -> Result<Examined, JournalError> {
    let mut values = Vec::new();
    let mut examination = examine(Path::new(FOLDER), Arc::new(files.clone()))?;
    let mut sink = |entry: &Entry<'_>| {
        if let Entry::Counter { key: b"number", value } = entry {
            values.push(*value);
        }
    };
    let figures = examination.read(from, &mut sink, &mut |_| true)?;
    Ok(Examined { values, figures, damage: examination.damage })
}

fn replay_only(files: &SimulatedFiles) -> Result<(Vec<i64>, Recovered), JournalError> {
    let mut values = Vec::new();
    let shared: Arc<dyn FileSystem> = Arc::new(files.clone());
    let options = JournalOptions { segment_bytes: 4_000, files: shared, ..JournalOptions::default() };
    let recovered = open(Path::new(FOLDER), options)?.replay(Position::START, &mut |entry| {
        if let Entry::Counter { key: b"number", value } = entry {
            values.push(*value);
        }
    })?;
    Ok((values, recovered))
}

fn refusal(files: &SimulatedFiles) -> JournalError {
    match replay(files) {
        Ok((values, _)) => panic!("accepted, with {values:?}"),
        Err(error) => error,
    }
}

fn start(files: &SimulatedFiles) -> Started {
    let mut started = replay(files).unwrap().1.start().unwrap();
    started.encoder.limit_body(1_200);
    started
}

/// Appends commit `number` with so many counters beside its own: from 50 on it takes several records.
fn append(started: &mut Started, others: usize) -> Position {
    let number = started.encoder.next_number();
    started.encoder.begin(number, 0);
    for other in 0..others {
        started.encoder.put_counter(format!("another counter, number {other}").as_bytes(), 1);
    }
    started.encoder.put_counter(b"number", number as i64);
    let commit = started.encoder.finish();
    started.appender.append(&commit).unwrap();
    commit.position()
}

/// A log of two openings; where the commits of its last file end, and the path of that file.
struct Log {
    files: SimulatedFiles,
    segments: Vec<PathBuf>,
    /// Numbers of the commits that carry a value, all files together.
    numbers: Vec<i64>,
    /// Ends of the commits of the last file, with their numbers.
    last_ends: Vec<(usize, u64)>,
}

fn log(sizes: &[usize]) -> Log {
    let files = SimulatedFiles::new(0);
    let mut numbers = Vec::new();
    let mut last_ends = Vec::new();
    let mut segments = Vec::new();
    for half in [&sizes[..sizes.len() / 2], &sizes[sizes.len() / 2..]] {
        let mut started = start(&files);
        last_ends = vec![(HEADER_BYTES, started.position.commit)];
        for &others in half {
            let number = append(&mut started, others).commit;
            numbers.push(number as i64);
            let last = *started.log.manifest().segments.last().unwrap();
            if number == last {
                last_ends.clear();
            }
            last_ends.push((files.content(&started.log.segment_path(last)).len(), number));
        }
        segments = started.log.manifest().segments.iter().map(|&first| started.log.segment_path(first)).collect();
        files.kill();
    }
    Log { files, segments, numbers, last_ends }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Zero(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Junk(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), 0..8_u8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        1 => (any::<prop::sample::Index>(), 1..700_usize).prop_map(|(at, length)| Damage::Zero(at, length)),
        2 => any::<prop::sample::Index>().prop_map(Damage::Cut),
        1 => prop::collection::vec(any::<u8>(), 1..200).prop_map(Damage::Junk),
    ]
}

impl Damage {
    /// Damages, and says which bytes are not what they were: from, to (the end of the file if it was cut).
    fn apply(&self, bytes: &mut Vec<u8>) -> (usize, usize) {
        match self {
            Damage::Flip(at, bit) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bit;
                (at, at + 1)
            }
            Damage::Zero(at, length) => {
                let from = at.index(bytes.len());
                let to = (from + length).min(bytes.len());
                bytes[from..to].fill(0);
                (from, to)
            }
            Damage::Cut(at) => {
                let at = at.index(bytes.len());
                bytes.truncate(at);
                (at, usize::MAX)
            }
            Damage::Junk(junk) => {
                let at = bytes.len();
                bytes.extend_from_slice(junk);
                (at, at)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn damage_is_refused_or_is_at_the_very_end_and_cut(
        sizes in prop::collection::vec(prop_oneof![3 => 0..10_usize, 1 => 50..200_usize], 2..14),
        which in any::<prop::sample::Index>(),
        damage in damage(),
    ) {
        let Log { files, segments, numbers, last_ends } = log(&sizes);
        let path = which.get(&segments);
        let before = files.content(path);
        let mut bytes = before.clone();
        let (from, to) = damage.apply(&mut bytes);
        let harmless = bytes == before || matches!(damage, Damage::Junk(_));
        let is_last = Some(path) == segments.last();
        files.set_content(path, bytes);
        let result = replay(&files).map(|(values, _)| values);
        if harmless {
            // Bytes after the end of a file that has a successor are no commits, and neither are those of a torn one.
            prop_assert_eq!(result.unwrap(), numbers);
        } else if !is_last {
            prop_assert!(result.is_err(), "{:?} instead of {:?}", result, numbers);
        } else if to == usize::MAX {
            // A cut loses what is behind it, without a trace in the file itself, and nothing before it.
            let kept = last_ends.iter().filter(|(end, _)| *end <= from).map(|&(_, number)| number).next_back();
            let first = last_ends.first().map_or(0, |&(_, number)| number);
            let end = kept.unwrap_or(first - 1) as i64;
            let expected: Vec<_> = numbers.iter().copied().filter(|&number| number <= end).collect();
            prop_assert_eq!(result.unwrap(), expected);
        } else {
            // Damage may pass for a torn end only if it reaches the last commit.
            let last_begins = last_ends.iter().rev().nth(1).map_or(0, |&(end, _)| end);
            match result {
                Ok(values) => {
                    prop_assert!(to > last_begins, "damage at {} of {:?} went unnoticed", from, last_ends);
                    let touched = last_ends.iter().find(|(end, _)| *end > from).map_or(0, |&(_, number)| number) as i64;
                    let expected: Vec<_> = numbers.iter().copied().filter(|&number| number < touched).collect();
                    prop_assert_eq!(values, expected);
                }
                Err(error) => prop_assert!(from < last_begins, "a torn end was refused: {}", error),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is damaged, everything else is read: a commit is in the log's figures or among the lost ones.
    #[test]
    fn an_examination_reads_what_damage_leaves(
        sizes in prop::collection::vec(prop_oneof![3 => 0..10_usize, 1 => 50..200_usize], 2..14),
        damages in prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..4),
    ) {
        let Log { files, segments, numbers, .. } = log(&sizes);
        let before: Vec<_> = segments.iter().map(|path| files.content(path)).collect();
        for (which, damage) in &damages {
            let path = which.get(&segments);
            let mut bytes = files.content(path);
            if !bytes.is_empty() {
                let _ = damage.apply(&mut bytes);
                files.set_content(path, bytes);
            }
        }
        let damaged: Vec<_> = segments.iter().map(|path| files.content(path)).collect();
        let examined = look(&files, Position::START).unwrap();
        let after: Vec<_> = segments.iter().map(|path| files.content(path)).collect();
        prop_assert_eq!(after, damaged.clone(), "an examination changes nothing");
        let lost = |number: i64| examined.figures.lost.iter().any(|run| run.contains(&(number as u64)));
        let last = examined.figures.last_commit as i64;
        for number in numbers {
            let read = examined.values.contains(&number);
            prop_assert!(read != (lost(number) || number > last), "commit {} of {:?}", number, examined.figures);
        }
        prop_assert!(examined.values.is_sorted_by(|a, b| a < b));
        if damaged == before {
            prop_assert!(examined.damage.is_empty());
        }
    }
}

#[test]
fn damage_in_two_files_is_found_at_once_and_what_is_between_is_read() {
    let Log { files, segments, numbers, .. } = log(&[60; 12]);
    let mut expected = numbers.clone();
    for path in [&segments[1], &segments[3]] {
        let mut bytes = files.content(path);
        bytes[HEADER_BYTES + 5] ^= 1;
        files.set_content(path, bytes);
        let first: i64 = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        expected.retain(|&number| number != first);
    }
    let Examined { values, figures, damage } = look(&files, Position::START).unwrap();
    let places: Vec<_> = damage.iter().map(|error| error.place().unwrap().0).collect();
    assert_eq!(places, [&segments[1], &segments[3]]);
    assert_eq!(values, expected);
    assert_eq!(figures.lost.len(), 2);
    assert!(figures.commits_behind_damage > 0);
}

#[test]
fn without_a_manifest_the_log_is_still_read() {
    let Log { files, numbers, .. } = log(&[60; 8]);
    files.remove(&manifest_path()).unwrap();
    let Examined { values, damage, .. } = look(&files, Position::START).unwrap();
    assert!(matches!(damage[..], [JournalError::ManifestMissing { .. }]), "{damage:?}");
    assert_eq!(values, numbers);
}

fn manifest_path() -> PathBuf {
    Path::new(FOLDER).join(MANIFEST_NAME)
}

#[test]
fn after_a_stop_in_good_order_the_last_commit_is_not_taken_for_torn() {
    let files = SimulatedFiles::new(0);
    let mut started = start(&files);
    append(&mut started, 0);
    append(&mut started, 0);
    started.appender.close().unwrap();
    let path = started.log.segment_path(1);
    drop(started);
    let mut bytes = files.content(&path);
    replay(&files).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    files.set_content(&path, bytes);
    assert!(matches!(refusal(&files), JournalError::EndsEarly { end: 2, known: 3, .. }));
}

#[test]
fn a_lost_file_is_named() {
    let Log { files, segments, .. } = log(&[60; 8]);
    assert!(segments.len() > 3);
    for path in segments {
        let hidden = PathBuf::from("/elsewhere");
        files.rename(&path, &hidden).unwrap();
        assert!(matches!(refusal(&files), JournalError::SegmentMissing { path: named, .. } if named == path));
        files.rename(&hidden, &path).unwrap();
    }
    replay(&files).unwrap();
    files.remove(&manifest_path()).unwrap();
    assert!(matches!(refusal(&files), JournalError::ManifestMissing { .. }));
}

#[test]
fn an_empty_file_in_the_middle_is_damage() {
    let Log { files, segments, .. } = log(&[60; 8]);
    files.set_content(&segments[1], Vec::new());
    assert!(matches!(refusal(&files), JournalError::Damaged { path, .. } if path == segments[1]));
}

#[test]
fn files_of_another_shard_are_told_apart() {
    let Log { files, segments, .. } = log(&[60; 8]);
    let Log { files: others, segments: other_segments, .. } = log(&[60; 8]);
    assert_eq!(segments, other_segments);
    files.set_content(&segments[1], others.content(&segments[1]));
    assert!(matches!(refusal(&files), JournalError::OtherShard { path, offset: 0, .. } if path == segments[1]));
}

#[test]
fn an_older_manifest_is_refused() {
    let files = SimulatedFiles::new(0);
    drop(start(&files));
    let older = files.content(&manifest_path());
    let mut started = start(&files);
    append(&mut started, 0);
    drop(started);
    files.set_content(&manifest_path(), older.clone());
    assert!(matches!(refusal(&files), JournalError::SegmentUnexpected { .. }));
    // Even if the file that it doesn't name is put under a name that it does.
    let (first, second) = (Path::new(FOLDER).join("log/00000000000000000001.log"), "log/00000000000000000002.log");
    let second = Path::new(FOLDER).join(second);
    let both = [files.content(&first), files.content(&second)].concat();
    files.set_content(&first, both);
    files.remove(&second).unwrap();
    assert!(
        matches!(refusal(&files), JournalError::BrokenChain { reason, .. } if reason.contains("manifest is older"))
    );
}

#[test]
fn a_file_that_no_journal_made_is_named() {
    let Log { files, segments, .. } = log(&[60; 8]);
    for (name, text) in
        [("notes.txt", "no file of the log"), ("00000000000000000002.log", "names files before and after")]
    {
        let path = segments[0].with_file_name(name);
        files.create(&path).unwrap();
        assert!(refusal(&files).to_string().contains(text));
        files.remove(&path).unwrap();
    }
    replay(&files).unwrap();
}

#[test]
fn leftovers_of_interrupted_starts_and_trims_are_removed() {
    let files = SimulatedFiles::new(0);
    let mut started = start(&files);
    let positions: Vec<_> = (0..8).map(|_| append(&mut started, 60)).collect();
    let checkpoint = Checkpoint { position: positions[6], root_hash: 0, fold: 1 };
    started.log.set_checkpoint(checkpoint).unwrap();
    let (old_path, old) = (started.log.segment_path(1), files.content(&started.log.segment_path(1)));
    assert!(started.log.trim(positions[6].commit).unwrap() > 0);
    let next = started.encoder.next_number();
    let (empty, unnamed) = (started.log.segment_path(next), old_path.with_extension("log.new"));
    drop(started);
    for (path, content) in [(&old_path, old), (&empty, Vec::new()), (&unnamed, b"x".to_vec())] {
        files.create(path).unwrap();
        files.set_content(path, content);
    }
    let shared: Arc<dyn FileSystem> = Arc::new(files.clone());
    let options = JournalOptions { files: shared, ..JournalOptions::default() };
    let recovered = open(Path::new(FOLDER), options).unwrap().replay(positions[6], &mut |_| ()).unwrap();
    assert_eq!((recovered.commits, recovered.end), (1, positions[7]));
    recovered.start().unwrap();
    let left = files.list(&Path::new(FOLDER).join("log")).unwrap();
    assert!(!left.contains(&old_path) && !left.contains(&unnamed));
    assert_eq!(files.content(&empty).len(), HEADER_BYTES);
}
