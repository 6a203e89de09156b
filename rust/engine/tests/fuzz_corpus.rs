//! Replays the seeds of the fuzz targets through the functions that the targets call.
//!
//! `PYCOUNTER_WRITE_CORPUS=1 cargo test -p pycounter-engine --test fuzz_corpus` writes them anew after `seeds()` changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/src/checked_client.rs"]
mod checked_client;
#[path = "../../fuzz/src/fake_shard.rs"]
mod fake_shard;
#[path = "../../fuzz/src/journal_record.rs"]
mod journal_record;
#[path = "../../fuzz/src/memory_files.rs"]
mod memory_files;
#[path = "../../fuzz/src/msgpack_rpc.rs"]
mod msgpack_rpc;
#[path = "../../fuzz/src/replies.rs"]
mod replies;
#[path = "../../fuzz/src/resp.rs"]
mod resp;
#[path = "../../fuzz/src/router.rs"]
mod router;
#[path = "../../fuzz/src/router_host.rs"]
mod router_host;
#[path = "../../fuzz/src/shard.rs"]
mod shard;
#[path = "../../fuzz/src/shard_host.rs"]
mod shard_host;
#[path = "../../fuzz/src/split.rs"]
mod split;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// Keeps the folder in step with `seeds`, then checks every file in it, those that fuzzing added too.
fn replay(target: &str, seeds: Vec<(&'static str, Vec<u8>)>, check: fn(&[u8])) {
    let folder = corpus(target);
    if std::env::var_os("PYCOUNTER_WRITE_CORPUS").is_some() {
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in &seeds {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let files: BTreeMap<String, Vec<u8>> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    assert!(files.len() >= 30, "the corpus of {target} is thin");
    for (name, bytes) in &seeds {
        assert_eq!(files.get(*name), Some(bytes), "{target}/{name} is not what seeds() says: write the corpus anew");
    }
    for (name, bytes) in &files {
        // Cut in pieces of other sizes too, whatever the first byte says.
        for piece in [0, 1, 6, 250] {
            let mut other = bytes.clone();
            if let Some(first) = other.first_mut() {
                *first = piece;
            }
            let outcome = std::panic::catch_unwind(|| check(&other));
            assert!(outcome.is_ok(), "{target}/{name} in pieces of {piece} breaks a promise");
        }
    }
}

#[test]
fn journal_record_seeds_keep_the_promises() {
    replay("journal_record", journal_record::seeds(), journal_record::check);
}

#[test]
fn msgpack_rpc_seeds_keep_the_promises() {
    replay("msgpack_rpc", msgpack_rpc::seeds(), msgpack_rpc::check);
}

#[test]
fn resp_seeds_keep_the_promises() {
    replay("resp", resp::seeds(), resp::check);
}

#[test]
fn router_seeds_keep_the_promises() {
    replay("router", router::seeds(), router::check);
}

#[test]
fn shard_seeds_keep_the_promises() {
    replay("shard", shard::seeds(), shard::check);
}
