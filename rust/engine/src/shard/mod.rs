//! A shard: connections in front, the journaled state in the middle, the commit thread behind.
//!
//! Threads: one thread, the host's event loop, calls everything here. The commit thread is reached only through
//! [`CommitThread`]'s hand-over; the checkpoint thread reads the log and never the state.
//!
//! The path of an increment: [`Shard::feed`] parses a chunk, applies it (`operations`), and holds the replies in
//! the connection, stamped with the commit that will cover them. [`Shard::commit`] drains everything that changed
//! into one commit while none is in flight. Once it is on disk the commit thread wakes the host, and
//! [`Shard::release`] lets the replies go.

mod connection;
mod connections;
mod following;
mod held_replies;
mod msgpack_handler;
mod operations;
mod resp_handler;
mod run;
mod shard_settings;
mod statistics;
mod unfinished_input;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::figure::Figure;
pub use connection::{Connection, HostCall, HostRequest};
pub use following::FollowError;
pub use shard_settings::ShardSettings;
pub use statistics::{HostFigures, Statistics};

use crate::clock::Clock;
use crate::connection_input::Protocol;
use crate::error_code::ErrorCode;
use crate::fingerprint::Method;
use crate::folder::Recovered;
use crate::journal::commit_thread::{CommitThread, WaitOutcome};
use crate::journal::entry::Fingerprint;
use crate::journal::record::CommitEncoder;
use crate::journal::unwritten::Unwritten;
use crate::limits::GREETING_BYTES_MAX;
use crate::operation_id_table::Lookup;
use crate::planted_bug::{self, PlantedBug, is_planted};
use crate::resp_connection::{Rate, unix_now_s};
use crate::state::State;
use crate::wire::request::Level;
use crate::wire::scan::FrameLimits;
use connections::Connections;
use following::Following;
use held_replies::{HeldReplies, MarkedReplies, ReplyKind};
use run::{Part, Pending};
use shard_settings::Identity;

/// A run of plain increments is parsed, hashed and prefetched this far ahead before it is applied.
const RUN_MAX: usize = 128;
/// The loop looks at the clock ten times a second. Should it not for longer than this, the shard stood still.
const UPTIME_STEP_MAX: Duration = Duration::from_secs(1);
/// Changed counters that are not yet committed, at which an `applied` shard commits before its interval is over.
const EARLY_FLUSH_COUNTERS: usize = 131_072;
/// A chunk may cost so much looking at counters that it didn't name (`scan`, `top`, FLUSHALL) before the others have
/// their turn: some milliseconds. One counter looked at costs [`LOOK_WORK`].
const TURN_WORK_MAX: usize = 1 << 22;
/// The work of looking at one counter; comparing a byte is 1.
const LOOK_WORK: usize = 32;

/// A connection whose frames come in pieces keeps at most so much memory for the next piece.
const INPUT_SPARE_BYTES: usize = 4096;

/// What the host has to do after a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fed {
    /// Look at the connection: it is crowded, closing, or has a request for the host.
    pub attend: bool,
    /// Call `commit` once the turn of the loop is over.
    pub commit: bool,
}

/// One shard's engine.
pub struct Shard {
    clock: Clock,
    state: State,
    encoder: CommitEncoder,
    journal: CommitThread,
    settings: ShardSettings,
    identity: Identity,
    connections: Connections,
    /// Connections with held replies, by slot.
    waiting: Vec<usize>,
    /// Bytes of held replies, over all connections.
    held_bytes: usize,
    /// Bytes of unfinished requests, over all connections.
    input_bytes: usize,
    /// Connections that stopped though no reply of their own is held: others' held replies fill the bound.
    stopped: Vec<usize>,
    /// The newest commit that was handed over.
    handed_over: u64,
    handed_over_at: Instant,
    /// The uptime in that commit, and in the newest one that is known to be durable.
    handed_over_uptime_ms: u64,
    durable_uptime_ms: u64,
    /// Counters in that commit.
    handed_over_counters: usize,
    /// Failed attempts of the journal that were already answered.
    failures_seen: u64,
    failing: bool,
    /// While it fails: what the commit holds that can't be written.
    unwritten: Option<Arc<Unwritten>>,
    commit_scheduled: bool,
    /// Uptime of earlier runs.
    uptime_before_ms: u64,
    /// Uptime of this run, up to `uptime_at`.
    uptime_here: Duration,
    uptime_at: Instant,
    uptime_ms: u64,
    address: String,
    /// Work of this chunk so far, beyond what its length pays for: see [`TURN_WORK_MAX`].
    work: usize,
    // Scratch of one chunk, kept for its memory.
    run: Vec<Pending>,
    /// Replies that wait for nothing.
    now: Vec<u8>,
    /// Replies that wait for this chunk's commit.
    held: MarkedReplies,
    pool: Vec<Vec<u8>>,
    statistics: Statistics,
    host_figures: HostFigures,
    /// Requests a second.
    rate: Rate,
    /// When the last checkpoint was made, or this run began, in seconds since 1970.
    saved_at_s: u64,
    /// Slots of connections that CLIENT KILL closed and the host doesn't know of yet.
    killed: Vec<usize>,
    /// Cut from the log's end at the start.
    torn_bytes: u64,
    /// Of a replica.
    following: Option<Box<Following>>,
}

