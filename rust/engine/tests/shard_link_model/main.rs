//! A link and the real shard behind it, on a simulated disk: connections cut at any byte, replies lost, requests that
//! arrive after the connection they were sent on, refusals, failing disks, crashes, and shards that are restored.
//!
//! Every operation has a counter of its own, so that the end tells which of them counted, and how often.
//!
//! `PYCOUNTER_SEED=n cargo test -p pycounter-engine --test shard_link_model` runs one schedule.

mod real_shard;
mod told;
mod trouble;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::error_code::ErrorCode;
use pycounter_engine::journal::simulated_files::{Faults, Random, SimulatedFiles};
use pycounter_engine::shard::Shard;
use pycounter_engine::shard_link::{LinkSettings, LinkStatistics, Repeat, ShardLink};
use pycounter_engine::wire::msgpack_rpc as rpc;
use pycounter_engine::wire::request::{Level, SessionId};
use real_shard::open;
use rmpv::Value;
use told::{Asked, End, Kind, end, tell};

const SCHEDULES: u64 = 1000;
const STEPS: usize = 600;
/// What an increment adds: to each counter another amount, so that mixed answers are seen.
fn delta_of(operation: usize) -> i64 {
    7 + operation as i64
}

struct Connection {
    slot: usize,
    to_shard: VecDeque<u8>,
    to_link: VecDeque<u8>,
    /// Nothing arrives any more, and nobody says so.
    is_silent: bool,
}

struct World {
    random: Random,
    now_ms: u64,
    link: ShardLink<usize>,
    asked: Vec<Asked>,
    files: SimulatedFiles,
    clock: Clock,
    shard: Shard,
    connection: Option<Connection>,
    /// Connections that the link has lost, whose requests may still arrive.
    late: Vec<Connection>,
    era: usize,
    /// What the shards before this one held of each operation.
    held_before: Vec<i64>,
    failing_until_ms: u64,
    /// One of so many events is harm.
    harm: usize,
}

fn key_of(operation: usize) -> String {
    format!("operation-{operation}")
}

fn params(values: Vec<Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &Value::Array(values)).expect("a Vec takes everything");
    bytes
}

