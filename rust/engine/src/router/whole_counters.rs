//! Commands that need counters whole, on whatever shards they lie: SET, GETDEL, DEL, `delete_many`.
//!
//! A command reads its keys at every shard first. Then SET adds the difference at the key's home, in the link's session,
//! and the others delete at the shards where the read found something, each counter under an id of its own. An item that
//! came with an id is deleted at every shard under that id, unread. Reads and removals of all commands of one turn of the
//! loop travel to a shard together.
//!
//! RESP's commands begin once all before them are answered that aren't of this kind and of other keys, and any others wait
//! for their answers. Each half of a command has half of the time for a request.

use super::Router;
use super::connection::Connection;
use super::core::Late;
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::error_code::ErrorCode;
use crate::placement::hash_ring::key_hash;
use crate::shard_link::Repeat;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::request::{ChangeOptions, Item, Level};
use crate::wire::resp;

/// What is done with counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Make its value this.
    Set {
        value: i64,
        /// Answer the value before.
        get: bool,
    },
    /// Delete it, and answer its value.
    GetDel,
    /// Delete them, and answer how many there were.
    Del,
    /// Delete them, and answer what each had.
    DeleteMany,
}

impl What {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Set { .. } => "SET",
            Self::GetDel => "GETDEL",
            Self::Del => "DEL",
            Self::DeleteMany => "delete_many",
        }
    }
}

/// One counter of a command.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) hash: u64,
    pub(super) key: Box<[u8]>,
    /// The client's own.
    pub(super) id: Option<Box<[u8]>>,
    /// By shard, what it holds.
    pub(super) held: Vec<Option<i64>>,
    pub(super) taken: i128,
    /// Some shard has taken its part.
    pub(super) is_applied: bool,
    /// Nobody knows it of some shard.
    pub(super) is_unknown: bool,
    pub(super) error: Option<ErrorCode>,
}

impl Whole {
    pub(super) fn is_found(&self) -> bool {
        self.held.iter().any(Option::is_some)
    }

    pub(super) fn total(&self) -> i128 {
        self.held.iter().flatten().map(|&value| i128::from(value)).sum()
    }

    /// What the client is told of a counter that was to be deleted.
    pub(super) const fn outcome(&self) -> Result<i128, ErrorCode> {
        match self.error {
            None => Ok(self.taken),
            Some(_) if self.is_applied || self.is_unknown => Err(ErrorCode::UnknownOutcome),
            Some(code) => Err(code),
        }
    }
}

/// A command that is under way.
#[derive(Debug)]
pub(super) struct WholeCommand {
    pub(super) what: What,
    pub(super) connection: Place,
    pub(super) ticket: u32,
    pub(super) level: Level,
    /// When the client's ids were born, in the coordinator's time.
    pub(super) born: Option<u64>,
    /// With `{values, level, commit}`.
    pub(super) detail: bool,
    /// Until when it may begin to change something.
    pub(super) change_by_ms: u64,
    pub(super) wholes: Vec<Whole>,
    /// Of SET: what was there before.
    pub(super) before: Option<i128>,
    /// What is left to add.
    pub(super) difference: i128,
    /// Some of it was added.
    pub(super) is_partly_added: bool,
    /// Answers that are missing.
    pub(super) lacking: usize,
    /// The first error, for people.
    pub(super) message: String,
    pub(super) error: Option<ErrorCode>,
    pub(super) is_changing: bool,
    pub(super) bytes: usize,
}

impl WholeCommand {
    pub(super) const fn asker(&self) -> (Place, u32) {
        (self.connection, self.ticket)
    }

    pub(super) fn fail(&mut self, code: ErrorCode, message: &str) {
        if self.error.is_none() {
            self.error = Some(code);
            message.clone_into(&mut self.message);
        }
    }

