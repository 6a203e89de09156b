//! What stands around a coordinator's router: clients' connections and links to shards, moved as a server's event loop
//! moves them, and no event loop.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use pycounter_engine::clock::Clock;
use pycounter_engine::figure::Figure;
use pycounter_engine::placement::foreign_keys::ForeignKeys;
use pycounter_engine::placement::hash_ring::HashRing;
use pycounter_engine::read_cache::{ReadCache, ReadCacheSettings};
use pycounter_engine::router::{HostRequest, LinkSettings, Place, Router, RouterSettings, Serving};
use pycounter_engine::wire::request::{Level, SessionId};

use crate::fake_shard::{FakeShard, State};

pub const SHARDS: usize = 2;
/// Clients must send it, where the script says so; shards always want it.
pub const TOKEN: &[u8] = b"secret";
/// What waits for a shard, where bounds are tight.
const TIGHT_QUEUE_BYTES: usize = 4000;

/// What is bounded, and how closely.
#[derive(Clone, Copy)]
pub struct Limits {
    pub level: Level,
    pub with_token: bool,
    pub is_tight: bool,
    pub with_cache: bool,
}

impl Limits {
    fn settings(self) -> RouterSettings {
        let pick = |tight: usize| if self.is_tight { tight } else { 1 << 24 };
        let sessions = AtomicU64::new(0);
        let new_session_id = move || {
            let number = sessions.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            SessionId([number, [0; 8]].concat().try_into().expect("twice eight bytes"))
        };
        RouterSettings {
            level: self.level,
            server_version: "fuzz".into(),
            name: "coordinator-0".into(),
            identity: "c".into(),
            tokens: self.with_token.then(|| TOKEN.to_owned()).into_iter().collect(),
            strict: vec![b"strict".to_vec()],
            frame_bytes_max: self.frame_bytes_max(),
            input_bytes_max: pick(1024),
            connections_max: 4,
            reply_bytes_max: pick(512),
            held_bytes_max: pick(1024),
            request_timeout_ms: 2000,
            link: LinkSettings {
                token: self.with_token.then(|| TOKEN.to_owned()),
                batch_operations_max: if self.is_tight { 3 } else { 1000 },
                batches_in_flight_max: if self.is_tight { 2 } else { 8 },
                window_operations_max: if self.is_tight { 5 } else { 9000 },
                queue_bytes_max: pick(TIGHT_QUEUE_BYTES),
                reply_bytes_max: 1 << 20,
                new_session_id: Arc::new(new_session_id),
                ..LinkSettings::default()
            },
        }
    }

    pub const fn frame_bytes_max(self) -> usize {
        4096
    }
}

/// A client, as the host knows it.
pub struct Client {
    pub place: Place,
    /// Sent, and not read by the host yet.
    unread: VecDeque<u8>,
    /// All of the present connection.
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
    /// The router ended it.
    pub is_closed: bool,
    pub is_finished: bool,
    requests: Vec<HostRequest>,
}

impl Client {
    fn new(place: Place) -> Self {
        Self {
            place,
            unread: VecDeque::new(),
            sent: Vec::new(),
            received: Vec::new(),
            is_closed: false,
            is_finished: false,
            requests: Vec::new(),
        }
    }
}

/// A shard and the line to it.
pub struct Line {
    pub shard: FakeShard,
    pub is_open: bool,
    /// Behind the router, before the shard.
    to_shard: Vec<u8>,
    /// The same of connections that are no more.
    late: VecDeque<Vec<u8>>,
    /// Behind the shard, before the router.
    to_router: VecDeque<u8>,
    /// All that it was sent.
    pub sent: Vec<u8>,
}

/// The router and what is around it.
pub struct Host {
    pub router: Router,
    limits: Limits,
    settings: RouterSettings,
    pub clients: Vec<Client>,
    pub lines: Vec<Line>,
    /// What shards held that were replaced.
    pub replaced: Vec<State>,
    now_ms: f64,
    /// Bytes come in pieces of 1, 2, ... so many.
    piece_max: usize,
    piece: usize,
    /// Places of clients that the router wants to be looked at.
    calls: VecDeque<Place>,
    wants_flush: bool,
    /// A shard broke the protocol.
    pub violations: usize,
    /// Some requests had to wait in their connection.
    pub is_any_stalled: bool,
}