impl Shard {
    /// Puts a recovered state and its journal to work.
    #[must_use]
    pub fn new(recovered: Recovered, settings: ShardSettings) -> Self {
        Self::with_clock(recovered, settings, Clock::system())
    }

    /// The same under a clock that a simulation sets.
    #[must_use]
    pub fn with_clock(recovered: Recovered, settings: ShardSettings, clock: Clock) -> Self {
        let Recovered { state, encoder, journal, uptime_ms, name, identity, epoch, torn_bytes, .. } = recovered;
        let identity = Identity { name, identity, epoch };
        let mut shard = Self::assemble(state, encoder, journal, identity, settings, clock);
        (shard.uptime_before_ms, shard.uptime_ms, shard.torn_bytes) = (uptime_ms, uptime_ms, torn_bytes);
        (shard.handed_over_uptime_ms, shard.durable_uptime_ms) = (uptime_ms, uptime_ms);
        shard
    }

    fn assemble(
        state: State,
        encoder: CommitEncoder,
        journal: CommitThread,
        identity: Identity,
        settings: ShardSettings,
        clock: Clock,
    ) -> Self {
        let now = clock.now();
        Self {
            clock,
            state,
            encoder,
            handed_over: journal.durable(),
            handed_over_at: now,
            handed_over_uptime_ms: 0,
            durable_uptime_ms: 0,
            handed_over_counters: 0,
            journal,
            settings,
            identity,
            connections: Connections::default(),
            waiting: Vec::new(),
            held_bytes: 0,
            input_bytes: 0,
            stopped: Vec::new(),
            failures_seen: 0,
            failing: false,
            unwritten: None,
            commit_scheduled: false,
            uptime_here: Duration::ZERO,
            uptime_at: now,
            uptime_before_ms: 0,
            uptime_ms: 0,
            address: String::new(),
            work: 0,
            run: Vec::with_capacity(RUN_MAX),
            now: Vec::new(),
            held: MarkedReplies::default(),
            pool: Vec::new(),
            statistics: Statistics::default(),
            host_figures: HostFigures::default(),
            rate: Rate::default(),
            saved_at_s: unix_now_s(),
            killed: Vec::new(),
            torn_bytes: 0,
            following: None,
        }
    }

    /// Ends a connection. What it was owed is dropped: its operations stay applied, and ids tell it so later.
    pub fn disconnect(&mut self, slot: usize) {
        if let Some(connection) = self.connections.remove(slot) {
            self.held_bytes -= connection.held.bytes();
            self.input_bytes -= connection.input_bytes;
        }
        self.waiting.retain(|&waiting| waiting != slot);
        self.stopped.retain(|&stopped| stopped != slot);
    }

    /// The client sends nothing more. What it sent is still answered, then the connection is closing.
    pub fn finish(&mut self, slot: usize) {
        if let Some(connection) = self.connection_mut(slot) {
            connection.finished = true;
        }
    }

    /// The connection in `slot`.
    #[must_use]
    pub fn connection(&self, slot: usize) -> Option<&Connection> {
        self.connections.slots.get(slot)?.as_deref()
    }

    /// The connection in `slot`, to take its requests for the host.
    pub fn connection_mut(&mut self, slot: usize) -> Option<&mut Connection> {
        self.connections.slots.get_mut(slot)?.as_deref_mut()
    }

