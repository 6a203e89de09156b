//! What stands around a shard: connections that deliver what clients sent, as a server's event loop does it, and no
//! event loop.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::folder::Recovery;
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Figure, Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;

use crate::memory_files::MemoryFiles;

/// Of a folder that was made and never opened. Fixed, so that a finding repeats itself: counters are scanned in the
/// order of their hashes.
const MANIFEST: &[u8] = include_bytes!("manifest.json");
const FOLDER: &str = "/shard";

/// Clients must send it, where the script says so.
pub const TOKEN: &[u8] = b"secret";

/// What a table of a few ids takes, whose index is made of many small parts.
const IDS_BYTES_MIN: usize = 96 << 10;
/// The growth of one such part, which comes on top of the bound.
const IDS_BYTES_OVER: usize = 512;

/// What is bounded, and how closely.
pub struct Limits {
    pub level: Level,
    pub token: Option<Vec<u8>>,
    /// Of what waits in connections, and of ids: how the bytes were cut, and a random hash, decide what is refused.
    pub tight_buffers: bool,
    /// Of counters and sessions.
    pub tight_state: bool,
}

impl Limits {
    fn shard(&self) -> ShardSettings {
        let tight = self.tight_buffers;
        ShardSettings {
            level: self.level,
            server_version: "fuzz".into(),
            tokens: self.token.clone().into_iter().collect(),
            frame_bytes_max: 4096,
            input_bytes_max: if tight { 1024 } else { 1 << 24 },
            connections_max: 4,
            reply_bytes_max: if tight { 256 } else { 1 << 24 },
            held_bytes_max: if tight { 512 } else { 1 << 24 },
            flush_interval: Duration::from_secs(3600),
        }
    }

    fn state(&self) -> StateSettings {
        let mut state = StateSettings {
            counters_bytes_max: 1 << 24,
            dirty_counters_max: 4096,
            sessions: SessionSettings::default(),
            ids: OperationIdSettings::default(),
        };
        if self.tight_buffers {
            state.ids.ids_bytes_max = IDS_BYTES_MIN + 256;
        }
        if self.tight_state {
            state.counters_bytes_max = 100_000;
            state.dirty_counters_max = 4;
            state.sessions.sessions_max = 3;
            state.sessions.results_per_session_max = 8;
            state.sessions.table_bytes_max = 2048;
        }
        state
    }
}

/// A client, as the host knows it.
#[derive(Default)]
pub struct Client {
    slot: usize,
    /// Sent, and not read by the host yet.
    unread: VecDeque<u8>,
    pub received: Vec<u8>,
    /// The same of connections that are no more.
    pub received_before: Vec<Vec<u8>>,
    /// The host has closed it.
    pub closed: bool,
    finished: bool,
}

/// A shard and its clients.
pub struct Host {
    shard: Shard,
    limits: Limits,
    pub clients: Vec<Client>,
    /// Bytes are read in pieces of 1, 2, ... so many.
    piece_max: usize,
    piece: usize,
    /// Clients whose connection has to be looked at.
    calls: VecDeque<usize>,
}

impl Host {
    /// Opens the shard in `files`, which are empty at first, for so many clients.
    pub fn open(files: &MemoryFiles, is_new: bool, limits: Limits, clients: usize, piece_max: usize) -> Self {
        if is_new {
            files.put(&Path::new(FOLDER).join("manifest.json"), MANIFEST);
        }
        let options = JournalOptions { files: Arc::new(files.clone()), ..JournalOptions::default() };
        let mut recovery = Recovery::open(Path::new(FOLDER), options, &limits.state()).unwrap();
        assert!(recovery.load_root(None).unwrap().is_empty());
        let mut shard = Shard::new(recovery.start().unwrap(), limits.shard());
        let clients = (0..clients).map(|_| Client { slot: shard.connect(), ..Client::default() }).collect();
        Self { shard, limits, clients, piece_max, piece: 0, calls: VecDeque::new() }
    }

    /// The client sends.
    pub fn send(&mut self, who: usize, bytes: &[u8]) {
        let client = &mut self.clients[who];
        if !client.closed && !client.finished {
            client.unread.extend(bytes);
        }
        self.turn();
    }

    /// The client sends nothing more.
    pub fn finish(&mut self, who: usize) {
        let client = &mut self.clients[who];
        if client.closed || !client.unread.is_empty() {
            return;
        }
        client.finished = true;
        self.shard.finish(client.slot);
        self.calls.push_back(who);
        self.turn();
    }

    /// The client hangs up and comes again. What it was owed and is durable, it has got before.
    pub fn reconnect(&mut self, who: usize) {
        self.release();
        let client = &mut self.clients[who];
        if !client.closed {
            self.shard.disconnect(client.slot);
        }
        client.slot = self.shard.connect();
        client.received_before.push(std::mem::take(&mut client.received));
        client.unread.clear();
        (client.closed, client.finished) = (false, false);
    }

