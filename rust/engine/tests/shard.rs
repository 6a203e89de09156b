//! A shard without an event loop: what is held, what is let go, what a failing disk does to replies.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pycounter_engine::folder::Recovery;
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::journal::files::{DiskFiles, FileSystem, LogFile};
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Figure, Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;
use rmpv::Value;

/// The disk, whose fsync fails while `broken`.
#[derive(Clone, Default)]
struct FailingFiles {
    broken: Arc<AtomicBool>,
}

struct FailingFile {
    file: Box<dyn LogFile>,
    broken: Arc<AtomicBool>,
}

impl LogFile for FailingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn sync_data(&mut self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            Err(io::Error::other("the disk is broken"))
        } else {
            self.file.sync_data()
        }
    }
    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }
}

impl FailingFiles {
    fn wrap(&self, file: Box<dyn LogFile>) -> Box<dyn LogFile> {
        Box::new(FailingFile { file, broken: Arc::clone(&self.broken) })
    }
}

impl FileSystem for FailingFiles {
    fn lock_existing(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        DiskFiles.lock_existing(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        DiskFiles.lock(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        DiskFiles.create_folder(path)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(self.wrap(DiskFiles.create(path)?))
    }
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(self.wrap(DiskFiles.open_read(path)?))
    }
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        Ok(self.wrap(DiskFiles.open_write(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        DiskFiles.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        DiskFiles.remove(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        DiskFiles.sync_folder(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        DiskFiles.list(path)
    }
}

fn settings() -> ShardSettings {
    ShardSettings {
        level: Level::Durable,
        server_version: "test".into(),
        tokens: Vec::new(),
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 10_000,
        reply_bytes_max: 1 << 20,
        held_bytes_max: 1 << 30,
        flush_interval: Duration::from_secs(1),
    }
}

fn open(folder: &Path, files: &FailingFiles, settings: ShardSettings) -> Shard {
    open_bounded(folder, files, settings, 1 << 30)
}

fn open_bounded(folder: &Path, files: &FailingFiles, settings: ShardSettings, counters_bytes_max: u64) -> Shard {
    let state = StateSettings {
        counters_bytes_max,
        dirty_counters_max: 1 << 16,
        sessions: SessionSettings::default(),
        ids: OperationIdSettings::default(),
    };
    let options = JournalOptions { files: Arc::new(files.clone()), ..JournalOptions::default() };
    let mut recovery = Recovery::open(folder, options, &state).unwrap();
    assert!(recovery.load_root(None).unwrap().is_empty());
    Shard::new(recovery.start().unwrap(), settings)
}

fn request(msgid: u64, method: &str, params: Vec<Value>) -> Vec<u8> {
    let frame = Value::Array(vec![0.into(), msgid.into(), method.into(), Value::Array(params)]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &frame).unwrap();
    bytes
}

fn with_id(id: &str) -> Value {
    Value::Map(vec![("id".into(), id.into())])
}

/// (msgid, error, result) of each reply.
fn replies(mut bytes: &[u8]) -> Vec<(u64, Option<String>, Value)> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let Value::Array(reply) = rmpv::decode::read_value(&mut bytes).unwrap() else { panic!("no array") };
        assert_eq!(reply[0], 1.into());
        replies.push((reply[1].as_u64().unwrap(), reply[2].as_str().map(str::to_owned), reply[3].clone()));
    }
    replies
}

/// The codes of errors, "" for a result, by msgid.
fn codes(replies: &[(u64, Option<String>, Value)]) -> Vec<(u64, &str)> {
    replies
        .iter()
        .map(|(msgid, error, _)| (*msgid, error.as_deref().map_or("", |error| error.split(':').next().unwrap())))
        .collect()
}

fn released(shard: &mut Shard, slot: usize) -> Vec<(u64, Option<String>, Value)> {
    replies(&released_bytes(shard, slot))
}

/// Releases until `slot` got replies.
fn released_bytes(shard: &mut Shard, slot: usize) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut bytes = Vec::new();
    while bytes.is_empty() {
        assert!(Instant::now() < deadline, "no reply came");
        shard.release(|to, replies, _| {
            if to == slot {
                bytes.extend_from_slice(replies);
            }
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    bytes
}

#[test]
fn a_durable_reply_waits_for_its_commit_and_everything_after_it_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path(), &FailingFiles::default(), settings());
    let slot = shard.connect();
    let fed = shard.feed(slot, &request(1, "incr", vec!["hits".into(), 5.into()]));
    assert!(shard.replies().is_empty() && fed.commit);
    // A read of what is not durable yet waits as well; a ping doesn't.
    shard.feed(slot, &[request(2, "get", vec!["hits".into()]), request(3, "ping", vec![])].concat());
    assert_eq!(replies(shard.replies()), vec![(3, None, "pong".into())]);
    assert!(shard.commit());
    assert_eq!(released(&mut shard, slot), vec![(1, None, 5.into()), (2, None, 5.into())]);
    // Nothing is pending: a read is answered at once.
    shard.feed(slot, &request(4, "get", vec!["hits".into()]));
    assert_eq!(replies(shard.replies()), vec![(4, None, 5.into())]);
    assert!(shard.is_settled());
}

#[test]
fn while_the_disk_fails_nothing_is_acknowledged_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let files = FailingFiles::default();
    let mut shard = open(folder.path(), &files, settings());
    let slot = shard.connect();
    files.broken.store(true, Ordering::SeqCst);
    shard.feed(slot, &request(1, "incr", vec!["hits".into(), 5.into(), with_id("once")]));
    assert!(shard.commit());
    let lost = released(&mut shard, slot);
    assert_eq!((lost.len(), lost[0].0), (1, 1));
    assert!(lost[0].1.as_ref().unwrap().starts_with("unknown_outcome: "), "{lost:?}");

    // Changes are refused before they are applied; the retry under the same id is known, and held.
    shard.feed(slot, &request(2, "incr", vec!["other".into()]));
    let refused = replies(shard.replies());
    assert_eq!((refused.len(), refused[0].0), (1, 2));
    assert!(refused[0].1.as_ref().unwrap().starts_with("read_only: "), "{refused:?}");
    shard.feed(slot, &request(3, "incr", vec!["hits".into(), 5.into(), with_id("once")]));
    assert!(shard.replies().is_empty(), "a duplicate was answered before the commit that covers it");
    let lost = released(&mut shard, slot);
    assert!(lost[0].0 == 3 && lost[0].1.as_ref().unwrap().starts_with("unknown_outcome: "), "{lost:?}");
    let health = shard.health();
    assert!(
        health.iter().any(|(name, figure)| *name == "reason" && format!("{figure:?}").contains("the disk is broken"))
    );

    files.broken.store(false, Ordering::SeqCst);
    assert!(shard.wait_durable(Duration::from_secs(30)));
    shard.release(|_, _, _| {});
    shard.feed(slot, &request(3, "incr", vec!["hits".into(), 5.into(), with_id("once")]));
    assert_eq!(replies(shard.replies()), vec![(3, None, 5.into())], "the retry was applied again, or lost");
    shard.feed(slot, &request(4, "get_many", vec![Value::Array(vec!["hits".into(), "other".into()])]));
    assert_eq!(replies(shard.replies())[0].2, Value::Array(vec![5.into(), 0.into()]));
    shard.stop();
    drop(shard);

    let mut shard = open(folder.path(), &files, settings());
    let slot = shard.connect();
    shard.feed(slot, &request(1, "incr", vec!["hits".into(), 5.into(), with_id("once")]));
    assert_eq!(replies(shard.replies()), vec![(1, None, 5.into())]);
}

#[test]
fn a_failed_commit_makes_unknown_only_what_may_have_changed_something() {
    let folder = tempfile::tempdir().unwrap();
    let files = FailingFiles::default();
    let mut shard = open(folder.path(), &files, settings());
    let slot = shard.connect();
    files.broken.store(true, Ordering::SeqCst);
    let items = |key: &str| Value::Array(vec![Value::Array(vec![key.into(), 1.into()])]);
    let sent = [
        request(1, "incr", vec!["hits".into(), i64::MAX.into(), with_id("once")]),
        request(2, "get", vec!["hits".into()]),
        request(3, "incr", vec!["hits".into(), 1.into()]), // overflows
        request(4, "incr_many", vec![items("hits")]),      // so does its item
        request(5, "incr_many", vec![items("other")]),
        request(6, "hello", vec![]),
        request(7, "scan", vec![]),
        request(8, "incr", vec!["other".into()]),
        request(9, "no_such_method", vec![]),
    ];
    shard.feed(slot, &sent.concat());
    assert_eq!(codes(&replies(shard.replies())), [(9, "unknown_method")]);
    assert!(shard.commit());
    let (unknown, read_only) = ("unknown_outcome", "read_only");
    let lost = released(&mut shard, slot);
    assert_eq!(
        codes(&lost),
        [
            (1, unknown),
            (2, read_only),
            (3, read_only),
            (4, read_only),
            (5, unknown),
            (6, read_only),
            (7, read_only),
            (8, unknown)
        ]
    );

    // What comes now is refused at once, but what tells of an earlier attempt: that must not pass for "nothing applied".
    let sent = [
        request(10, "incr", vec!["hits".into(), i64::MAX.into(), with_id("once")]),
        request(11, "incr_many", vec![items("other")]),
        request(12, "get", vec!["hits".into()]),
    ];
    shard.feed(slot, &sent.concat());
    let refused = replies(shard.replies());
    assert_eq!(codes(&refused), [(11, "")]);
    assert!(refused[0].2[0].as_str().unwrap().starts_with("read_only: "), "{refused:?}");
    assert_eq!(codes(&released(&mut shard, slot)), [(10, unknown), (12, read_only)]);
}

#[test]
fn a_failed_commit_leaves_resp_replies_in_order_and_only_changes_unknown() {
    let folder = tempfile::tempdir().unwrap();
    let files = FailingFiles::default();
    let mut shard = open(folder.path(), &files, settings());
    let (slot, other) = (shard.connect(), shard.connect());
    files.broken.store(true, Ordering::SeqCst);
    let sent = "PING first\r\nINCR a\r\nPING\r\nGET a\r\nGET b\r\nINCR a\r\nINCRBY a 9223372036854775807\r\nNONE\r\n\
                MULTI\r\nINCR a\r\nGET a\r\nEXEC\r\nMULTI\r\nGET a\r\nPING\r\nEXEC\r\nMULTI\r\nPING\r\nEXEC\r\nGETDEL b\r\n";
    shard.feed(slot, sent.as_bytes());
    assert_eq!(shard.replies(), b"$5\r\nfirst\r\n", "what tells nothing waited, though nothing was before it");
    assert!(shard.commit());
    let told = String::from_utf8(released_bytes(&mut shard, slot)).unwrap();
    let words: Vec<&str> = told.lines().map(|line| line.split(' ').next().unwrap()).collect();
    let (unknown, seen) = ("-ERR", "-MISCONF");
    let expected = [unknown, "+PONG", seen, seen, unknown, seen, "-ERR"];
    let transactions = ["+OK", "+QUEUED", "+QUEUED", unknown, "+OK", "+QUEUED", "+QUEUED", seen];
    assert_eq!(words, [&expected[..], &transactions, &["+OK", "+QUEUED", "*1", "+PONG", seen]].concat(), "{told}");
    assert_eq!(told.matches("(unknown_outcome)").count(), 3, "{told}");

    // From now on what is refused, or tells nothing, is told at once ...
    shard.feed(slot, b"INCR a\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\nPING\r\nDEL a\r\nFLUSHALL\r\n");
    let told = String::from_utf8(shard.replies().to_vec()).unwrap();
    let words: Vec<&str> = told.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(words, [seen, seen, "+PONG", seen, seen], "{told}");
    // ... unless a read before it has to wait.
    shard.feed(other, b"GET a\r\n*2\r\n$4\r\nINCR\r\n$1\r\na\r\nPING\r\n");
    assert!(shard.replies().is_empty());
    let told = String::from_utf8(released_bytes(&mut shard, other)).unwrap();
    assert_eq!(told.matches("(read_only)").count(), 2, "{told}");
    assert!(told.ends_with("\r\n+PONG\r\n"), "{told}");

    files.broken.store(false, Ordering::SeqCst);
    assert!(shard.wait_durable(Duration::from_secs(30)));
    shard.release(|_, _, _| {});
    shard.feed(slot, b"GET a\r\n");
    assert_eq!(shard.replies(), b"$1\r\n3\r\n");
}

#[test]
fn a_stopped_journal_lets_no_reply_go_that_it_does_not_cover() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path(), &FailingFiles::default(), settings());
    let slot = shard.connect();
    shard.feed(slot, &request(1, "incr", vec!["hits".into()]));
    shard.stop();
    assert!(!shard.commit(), "an ended journal took a commit");
    // The change is in no queue any more, and still neither its reply nor one that shows it leaves.
    for msgid in 2..4 {
        shard.feed(slot, &request(msgid, "get", vec!["hits".into()]));
        assert!(shard.replies().is_empty());
        shard.release(|_, replies, _| assert!(replies.is_empty()));
        assert!(!shard.commit());
    }
    shard.feed(slot, &request(4, "incr", vec!["hits".into()]));
    assert_eq!(codes(&replies(shard.replies())), [(4, "read_only")]);
    assert!(!shard.wait_durable(Duration::from_secs(30)) && !shard.is_settled());
}