    /// Takes a chunk as it came from the socket. Afterwards `replies` holds what may be written at once.
    /// An empty chunk goes on with input that was left because replies piled up, or the turn was over.
    pub fn feed(&mut self, slot: usize, chunk: &[u8]) -> Fed {
        self.now.clear();
        self.held.clear();
        self.work = 0;
        let Some(mut connection) = self.connections.take(slot) else { return Fed::default() };
        self.failing = self.journal.is_failing();
        self.unwritten = if self.failing { self.journal.unwritten() } else { None };
        self.update_uptime();
        self.statistics.bytes_received += chunk.len() as u64;
        connection.peer.heard_ms = self.uptime_ms;
        let was_crowded = connection.is_crowded();
        connection.stalled = false;
        connection.called = false;

        let mut input = std::mem::take(&mut connection.input);
        if input.is_empty() {
            let consumed = self.consume(&mut connection, chunk);
            input.extend_from_slice(chunk.get(consumed..).unwrap_or_default());
        } else {
            input.extend_from_slice(chunk);
            let consumed = self.consume(&mut connection, &input);
            input.drain(..consumed);
            if consumed > 0 && input.capacity() > INPUT_SPARE_BYTES {
                input.shrink_to(INPUT_SPARE_BYTES);
            }
        }
        connection.input = input;
        if connection.closing {
            connection.drop_unfinished();
        }
        self.count_input(&mut connection);

        self.hold(slot, &mut connection);
        if connection.stalled && connection.held.is_empty() && self.is_full() && !connection.stopped {
            connection.stopped = true;
            self.stopped.push(slot);
        }
        self.statistics.bytes_sent += self.now.len() as u64;
        // What stopped it has left with this chunk's replies, or was the end of its turn: it goes on after the others.
        connection.called = connection.stalled && !self.must_wait(&connection);
        let attend = connection.is_crowded() != was_crowded
            || connection.called
            || connection.is_closing()
            || !connection.host_requests.is_empty();
        self.connections.put_back(slot, connection);
        Fed { attend, commit: self.wants_commit() }
    }

    /// What the last `feed` has to send at once.
    #[must_use]
    pub fn replies(&self) -> &[u8] {
        &self.now
    }

    /// Parses and executes whole frames; gives the number of bytes used up.
    fn consume(&mut self, connection: &mut Connection, bytes: &[u8]) -> usize {
        if connection.closing {
            return bytes.len();
        }
        if let (Protocol::Unknown, Some(&first)) = (&connection.protocol, bytes.first()) {
            match Protocol::detect(first) {
                Some(protocol) => connection.protocol = protocol,
                None => {
                    connection.closing = true;
                    self.statistics.protocol_errors += 1;
                    return bytes.len();
                }
            }
        }
        match std::mem::replace(&mut connection.protocol, Protocol::Unknown) {
            Protocol::Unknown => 0,
            Protocol::MsgpackRpc(mut scanner) => {
                let consumed = self.consume_msgpack(connection, &mut scanner, bytes);
                connection.protocol = Protocol::MsgpackRpc(scanner);
                consumed
            }
            Protocol::Resp(mut state) => {
                let consumed = self.consume_resp(connection, &mut state, bytes);
                connection.protocol = Protocol::Resp(state);
                consumed
            }
        }
    }

    /// How large may its next frame be? Who hasn't sent the token has no business with large ones.
    fn frame_limits(&self, connection: &Connection) -> FrameLimits {
        let bytes_max = self.settings.frame_bytes_max;
        FrameLimits { bytes_max: if connection.authenticated { bytes_max } else { bytes_max.min(GREETING_BYTES_MAX) } }
    }

    /// Have this connection's replies piled up, those of this chunk included, or everybody's? Or is its turn over?
    fn is_piled_up(&self, connection: &Connection) -> bool {
        let own = self.now.len() + self.held.len() + connection.held.bytes();
        own > self.settings.reply_bytes_max || self.is_full() || self.work > TURN_WORK_MAX
    }

    /// Can its input go on only once held replies have left?
    fn must_wait(&self, connection: &Connection) -> bool {
        connection.held.bytes() > self.settings.reply_bytes_max || self.is_full()
    }

    /// Do held replies fill the bound for all connections?
    const fn is_full(&self) -> bool {
        self.held_bytes > self.settings.held_bytes_max
    }

    /// The commit that a reply made now must wait for: the newest one that has or will have content.
    fn stamp(&self) -> u64 {
        if self.state.is_dirty() { self.encoder.next_number() } else { self.handed_over }
    }

