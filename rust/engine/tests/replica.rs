//! A replica and its primary without network and event loop: whatever comes in what pieces, they agree; what doesn't
//! continue what is there is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use pycounter_engine::clock::Clock;
use pycounter_engine::folder::{Checkpointer, Recovery};
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::journal::commit_thread::Step;
use pycounter_engine::journal::simulated_files::SimulatedFiles;
use pycounter_engine::journal::tail::{Tail, TailReaders};
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Figure, FollowError, Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;
use rmpv::Value;

fn settings() -> ShardSettings {
    ShardSettings {
        level: Level::Applied,
        server_version: "test".into(),
        tokens: Vec::new(),
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 100,
        reply_bytes_max: 1 << 24,
        held_bytes_max: 1 << 30,
        flush_interval: Duration::from_secs(1),
    }
}

fn bounds() -> StateSettings {
    StateSettings {
        counters_bytes_max: 1 << 30,
        dirty_counters_max: 1 << 16,
        sessions: SessionSettings::default(),
        ids: OperationIdSettings::default(),
    }
}

struct Primary {
    shard: Shard,
    tails: Arc<TailReaders>,
    checkpointer: Arc<Checkpointer>,
    identity: String,
    epoch: u64,
}

fn primary(files: &SimulatedFiles) -> Primary {
    let options = JournalOptions { files: Arc::new(files.clone()), segment_bytes: 20_000, ..JournalOptions::default() };
    let mut recovery = Recovery::open(Path::new("/shard"), options, &bounds()).unwrap();
    recovery.load_root(None).unwrap();
    let recovered = recovery.start_by_hand().unwrap();
    let (tails, checkpointer) = (Arc::clone(&recovered.tails), Arc::clone(&recovered.checkpointer));
    let (identity, epoch) = (recovered.identity.clone(), recovered.epoch);
    Primary { shard: Shard::new(recovered, settings()), tails, checkpointer, identity, epoch }
}

fn replica() -> Shard {
    Shard::replica(settings(), bounds(), "replica-0", "primary:7400", Clock::system()).unwrap()
}

fn call(shard: &mut Shard, method: &str, params: Vec<Value>) -> Result<Value, String> {
    let slot = shard.connect();
    let mut frame = Vec::new();
    let request = Value::Array(vec![0.into(), 1.into(), method.into(), Value::Array(params)]);
    rmpv::encode::write_value(&mut frame, &request).unwrap();
    shard.feed(slot, &frame);
    let reply = rmpv::decode::read_value(&mut shard.replies()).unwrap();
    shard.disconnect(slot);
    let Value::Array(reply) = reply else { panic!("{reply}") };
    reply[2].as_str().map_or_else(|| Ok(reply[3].clone()), |error| Err(error.to_owned()))
}

fn counters(shard: &mut Shard) -> BTreeMap<String, i64> {
    let Value::Array(page) = call(shard, "scan", vec![0.into(), 65_536.into()]).unwrap() else { panic!() };
    assert_eq!(page[0], 0.into());
    let pair = |pair: &Value| (pair[0].as_str().unwrap().to_owned(), pair[1].as_i64().unwrap());
    page[1].as_array().unwrap().iter().map(pair).collect()
}

impl Primary {
    fn commit(&mut self) {
        if self.shard.commit() {
            assert_eq!(self.shard.journal().step(), Step::Durable);
        }
        self.shard.release(|_, _, _| ());
    }

    /// One question of the replica and its answer, of about so many bytes.
    fn answer(&self, replica: &Shard, bytes: usize) -> Tail {
        let (identity, epoch, place) = replica.follow_place().unwrap();
        self.tails.read(identity, epoch, place, self.shard.journal().durable(), bytes).unwrap()
    }

    /// The replica asks so often at most. Is there nothing more to be had?
    fn feed(&self, replica: &mut Shard, bytes: usize, turns: usize) -> bool {
        replica.follow_primary(self.identity.parse().unwrap(), "shard-0", self.epoch).unwrap();
        for _ in 0..turns {
            match self.answer(replica, bytes) {
                Tail::Records(records) if records.is_empty() => {
                    replica.follow_heard(self.shard.journal().durable(), Duration::ZERO);
                    return true;
                }
                Tail::Records(records) => {
                    replica.follow_records(&records).unwrap();
                }
                tail => panic!("{tail:?}"),
            }
        }
        false
    }
}

