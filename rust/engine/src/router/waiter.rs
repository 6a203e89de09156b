//! Who waits for an answer of a shard.

use super::slab::Place;

/// What the answer is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Of a connection: an increment's value.
    Incr,
    /// The same, with level and commit.
    IncrDetail,
    /// The same of an increment that was passed on with its id, in either form.
    IncrWithId,
    /// A result that is passed on as it is.
    Passed,
    /// A counter's value, 0 where there is none.
    Read,
    /// A counter's value, nil where there is none.
    ReadOrNil,
    /// Of a gather: its item `ticket` is an increment.
    PartIncr,
    /// Of a gather: a part of its item `ticket`.
    PartRead,
    /// Of a group of reads that went out in one request.
    ReadGroup,
    /// Of a group of increments with ids that went out in one request.
    IncrGroup,
    /// Of a command that needs counters whole: a shard's part of its counter `ticket`.
    PartOfWhole,
    /// Of such a command: an increment that makes a total what it shall be.
    SetWhole,
    /// Of a group of removals that went out in one request.
    RemovalGroup,
    /// How many counters the shard has.
    Count,
    /// What time it is at the shard.
    ShardTime,
}

impl Kind {
    /// Is it an increment of the waiter's key?
    pub(super) const fn is_change(self) -> bool {
        matches!(self, Self::Incr | Self::IncrDetail | Self::IncrWithId | Self::PartIncr | Self::SetWhole)
    }
}

/// Who waits for an answer of a shard, and what for. It goes with the request and comes back with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter {
    /// Of the key, where it is about one.
    pub(super) hash: u64,
    /// The connection, gather or group.
    pub(super) place: Place,
    /// Which of its replies or items: a msgid, a place in a RESP connection's row, an index.
    pub(super) ticket: u32,
    pub(super) kind: Kind,
}
