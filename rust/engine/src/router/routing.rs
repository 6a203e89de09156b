//! Where an operation goes: to the home of its key, or elsewhere while that is unwell and the operation may.

use super::Router;
use super::core::Late;
use super::gather::{Gather, Wanted};
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use crate::error_code::ErrorCode;
use crate::placement::hash_ring::key_hash;
use crate::shard_link::Repeat;
use crate::wire::msgpack_rpc as rpc;
use crate::wire::request::{ChangeOptions, Level};

/// The clock may have gone on by so much since the host last told the time.
const CLOCK_SLACK_MS: u64 = 500;
/// A client that computes `born` from an earlier `hello` may be ahead by so much, as at a shard.
const BORN_AHEAD_MS: u64 = 5000;

/// How much of what is new a shard gets, and who gets the rest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Serving {
    /// 1.0 is healthy, 0.0 dead.
    pub weight: f64,
    /// Who takes what the shard doesn't.
    pub divert_to: Option<usize>,
    /// What of its next operation is due to it.
    due: f64,
}

impl Default for Serving {
    fn default() -> Self {
        Self::new(1.0, None)
    }
}

impl Serving {
    /// A shard's share of its own new operations, and who takes the others.
    #[must_use]
    pub const fn new(weight: f64, divert_to: Option<usize>) -> Self {
        Self { weight, divert_to, due: 0.0 }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.weight <= 0.0
    }
}

impl Router {
    /// Takes how each shard is served from now on; `true` if there is one for each.
    ///
    /// Increments that were never sent leave a shard with its weight.
    pub fn set_serving(&mut self, serving: &[Serving]) -> bool {
        let shards = self.links.len();
        let is_shard = |entry: &Serving| entry.divert_to.is_none_or(|other| other < shards);
        if serving.len() != shards || !serving.iter().all(is_shard) {
            return false;
        }
        let before = std::mem::replace(&mut self.serving, serving.to_vec());
        self.some_unhealthy = serving.iter().any(|entry| entry.weight < 1.0);
        for (shard, (before, now)) in before.iter().zip(serving).enumerate() {
            if now.weight < before.weight && now.divert_to.is_some() {
                // So much of what the last change left is to leave now.
                self.divert_unsent(shard, 1.0 - now.weight / before.weight);
            } else if now.is_dead() && !before.is_dead() {
                self.keep_unsent(shard);
            }
        }
        self.core.tell_late(&self.names);
        true
    }

    pub(super) fn is_strict(&self, key: &[u8]) -> bool {
        self.settings.strict.iter().any(|prefix| key.starts_with(prefix))
    }