#[derive(Debug, Clone)]
enum Turn {
    Incr(u8, i32),
    Delete(u8),
    Many(u16),
    Clear,
    Commit,
    Follow(u16, u8),
    PrimaryKilled,
    ReplicaKilled,
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        8 => (any::<u8>(), any::<i32>()).prop_map(|(key, delta)| Turn::Incr(key, delta)),
        2 => any::<u8>().prop_map(Turn::Delete),
        1 => (1..2000_u16).prop_map(Turn::Many),
        1 => Just(Turn::Clear),
        6 => Just(Turn::Commit),
        6 => (1..5000_u16, 1..5_u8).prop_map(|(bytes, turns)| Turn::Follow(bytes, turns)),
        1 => Just(Turn::PrimaryKilled),
        1 => Just(Turn::ReplicaKilled),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn caught_up_it_has_what_the_primary_made_durable(turns in prop::collection::vec(turn(), 1..120), seed in any::<u64>()) {
        let files = SimulatedFiles::new(seed);
        let (mut primary, mut replica) = (primary(&files), replica());
        let mut durable = BTreeMap::new();
        for turn in turns {
            match turn {
                Turn::Incr(key, delta) => {
                    call(&mut primary.shard, "incr", vec![key.to_string().into(), delta.into()]).unwrap();
                }
                Turn::Delete(key) => {
                    call(&mut primary.shard, "delete", vec![key.to_string().into()]).unwrap();
                }
                Turn::Many(count) => {
                    let items = (0..count).map(|key| Value::Array(vec![format!("many-{key}").into(), 1.into()]));
                    call(&mut primary.shard, "incr_many", vec![Value::Array(items.collect())]).unwrap();
                }
                Turn::Clear => {
                    let slot = primary.shard.connect();
                    primary.shard.feed(slot, b"FLUSHALL\r\n");
                    primary.shard.disconnect(slot);
                }
                Turn::Commit => {
                    primary.commit();
                    durable = counters(&mut primary.shard);
                }
                Turn::Follow(bytes, turns) => {
                    if primary.feed(&mut replica, bytes.into(), turns.into()) {
                        prop_assert_eq!(counters(&mut replica), durable.clone());
                    }
                }
                Turn::PrimaryKilled => {
                    drop(primary);
                    files.kill();
                    primary = self::primary(&files);
                    prop_assert_eq!(&counters(&mut primary.shard), &durable);
                }
                Turn::ReplicaKilled => replica = self::replica(),
            }
        }
        primary.commit();
        prop_assert!(primary.feed(&mut replica, 1000, 100_000));
        prop_assert_eq!(counters(&mut replica), counters(&mut primary.shard));
    }
}

#[test]
fn nothing_is_answered_before_it_has_caught_up_and_no_change_ever() {
    let files = SimulatedFiles::new(1);
    let (mut primary, mut replica) = (primary(&files), replica());
    for key in 0..100 {
        call(&mut primary.shard, "incr", vec![key.to_string().into()]).unwrap();
        primary.commit();
    }
    let get = |replica: &mut Shard| call(replica, "get", vec!["7".into()]);
    assert!(get(&mut replica).unwrap_err().starts_with("unavailable: "));
    assert!(!primary.feed(&mut replica, 100, 5));
    assert!(get(&mut replica).unwrap_err().starts_with("unavailable: "), "it has a part only");
    assert!(primary.feed(&mut replica, 1 << 20, 5));
    assert_eq!(get(&mut replica), Ok(1.into()));
    for (method, params) in [
        ("incr", vec!["7".into()]),
        ("incr", vec!["7".into(), 1.into(), Value::Map(vec![("id".into(), "a".into())])]),
        ("incr_many", vec![Value::Array(vec![])]),
        ("apply", vec![Value::Binary(vec![0; 16]), 1.into(), 0.into(), Value::Array(vec![])]),
        ("drain", vec!["7".into()]),
        ("delete", vec!["7".into()]),
        ("delete_all", vec![]),
        ("bye", vec![Value::Binary(vec![0; 16])]),
        ("backup", vec!["/a".into()]),
        ("tail", vec![]),
    ] {
        assert!(call(&mut replica, method, params).unwrap_err().starts_with("forbidden: a replica"), "{method}");
    }
    let slot = replica.connect();
    replica.feed(slot, b"INCR 7\r\n*3\r\n$3\r\nSET\r\n$1\r\n7\r\n$1\r\n1\r\nGET 7\r\n");
    let text = String::from_utf8(replica.replies().to_vec()).unwrap();
    assert_eq!(text.matches("(forbidden)").count(), 2, "{text}");
    assert!(text.ends_with("$1\r\n1\r\n"), "{text}");
    assert!(!replica.commit(), "there is nothing to commit");
}