fn ring() -> HashRing {
    static RING: OnceLock<HashRing> = OnceLock::new();
    RING.get_or_init(|| HashRing::new([("a", 0.01), ("b", 0.01)]).unwrap()).clone()
}

impl Host {
    pub fn new(limits: Limits, clients: usize, piece_max: usize) -> Self {
        let cache = limits.with_cache.then(|| {
            let settings = ReadCacheSettings { l1_entries: 4, l2_entries: 8, ..ReadCacheSettings::default() };
            Arc::new(ReadCache::new(settings, Clock::by_hand()))
        });
        let settings = limits.settings();
        let mut router = Router::new(ring(), Arc::new(ForeignKeys::new(SHARDS)), cache, settings.clone());
        let clients = (0..clients).map(|_| Client::new(router.connect())).collect();
        let token = limits.with_token.then_some(TOKEN);
        let line = |number| Line {
            shard: FakeShard::new(number, limits.level, token),
            is_open: false,
            to_shard: Vec::new(),
            late: VecDeque::new(),
            to_router: VecDeque::new(),
            sent: Vec::new(),
        };
        let mut host = Self {
            router,
            limits,
            settings,
            clients,
            lines: (0..SHARDS as u32).map(line).collect(),
            replaced: Vec::new(),
            now_ms: 1000.0,
            piece_max,
            piece: 0,
            calls: VecDeque::new(),
            wants_flush: false,
            violations: 0,
            is_any_stalled: false,
        };
        (0..SHARDS).for_each(|shard| host.connect(shard));
        host.exchange(0);
        host.tick(1);
        host
    }

    // --- clients -----------------------------------------------------------------------------------------------------

    /// The client sends.
    pub fn send(&mut self, who: usize, bytes: &[u8]) {
        let client = &mut self.clients[who];
        if !client.is_closed && !client.is_finished {
            client.unread.extend(bytes);
            client.sent.extend_from_slice(bytes);
        }
        self.turn();
    }

    /// The client sends nothing more.
    pub fn finish(&mut self, who: usize) {
        let client = &mut self.clients[who];
        if client.is_closed || client.is_finished || !client.unread.is_empty() {
            return;
        }
        client.is_finished = true;
        self.router.finish(client.place);
        self.calls.push_back(client.place);
        self.turn();
    }

    /// The client hangs up and comes again.
    pub fn reconnect(&mut self, who: usize) {
        if !self.clients[who].is_closed {
            self.router.disconnect(self.clients[who].place);
        }
        self.clients[who] = Client::new(self.router.connect());
        self.turn();
    }

    /// The host answers what it was asked: whatever `how` says.
    pub fn answer(&mut self, who: usize, how: u8) {
        let client = &mut self.clients[who];
        if client.is_closed {
            return;
        }
        for request in std::mem::take(&mut client.requests) {
            let reads = matches!(request.method, "get" | "mget" | "get_many" | "total" | "total_many");
            let error = (how & 1 != 0 || reads).then_some("unavailable: the host does not know");
            let result = [&b"\x07"[..], b"\xc0", b"\x92\x00\x91\xa1k", b"\x93\x01\xc0\x02"][usize::from(how >> 1) % 4];
            assert!(self.router.answer(client.place, request.token, error, result));
            client.received.extend(self.router.take_output(client.place));
            assert!(!self.router.answer(client.place, request.token, error, result), "answered twice");
        }
        self.turn();
    }

    pub fn is_waiting(&self, who: usize) -> bool {
        let client = &self.clients[who];
        let is_owed = self.router.connection(client.place).is_some_and(|open| open.is_owed());
        !client.is_closed && (is_owed || !client.unread.is_empty() || !client.requests.is_empty())
    }

    /// What the router wants of its host after each call.
    fn take_calls(&mut self) {
        let calls = self.router.take_calls();
        self.wants_flush |= calls.flush;
        let places = &mut self.calls;
        self.router.take_attend(|place| places.push_back(place));
    }

    /// Reads from every client that the router lets read from, until there is nothing more to do.
    fn turn(&mut self) {
        loop {
            self.take_calls();
            if let Some(place) = self.calls.pop_front() {
                if let Some(who) = self.clients.iter().position(|client| client.place == place && !client.is_closed) {
                    self.attend(who);
                }
            } else if let Some(who) = (0..self.clients.len()).find(|&who| self.may_read(who)) {
                self.piece = self.piece % self.piece_max + 1;
                let client = &mut self.clients[who];
                let piece: Vec<u8> = client.unread.drain(..self.piece.min(client.unread.len())).collect();
                self.feed(who, &piece);
            } else {
                return;
            }
        }
    }

