//! Shards, a router, and the bytes between them, moved step by step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::folder::Recovery;
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::placement::foreign_keys::ForeignKeys;
use pycounter_engine::placement::hash_ring::HashRing;
use pycounter_engine::read_cache::{ReadCache, ReadCacheSettings};
use pycounter_engine::router::{HostRequest, LinkSettings, Place, Router, RouterSettings, Serving};
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;
use rmpv::Value;
use tempfile::TempDir;

pub const TIMEOUT_MS: u64 = 2000;

pub fn settings() -> RouterSettings {
    RouterSettings {
        level: Level::Applied,
        server_version: "test".into(),
        name: "coordinator-0".into(),
        identity: "c1".into(),
        tokens: Vec::new(),
        strict: vec![b"unique:".to_vec()],
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 1000,
        reply_bytes_max: 1 << 20,
        held_bytes_max: 1 << 28,
        request_timeout_ms: TIMEOUT_MS,
        link: LinkSettings { confirm_interval_ms: 1 << 40, ..LinkSettings::default() },
    }
}

/// Of clients; the shards need none.
pub fn with_token(settings: RouterSettings) -> RouterSettings {
    RouterSettings { tokens: vec![b"secret".to_vec()], ..settings }
}

fn open(folder: &TempDir, ids: OperationIdSettings, frame_bytes_max: usize) -> Shard {
    let state = StateSettings {
        counters_bytes_max: 1 << 28,
        dirty_counters_max: 1 << 20,
        sessions: SessionSettings::default(),
        ids,
    };
    let mut recovery = Recovery::open(folder.path(), JournalOptions::default(), &state).unwrap();
    assert!(recovery.load_root(None).unwrap().is_empty());
    let settings = ShardSettings {
        level: Level::Applied,
        server_version: "test".into(),
        tokens: Vec::new(),
        frame_bytes_max,
        input_bytes_max: 1 << 28,
        connections_max: 100,
        reply_bytes_max: 1 << 26,
        held_bytes_max: 1 << 30,
        flush_interval: Duration::from_secs(1000),
    };
    Shard::new(recovery.start().unwrap(), settings)
}

pub struct Cluster {
    pub router: Router,
    pub ring: HashRing,
    pub shards: Vec<Shard>,
    /// The router's connection at each shard, if it has one.
    slots: Vec<Option<usize>>,
    /// What a shard is sent stays on its way.
    pub stalled: Vec<bool>,
    to_shards: Vec<Vec<u8>>,
    outputs: HashMap<Place, Vec<u8>>,
    /// Requests that the host has taken and not answered.
    requests: HashMap<Place, Vec<HostRequest>>,
    pub now_ms: f64,
    _folders: Vec<TempDir>,
}

impl Cluster {
    pub fn new(shards: usize) -> Self {
        Self::with_settings(shards, settings())
    }

    pub fn with_settings(shards: usize, settings: RouterSettings) -> Self {
        Self::with_bounds(shards, settings, OperationIdSettings::default())
    }

    pub fn with_bounds(shards: usize, settings: RouterSettings, ids: OperationIdSettings) -> Self {
        let ring = HashRing::new((0..shards).map(|number| (format!("shard-{number}"), 1.0))).unwrap();
        let foreign = Arc::new(ForeignKeys::new(shards));
        let cache = Arc::new(ReadCache::new(ReadCacheSettings::default(), Clock::by_hand()));
        let frame_bytes_max = settings.frame_bytes_max;
        let router = Router::new(ring.clone(), foreign, Some(cache), settings);
        let folders: Vec<TempDir> = (0..shards).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut cluster = Self {
            router,
            ring,
            shards: folders.iter().map(|folder| open(folder, ids, frame_bytes_max)).collect(),
            slots: vec![None; shards],
            stalled: vec![false; shards],
            to_shards: vec![Vec::new(); shards],
            outputs: HashMap::new(),
            requests: HashMap::new(),
            now_ms: 1000.0,
            _folders: folders,
        };
        for shard in 0..shards {
            cluster.link(shard);
        }
        cluster.settle();
        cluster.advance(1);
        cluster
    }

    /// Connects a shard.
    pub fn link(&mut self, shard: usize) {
        self.slots[shard] = Some(self.shards[shard].connect());
        self.router.link_connected(shard);
    }