#[test]
fn what_does_not_continue_it_is_refused_and_another_primary_begins_anew() {
    let files = SimulatedFiles::new(2);
    let (mut primary, mut replica) = (primary(&files), replica());
    for key in 0..20 {
        call(&mut primary.shard, "incr", vec![key.to_string().into()]).unwrap();
        primary.commit();
    }
    primary.feed(&mut replica, 1, 10);
    let Tail::Records(next) = primary.answer(&replica, 1) else { panic!() };
    for at in 0..next.len() {
        let mut flipped = next.clone();
        flipped[at] ^= 1;
        assert!(matches!(replica.follow_records(&flipped), Err(FollowError::Broken { .. })), "byte {at}");
    }
    assert!(replica.follow_records(&next[..next.len() - 1]).is_err());
    replica.follow_records(&next).unwrap();
    assert!(replica.follow_records(&next).is_err(), "it has it already");
    let Tail::Records(more) = primary.answer(&replica, 1 << 20) else { panic!() };
    assert!(replica.follow_records(&more[next.len()..]).is_err(), "one is left out");
    assert!(primary.feed(&mut replica, 1 << 20, 5));
    assert_eq!(counters(&mut replica).len(), 20);

    let others = self::primary(&SimulatedFiles::new(3));
    let Tail::Records(foreign) = others.answer(&self::replica(), 1 << 20) else { panic!() };
    assert!(replica.follow_records(&foreign).is_err());
    assert!(matches!(others.answer(&replica, 1), Tail::Unknown(_)));
    assert!(others.feed(&mut replica, 1 << 20, 5));
    assert!(counters(&mut replica).is_empty());
    assert!(replica.health().contains(&("states_dropped", Figure::Number(1))));
}

#[test]
fn a_checkpoint_is_taken_in_beside_the_state_that_answers() {
    let files = SimulatedFiles::new(4);
    let (mut primary, mut replica) = (primary(&files), replica());
    call(&mut primary.shard, "incr", vec!["old".into(), 5.into()]).unwrap();
    primary.commit();
    assert!(primary.feed(&mut replica, 1 << 20, 5));
    call(&mut primary.shard, "delete", vec!["old".into()]).unwrap();
    for key in 0..20_000 {
        call(&mut primary.shard, "incr", vec![format!("key-{key}").into(), key.into()]).unwrap();
    }
    primary.commit();
    let mut fold = primary.checkpointer.begin(primary.shard.journal().durable()).unwrap().unwrap();
    let pages: Vec<Vec<u8>> =
        (0..fold.steps()).flat_map(|step| fold.merge(step, None).unwrap()).map(|row| row.1).collect();
    let (_, root, _) = fold.finish();
    assert!(pages.len() > 1);

    replica.follow_checkpoint().unwrap();
    for page in &pages {
        let mut flipped = page.clone();
        flipped[page.len() / 2] ^= 1;
        assert!(matches!(replica.follow_page(&flipped), Err(FollowError::Page(_))));
        replica.follow_page(page).unwrap();
        assert_eq!(counters(&mut replica), BTreeMap::from([("old".to_owned(), 5)]));
    }
    replica.follow_from(root.position);
    call(&mut primary.shard, "incr", vec!["new".into()]).unwrap();
    primary.commit();
    assert!(!primary.feed(&mut replica, 1, 1));
    assert!(counters(&mut replica).contains_key("old"), "it hasn't caught up");
    assert!(primary.feed(&mut replica, 1 << 20, 5));
    assert_eq!(counters(&mut replica), counters(&mut primary.shard));
    assert_eq!(replica.health().iter().filter(|(name, _)| *name == "states_dropped").count(), 1);
}