    fn may_read(&self, who: usize) -> bool {
        let client = &self.clients[who];
        let open = self.router.connection(client.place);
        !client.is_closed && !client.unread.is_empty() && open.is_some_and(|open| !open.is_crowded())
    }

    fn feed(&mut self, who: usize, bytes: &[u8]) {
        self.router.feed(self.clients[who].place, bytes);
        self.clients[who].received.extend_from_slice(self.router.replies());
    }

    /// As `ClientProtocol.attend` does.
    fn attend(&mut self, who: usize) {
        let place = self.clients[who].place;
        let requests = self.router.take_host_requests(place);
        self.clients[who].requests.extend(requests);
        let goes_on = self.router.connection(place).is_some_and(|open| open.is_crowded() && !open.is_closing());
        if goes_on {
            self.is_any_stalled = true;
            self.feed(who, b"");
        }
        if self.router.connection(place).is_some_and(|open| open.is_closing()) {
            assert!(self.router.take_output(place).is_empty(), "a connection is to be closed before its reply leaves");
            let client = &mut self.clients[who];
            client.unread.clear();
            client.is_closed = true;
            self.router.disconnect(place);
        }
    }

    fn collect(&mut self) {
        let clients = &mut self.clients;
        self.router.take_ready(|place, bytes| {
            let client = clients.iter_mut().find(|client| client.place == place && !client.is_closed);
            client.expect("replies to nobody").received.extend_from_slice(bytes);
        });
    }

    // --- shards ------------------------------------------------------------------------------------------------------

    /// A link gets a connection, if it has none.
    pub fn connect(&mut self, shard: usize) {
        if !self.lines[shard].is_open {
            self.lines[shard].is_open = true;
            self.router.link_connected(shard);
            self.turn();
        }
    }

    /// The connection of a link ends. What was sent arrives late, if ever.
    pub fn cut(&mut self, shard: usize, arriving: usize) {
        let line = &mut self.lines[shard];
        if !line.is_open {
            return;
        }
        line.is_open = false;
        line.to_router.clear();
        let mut sent = std::mem::take(&mut line.to_shard);
        sent.truncate(arriving);
        line.late.push_back(sent);
        self.router.link_lost(shard);
        self.turn();
    }

    /// What was sent over a connection that is no more arrives.
    pub fn arrive(&mut self, shard: usize) {
        let line = &mut self.lines[shard];
        if let Some(mut sent) = line.late.pop_front() {
            line.shard.take(&mut sent);
        }
    }

    /// The shard's process ends and another goes on: the same shard, or another one in its place.
    pub fn restart(&mut self, shard: usize, loses: bool, is_another: bool) {
        self.cut(shard, 0);
        let line = &mut self.lines[shard];
        line.late.clear();
        line.shard.restart(loses);
        if is_another {
            let token = self.limits.with_token.then_some(TOKEN);
            let other = FakeShard::new(line.shard.identity + SHARDS as u32, self.limits.level, token);
            self.replaced.push(std::mem::replace(&mut line.shard, other).state);
        }
    }

    /// The turn of the loop is over, and bytes travel. By bits of `how`: not to or from this shard; replies in reverse
    /// order; only a part of it arrives.
    pub fn exchange(&mut self, how: u8) {
        if std::mem::take(&mut self.wants_flush) {
            let lines = &mut self.lines;
            self.router.flush(self.now_ms, |shard, bytes| {
                assert!(lines[shard].is_open, "there is nobody to send it to");
                lines[shard].to_shard.extend_from_slice(bytes);
                lines[shard].sent.extend_from_slice(bytes);
            });
            self.collect();
            self.turn();
        }
        for shard in 0..SHARDS {
            if how & (1 << shard) == 0 {
                self.exchange_with(shard, how & 4 != 0, how & 8 != 0);
            }
        }
    }

    fn exchange_with(&mut self, shard: usize, is_reversed: bool, is_partial: bool) {
        let line = &mut self.lines[shard];
        let keep = if is_partial { line.to_shard.len() / 2 } else { 0 };
        let rest = line.to_shard.split_off(line.to_shard.len() - keep);
        let mut replies = line.shard.take(&mut line.to_shard);
        line.to_shard.extend(rest);
        if is_reversed {
            replies.reverse();
        }
        self.say(shard, &replies.concat());
        let keep = if is_partial { self.lines[shard].to_router.len() / 2 } else { 0 };
        self.hear(shard, keep);
    }

