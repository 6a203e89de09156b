//! What exactly-once costs: an operation in a session's batch, a repeated one, and one under an operation id.
//!
//! `cargo bench -p pycounter-engine --bench session_table`

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use pycounter_engine::fingerprint::Method;
use pycounter_engine::journal::entry::{Fingerprint, StoredResult};
use pycounter_engine::operation_id_table::{Lookup, OperationIdSettings, OperationIdTable};
use pycounter_engine::session_table::{SessionSettings, SessionTable};
use pycounter_engine::wire::request::SessionId;

const ANSWER: StoredResult = StoredResult::Value(1);

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, whose figures mean nothing: use cargo bench");
        std::process::exit(1);
    }
    divan::main();
}

fn session(number: u64) -> SessionId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    SessionId(id)
}

#[divan::bench(args = [16, 64, 1024])]
fn fingerprint(key_bytes: usize) -> Fingerprint {
    Fingerprint::of(Method::Incr, black_box(&[b'k'; 1024][..key_bytes]), black_box(1))
}

/// Each of 10,000 sessions sends a batch of so many operations and acknowledges its last one; then a drain.
#[divan::bench(args = [1, 100])]
fn apply(bencher: Bencher, batch_len: usize) {
    let mut table = SessionTable::new(SessionSettings::default());
    let mut first = 1;
    bencher.counter(ItemsCount::new(10_000 * batch_len)).bench_local(|| {
        for number in 0..10_000 {
            let batch = table.begin_batch(session(number), first, batch_len, first - 1, 0).expect("it is in order");
            for _ in 0..batch_len {
                table.record(batch, Fingerprint(1), ANSWER);
            }
        }
        first += batch_len as u64;
        table.drain_dirty(|entry| {
            black_box(entry);
        });
    });
}

/// The batch of 100 comes again.
#[divan::bench]
fn replay(bencher: Bencher) {
    let mut table = SessionTable::new(SessionSettings::default());
    let batch = table.begin_batch(session(1), 1, 100, 0, 0).expect("it is the first");
    (0..100).for_each(|_| table.record(batch, Fingerprint(1), ANSWER));
    bencher.counter(ItemsCount::new(100usize)).bench_local(|| {
        let batch = table.begin_batch(session(1), 1, 100, 0, 0).expect("it was applied");
        for sequence in 1..=100 {
            black_box(table.old_result(batch, sequence, Fingerprint(1)).is_ok());
        }
    });
}

/// 40,000 ids a second, each new, drained each 10 ms, through several windows: a million or more ids are kept.
#[divan::bench(sample_count = 20)]
fn operation_ids(bencher: Bencher) {
    let mut table = OperationIdTable::new(OperationIdSettings { ids_window_ms: 25_000, ..Default::default() });
    let mut number = 0u128;
    bencher.counter(ItemsCount::new(400_000usize)).bench_local(|| {
        for _ in 0..400_000 {
            number += 1;
            let id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_le_bytes();
            if table.get(&id, Fingerprint(1)) == Lookup::Unknown && table.has_room(id.len()) {
                table.insert(&id, Fingerprint(1), ANSWER, (number / 40) as u64);
            }
            if number.is_multiple_of(400) {
                table.drain_new(|entry| {
                    black_box(entry);
                });
            }
        }
    });
}