impl World {
    fn new(seed: u64) -> Self {
        let (files, clock) = (SimulatedFiles::new(seed), Clock::by_hand());
        let ids = AtomicU64::new(0);
        let new_session_id = move || {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&ids.fetch_add(1, Ordering::Relaxed).to_be_bytes());
            id[8..].copy_from_slice(&seed.to_be_bytes());
            SessionId(id)
        };
        let mut random = Random::new(seed);
        let settings = LinkSettings {
            token: Some(b"secret".to_vec()),
            batch_operations_max: 1 + random.below(12),
            batch_bytes_max: 60 + random.below(400),
            batches_in_flight_max: 1 + random.below(6),
            window_operations_max: 12 + random.below(90),
            queue_bytes_max: 1 << 20,
            silence_timeout_ms: 2000,
            gather_ms: [0, 15][random.below(2)],
            gather_operations_max: 1 + random.below(12),
            unconfirmed_operations_max: [3, 20, u64::MAX][random.below(3)],
            names_operations: true,
            new_session_id: Arc::new(new_session_id),
            ..LinkSettings::default()
        };
        let shard = open(&files, &clock, 0);
        let harm = [8, 20, 60, 400][random.below(4)];
        Self {
            random,
            now_ms: 1,
            link: ShardLink::new(settings),
            asked: Vec::new(),
            files,
            clock,
            shard,
            connection: None,
            late: Vec::new(),
            era: 0,
            held_before: Vec::new(),
            failing_until_ms: 0,
            harm,
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            if self.random.below(self.harm) == 0 {
                self.harm();
            } else {
                self.step();
            }
        }
        self.heal();
        self.check();
    }

    fn step(&mut self) {
        if self.connection.is_none() && self.random.below(4) == 0 {
            self.connect();
        }
        match self.random.below(16) {
            0..=4 => self.ask(),
            5 | 6 => self.flush(),
            7 | 8 => self.deliver_to_shard(),
            9 | 10 => self.deliver_to_link(),
            11 | 12 => self.commit(),
            13 => {
                let elapsed_ms = 1 + self.random_below(60);
                self.tick(elapsed_ms);
            }
            14 => self.deliver_late(),
            _ => self.exchange(),
        }
    }

    fn harm(&mut self) {
        match self.random.below(14) {
            13 => self.connection.iter_mut().for_each(|connection| connection.is_silent = true),
            12 => self.cancel(),
            0..=3 => self.cut(),
            4 | 5 => self.restart(true),
            6 => self.restart(false),
            7 => self.fail_disk(),
            8 => self.take_unsent(),
            9 => {
                let elapsed_ms = 1000 + self.random_below(3000);
                self.tick(elapsed_ms);
            }
            10 => self.refuse_at_the_door(),
            _ => {
                if self.random.below(8) == 0 {
                    self.replace();
                }
            }
        }
    }

    fn random_below(&mut self, bound: usize) -> u64 {
        self.random.below(bound) as u64
    }

    // --- clients -----------------------------------------------------------------------------------------------------

    fn ask(&mut self) {
        let operation = self.asked.len();
        let key = key_of(operation);
        let deadline_ms = self.now_ms + 30 + self.random_below(4000);
        let kind = match self.random.below(20) {
            19 => Kind::Confirmation,
            18 => Kind::Increment(Level::Applied),
            0..=3 => Kind::Increment(Level::Durable),
            4..=6 => Kind::Increment(Level::Applied),
            7..=10 => Kind::Increment(Level::Durable),
            11..=13 => Kind::IncrementWithId,
            14 | 15 => {
                if self.random.coin() {
                    Kind::IncrementOnce
                } else {
                    Kind::Unknown
                }
            }
            _ => self.a_read(),
        };
        let name = || Value::from(key.as_str());
        let accepted = match kind {
            Kind::Increment(level) => {
                self.link.incr(key.as_bytes(), delta_of(operation), level, deadline_ms, operation)
            }
            Kind::IncrementWithId => {
                let options = Value::Map(vec![("id".into(), name())]);
                let params = params(vec![name(), delta_of(operation).into(), options]);
                let repeat = Repeat::SameShard { until_ms: self.now_ms + 100_000 };
                self.link.call("incr", &params, repeat, deadline_ms, operation)
            }
            Kind::IncrementOnce => self.link.call(
                "incr",
                &params(vec![name(), delta_of(operation).into()]),
                Repeat::Never,
                deadline_ms,
                operation,
            ),
            Kind::Read { of, .. } => {
                let params = params(vec![key_of(of).into()]);
                self.link.call("get", &params, Repeat::Always, deadline_ms, operation)
            }
            Kind::Confirmation => self.link.confirm(deadline_ms, operation),
            Kind::Unknown => self.link.call("increase", b"\x90", Repeat::Never, deadline_ms, operation),
        };
        assert_eq!(accepted, Ok(()), "there is room for everything");
        self.asked.push(Asked { kind, end: None, era: self.era });
    }

    /// Of an increment, preferably one that is known to be on disk.
    fn a_read(&mut self) -> Kind {
        if self.asked.is_empty() {
            return Kind::Unknown;
        }
        let of = self.random.below(self.asked.len());
        let asked = self.asked[of];
        let expected = match asked.end {
            Some(End::Counted(Level::Durable)) if asked.era == self.era => Some(delta_of(of)),
            Some(End::NotCounted | End::Taken) => Some(0),
            _ => None,
        };
        Kind::Read { of, expected }
    }

    fn take_unsent(&mut self) {
        let share = [0.3, 0.5, 1.0][self.random.below(3)];
        let Self { link, asked, .. } = self;
        link.take_unsent(share, |key, delta, level, _, operation| {
            assert_eq!((key, delta), (key_of(operation).as_bytes(), delta_of(operation)));
            assert_eq!(asked[operation].kind, Kind::Increment(level));
            end(asked, operation, End::Taken, 0);
        });
    }

    // --- the network -------------------------------------------------------------------------------------------------

    fn connect(&mut self) {
        let slot = self.shard.connect();
        self.connection =
            Some(Connection { slot, to_shard: VecDeque::new(), to_link: VecDeque::new(), is_silent: false });
        self.link.connected();
    }

    fn flush(&mut self) {
        let mut bytes = Vec::new();
        self.link.flush(&mut bytes);
        match &mut self.connection {
            Some(connection) => connection.to_shard.extend(bytes),
            None => assert!(bytes.is_empty(), "written without a connection"),
        }
    }

    fn deliver_to_shard(&mut self) {
        if self.connection.as_ref().is_some_and(|connection| connection.is_silent) {
            return;
        }
        if let Some(mut connection) = self.connection.take() {
            let length = self.a_part_of(connection.to_shard.len());
            self.carry(&mut connection, length);
            self.connection = Some(connection);
        }
    }

    /// Everything that is on its way arrives.
    fn exchange(&mut self) {
        for _ in 0..3 {
            self.flush();
            self.deliver_to_shard();
            self.commit();
            self.deliver_to_link();
        }
    }

    /// Often all of it, else cut anywhere.
    fn a_part_of(&mut self, length: usize) -> usize {
        if self.random.coin() { length } else { self.random.below(length + 1) }
    }

    fn carry(&mut self, connection: &mut Connection, length: usize) {
        let chunk: Vec<u8> = connection.to_shard.drain(..length).collect();
        self.shard.feed(connection.slot, &chunk);
        connection.to_link.extend(self.shard.replies());
    }

    fn deliver_to_link(&mut self) {
        let Some(mut connection) = self.connection.take_if(|connection| !connection.is_silent) else { return };
        let length = self.a_part_of(connection.to_link.len());
        let chunk: Vec<u8> = connection.to_link.drain(..length).collect();
        self.connection = Some(connection);
        let Self { link, asked, era, .. } = self;
        let fed = link.feed(&chunk, &mut |operation, outcome| tell(asked, operation, outcome, *era));
        if let Err(violation) = fed {
            // Only a greeting that waited for a commit which failed.
            assert!(violation.to_string().contains("read_only"), "{violation}");
            self.cut();
        }
    }

    // --- the shard ---------------------------------------------------------------------------------------------------

    fn commit(&mut self) {
        self.shard.commit();
        if self.random.coin() {
            self.shard.journal().step();
        }
        self.release();
    }

    fn release(&mut self) {
        let Self { shard, connection, .. } = self;
        shard.release(|slot, bytes, _| {
            if let Some(connection) = connection
                && connection.slot == slot
            {
                connection.to_link.extend(bytes);
            }
        });
    }

    /// What the shard holds of each operation.
    fn held(&mut self) -> Vec<i64> {
        let slot = self.shard.connect();
        let mut request = Vec::new();
        let hello = Value::Map(vec![("token".into(), "secret".into())]);
        let keys = (0..self.asked.len()).map(|operation| key_of(operation).into()).collect();
        let options = Value::Map(vec![("level".into(), "applied".into())]);
        for (msgid, method, params) in [(1, "hello", vec![hello]), (2, "get_many", vec![Value::Array(keys), options])] {
            let frame = Value::Array(vec![0.into(), msgid.into(), method.into(), Value::Array(params)]);
            rmpv::encode::write_value(&mut request, &frame).expect("a Vec takes everything");
        }
        self.shard.feed(slot, &request);
        let mut replies = self.shard.replies();
        let mut values = None;
        while let Ok(Value::Array(reply)) = rmpv::decode::read_value(&mut replies) {
            if reply[1].as_u64() == Some(2) {
                let items = reply[3].as_array().expect("values");
                values = Some(items.iter().map(|value| value.as_i64().expect("a number")).collect());
            }
        }
        self.shard.disconnect(slot);
        values.expect("the shard answers what it has in memory")
    }

    /// Some callers give up.
    fn cancel(&mut self) {
        let Self { link, asked, era, random, .. } = self;
        let share = 1 + random.below(6);
        let mut gone = Vec::new();
        link.abandon_waiters(|_| random.below(share) == 0, |operation| gone.push(operation));
        gone.into_iter().for_each(|operation| end(asked, operation, End::Open, *era));
    }

    // --- time --------------------------------------------------------------------------------------------------------

    fn tick(&mut self, elapsed_ms: u64) {
        self.now_ms += elapsed_ms;
        self.clock.set(Duration::from_millis(self.now_ms));
        if self.failing_until_ms > 0 && self.now_ms >= self.failing_until_ms {
            self.failing_until_ms = 0;
            self.files.set_faults(Faults::default());
        }
        let Self { link, asked, era, now_ms, .. } = self;
        link.tick(*now_ms, &mut |operation, outcome| tell(asked, operation, outcome, *era));
        if link.is_silent() {
            self.cut();
        }
        self.shard.tick();
        self.release();
    }

    // --- the end -----------------------------------------------------------------------------------------------------

    /// Nothing harms any more: everything is settled soon.
    fn heal(&mut self) {
        self.failing_until_ms = self.now_ms;
        for _ in 0..2000 {
            if self.connection.is_none() {
                self.connect();
            }
            self.flush();
            while !self.late.is_empty() {
                self.deliver_late();
            }
            self.deliver_to_shard();
            self.shard.commit();
            self.shard.journal().step();
            self.release();
            self.deliver_to_link();
            self.tick(20);
            if self.link.is_settled() && self.asked.iter().all(|asked| asked.end.is_some()) {
                break;
            }
        }
        assert!(self.link.is_settled(), "something is never settled");
        assert_eq!((self.link.memory_bytes(), self.link.unsettled()), (0, 0));
        let mut bytes = Vec::new();
        self.link.say_goodbye(&mut bytes);
    }

    fn check(&mut self) {
        // What was acknowledged is on disk.
        self.restart(true);
        let mut counted = self.held();
        add(&mut counted, &std::mem::take(&mut self.held_before));
        let (mut missing, mut perhaps_missing) = (0, 0);
        let named = |key: &[u8]| -> usize {
            let key = std::str::from_utf8(key).expect("a key");
            key.strip_prefix("operation-").and_then(|number| number.parse().ok()).expect("an operation's key")
        };
        let given_up: HashMap<usize, bool> =
            self.link.take_given_up().into_iter().map(|one| (named(&one.key), one.is_unknown)).collect();
        for (&operation, &is_unknown) in &given_up {
            assert!(is_unknown || counted[operation] == 0, "operation {operation} counted, and was said not to");
        }
        let mut lost_by_name = 0;
        for (key, _) in self.link.take_lost().into_iter().flat_map(|tail| tail.operations) {
            assert_eq!(counted[named(&key)], 0, "{} was said to be lost", key.escape_ascii());
            lost_by_name += 1;
        }
        assert_eq!(lost_by_name, self.link.statistics().operations_lost, "lost operations have names");
        for (operation, asked) in self.asked.iter().enumerate() {
            let (times, rest) = (counted[operation] / delta_of(operation), counted[operation] % delta_of(operation));
            assert_eq!(rest, 0);
            let allowed = match (asked.kind, asked.end.expect("everything was told")) {
                (Kind::Read { .. } | Kind::Unknown | Kind::Confirmation, _) | (_, End::NotCounted | End::Taken) => {
                    0..=0
                }
                (_, End::Counted(Level::Durable)) => 1..=1,
                (_, End::Counted(Level::Applied) | End::Open) => 0..=1,
                // Whoever was told not to repeat it learns what became of it.
                (Kind::Increment(Level::Durable), End::Late) if !given_up.contains_key(&operation) => 1..=1,
                (_, End::Late) => 0..=1,
                (_, End::Done) => unreachable!("an increment has a value"),
            };
            assert!(allowed.contains(&times), "operation {operation} counted {times} times: {asked:?}");
            missing += u64::from(times == 0 && asked.end == Some(End::Counted(Level::Applied)));
            perhaps_missing += u64::from(times == 0 && matches!(asked.end, Some(End::Open | End::Late)));
        }
        let LinkStatistics { operations_lost: lost, operations_unknown: unknown, .. } = self.link.statistics();
        assert!(missing <= lost + unknown, "{missing} are missing, {lost} were counted as lost, {unknown} as unknown");
        assert!(lost <= missing + perhaps_missing, "{lost} were counted as lost, {missing} are missing");
    }
}