    /// The shard sends.
    pub fn say(&mut self, shard: usize, bytes: &[u8]) {
        if self.lines[shard].is_open {
            self.lines[shard].to_router.extend(bytes);
        }
    }

    /// What the shard has sent arrives, all but some bytes.
    fn hear(&mut self, shard: usize, keep: usize) {
        while self.lines[shard].to_router.len() > keep {
            self.piece = self.piece % self.piece_max + 1;
            let coming = &mut self.lines[shard].to_router;
            let piece: Vec<u8> = coming.drain(..self.piece.min(coming.len() - keep)).collect();
            if self.router.feed_link(shard, self.now_ms, &piece).is_err() {
                self.violations += 1;
                return self.cut(shard, usize::MAX);
            }
            self.collect();
        }
        self.turn();
    }

    /// Which shards serve, and who takes what they don't.
    pub fn serve(&mut self, how: u8) {
        const WEIGHTS: [f64; 4] = [1.0, 0.5, 0.0, 0.25];
        let weight = |shard: usize| WEIGHTS[usize::from(how >> (2 * shard)) % 4];
        let other = |shard: usize| (how & 16 != 0 && weight(1 - shard) >= 1.0).then_some(1 - shard);
        let serving: Vec<_> = (0..SHARDS).map(|shard| Serving::new(weight(shard), other(shard))).collect();
        assert!(self.router.set_serving(&serving));
        self.turn();
    }

    // --- time --------------------------------------------------------------------------------------------------------

    pub fn tick(&mut self, milliseconds: u64) {
        self.now_ms += milliseconds as f64;
        self.router.tick(self.now_ms);
        self.turn();
        for shard in 0..SHARDS {
            if self.router.link(shard).is_silent() {
                self.cut(shard, usize::MAX);
            }
        }
    }

    /// Nothing harms any more: goes on until everything is answered and settled.
    pub fn settle(&mut self) {
        self.serve(0);
        for shard in 0..SHARDS {
            self.cut(shard, usize::MAX);
            while !self.lines[shard].late.is_empty() {
                self.arrive(shard);
            }
            self.lines[shard].shard.moods.clear();
        }
        for _ in 0..200 {
            (0..SHARDS).for_each(|shard| self.connect(shard));
            self.exchange(0);
            (0..self.clients.len()).for_each(|who| self.answer(who, 0));
            self.exchange(0);
            let is_settled = |shard| self.router.link(shard).is_settled();
            if !(0..self.clients.len()).any(|who| self.is_waiting(who)) && (0..SHARDS).all(is_settled) {
                break;
            }
            self.tick(500);
        }
        for who in 0..self.clients.len() {
            assert!(!self.is_waiting(who), "client {who} waits for ever");
        }
        for shard in 0..SHARDS {
            assert!(self.router.link(shard).is_settled(), "the link to shard {shard} is never settled");
            assert_eq!(self.router.link(shard).memory_bytes(), 0, "of shard {shard} something is kept");
        }
        assert!(self.router.is_settled());
        assert_eq!((self.figure("under_way"), self.figure("held_bytes")), (0, 0));
    }

    pub fn figure(&self, name: &str) -> u64 {
        let found = self.router.stats().into_iter().find(|(figure, _)| *figure == name);
        let Some((_, Figure::Number(number))) = found else { panic!("no figure {name}") };
        number
    }

    /// Is all memory within its bounds?
    pub fn check_bounds(&self) {
        let mut maxima = vec![
            ("input_bytes", self.figure("input_bytes") as usize, self.settings.input_bytes_max),
            // One request may go over it, by what 4,096 bytes can ask for.
            ("held_bytes", self.figure("held_bytes") as usize, self.settings.held_bytes_max + (1 << 18)),
        ];
        for shard in 0..SHARDS {
            let bytes = self.router.link(shard).memory_bytes();
            maxima.push(("what waits for a shard", bytes, self.settings.link.queue_bytes_max));
        }
        for (what, bytes, max) in maxima {
            assert!(bytes <= max, "{what} takes {bytes} bytes, more than {max}");
        }
    }
}