    /// What is left to add, as far as one increment goes.
    pub(super) fn step(&self) -> i64 {
        self.difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

/// Removals that gather for a shard.
#[derive(Debug, Default)]
pub(super) struct RemovalBatch {
    /// Encoded items.
    items: Vec<u8>,
    waiters: Vec<Waiter>,
}

impl RemovalBatch {
    fn push(&mut self, key: &[u8], id: &[u8], waiter: Waiter) {
        rpc::write_array_len(&mut self.items, 2);
        rpc::write_bin(&mut self.items, key);
        rpc::write_bin(&mut self.items, id);
        self.waiters.push(waiter);
    }
}

/// What holds for all removals of a request.
#[derive(Debug, Clone, Copy)]
struct RemovalOptions {
    level: Level,
    born: Option<u64>,
}

/// Those of one request.
#[derive(Debug)]
pub(super) struct RemovalGroup {
    pub(super) waiters: Vec<Waiter>,
}

impl Router {
    /// Begins a command of RESP that may begin.
    pub(super) fn begin_whole(
        &mut self,
        place: Place,
        connection: &mut Connection,
        what: What,
        keys: &[&[u8]],
        text: &mut Vec<u8>,
    ) {
        if let Some(message) = self.unreachable(what.name()) {
            return resp::write_error(text, ErrorCode::Unavailable, &message);
        }
        let mut keys = keys.to_vec();
        if keys.len() > 1 {
            keys.sort_unstable();
            keys.dedup();
        }
        let ticket = connection.replies.push();
        let options = ChangeOptions { level: None, ..ChangeOptions::default() };
        self.begin_wholes(what, (place, ticket), &options, keys.into_iter().map(|key| (key, None)));
    }

    /// `delete_many`.
    pub(super) fn delete_many(&mut self, asker: (Place, u32), items: &[Item<'_>], options: &ChangeOptions<'_>) {
        self.begin_wholes(What::DeleteMany, asker, options, items.iter().map(|item| (item.key, item.id)));
    }

    /// Why a command that needs every shard can't be done.
    pub(super) fn unreachable(&self, name: &str) -> Option<String> {
        let dead = |(shard, serving): (&String, &super::Serving)| serving.is_dead().then(|| shard.clone());
        let dead: Vec<String> = self.names.iter().zip(&self.serving).filter_map(dead).collect();
        let dead = dead.join(", ");
        (!dead.is_empty())
            .then(|| format!("{name} needs every shard, and {dead} can't be reached: nothing was applied"))
    }

    fn begin_wholes<'a>(
        &mut self,
        what: What,
        (connection, ticket): (Place, u32),
        options: &ChangeOptions<'_>,
        items: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) {
        let shards = self.links.len();
        let wholes: Vec<Whole> = items
            .map(|(key, id)| Whole {
                hash: key_hash(key),
                key: key.into(),
                id: id.map(Into::into),
                held: vec![None; shards],
                taken: 0,
                is_applied: false,
                is_unknown: false,
                // An empty key is a bad one's place.
                error: key.is_empty().then_some(ErrorCode::BadKey),
            })
            .collect();
        let size = |whole: &Whole| size_of::<Whole>() + whole.key.len() + shards * size_of::<Option<i64>>();
        let bytes = size_of::<WholeCommand>() + wholes.iter().map(size).sum::<usize>();
        let reads: Vec<(u64, u32, Box<[u8]>)> = (0..)
            .zip(&wholes)
            .filter(|(_, whole)| whole.id.is_none() && whole.error.is_none())
            .map(|(index, whole)| (whole.hash, index, whole.key.clone()))
            .collect();
        let command = WholeCommand {
            what,
            connection,
            ticket,
            level: options.level.unwrap_or(self.settings.level),
            born: options.born,
            detail: options.detail,
            change_by_ms: self.core.now_ms + self.half_time_ms(),
            wholes,
            before: None,
            difference: 0,
            is_partly_added: false,
            // The one more is taken back by `Late::BegunWhole`.
            lacking: reads.len() * shards + 1,
            message: String::new(),
            error: None,
            is_changing: false,
            bytes,
        };
        self.core.held_bytes += bytes;
        self.core.statistics.whole_commands += 1;
        let place = self.core.wholes.insert(command);
        for (hash, ticket, key) in reads {
            let waiter = Waiter { hash, place, ticket, kind: Kind::PartOfWhole };
            for shard in 0..shards {
                self.read_at(shard, &key, waiter);
            }
        }
        self.core.late.push(Late::BegunWhole(place));
        self.wants_flush = true;
    }

    /// Changes what was read, for every command whose answers have come; before the links' flush.
    pub(super) fn go_on_with_wholes(&mut self) {
        for place in std::mem::take(&mut self.core.read_wholes) {
            let Some(mut command) = self.core.wholes.take(place) else { continue };
            command.is_changing = true;
            command.lacking = 1;
            match command.what {
                What::Set { .. } => self.add_difference(place, &mut command),
                _ => self.remove_found(place, &mut command),
            }
            self.core.wholes.put_back(place, command);
            self.core.one_less_of_whole(place);
        }
        let options = RemovalOptions { level: self.settings.level, born: None };
        for shard in 0..self.links.len() {
            let batch = std::mem::take(&mut self.links[shard].removals);
            self.send_removals(shard, batch, options);
        }
    }

    fn add_difference(&mut self, place: Place, command: &mut WholeCommand) {
        let Some(whole) = command.wholes.first() else { return };
        let home = self.ring.home_of_hash(whole.hash);
        // Steps of 64 bits in one direction: what lies between is at home within 64 bits if the end is.
        let at_home = i128::from(whole.held.get(home).copied().flatten().unwrap_or(0)) + command.difference;
        if !command.is_partly_added && i64::try_from(at_home).is_err() {
            let message = "its part at home would leave the range of 64 bits; nothing was applied";
            return command.fail(ErrorCode::Overflow, message);
        }
        command.lacking += 1;
        let waiter = Waiter { hash: whole.hash, place, ticket: 0, kind: Kind::SetWhole };
        let deadline_ms = self.core.now_ms + self.half_time_ms();
        self.core.statistics.increments += 1;
        self.send_incr(home, &whole.key, command.step(), command.level, deadline_ms, waiter);
    }

    fn remove_found(&mut self, place: Place, command: &mut WholeCommand) {
        let shards = self.links.len();
        let bytes_max = self.group_bytes_max();
        let own = RemovalOptions { level: command.level, born: None };
        let with_ids = RemovalOptions { born: command.born, ..own };
        // What can't travel with other commands' removals, by shard.
        let mut apart: Vec<RemovalBatch> = Vec::new();
        let mut apart_with_ids: Vec<RemovalBatch> = Vec::new();
        for (ticket, whole) in (0..).zip(&command.wholes).filter(|(_, whole)| whole.error.is_none()) {
            self.core.settled(whole.hash);
            self.core.partials.forget(whole.hash, shards);
            let waiter = Waiter { hash: whole.hash, place, ticket, kind: Kind::PartOfWhole };
            for shard in 0..shards {
                if whole.id.is_none() && whole.held.get(shard).is_none_or(Option::is_none) {
                    continue;
                }
                command.lacking += 1;
                let own_id = self.new_operation_id();
                let (batch, options) = match &whole.id {
                    Some(_) => (batch_of(&mut apart_with_ids, shard, shards), with_ids),
                    None if own.level == self.settings.level => (&mut self.links[shard].removals, own),
                    None => (batch_of(&mut apart, shard, shards), own),
                };
                batch.push(&whole.key, whole.id.as_deref().unwrap_or(&own_id), waiter);
                if batch.items.len() >= bytes_max {
                    let batch = std::mem::take(batch);
                    self.send_removals(shard, batch, options);
                }
            }
        }
        for (batches, options) in [(apart, own), (apart_with_ids, with_ids)] {
            for (shard, batch) in batches.into_iter().enumerate() {
                self.send_removals(shard, batch, options);
            }
        }
    }

    /// Sends removals that have gathered.
    fn send_removals(&mut self, shard: usize, RemovalBatch { items, waiters }: RemovalBatch, options: RemovalOptions) {
        if waiters.is_empty() {
            return;
        }
        let count = waiters.len();
        let group = self.core.removal_groups.insert(RemovalGroup { waiters });
        let waiter = Waiter { hash: 0, place: group, ticket: 0, kind: Kind::RemovalGroup };
        let born = match options.born.map(|born| self.born_at(shard, born)) {
            Some(None) => return self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, shard)),
            born => born.flatten(),
        };
        let params = &mut self.scratch;
        params.clear();
        rpc::write_array_len(params, 2);
        rpc::write_array_len(params, count);
        params.extend_from_slice(&items);
        rpc::write_map_len(params, 2 + usize::from(born.is_some()));
        rpc::write_str(params, "detail");
        rpc::write_bool(params, true);
        rpc::write_str(params, "level");
        rpc::write_str(params, options.level.name());
        if let Some(born) = born {
            rpc::write_str(params, "born");
            rpc::write_u64(params, born);
        }
        let deadline_ms = self.core.now_ms + self.half_time_ms();
        let repeat = Repeat::SameShard { until_ms: deadline_ms };
        match self.links[shard].link.call("delete_many", &self.scratch, repeat, deadline_ms, waiter) {
            Ok(()) => self.core.stopwatches[shard].asked += 1,
            Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
        }
    }

    const fn half_time_ms(&self) -> u64 {
        self.settings.request_timeout_ms / 2
    }

    /// An id that no other operation has: chance, and a number.
    fn new_operation_id(&mut self) -> [u8; 16] {
        self.last_operation_id += 1;
        let mut id = self.operation_ids;
        id[8..].copy_from_slice(&self.last_operation_id.to_le_bytes());
        id
    }
}

fn batch_of(batches: &mut Vec<RemovalBatch>, shard: usize, shards: usize) -> &mut RemovalBatch {
    if batches.is_empty() {
        batches.resize_with(shards, RemovalBatch::default);
    }
    &mut batches[shard]
}