    /// The turn of the loop is over.
    pub fn commit(&mut self) {
        self.wait();
        self.shard.commit();
    }

    /// The commit thread woke the loop.
    pub fn release(&mut self) {
        self.wait();
        let (clients, calls) = (&mut self.clients, &mut self.calls);
        self.shard.release(|slot, replies, attend| {
            let who = clients.iter().position(|client| client.slot == slot && !client.closed).unwrap();
            clients[who].received.extend_from_slice(replies);
            if attend {
                calls.push_back(who);
            }
        });
        self.turn();
    }

    /// A tenth of a second is over.
    pub fn tick(&mut self) {
        self.wait();
        self.shard.tick();
    }

    /// Goes on until everything that these clients asked is answered.
    pub fn settle(&mut self, clients: Range<usize>) {
        for _ in 0..10_000 {
            if !self.clients[clients.clone()].iter().any(|client| self.is_waiting(client)) {
                return;
            }
            self.tick();
            self.release();
        }
        panic!("a connection waits for ever");
    }

    /// Stops the shard once everything is durable.
    pub fn stop(mut self) {
        assert!(self.shard.wait_durable(Duration::from_secs(30)));
        self.shard.stop();
    }

    pub fn figure(&self, name: &str) -> u64 {
        let found = self.shard.stats().into_iter().find(|(figure, _)| *figure == name);
        let Some((_, Figure::Number(number))) = found else { panic!("no figure {name}") };
        number
    }

    /// Does it have requests that were not looked at, or is it owed a reply?
    fn is_waiting(&self, client: &Client) -> bool {
        !client.closed
            && (!client.unread.is_empty() || self.shard.connection(client.slot).is_some_and(|open| open.is_owed()))
    }

    /// Waits for the commit in flight, so that two runs of a script never differ by what the commit thread did when.
    fn wait(&self) {
        while self.shard.journal().in_flight() {
            std::thread::yield_now();
        }
    }

    /// Reads from every client that the shard lets read from, until there is nothing more to do.
    fn turn(&mut self) {
        loop {
            if let Some(who) = self.calls.pop_front() {
                self.attend(who);
            } else if let Some(who) = (0..self.clients.len()).find(|&who| self.may_read(who)) {
                self.piece = self.piece % self.piece_max + 1;
                let unread = &mut self.clients[who].unread;
                let piece: Vec<u8> = unread.drain(..self.piece.min(unread.len())).collect();
                self.feed(who, &piece);
            } else {
                return self.check_bounds();
            }
        }
    }

    fn may_read(&self, who: usize) -> bool {
        let client = &self.clients[who];
        let open = self.shard.connection(client.slot);
        !client.closed && !client.unread.is_empty() && open.is_some_and(|open| !open.is_crowded())
    }

    fn feed(&mut self, who: usize, bytes: &[u8]) {
        let client = &mut self.clients[who];
        let fed = self.shard.feed(client.slot, bytes);
        client.received.extend_from_slice(self.shard.replies());
        if fed.attend {
            self.calls.push_back(who);
        }
    }

    /// As `ShardProtocol.attend` does.
    fn attend(&mut self, who: usize) {
        let client = &mut self.clients[who];
        let Some(open) = self.shard.connection_mut(client.slot).filter(|_| !client.closed) else { return };
        drop(open.take_host_requests());
        if open.is_crowded() && !open.is_closing() {
            self.feed(who, b"");
        }
        let client = &mut self.clients[who];
        if self.shard.connection(client.slot).is_some_and(|open| open.is_closing()) {
            self.shard.disconnect(client.slot);
            client.unread.clear();
            client.closed = true;
        }
    }

    fn check_bounds(&self) {
        let (shard, state) = (self.limits.shard(), self.limits.state());
        // Replies of one chunk come on top: a run of increments, or what one request of a few thousand bytes may ask for.
        let held_bytes_max = shard.held_bytes_max + self.clients.len() * (shard.reply_bytes_max + (1 << 16));
        let maxima = [
            ("input_bytes", shard.input_bytes_max),
            ("held_bytes", held_bytes_max),
            ("pending", state.dirty_counters_max),
            ("counters_bytes", state.counters_bytes_max as usize),
            ("sessions", state.sessions.sessions_max),
            ("session_bytes", state.sessions.table_bytes_max),
            ("operation_id_bytes", state.ids.ids_bytes_max + IDS_BYTES_OVER),
        ];
        for (name, figure) in self.shard.stats() {
            let Figure::Number(number) = figure else { continue };
            if let Some((_, max)) = maxima.iter().find(|(bounded, _)| *bounded == name) {
                assert!(number <= *max as u64, "{name} is {number}, above {max}");
            }
        }
    }
}