    /// Sorts the chunk's replies: what is covered already goes at once, the rest waits in the connection.
    fn hold(&mut self, slot: usize, connection: &mut Connection) {
        if self.held.is_empty() {
            return;
        }
        let stamp = self.stamp();
        let is_covered = stamp <= self.journal.durable() || is_planted(PlantedBug::ReplyBeforeCommit);
        if is_covered && connection.held.is_empty() {
            self.now.extend_from_slice(&self.held.bytes);
            return;
        }
        self.held_bytes -= connection.held.bytes();
        connection.held.push(stamp, &self.held, &mut self.pool);
        self.held_bytes += connection.held.bytes();
        if !connection.waiting {
            connection.waiting = true;
            self.waiting.push(slot);
        }
    }

    /// Should the host call `commit` soon? Says so once until it did.
    fn wants_commit(&mut self) -> bool {
        let wanted = !self.waiting.is_empty() || self.state.dirty.len() > EARLY_FLUSH_COUNTERS;
        let now = wanted && !self.commit_scheduled && !self.journal.in_flight() && self.state.is_dirty();
        self.commit_scheduled |= now;
        now
    }

    /// Drains what changed into one commit and hands it over, unless one is in flight or nothing changed.
    pub fn commit(&mut self) -> bool {
        self.commit_scheduled = false;
        if self.journal.in_flight() || !self.state.is_dirty() {
            return false;
        }
        self.update_uptime();
        // Nothing is in flight, so the last one is durable, unless the journal has ended.
        if self.handed_over <= self.journal.durable() {
            self.durable_uptime_ms = self.handed_over_uptime_ms;
        }
        self.handed_over_uptime_ms = self.uptime_ms;
        self.handed_over_counters = self.state.dirty.len();
        self.encoder.recycle(self.journal.take_buffer());
        let commit = self.state.drain(&mut self.encoder, self.uptime_ms);
        // Also if the journal refuses. While nothing is in flight only one that has ended does. Then the content is gone
        // from the queue and `is_failing` stays, so no change is taken any more; and no commit from this one on ever
        // becomes durable, so what is stamped with it, and every reply that is made later, is held for good.
        self.handed_over = commit.number;
        self.handed_over_at = self.clock.now();
        self.journal.submit(commit).is_ok()
    }

    /// After the commit thread woke the host: gives each connection the replies that may go now, as
    /// `deliver(slot, bytes, attend)`, and begins the next commit.
    pub fn release(&mut self, mut deliver: impl FnMut(usize, &[u8], bool)) {
        self.journal.clear_wake();
        let durable = self.journal.durable();
        let failures = self.journal.failures();
        let failed = std::mem::replace(&mut self.failures_seen, failures) != failures;
        self.failing = self.journal.is_failing();
        let mut out = std::mem::take(&mut self.now);
        let mut kept = 0;
        for index in 0..self.waiting.len() {
            let slot = self.waiting[index];
            let Some(connection) = self.connections.slots.get_mut(slot).and_then(Option::as_deref_mut) else {
                continue;
            };
            out.clear();
            self.held_bytes -= connection.held.bytes();
            connection.held.release(durable, &mut out, &mut self.pool);
            if failed && self.failing {
                connection.fail_held(&mut out, &mut self.pool);
            }
            self.held_bytes += connection.held.bytes();
            if connection.held.is_empty() {
                connection.waiting = false;
            } else {
                self.waiting[kept] = slot;
                kept += 1;
            }
            self.statistics.bytes_sent += out.len() as u64;
            deliver(slot, &out, connection.call());
        }
        self.waiting.truncate(kept);
        out.clear();
        self.now = out;
        if !self.is_full() {
            for slot in std::mem::take(&mut self.stopped) {
                let Some(connection) = self.connection_mut(slot) else { continue };
                connection.stopped = false;
                deliver(slot, &[], connection.call());
            }
        }
        if !self.waiting.is_empty() || self.state.dirty.len() > EARLY_FLUSH_COUNTERS {
            self.commit();
        }
    }

    /// Housekeeping, about ten times a second: write-behind of `applied` changes, expiry.
    pub fn tick(&mut self) {
        self.update_uptime();
        self.rate.note(self.uptime_ms, self.statistics.commands());
        self.state.expire(self.uptime_ms);
        if self.clock.now().saturating_duration_since(self.handed_over_at) >= self.settings.flush_interval
            || !self.waiting.is_empty()
        {
            self.commit();
        }
    }

