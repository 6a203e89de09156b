//! One counter that two threads add to at once: striped, unstriped, and a bare atomic.
//!
//! `cargo bench -p pycounter-engine --bench hot_counter` prints a JSON array: wall time in nanoseconds for an addition,
//! those of all threads counted, the median of many short rounds, interleaved. A round counts only if each thread had a
//! core for nearly all of it: elsewhere they took turns, and there was nothing to contend for. `rounds` says how many did.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use pycounter_engine::counter_store::{CounterRef, CounterStore};
use rustix::time::{ClockId, clock_gettime};

const THREADS: [usize; 2] = [1, 2];
const ADDITIONS: u32 = 150_000;
const ROUNDS: usize = 400;
/// Processor time to wall time, of the thread that had less.
const SHARE_MIN: f64 = 0.9;

fn main() {
    if cfg!(debug_assertions) {
        eprintln!("a debug build measures nothing: run `cargo bench`");
        std::process::exit(2);
    }
    let hot = |store: CounterStore| {
        let at = store.find_or_insert(store.hash(b"hot"), b"hot").expect("room");
        store.set(at, 0);
        (store, at)
    };
    let (striped, striped_at) = hot(CounterStore::new());
    let (plain, plain_at) = hot(CounterStore::new().without_stripes());
    let add = |store: &CounterStore, at: CounterRef| {
        store.add(at, black_box(1)).expect("small numbers");
    };
    let atomic = CachePadded::new(AtomicI64::new(0));
    let mut samples: [[Vec<f64>; 3]; THREADS.len()] = Default::default();
    for _ in 0..ROUNDS {
        for (samples, threads) in samples.iter_mut().zip(THREADS) {
            samples[0].extend(round(threads, || add(&striped, striped_at)));
            samples[1].extend(round(threads, || add(&plain, plain_at)));
            samples[2].extend(round(threads, || {
                atomic.fetch_add(black_box(1), Ordering::Relaxed);
            }));
        }
    }
    let mut rows = Vec::new();
    for (samples, threads) in samples.into_iter().zip(THREADS) {
        for (samples, name) in samples.into_iter().zip(["striped", "unstriped", "atomic"]) {
            let rounds = samples.len();
            let ns = median(samples).map_or("null".to_owned(), |median| format!("{median:.3}"));
            rows.push(format!(
                "  {{\"threads\": {threads}, \"name\": \"{name}\", \"rounds\": {rounds}, \"ns\": {ns}}}"
            ));
        }
    }
    println!("[\n{}\n]", rows.join(",\n"));
}

/// Nanoseconds an addition; `None` if the threads didn't run side by side.
fn round(threads: usize, add: impl Fn() + Sync) -> Option<f64> {
    let barrier = Barrier::new(threads);
    let work = || {
        barrier.wait();
        let (began, cpu) = (Instant::now(), thread_cpu());
        for _ in 0..ADDITIONS {
            add();
        }
        (began, Instant::now(), thread_cpu().saturating_sub(cpu))
    };
    let runs: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let began = runs.iter().map(|run| run.0).min()?;
    let wall = (runs.iter().map(|run| run.1).max()? - began).as_secs_f64();
    let share = runs.iter().map(|run| run.2.as_secs_f64() / wall).fold(1.0, f64::min);
    (share >= SHARE_MIN).then(|| wall * 1e9 / f64::from(ADDITIONS) / threads as f64)
}

fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