#[test]
fn held_replies_of_all_connections_together_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open(folder.path(), &FailingFiles::default(), ShardSettings { held_bytes_max: 1000, ..settings() });
    let (first, second) = (shard.connect(), shard.connect());
    let many: Vec<u8> = (0..500).flat_map(|msgid| request(msgid, "incr", vec!["hits".into()])).collect();
    shard.feed(first, &many);
    let fed = shard.feed(second, &many);
    assert!(fed.attend && shard.connection(second).unwrap().is_crowded());
    assert!(shard.replies().is_empty());
    assert!(shard.commit());
    // Once the first connection's replies have left, the second is told to go on, though none of its own are held.
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut told = false;
    while !told {
        assert!(Instant::now() < deadline, "the stopped connection was forgotten");
        shard.release(|slot, _, attend| told |= slot == second && attend);
    }
    let mut answered = 0;
    while answered < 500 {
        assert!(Instant::now() < deadline);
        shard.feed(second, b"");
        answered += replies(shard.replies()).len();
        shard.commit();
        let mut bytes = Vec::new();
        shard.release(|slot, replies, _| {
            if slot == second {
                bytes.extend_from_slice(replies);
            }
        });
        answered += replies(&bytes).len();
    }
    assert_eq!(answered, 500);
    assert!(!shard.connection(second).unwrap().is_crowded());
}