    /// Queues an increment without id where it belongs.
    #[inline]
    pub(super) fn route_incr(&mut self, key: &[u8], delta: i64, level: Level, place: Place, ticket: u32, kind: Kind) {
        let hash = key_hash(key);
        let mut shard = self.ring.home_of_hash(hash);
        let waiter = Waiter { hash, place, ticket, kind };
        if self.some_unhealthy {
            match self.serving_shard(shard, key, hash) {
                Some(serving) => shard = serving,
                None if self.keep_unserved(key, delta, &waiter) => return,
                None => return self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, shard)),
            }
        }
        self.core.statistics.increments += 1;
        let deadline_ms = self.core.now_ms + self.settings.request_timeout_ms;
        self.send_incr(shard, key, delta, level, deadline_ms, waiter);
    }

    #[inline]
    pub(super) fn send_incr(
        &mut self,
        shard: usize,
        key: &[u8],
        delta: i64,
        level: Level,
        deadline_ms: u64,
        waiter: Waiter,
    ) {
        self.before_change(shard, waiter.hash);
        match self.links[shard].link.incr(key, delta, level, deadline_ms, waiter) {
            Ok(()) => self.core.stopwatches[shard].asked += 1,
            Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
        }
    }

    /// A change of a key is about to be queued at a shard: reads of it that have gathered go first, and what was loaded
    /// of it is old.
    #[inline]
    fn before_change(&mut self, shard: usize, hash: u64) {
        self.wants_flush = true;
        if self.links[shard].reads.may_read(hash) {
            self.send_reads(shard);
        }
        self.core.settled(hash);
    }

    /// Who takes a new increment whose home may be unwell. `None`: nobody.
    #[cold]
    fn serving_shard(&mut self, home: usize, key: &[u8], hash: u64) -> Option<usize> {
        let is_strict = self.serving[home].weight < 1.0 && self.is_strict(key);
        let serving = &mut self.serving[home];
        if serving.weight >= 1.0 {
            return Some(home);
        }
        let Some(other) = serving.divert_to.filter(|_| !is_strict) else {
            return (!serving.is_dead()).then_some(home);
        };
        serving.due += serving.weight;
        if serving.due >= 1.0 {
            serving.due -= 1.0;
            return Some(home);
        }
        // Before it is sent: who reads the key from now on asks there too.
        self.core.foreign.note(other, hash);
        self.core.statistics.diverted += 1;
        self.links[home].diverted += 1;
        Some(other)
    }

    /// The home of a key for an operation that must be done there. `None`: it is dead.
    fn home_or_none(&self, hash: u64) -> (usize, bool) {
        let home = self.ring.home_of_hash(hash);
        (home, self.some_unhealthy && self.serving[home].is_dead())
    }

    /// Passes an increment with an id on to the key's home. `params` are as they came.
    pub(super) fn pass_incr(
        &mut self,
        key: &[u8],
        delta: i64,
        options: &ChangeOptions<'_>,
        params: &[u8],
        (place, ticket): (Place, u32),
    ) {
        let hash = key_hash(key);
        let (home, is_dead) = self.home_or_none(hash);
        let waiter = Waiter { hash, place, ticket, kind: Kind::IncrWithId };
        let born = match options.born.map(|born| self.born_at(home, born)) {
            Some(None) => return self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, home)),
            born => born.flatten(),
        };
        if is_dead {
            return self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, home));
        }
        self.core.statistics.increments += 1;
        self.before_change(home, hash);
        match born {
            None => self.call_change(home, "incr", params, waiter),
            Some(born) => {
                let mut params = std::mem::take(&mut self.scratch);
                params.clear();
                rpc::write_array_len(&mut params, 3);
                rpc::write_bin(&mut params, key);
                rpc::write_i64(&mut params, delta);
                write_change_options(&mut params, options, born);
                self.call_change(home, "incr", &params, waiter);
                self.scratch = params;
            }
        }
    }

    /// A change under an id: sent again to the same shard only, and only in time.
    pub(super) fn call_change(&mut self, shard: usize, method: &str, params: &[u8], waiter: Waiter) {
        let deadline_ms = self.core.now_ms + self.settings.request_timeout_ms;
        let repeat = Repeat::SameShard { until_ms: deadline_ms };
        match self.links[shard].link.call(method, params, repeat, deadline_ms, waiter) {
            Ok(()) => self.core.stopwatches[shard].asked += 1,
            Err(waiter) => self.core.late.push(Late::Refused(waiter, ErrorCode::Overloaded, shard)),
        }
    }

    /// When an id was born, in a shard's time. Rather too early than too late: an id that is too old is refused, one
    /// that seems younger than it is could count twice. `None`: the shard's time isn't known yet.
    pub(super) fn born_at(&self, shard: usize, born: u64) -> Option<u64> {
        if born > self.core.now_ms + BORN_AHEAD_MS {
            // By another clock, as before the machine began anew: how old it is can't be told. The shard refuses what comes
            // from the future, unless it knows the id.
            return Some(u64::MAX);
        }
        let age = (self.core.now_ms + CLOCK_SLACK_MS).saturating_sub(born);
        // The shard's time when it last told it: it has gone on since, but never back.
        Some(self.core.shard_times[shard]?.saturating_sub(age))
    }

    /// Increments with ids, for a gather: those of each shard in one request. `born` holds for each of them.
    pub(super) fn pass_incr_group(&mut self, shard: usize, items: &[u8], options: &ChangeOptions<'_>, waiter: Waiter) {
        let born = match options.born.map(|born| self.born_at(shard, born)) {
            Some(None) => return self.core.late.push(Late::Refused(waiter, ErrorCode::Unavailable, shard)),
            born => born.flatten(),
        };
        let mut params = std::mem::take(&mut self.scratch);
        params.clear();
        rpc::write_array_len(&mut params, 2);
        params.extend_from_slice(items);
        rpc::write_map_len(&mut params, usize::from(born.is_some()) + usize::from(options.level.is_some()));
        if let Some(born) = born {
            rpc::write_str(&mut params, "born");
            rpc::write_u64(&mut params, born);
        }
        if let Some(level) = options.level {
            rpc::write_str(&mut params, "level");
            rpc::write_str(&mut params, level.name());
        }
        self.call_change(shard, "incr_many", &params, waiter);
        self.scratch = params;
    }

    /// Where a change of this key with an id goes. `Err`: its home is dead.
    pub(super) fn home_for_change(&mut self, key: &[u8]) -> (u64, Result<usize, usize>) {
        let hash = key_hash(key);
        let (home, is_dead) = self.home_or_none(hash);
        self.before_change(home, hash);
        (hash, if is_dead { Err(home) } else { Ok(home) })
    }

    /// Could a shard that may hold some of one of these keys be dead? Then the host knows what to do.
    pub(super) fn is_out_of_reach(&self, keys: &[&[u8]]) -> bool {
        self.some_unhealthy
            && keys.iter().any(|key| {
                let hash = key_hash(key);
                let holders = self.core.foreign.holders(hash);
                let mut asked = holders.into_iter().chain([self.ring.home_of_hash(hash)]);
                asked.any(|shard| self.serving[shard].is_dead())
            })
    }

    /// Reads one counter for a connection.
    pub(super) fn read_one(&mut self, key: &[u8], place: Place, ticket: u32, or_nil: bool) {
        let hash = key_hash(key);
        if self.core.foreign.is_foreign(hash) {
            let gather = self.core.begin_gather(Gather::new(Wanted::Value { or_nil }, place, ticket, 1));
            self.read_part(key, hash, gather, 0);
            self.core.late.push(Late::Begun(gather));
        } else {
            let kind = if or_nil { Kind::ReadOrNil } else { Kind::Read };
            self.read_at(self.ring.home_of_hash(hash), key, Waiter { hash, place, ticket, kind });
        }
    }

    /// Reads several counters for a connection.
    pub(super) fn read_many(&mut self, keys: &[&[u8]], place: Place, ticket: u32, or_nil: bool) {
        self.read_for(Wanted::Values { or_nil }, keys, place, ticket);
    }

    /// Reads counters for something that is made of them.
    pub(super) fn read_for(&mut self, wanted: Wanted, keys: &[&[u8]], place: Place, ticket: u32) {
        let gather = self.core.begin_gather(Gather::new(wanted, place, ticket, keys.len()));
        for (item, key) in (0..).zip(keys) {
            self.read_part(key, key_hash(key), gather, item);
        }
        self.core.late.push(Late::Begun(gather));
    }

    /// Reads counters of which the cache may know the values.
    pub(super) fn read_cached(&mut self, wanted: Wanted, keys: &[&[u8]], place: Place, ticket: u32) {
        let gather = self.core.begin_gather(Gather::new(wanted, place, ticket, keys.len()));
        for (item, key) in (0..).zip(keys) {
            let Some(cache) = &self.core.cache else { return };
            if let Some(cached) = cache.get(key) {
                self.core.statistics.cached_reads += 1;
                if let Some(gather) = self.core.gathers.get_mut(gather) {
                    gather.take(item, Ok(Some(i128::from(cached.value))));
                }
                continue;
            }
            // Before the shard is asked: a write in between makes what it answers too old to be kept.
            let version = cache.begin(key);
            if let Some(gather) = self.core.gathers.get_mut(gather) {
                gather.keep(item, key, version);
            }
            self.read_part(key, key_hash(key), gather, item);
        }
        self.core.late.push(Late::Begun(gather));
    }

    /// Reads an item of a gather: at the key's home, and wherever else some of it may be.
    pub(super) fn read_part(&mut self, key: &[u8], hash: u64, gather: Place, item: u32) {
        let home = self.ring.home_of_hash(hash);
        let waiter = Waiter { hash, place: gather, ticket: item, kind: Kind::PartRead };
        let holders = self.core.foreign.holders(hash);
        for shard in holders.into_iter().filter(|&shard| shard != home).chain([home]) {
            if let Some(gather) = self.core.gathers.get_mut(gather) {
                gather.expect();
            }
            self.read_at(shard, key, waiter);
        }
    }
}

/// Options of a change with an id; when that was born is in the shard's time.
fn write_change_options(out: &mut Vec<u8>, options: &ChangeOptions<'_>, born: u64) {
    let ChangeOptions { id, born: _, level, detail } = *options;
    rpc::write_map_len(out, 2 + usize::from(id.is_some()) + usize::from(level.is_some()));
    if let Some(id) = id {
        rpc::write_str(out, "id");
        rpc::write_bin(out, id);
    }
    if let Some(level) = level {
        rpc::write_str(out, "level");
        rpc::write_str(out, level.name());
    }
    rpc::write_str(out, "born");
    rpc::write_u64(out, born);
    rpc::write_str(out, "detail");
    rpc::write_bool(out, detail);
}

/// What a shard is asked its time with.
pub(super) fn hello_params(token: Option<&[u8]>) -> Vec<u8> {
    let mut params = Vec::new();
    rpc::write_array_len(&mut params, 1);
    rpc::write_map_len(&mut params, usize::from(token.is_some()));
    if let Some(token) = token {
        rpc::write_str(&mut params, "token");
        rpc::write_bin(&mut params, token);
    }
    params
}