    /// Cuts a shard's connection; what is on its way arrives, or not.
    pub fn cut(&mut self, shard: usize, arrives: bool) {
        let slot = self.slots[shard].take().unwrap();
        let sent = std::mem::take(&mut self.to_shards[shard]);
        if arrives {
            self.shards[shard].feed(slot, &sent);
            assert!(self.shards[shard].wait_durable(Duration::from_secs(30)));
        }
        self.shards[shard].disconnect(slot);
        self.router.link_lost(shard);
        self.collect();
    }

    fn collect(&mut self) {
        let outputs = &mut self.outputs;
        self.router.take_ready(|place, bytes| outputs.entry(place).or_default().extend_from_slice(bytes));
    }

    /// One turn of the loop. Has anything moved?
    pub fn turn(&mut self) -> bool {
        let mut moved = false;
        let to_shards = &mut self.to_shards;
        self.router.flush(self.now_ms, |shard, bytes| {
            moved = true;
            to_shards[shard].extend_from_slice(bytes);
        });
        self.collect();
        for shard in 0..self.shards.len() {
            let Some(slot) = self.slots[shard].filter(|_| !self.stalled[shard]) else { continue };
            let sent = std::mem::take(&mut self.to_shards[shard]);
            if !sent.is_empty() {
                moved = true;
                let fed = self.shards[shard].feed(slot, &sent);
                let mut replies = self.shards[shard].replies().to_vec();
                if fed.commit {
                    // A greeting waits for what was applied before it.
                    assert!(self.shards[shard].wait_durable(Duration::from_secs(30)));
                    self.shards[shard].release(|_, bytes, _| replies.extend_from_slice(bytes));
                }
                self.router.feed_link(shard, self.now_ms, &replies).unwrap();
                self.collect();
            }
        }
        moved
    }

    /// A shard that stalls answers, with this, the one request that is on its way to it.
    pub fn forge(&mut self, shard: usize, result: &Value) {
        self.answer_calls(shard, std::slice::from_ref(result));
    }

    /// A shard that stalls answers, with these, the requests that are on their way to it.
    pub fn answer_calls(&mut self, shard: usize, results: &[Value]) {
        self.turn();
        let sent = std::mem::take(&mut self.to_shards[shard]);
        let (mut rest, mut bytes) = (&sent[..], Vec::new());
        for result in results {
            let request = rmpv::decode::read_value(&mut rest).unwrap();
            let reply = Value::Array(vec![1.into(), request[1].clone(), Value::Nil, result.clone()]);
            rmpv::encode::write_value(&mut bytes, &reply).unwrap();
        }
        self.router.feed_link(shard, self.now_ms, &bytes).unwrap();
        self.collect();
    }

    /// Turns until nothing moves.
    pub fn settle(&mut self) {
        while self.turn() {}
    }

    /// Lets time pass.
    pub fn advance(&mut self, milliseconds: u64) {
        self.now_ms += milliseconds as f64;
        self.router.tick(self.now_ms);
        self.settle();
    }

    pub fn send(&mut self, place: Place, bytes: &[u8]) {
        self.router.feed(place, bytes);
        let replies = self.router.replies().to_vec();
        self.outputs.entry(place).or_default().extend_from_slice(&replies);
    }

    /// What a client got since it last looked.
    pub fn output(&mut self, place: Place) -> Vec<u8> {
        self.outputs.remove(&place).unwrap_or_default()
    }

    /// Sends, lets everything settle as an event loop would, and gives what came.
    pub fn ask(&mut self, place: Place, bytes: &[u8]) -> Vec<u8> {
        self.send(place, bytes);
        self.run();
        self.output(place)
    }

    /// As `ask`, in text.
    pub fn resp(&mut self, place: Place, text: &str) -> String {
        String::from_utf8(self.ask(place, text.as_bytes())).unwrap()
    }

    /// As `ask`, in MessagePack: replies by msgid.
    pub fn calls(&mut self, place: Place, calls: &[(&str, Vec<Value>)]) -> Vec<Result<Value, String>> {
        let bytes: Vec<u8> =
            (0..).zip(calls).flat_map(|(msgid, (method, params))| call(msgid, method, params)).collect();
        let replies = replies(&self.ask(place, &bytes));
        (0..calls.len() as u64).map(|msgid| replies[&msgid].clone()).collect()
    }

