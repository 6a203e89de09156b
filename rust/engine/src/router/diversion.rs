//! Increments that leave a shard before they were sent, and the reads behind them.

use hashbrown::HashMap;

use super::Router;
use super::core::Core;
use super::gather::{Gather, Wanted};
use super::slab::Place;
use super::waiter::{Kind, Waiter};
use super::whole_counters::WholeCommand;
use crate::wire::request::Level;

/// An increment that was never sent.
struct Unsent {
    key: Vec<u8>,
    delta: i64,
    level: Level,
    deadline_ms: u64,
    waiter: Waiter,
}

/// An increment that went to another shard than the reads behind it.
struct Moved {
    asker: (Place, u32),
    key: Vec<u8>,
    to: usize,
}

impl Router {
    /// Gives a share of the increments that a shard was never sent to another one.
    pub(super) fn divert_unsent(&mut self, shard: usize, share: f64) {
        let mut taken = Vec::new();
        self.links[shard].link.take_unsent(share, |key, delta, level, deadline_ms, waiter| {
            taken.push(Unsent { key: key.to_vec(), delta, level, deadline_ms, waiter });
        });
        self.core.stopwatches[shard].answered += taken.len() as u64;
        let mut moved: HashMap<u64, Vec<Moved>> = HashMap::new();
        for Unsent { key, delta, level, deadline_ms, waiter } in taken {
            let serving = self.serving[shard];
            let to = match serving.divert_to {
                Some(other) if !self.is_strict(&key) => {
                    // Reads of a key that is known to be there ask there already.
                    if !self.core.foreign.holders(waiter.hash).contains(&other) || moved.contains_key(&waiter.hash) {
                        let (asker, key) = (self.core.asker(&waiter), key.clone());
                        moved.entry(waiter.hash).or_default().push(Moved { asker, key, to: other });
                    }
                    self.core.foreign.note(other, waiter.hash);
                    self.core.statistics.diverted += 1;
                    self.links[self.ring.home_of_hash(waiter.hash)].diverted += 1;
                    other
                }
                _ if serving.is_dead() && self.keep_unserved(&key, delta, &waiter) => continue,
                _ => shard,
            };
            self.send_incr(to, &key, delta, level, deadline_ms, waiter);
        }
        if !moved.is_empty() {
            self.read_where_moved(shard, &moved);
        }
    }

    /// Reads that came behind moved increments on their connections ask where those went, too.
    fn read_where_moved(&mut self, shard: usize, moved: &HashMap<u64, Vec<Moved>>) {
        let mut reads = Vec::new();
        let mut waiters: Vec<Waiter> = self.links[shard].reads.waiters.clone();
        let waiting = waiters.len();
        let groups = self.core.read_groups.iter().filter(|group| group.shard == shard);
        groups.for_each(|group| waiters.extend(&group.waiters));
        // A command that needs counters whole asks every shard, once all before it is answered.
        for waiter in waiters.iter_mut().filter(|waiter| waiter.kind != Kind::PartOfWhole) {
            let asker = self.core.asker(waiter);
            let is_before = |one: &&Moved| one.asker.0 == asker.0 && asker.1.wrapping_sub(one.asker.1) as i32 > 0;
            if let Some(one) = moved.get(&waiter.hash).and_then(|all| all.iter().find(is_before)) {
                *waiter = self.core.with_one_more(*waiter);
                reads.push((one.to, &one.key, *waiter));
            }
        }
        self.links[shard].reads.waiters.copy_from_slice(&waiters[..waiting]);
        let mut rest = &waiters[waiting..];
        for group in self.core.read_groups.iter_mut().filter(|group| group.shard == shard) {
            let (own, after) = rest.split_at(group.waiters.len());
            group.waiters.copy_from_slice(own);
            rest = after;
        }
        for (to, key, waiter) in reads {
            self.read_at(to, key, waiter);
        }
    }
}

impl Core {
    /// The request that a waiter's answer is for, or is a part of.
    fn asker(&self, waiter: &Waiter) -> (Place, u32) {
        match waiter.kind {
            Kind::PartIncr | Kind::PartRead => {
                self.gathers.get(waiter.place).map_or((Place::NOWHERE, 0), Gather::asker)
            }
            Kind::PartOfWhole | Kind::SetWhole => {
                self.wholes.get(waiter.place).map_or((Place::NOWHERE, 0), WholeCommand::asker)
            }
            _ => (waiter.place, waiter.ticket),
        }
    }

    /// A read becomes one part of two: gives who waits for each.
    fn with_one_more(&mut self, waiter: Waiter) -> Waiter {
        if let (Kind::PartRead, Some(gather)) = (waiter.kind, self.gathers.get_mut(waiter.place)) {
            gather.expect();
            return waiter;
        }
        let wanted = Wanted::Value { or_nil: waiter.kind == Kind::ReadOrNil };
        let mut gather = Gather::new(wanted, waiter.place, waiter.ticket, 1);
        gather.expect();
        // It begins with one answer more: that of the read which is under way.
        Waiter { place: self.begin_gather(gather), ticket: 0, kind: Kind::PartRead, ..waiter }
    }
}