fn figure(shard: &Shard, name: &str) -> u64 {
    match shard.stats().into_iter().find(|(known, _)| *known == name) {
        Some((_, Figure::Number(number))) => number,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_refused_batch_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open_bounded(folder.path(), &FailingFiles::default(), settings(), 1 << 20);
    let slot = shard.connect();
    let mut apply = |session: &str, first: u64, acked: u64, keys: usize, key_bytes: usize| {
        let key = |number: usize| format!("{session}{first}{number:0key_bytes$}");
        let items = (0..keys).map(|number| Value::Array(vec![key(number).into(), 1.into()])).collect();
        let level = Value::from("applied");
        let params = vec![session.into(), first.into(), acked.into(), Value::Array(items), level];
        let bytes = figure(&shard, "counters_bytes");
        shard.feed(slot, &request(1, "apply", params));
        let code = replies(shard.replies())[0].1.clone().unwrap_or_default().split(':').next().unwrap().to_owned();
        (code, figure(&shard, "counters_bytes") - bytes)
    };
    let (known, unknown) = ("sixteen bytes id", "another sixteen.");
    assert_eq!(apply(known, 1, 0, 10, 10).0, "");
    let refused = |code: &str| (code.to_owned(), 0);
    assert_eq!(apply(known, 12, 0, 100, 10), refused("sequence_gap"));
    assert_eq!(apply(known, 11, 11, 100, 10), refused("bad_request"));
    assert_eq!(apply(known, 11, 0, 20_000, 10), refused("too_large"));
    assert_eq!(apply(unknown, 2, 0, 100, 10), refused("session_unknown"));
    assert_eq!(apply(unknown, 0, 0, 100, 10), refused("bad_request"));
    // A batch that doesn't fit takes no room from one that does, down to the last places.
    assert_eq!(apply(known, 11, 0, 1000, 990), refused("overloaded"));
    assert_eq!(apply(known, 11, 0, 700, 990).0, "");
    assert_eq!(apply(known, 711, 710, 700, 990), refused("overloaded"));
    assert_eq!(apply(known, 711, 710, 100, 990).0, "");
}

/// Half of the bound is 512 KiB, the share of each connection 64 KiB.
fn open_with_little_input(folder: &Path) -> Shard {
    let settings = ShardSettings { input_bytes_max: 1 << 20, connections_max: 8, ..settings() };
    open(folder, &FailingFiles::default(), settings)
}

#[test]
fn unfinished_requests_of_all_connections_together_are_bounded_and_small_ones_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open_with_little_input(folder.path());
    let large = request(7, "get_many", vec![Value::Array(vec!["k".repeat(1000).into(); 300])]);
    let (large, end) = large.split_at(large.len() - 1);
    let (first, second, third, small) = (shard.connect(), shard.connect(), shard.connect(), shard.connect());
    shard.feed(first, large);
    assert!(shard.replies().is_empty() && !shard.connection(first).unwrap().is_crowded());
    // A half of a small request stays, however full it is, and its other half is welcome.
    let whole = request(1, "ping", vec![]);
    shard.feed(small, &whole[..5]);

    let fed = shard.feed(second, large);
    assert_eq!(codes(&replies(shard.replies())), [(7, "overloaded")]);
    assert!(fed.attend && shard.connection(second).unwrap().is_closing());
    // Redis's clients are told in their order: what is held before leaves before, then the connection ends.
    shard.feed(third, b"INCR a\r\n*2\r\n$4\r\nECHO\r\n$500000\r\n");
    shard.feed(third, &[b'x'; 400_000]);
    assert!(shard.replies().is_empty() && !shard.connection(third).unwrap().is_closing());
    assert!(shard.commit());
    let told = String::from_utf8(released_bytes(&mut shard, third)).unwrap();
    assert!(told.starts_with(":1\r\n-OOM ") && told.ends_with("(overloaded)\r\n"), "{told}");
    assert!(shard.connection(third).unwrap().is_closing());

    shard.feed(small, &whole[5..]);
    assert_eq!(codes(&replies(shard.replies())), [(1, "")]);
    shard.feed(first, end);
    assert_eq!(codes(&replies(shard.replies())), [(7, "")]);
    // The memory is given back, and what a client leaves behind too.
    assert!(!shard.connection(first).unwrap().is_crowded());
    assert!(figure(&shard, "input_bytes") <= 2 * 4096, "{}", figure(&shard, "input_bytes"));
    for slot in [first, second, third, small] {
        shard.disconnect(slot);
    }
    assert_eq!(figure(&shard, "input_bytes"), 0);
}