    pub fn call(&mut self, place: Place, method: &str, params: Vec<Value>) -> Result<Value, String> {
        self.calls(place, &[(method, params)]).remove(0)
    }

    /// Settles, and feeds stalled connections again as long as that helps.
    pub fn run(&mut self) {
        loop {
            self.settle();
            let mut places = Vec::new();
            self.router.take_attend(|place| places.push(place));
            if places.is_empty() {
                break;
            }
            for place in places {
                let requests = self.router.take_host_requests(place);
                self.requests.entry(place).or_default().extend(requests);
                let goes_on = |connection: &pycounter_engine::router::Connection| {
                    connection.is_crowded() && !connection.is_closing()
                };
                if self.router.connection(place).is_some_and(goes_on) {
                    self.send(place, b"");
                }
            }
        }
    }

    /// The one request that the host has to answer.
    pub fn host_request(&mut self, place: Place) -> HostRequest {
        let mut requests = self.host_requests(place);
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    /// The requests that the host has to answer, since it last looked.
    pub fn host_requests(&mut self, place: Place) -> Vec<HostRequest> {
        self.run();
        self.requests.remove(&place).unwrap_or_default()
    }

    pub fn answer(&mut self, place: Place, token: u64, error: Option<&str>, result: Value) -> Vec<u8> {
        let mut encoded = Vec::new();
        rmpv::encode::write_value(&mut encoded, &result).unwrap();
        assert!(self.router.answer(place, token, error, &encoded));
        let replies = self.router.take_output(place);
        self.outputs.entry(place).or_default().extend_from_slice(&replies);
        self.run();
        self.output(place)
    }

    pub fn serve(&mut self, weights: &[(f64, Option<usize>)]) {
        let serving: Vec<_> = weights.iter().map(|&(weight, other)| Serving::new(weight, other)).collect();
        assert!(self.router.set_serving(&serving));
        self.collect();
    }

    /// A key whose home is this shard; another for each number.
    pub fn key_at(&self, shard: usize, number: usize) -> String {
        (0..).map(|try_| format!("key-{number}-{try_}")).find(|key| self.ring.home(key.as_bytes()) == shard).unwrap()
    }

    /// What a shard itself holds of a key.
    pub fn partial(&mut self, shard: usize, key: &str) -> Value {
        let slot = self.shards[shard].connect();
        self.shards[shard].feed(slot, &call(0, "get", &[key.into(), map(&[("or_nil", true.into())])]));
        let reply = replies(self.shards[shard].replies())[&0].clone().unwrap();
        self.shards[shard].disconnect(slot);
        reply
    }

    pub fn figure(&self, name: &str) -> u64 {
        let stats = self.router.stats();
        let (_, figure) = stats.iter().find(|(figure, _)| *figure == name).unwrap();
        match figure {
            pycounter_engine::figure::Figure::Number(number) => *number,
            other => panic!("{other:?}"),
        }
    }
}

pub fn map(pairs: &[(&str, Value)]) -> Value {
    Value::Map(pairs.iter().map(|(name, value)| ((*name).into(), value.clone())).collect())
}

pub fn call(msgid: u64, method: &str, params: &[Value]) -> Vec<u8> {
    let frame = Value::Array(vec![0.into(), msgid.into(), method.into(), Value::Array(params.to_vec())]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &frame).unwrap();
    bytes
}

/// Replies by msgid, each of which must come once.
pub fn replies(mut bytes: &[u8]) -> HashMap<u64, Result<Value, String>> {
    let mut replies = HashMap::new();
    while !bytes.is_empty() {
        let Value::Array(reply) = rmpv::decode::read_value(&mut bytes).unwrap() else { panic!("no array") };
        assert_eq!((reply.len(), &reply[0]), (4, &1.into()));
        let outcome = reply[2].as_str().map_or_else(|| Ok(reply[3].clone()), |error| Err(error.to_owned()));
        assert!(replies.insert(reply[1].as_u64().unwrap(), outcome).is_none(), "two replies to one request");
    }
    replies
}

/// The code of an error.
pub fn code(outcome: &Result<Value, String>) -> &str {
    outcome.as_ref().map_or_else(|error| error.split(':').next().unwrap(), |_| "")
}
