//! What a commit holds that the disk would not take.
//!
//! Made by the commit thread after a failed attempt, so that a read meanwhile can tell values that are on disk from
//! values that hold a change which is not.

use crate::journal::entry::Entry;
use crate::journal::reader::entries_of;
use crate::journal::record::EncodedCommit;
use crate::placement::hash_ring::key_hash;

/// The counters that an unwritten commit changes.
#[derive(Debug, PartialEq, Eq)]
pub struct Unwritten {
    number: u64,
    /// It changes counters that it doesn't name: all were removed, or it can't be read.
    all: bool,
    /// Sorted hashes of the keys that it names. Two keys of one hash are both taken for changed.
    keys: Vec<u64>,
}

impl Unwritten {
    /// What `commit` changes.
    #[must_use]
    pub fn of(commit: &EncodedCommit) -> Self {
        let (mut all, mut keys) = (false, Vec::new());
        for entry in entries_of(&commit.bytes) {
            match entry {
                Ok(Entry::Counter { key, .. } | Entry::Deleted { key }) => keys.push(key_hash(key)),
                Ok(Entry::Cleared) | Err(_) => all = true,
                Ok(_) => {}
            }
        }
        keys.sort_unstable();
        Self { number: commit.number, all, keys }
    }

    /// The commit's number.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// May the commit change this counter?
    #[must_use]
    pub fn holds(&self, key: &[u8]) -> bool {
        self.all || self.keys.binary_search(&key_hash(key)).is_ok()
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;
    use crate::journal::record::{CommitEncoder, Position, ShardIdentity, Writer};

    fn encoder() -> CommitEncoder {
        let writer = Writer { identity: ShardIdentity([1; 16]), epoch: 1, writer_id: 1 };
        CommitEncoder::new(writer, Position::START)
    }

    #[test]
    fn it_knows_the_counters_that_the_commit_names_in_every_record() {
        let mut encoder = encoder();
        encoder.begin(1, 0);
        for number in 0..100_000 {
            encoder.put_counter(format!("changed {number}").as_bytes(), number);
        }
        encoder.put_deleted(b"deleted");
        let unwritten = Unwritten::of(&encoder.finish());
        assert_eq!(unwritten.number(), 1);
        assert!((0..100_000).all(|number| unwritten.holds(format!("changed {number}").as_bytes())));
        assert!(unwritten.holds(b"deleted") && !unwritten.holds(b"other"));
    }

    #[test]
    fn a_commit_that_removes_all_counters_changes_every_one() {
        let mut encoder = encoder();
        encoder.begin(1, 0);
        encoder.put(&Entry::Cleared);
        assert!(Unwritten::of(&encoder.finish()).holds(b"any"));
    }

    #[test]
    fn one_that_cannot_be_read_may_change_every_counter() {
        let mut encoder = encoder();
        encoder.begin(1, 0);
        encoder.put_counter(b"a", 1);
        let mut commit = encoder.finish();
        if let Some(last) = commit.bytes.last_mut() {
            *last = 0xff;
        }
        assert!(Unwritten::of(&commit).holds(b"any"));
    }
}