#[test]
fn what_a_transaction_queues_is_unfinished_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = open_with_little_input(folder.path());
    let slot = shard.connect();
    let echo = [b"*2\r\n$4\r\nECHO\r\n$300000\r\n", &[b'x'; 300_000][..], b"\r\n"].concat();
    shard.feed(slot, &[b"MULTI\r\n", &echo[..]].concat());
    assert_eq!(shard.replies(), b"+OK\r\n+QUEUED\r\n");
    assert!(figure(&shard, "input_bytes") >= 300_000);
    shard.feed(slot, b"DISCARD\r\n");
    assert_eq!((shard.replies(), figure(&shard, "input_bytes")), (&b"+OK\r\n"[..], 0));
    shard.feed(slot, &[b"MULTI\r\n", &echo[..], &echo].concat());
    let told = String::from_utf8_lossy(shard.replies()).into_owned();
    assert!(told.ends_with("(overloaded)\r\n") && shard.connection(slot).unwrap().is_closing(), "{told}");
    assert_eq!(figure(&shard, "input_bytes"), 0);
}

#[test]
fn every_split_of_the_bytes_gives_the_same_replies() {
    let bytes = b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n*3\r\n$6\r\nINCRBY\r\n$1\r\na\r\n$2\r\n41\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n";
    for split in 0..bytes.len() {
        let folder = tempfile::tempdir().unwrap();
        let files = FailingFiles::default();
        let mut shard = open(folder.path(), &files, ShardSettings { level: Level::Applied, ..settings() });
        let slot = shard.connect();
        let mut out = Vec::new();
        for part in [&bytes[..split], &bytes[split..]] {
            shard.feed(slot, part);
            out.extend_from_slice(shard.replies());
        }
        assert_eq!(out, b":1\r\n:42\r\n+PONG\r\n$2\r\n42\r\n", "split at {split}");
    }
}