fn add(sums: &mut Vec<i64>, values: &[i64]) {
    sums.resize(sums.len().max(values.len()), 0);
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

#[test]
fn every_operation_counts_as_it_was_told() {
    let seeds = match std::env::var("PYCOUNTER_SEED") {
        Ok(seed) => vec![seed.parse().expect("PYCOUNTER_SEED is a number")],
        Err(_) => (0..SCHEDULES).collect(),
    };
    let mut sum = LinkStatistics::default();
    for seed in seeds {
        // Printed if it fails.
        println!("PYCOUNTER_SEED={seed}");
        let mut world = World::new(seed);
        world.run();
        let statistics = world.link.statistics();
        sum.operations += statistics.operations;
        sum.operations_settled += statistics.operations_settled;
        sum.operations_unknown += statistics.operations_unknown;
        sum.operations_lost += statistics.operations_lost;
        sum.operations_resent += statistics.operations_resent;
        sum.operations_taken += statistics.operations_taken;
        sum.batches_refused += statistics.batches_refused;
        sum.calls_resent += statistics.calls_resent;
        sum.sessions_renewed += statistics.sessions_renewed;
        sum.expired_sent += statistics.expired_sent;
        sum.expired_unsent += statistics.expired_unsent;
    }
    println!("{sum:?}");
    if std::env::var("PYCOUNTER_SEED").is_err() {
        let seen = [
            sum.operations_unknown,
            sum.operations_lost,
            sum.operations_resent,
            sum.operations_taken,
            sum.batches_refused,
            sum.calls_resent,
            sum.sessions_renewed,
            sum.expired_sent,
            sum.expired_unsent,
        ];
        assert!(seen.iter().all(|&count| count > 0), "a rule was never tried: {sum:?}");
        assert!(sum.operations_settled > sum.operations / 2, "hardly anything worked");
    }
}
