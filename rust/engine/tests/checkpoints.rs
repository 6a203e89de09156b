//! Checkpoints that fail half-way: whatever reached the store, the next start finds one whole state.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::checkpoint::{Fold, ROOT_KEY};
use pycounter_engine::folder::{Checkpointer, Recovery};
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;

/// Enough for a dozen pages.
const COUNTERS: u64 = 40_000;

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

fn open(folder: &Path, rows: &Rows) -> (Shard, Arc<Checkpointer>) {
    let state = StateSettings {
        counters_bytes_max: 1 << 30,
        dirty_counters_max: 1 << 20,
        sessions: SessionSettings::default(),
        ids: OperationIdSettings::default(),
    };
    let mut recovery = Recovery::open(folder, JournalOptions::default(), &state).unwrap();
    for key in recovery.load_root(rows.get(ROOT_KEY).map(Vec::as_slice)).unwrap() {
        recovery.load_page(&key, rows.get(&key).map(Vec::as_slice)).unwrap();
    }
    let recovered = recovery.start().unwrap();
    let checkpointer = Arc::clone(&recovered.checkpointer);
    let settings = ShardSettings {
        level: Level::Applied,
        server_version: "test".into(),
        tokens: Vec::new(),
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 10_000,
        reply_bytes_max: 1 << 30,
        held_bytes_max: 1 << 30,
        flush_interval: Duration::from_secs(1),
    };
    (Shard::new(recovered, settings), checkpointer)
}

/// Adds 1 to every counter, on disk.
fn count(shard: &mut Shard) {
    let slot = shard.connect();
    for number in 0..COUNTERS {
        let key = format!("counter-{number:08}");
        shard.feed(slot, format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
    }
    assert!(shard.wait_durable(Duration::from_secs(60)));
}

fn sum(shard: &mut Shard) -> i64 {
    let slot = shard.connect();
    let mut sum = 0;
    for number in 0..COUNTERS {
        let key = format!("counter-{number:08}");
        shard.feed(slot, format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
        let reply = std::str::from_utf8(shard.replies()).unwrap();
        sum += reply.split("\r\n").nth(1).unwrap().parse::<i64>().unwrap();
    }
    sum
}

/// Merges the first `steps` steps and puts their pages; a page is never overwritten.
fn put_pages(fold: &mut Fold, rows: &mut Rows, steps: usize) {
    for step in 0..steps {
        let old = fold.old_key(step).map(|key| rows[&key].clone());
        for (key, row) in fold.merge(step, old.as_deref()).unwrap() {
            assert!(rows.insert(key, row).is_none(), "a page was overwritten");
        }
    }
}

#[test]
fn a_checkpoint_that_failed_after_its_root_and_one_that_stopped_half_way_leave_a_whole_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = Rows::new();
    let (mut shard, checkpointer) = open(folder.path(), &rows);
    count(&mut shard);

    // One whole checkpoint.
    let mut fold = checkpointer.begin(shard.journal().durable()).unwrap().unwrap();
    let steps = fold.steps();
    put_pages(&mut fold, &mut rows, steps);
    let (row, root, _) = fold.finish();
    rows.insert(ROOT_KEY.to_vec(), row);
    checkpointer.end(root).unwrap();

    // The next one's root reaches the store, and the disk fails before the manifest learns of it.
    count(&mut shard);
    let mut fold = checkpointer.begin(shard.journal().durable()).unwrap().unwrap();
    let steps = fold.steps();
    assert!(steps > 4, "too few pages to stop half-way");
    put_pages(&mut fold, &mut rows, steps);
    rows.insert(ROOT_KEY.to_vec(), fold.finish().0);

    // It is tried again with more in the log, and the process dies among the pages.
    count(&mut shard);
    let mut fold = checkpointer.begin(shard.journal().durable()).unwrap().unwrap();
    put_pages(&mut fold, &mut rows, steps / 2);
    shard.stop();
    drop((shard, checkpointer));

    let (mut shard, checkpointer) = open(folder.path(), &rows);
    assert_eq!(sum(&mut shard), 3 * COUNTERS as i64);

    // The checkpoint after that goes through, and so does the start after it.
    count(&mut shard);
    let mut fold = checkpointer.begin(shard.journal().durable()).unwrap().unwrap();
    let mut leftovers = rows.clone();
    let steps = fold.steps();
    for step in 0..steps {
        let old = fold.old_key(step).map(|key| leftovers[&key].clone());
        leftovers.extend(fold.merge(step, old.as_deref()).unwrap());
    }
    let (row, root, garbage) = fold.finish();
    leftovers.insert(ROOT_KEY.to_vec(), row);
    checkpointer.end(root).unwrap();
    for key in garbage {
        leftovers.remove(&key);
    }
    shard.stop();
    drop((shard, checkpointer));
    let (mut shard, _checkpointer) = open(folder.path(), &leftovers);
    assert_eq!(sum(&mut shard), 4 * COUNTERS as i64);
}

#[test]
fn a_root_older_than_the_manifest_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = Rows::new();
    let (mut shard, checkpointer) = open(folder.path(), &rows);
    let mut older = Vec::new();
    for _ in 0..2 {
        count(&mut shard);
        let mut fold = checkpointer.begin(shard.journal().durable()).unwrap().unwrap();
        let steps = fold.steps();
        put_pages(&mut fold, &mut rows, steps);
        let (row, root, _) = fold.finish();
        older.push(rows.insert(ROOT_KEY.to_vec(), row));
        checkpointer.end(root).unwrap();
    }
    shard.stop();
    drop((shard, checkpointer));
    let state = StateSettings {
        counters_bytes_max: 1 << 30,
        dirty_counters_max: 1 << 20,
        sessions: SessionSettings::default(),
        ids: OperationIdSettings::default(),
    };
    let mut recovery = Recovery::open(folder.path(), JournalOptions::default(), &state).unwrap();
    let error = recovery.load_root(older.pop().flatten().as_deref()).unwrap_err();
    assert!(error.to_string().contains("is fold 1, but the manifest names fold 2"), "{error}");
}