/// Feeds empty chunks for as long as the shard asks for it; gives the number of turns, and all that was to be sent.
fn turns(shard: &mut Shard, slot: usize, chunk: &[u8]) -> (usize, Vec<u8>) {
    let mut fed = shard.feed(slot, chunk);
    let (mut turns, mut out) = (1, shard.replies().to_vec());
    while fed.attend && !shard.connection(slot).unwrap().is_closing() {
        fed = shard.feed(slot, b"");
        out.extend_from_slice(shard.replies());
        turns += 1;
    }
    (turns, out)
}

fn filled(folder: &Path, keys: impl Iterator<Item = String>) -> Shard {
    let mut shard = open(folder, &FailingFiles::default(), ShardSettings { level: Level::Applied, ..settings() });
    let slot = shard.connect();
    for (msgid, key) in keys.enumerate() {
        shard.feed(slot, &request(msgid as u64, "incr", vec![key.as_str().into()]));
    }
    shard.disconnect(slot);
    shard
}

#[test]
fn requests_that_look_at_every_counter_take_turns_with_other_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = filled(folder.path(), (0..20_000).map(|number| format!("key-{number}")));
    let slot = shard.connect();
    let tops: Vec<u8> = (0..100).flat_map(|msgid| request(msgid, "top", vec![1.into()])).collect();
    let (count, out) = turns(&mut shard, slot, &tops);
    assert_eq!(replies(&out).len(), 100);
    // A turn looks at some 16,000 places, of which the index has somewhat more than counters.
    assert!((100..=250).contains(&count), "{count} turns for 100 looks at 20,000 counters");
    // Notifications have no reply that would tell the host to go on, and may not be forgotten.
    let notes = [0x93, 0x02, 0xa3, b't', b'o', b'p', 0x90].repeat(100);
    let (count, out) = turns(&mut shard, slot, &[notes, request(7, "ping", vec![])].concat());
    assert_eq!(replies(&out), vec![(7, None, "pong".into())]);
    assert!((100..=250).contains(&count), "{count} turns");
}

