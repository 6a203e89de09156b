//! What a shard does between the socket and the disk: chunks of pipelined RESP increments over 100,000 counters, applied
//! at once or committed to a log in memory (`/dev/shm`, whose fsync is free), and the fold of such a log into pages.
//!
//! `cargo bench -p pycounter-engine --bench shard`

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pycounter_engine::checkpoint::{Fold, Root, Windows};
use pycounter_engine::folder::Recovery;
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::journal::entry::Entry;
use pycounter_engine::journal::files::DiskFiles;
use pycounter_engine::journal::record::{Position, ShardIdentity};
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;

const KEYS: u64 = 100_000;
const PIPELINE: usize = 256;
const CONNECTIONS: usize = 50;

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

fn open(folder: &Path, level: Level) -> Shard {
    let state = StateSettings {
        counters_bytes_max: 1 << 30,
        dirty_counters_max: 1 << 20,
        sessions: SessionSettings::default(),
        ids: OperationIdSettings::default(),
    };
    let options = JournalOptions { files: Arc::new(DiskFiles), ..JournalOptions::default() };
    let mut recovery = Recovery::open(folder, options, &state).expect("a fresh folder");
    recovery.load_root(None).expect("no checkpoint");
    let settings = ShardSettings {
        level,
        server_version: "bench".into(),
        tokens: Vec::new(),
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 10_000,
        reply_bytes_max: 4 << 20,
        held_bytes_max: 1 << 28,
        flush_interval: Duration::from_secs(1),
    };
    Shard::new(recovery.start().expect("a fresh log"), settings)
}

/// Pseudo-random keys as redis-benchmark draws them, the same in each run.
struct Keys(u64);

impl Keys {
    fn draw(&mut self) -> String {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("counter:{:012}", (self.0 >> 33) % KEYS)
    }

    fn chunk(&mut self) -> Vec<u8> {
        (0..PIPELINE).flat_map(|_| format!("*2\r\n$4\r\nINCR\r\n$20\r\n{}\r\n", self.draw()).into_bytes()).collect()
    }
}

fn rounds(bencher: Bencher<'_, '_>, level: Level) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let mut shard = open(folder.path(), level);
    let slots: Vec<usize> = (0..CONNECTIONS).map(|_| shard.connect()).collect();
    let mut keys = Keys(7);
    let chunks: Vec<Vec<u8>> = (0..40 * CONNECTIONS).map(|_| keys.chunk()).collect();
    let mut next = chunks.iter().cycle();
    let mut sent = 0;
    bencher.counter(ItemsCount::new(CONNECTIONS * PIPELINE)).bench_local(|| {
        for &slot in &slots {
            shard.feed(slot, next.next().map_or(&[], Vec::as_slice));
            sent += shard.replies().len();
        }
        if level == Level::Durable {
            shard.wait_durable(Duration::from_secs(30));
            shard.release(|_, replies, _| sent += replies.len());
        }
        black_box(sent);
    });
}

/// One turn of 50 connections with 256 increments each.
#[divan::bench]
fn resp_incr_applied(bencher: Bencher<'_, '_>) {
    rounds(bencher, Level::Applied);
}

/// The same with the commit: drain, encode, hash, append, release.
#[divan::bench]
fn resp_incr_durable(bencher: Bencher<'_, '_>) {
    rounds(bencher, Level::Durable);
}

/// The log of some million changes of 100,000 counters, folded into pages.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn fold(bencher: Bencher<'_, '_>) {
    const CHANGES: usize = 2_000_000;
    let mut keys = Keys(9);
    let changes: Vec<String> = (0..CHANGES).map(|_| keys.draw()).collect();
    let windows = Windows { sessions: SessionSettings::default(), ids: OperationIdSettings::default() };
    bencher.counter(ItemsCount::new(CHANGES)).bench_local(|| {
        let mut fold = Fold::new(&Root::empty(ShardIdentity([7; 16])), 1, windows);
        for (value, key) in changes.iter().enumerate() {
            fold.add(&Entry::Counter { key: key.as_bytes(), value: value as i64 }).expect("room");
        }
        fold.seal(Position { commit: 1, hash: 1 }).expect("room");
        for step in 0..fold.steps() {
            black_box(fold.merge(step, None).expect("fresh pages"));
        }
    });
}
