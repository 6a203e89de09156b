//! Every step of every file operation, failing or with the power going off, against a model.
//!
//! The story: acknowledged is what `append` or `start` said yes to, and what an opening has shown to its caller. After
//! any mixture of faults, kills and power cuts the log must hold a run of commits without gaps, each whole and as it was
//! last submitted, that reaches at least to the last acknowledged one; and must open.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::journal::commit_thread::{CommitThread, WaitOutcome};
use crate::journal::entry::Entry;
use crate::journal::error::JournalError;
use crate::journal::files::FileSystem;
use crate::journal::reader::replay;
use crate::journal::record::{EncodedCommit, Position};
use crate::journal::recovery::{JournalOptions, Recovered, Started, open};
use crate::journal::simulated_files::{Faults, Random, SimulatedFiles};
use crate::journal::{Appender, Checkpoint, Journal};

const FOLDER: &str = "/shard";

/// What a client would know.
#[derive(Default)]
struct Model {
    /// The counters of each commit, as last submitted under its number; none for those that open an epoch.
    submitted: BTreeMap<u64, Vec<(Vec<u8>, i64)>>,
    acknowledged: u64,
    /// The last durable checkpoint: what a caller starts from.
    checkpoint: Option<Checkpoint>,
}

fn options(files: &SimulatedFiles) -> JournalOptions {
    let files: Arc<dyn FileSystem> = Arc::new(files.clone());
    JournalOptions { segment_bytes: 9_000, files, ..JournalOptions::default() }
}

/// Opens, and compares what is there with the model. An injected fault is passed on; anything else wrong panics.
fn recover(files: &SimulatedFiles, model: &mut Model) -> Result<Recovered, JournalError> {
    let from = model.checkpoint.map_or(Position::START, |checkpoint| checkpoint.position);
    let mut found: Vec<(Vec<u8>, i64)> = Vec::new();
    let opening = open(Path::new(FOLDER), options(files)).map_err(only_injected)?;
    let recovered = opening
        .replay(from, &mut |entry| {
            if let Entry::Counter { key, value } = entry {
                found.push((key.to_vec(), *value));
            }
        })
        .map_err(only_injected)?;
    let end = recovered.end.commit;
    assert!(end >= model.acknowledged, "commit {} was acknowledged, the log ends with {end}", model.acknowledged);
    let expected: Vec<_> =
        (from.commit + 1..=end).flat_map(|number| model.submitted.get(&number).cloned().unwrap_or_default()).collect();
    assert!(found == expected, "commits {} to {end} are not as submitted", from.commit + 1);
    // Shown to the caller: from here on it must not go away. (Once `start` has worked; until then nobody was told.)
    Ok(recovered)
}

/// Injected faults are expected; damage, gaps and missing files are not: those would be of our own making.
fn only_injected(error: JournalError) -> JournalError {
    assert!(error.to_string().contains("injected fault"), "{error}");
    error
}

fn start(files: &SimulatedFiles, model: &mut Model) -> Result<Started, JournalError> {
    let recovered = recover(files, model)?;
    let next = recovered.end.commit + 1;
    model.submitted.split_off(&next);
    let mut started = recovered.start().map_err(only_injected)?;
    started.encoder.limit_body(1_200);
    model.acknowledged = started.position.commit;
    Ok(started)
}

fn encode(started: &mut Started, model: &mut Model, random: &mut Random) -> EncodedCommit {
    let number = started.encoder.next_number();
    started.encoder.begin(number, 0);
    // One commit in three has several records.
    let most = if random.below(3) == 0 { 300 } else { 20 };
    let counters: Vec<_> = (0..1 + random.below(most))
        .map(|index| (format!("counter-{index}-{}", random.below(1000)).into_bytes(), random.below(1 << 40) as i64))
        .collect();
    for (key, value) in &counters {
        started.encoder.put_counter(key, *value);
    }
    model.submitted.insert(number, counters);
    started.encoder.finish()
}

/// One life of the process: opens, appends `commits` commits, each until it works or its attempts are used up.
fn live(files: &SimulatedFiles, model: &mut Model, random: &mut Random, commits: usize) -> Result<(), JournalError> {
    let mut started = start(files, model)?;
    for index in 0..commits {
        let commit = encode(&mut started, model, random);
        let mut attempts = 0;
        while let Err(error) = started.appender.append(&commit) {
            attempts += 1;
            if attempts == 5 {
                return Err(only_injected(error));
            }
            only_injected(error);
        }
        model.acknowledged = commit.number;
        if index % 4 == 3 {
            checkpoint(&started, model, commit.position());
        }
    }
    started.appender.close().map_err(only_injected)
}

/// A checkpoint that the model's caller has made durable elsewhere, then the manifest, then the trim. Failures of the
/// last two leave more log than needed.
fn checkpoint(started: &Started, model: &mut Model, position: Position) {
    let checkpoint = Checkpoint { position, root_hash: 1, fold: position.commit };
    model.checkpoint = Some(checkpoint);
    let told = started.log.set_checkpoint(checkpoint).and_then(|()| started.log.trim(position.commit));
    let _ = told.map_err(only_injected);
}