    /// Commits until everything is durable. Blocks; false when the time ran out first.
    pub fn wait_durable(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.journal.in_flight() {
                match self.journal.wait_durable(self.handed_over, left) {
                    WaitOutcome::Durable | WaitOutcome::Failing => {}
                    WaitOutcome::Ended | WaitOutcome::TimedOut => return false,
                }
            } else if !self.commit() {
                return self.is_durable();
            }
        }
    }

    /// Is everything on disk and every reply out?
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_durable() && self.waiting.is_empty()
    }

    /// Is everything on disk?
    fn is_durable(&self) -> bool {
        !self.state.is_dirty() && self.handed_over <= self.journal.durable()
    }

    /// Counters whose changes aren't on disk.
    #[must_use]
    pub fn unwritten_counters(&self) -> usize {
        let in_flight = if self.handed_over <= self.journal.durable() { 0 } else { self.handed_over_counters };
        in_flight + self.state.dirty.len()
    }

    /// The commit thread's side, for its state and its wake-up.
    #[must_use]
    pub const fn journal(&self) -> &CommitThread {
        &self.journal
    }

    /// Ends the commit thread. Nothing is accepted afterwards.
    pub fn stop(&mut self) {
        self.journal.shutdown();
    }

    /// Replaces the tokens that let clients in. Who is in stays in.
    pub fn set_tokens(&mut self, tokens: Vec<Vec<u8>>) {
        self.settings.tokens = tokens;
    }

    /// Where clients reach this shard, for `topology`: it is alone in it.
    pub fn set_address(&mut self, address: &str) {
        self.address = address.to_owned();
    }

    /// What `topology` answers, encoded.
    #[must_use]
    pub fn topology(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write_topology(&mut out);
        out
    }

    /// Time in which the shard didn't run is no uptime: it may have been stopped, or its machine, while a client sent
    /// an operation again in time. What was remembered then must be remembered when that is read at last.
    fn update_uptime(&mut self) {
        let now = self.clock.now();
        self.uptime_here += now.saturating_duration_since(self.uptime_at).min(UPTIME_STEP_MAX);
        self.uptime_at = now;
        let run = u64::try_from(self.uptime_here.as_millis()).unwrap_or(u64::MAX);
        self.uptime_ms = self.uptime_before_ms.saturating_add(run);
    }

    /// The scratch for replies at this level.
    fn out(&mut self, level: Level) -> &mut Vec<u8> {
        match level {
            Level::Applied => &mut self.now,
            Level::Durable => &mut self.held.bytes,
        }
    }

    /// Parsed increments wait no longer: apply them, `reply` to each in order. Refusals that say nothing of any counter
    /// don't wait for a commit, unless held replies are `ahead` that must leave first.
    fn apply_run(
        &mut self,
        bytes: &[u8],
        ahead: Option<&HeldReplies>,
        mut reply: impl FnMut(&mut Vec<u8>, u32, Result<i64, ErrorCode>),
    ) {
        if self.run.is_empty() {
            return;
        }
        let mut run = std::mem::take(&mut self.run);
        let level = self.settings.level;
        for pending in &mut run {
            pending.likely = self.state.counters.prefetch_cell(pending.hash);
            if let Some(id) = pending.id {
                self.state.ids.prefetch(id.get(bytes));
            }
        }
        self.statistics.increments += run.len() as u64;
        let admitted = self.admit(run.len());
        for &Pending { hash, delta, likely, msgid, key, id } in &run {
            let (key, mut level) = (key.get(bytes), level);
            let outcome = match (id, admitted) {
                (None, Ok(())) => self.increment(likely, hash, key, delta),
                // With no room for all of them there may be room for this one.
                (None, Err(_)) => self.admit(1).and_then(|()| self.increment(likely, hash, key, delta)),
                (Some(id), _) => {
                    let (id, print) = (id.get(bytes), Fingerprint::of(Method::Incr, key, delta));
                    level = planted_bug::level_of(level, || self.state.ids.get(id, print) != Lookup::Unknown);
                    self.change_once(id, print, None, |shard| shard.increment(likely, hash, key, delta))
                }
            };
            let from = self.held.len();
            let refusal = outcome.err().map(ReplyKind::of_refusal);
            let at_once = refusal == Some(ReplyKind::Neutral) && ahead.is_none_or(|held| from == 0 && held.is_empty());
            reply(self.out(if at_once { Level::Applied } else { level }), msgid, outcome);
            if let Some(kind) = refusal {
                self.note_refusal(from, kind);
            }
        }
        self.run = run;
        self.run.clear();
    }

    /// Counts a refusal, which is what was held from `from` on, if it was.
    #[cold]
    fn note_refusal(&mut self, from: usize, kind: ReplyKind) {
        self.statistics.errors += 1;
        self.held.mark_from(from, kind);
    }
}