#[test]
fn a_page_ends_at_what_its_pattern_costs() {
    let folder = tempfile::tempdir().unwrap();
    let mut shard = filled(folder.path(), (0..2000).map(|number| format!("{}{number}", "a".repeat(400))));
    let slot = shard.connect();
    let pattern = format!("{}b", "a*".repeat(250));
    let (mut cursor, mut pages) = (0_u64, 0);
    loop {
        let command = format!("SCAN {cursor} COUNT 65536 MATCH {pattern}\r\n");
        shard.feed(slot, command.as_bytes());
        let reply = String::from_utf8(shard.replies().to_vec()).unwrap();
        let lines: Vec<&str> = reply.split("\r\n").collect();
        assert_eq!(lines[3], "*0", "{reply}");
        cursor = lines[2].parse().unwrap();
        pages += 1;
        if cursor == 0 {
            break;
        }
    }
    assert!(pages > 50, "{pages} pages for 2,000 keys that cost 200,000 steps each");
    // What costs little still comes at once.
    shard.feed(slot, b"SCAN 0 COUNT 65536 MATCH aaa*\r\n");
    assert!(shard.replies().starts_with(b"*2\r\n$1\r\n0\r\n*2000\r\n"));
    // A transaction has one turn: what goes beyond it is refused.
    let scans = format!("SCAN 0 COUNT 65536 MATCH {pattern}\r\n").repeat(200);
    shard.feed(slot, format!("MULTI\r\n{scans}EXEC\r\n").as_bytes());
    let refused = String::from_utf8_lossy(shard.replies()).matches("(too_large)").count();
    assert!((100..200).contains(&refused), "{refused} of 200 were refused");
}

#[test]
fn before_the_token_frames_are_small() {
    let folder = tempfile::tempdir().unwrap();
    let secret = ShardSettings { tokens: vec![b"a token of sixteen".to_vec()], level: Level::Applied, ..settings() };
    let mut shard = open(folder.path(), &FailingFiles::default(), secret);
    let large = request(2, "get", vec!["k".repeat(20_000).into()]);
    let slot = shard.connect();
    shard.feed(slot, &large[..100]);
    assert!(shard.connection(slot).unwrap().is_closing());
    assert!(replies(shard.replies())[0].1.as_ref().unwrap().starts_with("too_large: "));
    // The token may come in the same chunk.
    let slot = shard.connect();
    let token = Value::Map(vec![("token".into(), "a token of sixteen".into())]);
    shard.feed(slot, &[request(1, "hello", vec![token]), large].concat());
    let answers = replies(shard.replies());
    // A refusal that tells nothing may overtake what waits for a commit.
    let refusals: Vec<_> = answers.iter().filter_map(|(_, error, _)| error.as_deref()).collect();
    assert!(answers.len() == 2 && refusals.len() == 1 && refusals[0].starts_with("bad_key: "), "{answers:?}");
    let resp = shard.connect();
    shard.feed(resp, b"*2\r\n$4\r\nECHO\r\n$20000\r\n");
    assert!(shard.connection(resp).unwrap().is_closing());
}