/// Lives with the faults, then kills or crashes, then checks twice (a recovery must survive a crash of its own).
fn scenario(seed: u64, faults: Faults, kill: bool) -> u64 {
    let files = SimulatedFiles::new(seed);
    let mut model = Model::default();
    let mut random = Random::new(!seed);
    live(&files, &mut model, &mut random, 6).unwrap();
    let before = files.operations();
    let (from, to) = faults.fail;
    files.set_faults(Faults {
        fail: (before + from, before + to),
        dead_from: faults.dead_from.map(|dead| before + dead),
    });
    let _ = live(&files, &mut model, &mut random, 9);
    let operations = files.operations() - before;
    for power_cut in [!kill, true] {
        if power_cut {
            files.crash()
        } else {
            files.kill()
        }
        live(&files, &mut model, &mut random, 3).unwrap();
    }
    files.crash();
    recover(&files, &mut model).unwrap();
    operations
}

#[test]
fn a_failed_commit_is_on_disk_once_and_not_in_the_file_where_it_failed() {
    // Operations of an append to an open file: write, fsync. Then the retry: cut, fsync, and a new file.
    for failing in 0..2 {
        let files = SimulatedFiles::new(failing);
        let (mut model, mut random) = (Model::default(), Random::new(1));
        let mut started = start(&files, &mut model).unwrap();
        let commit = encode(&mut started, &mut model, &mut random);
        started.appender.append(&commit).unwrap();
        let old_path = started.log.segment_path(1);
        let old = files.content(&old_path);
        let commit = encode(&mut started, &mut model, &mut random);
        let at = files.operations() + failing;
        files.set_faults(Faults { fail: (at, at + 1), dead_from: None });
        started.appender.append(&commit).unwrap_err();
        // Another commit must not overtake it.
        started.encoder.begin(commit.number + 1, 0);
        let overtaking = started.encoder.finish();
        assert!(matches!(started.appender.append(&overtaking), Err(JournalError::OutOfOrder(_))));
        started.appender.append(&commit).unwrap();
        assert!(files.content(&old_path) == old);
        assert!(files.content(&started.log.segment_path(commit.number)) == commit.bytes);
        assert_eq!(started.log.manifest().segments, [1, commit.number]);
    }
}

#[test]
fn a_torn_end_is_cut_before_anything_follows_it() {
    let files = SimulatedFiles::new(0);
    let (mut model, mut random) = (Model::default(), Random::new(1));
    let mut started = start(&files, &mut model).unwrap();
    let commit = encode(&mut started, &mut model, &mut random);
    started.appender.append(&commit).unwrap();
    let path = started.log.segment_path(1);
    let whole = files.content(&path);
    files.kill();
    files.set_content(&path, [&whole, &commit.bytes[..50]].concat());
    let recovered = recover(&files, &mut model).unwrap();
    let torn = recovered.torn.clone().unwrap();
    assert_eq!((torn.keep_bytes, torn.cut_bytes), (whole.len() as u64, 50));
    recovered.start().unwrap();
    files.crash();
    assert!(files.content(&path) == whole);
}

#[test]
fn a_reader_follows_a_commit_thread_that_fails_and_recovers() {
    let files = SimulatedFiles::new(0);
    let (mut model, mut random) = (Model::default(), Random::new(1));
    let mut started = start(&files, &mut model).unwrap();
    let mut source = Arc::clone(&started.log).tail(Position::START).unwrap();
    let commits: Vec<_> = (0..40).map(|_| encode(&mut started, &mut model, &mut random)).collect();
    let thread = CommitThread::start(started.appender, started.position.commit).unwrap();
    let (durable, last) = (thread.durable_handle(), commits.last().unwrap().position());
    let reader = std::thread::spawn(move || {
        let mut found = Vec::new();
        while source.position() != last {
            let mut collect = |entry: &Entry<'_>| {
                if let Entry::Counter { key, value } = entry {
                    found.push((key.to_vec(), *value));
                }
            };
            // A read that fails can be repeated: the reader is where it was.
            let _ = replay(&mut *source, durable.commit(), usize::MAX, &mut collect).map_err(only_injected);
            std::thread::yield_now();
        }
        found
    });
    for (index, commit) in commits.into_iter().enumerate() {
        let number = commit.number;
        if index % 10 == 5 {
            files.set_faults(Faults { fail: (0, u64::MAX), dead_from: None });
        }
        thread.submit(commit).unwrap();
        while thread.wait_durable(number, Duration::MAX) == WaitOutcome::Failing {
            files.set_faults(Faults::default());
        }
        assert_eq!(thread.durable(), number);
    }
    assert!(thread.failures() > 0);
    let expected: Vec<_> = model.submitted.into_values().flatten().collect();
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn the_power_may_go_off_at_any_step() {
    for seed in 0..6 {
        let operations = scenario(seed, Faults::default(), false);
        assert!(operations > 60, "{operations} operations: the scenario does too little");
        for dead in 0..operations {
            scenario(seed * 1_000 + dead, Faults { dead_from: Some(dead), ..Faults::default() }, dead % 2 == 0);
        }
    }
}

#[test]
fn any_step_may_fail_once_or_for_a_while_and_nothing_acknowledged_is_lost() {
    for seed in 0..3 {
        let operations = scenario(seed, Faults::default(), false);
        for from in 0..operations {
            for (length, kill) in [(1, true), (1, false), (2, true), (4, false), (9, true)] {
                scenario(seed, Faults { fail: (from, from + length), dead_from: None }, kill);
            }
        }
    }
}

#[test]
fn a_failure_may_be_followed_by_a_power_cut() {
    for from in 0..80 {
        for after in 1..25 {
            let faults = Faults { fail: (from, from + 1 + after % 3), dead_from: Some(from + after) };
            scenario(from * 100 + after, faults, after % 2 == 0);
        }
    }
}
