//! Writing a whole checkpoint from counters in the order of places, as [`Contents`](super::Contents) gives them.

use super::{PageWriter, Root, Row, page_rows, place};
use crate::journal::entry::Entry;
use crate::journal::record::ShardIdentity;

/// Makes the pages of a new shard and then its root. Memory: some pages.
#[derive(Debug)]
pub struct CheckpointWriter {
    root: Root,
    writer: PageWriter,
    counters: u64,
}

impl CheckpointWriter {
    /// For a shard that has no commits yet: the checkpoint is what it begins with.
    #[must_use]
    pub fn new(identity: ShardIdentity, uptime_ms: u64) -> Self {
        let root = Root { fold: 1, uptime_ms, ..Root::empty(identity) };
        Self { root, writer: PageWriter::new(0), counters: 0 }
    }

    /// Takes the next counter.
    pub fn put(&mut self, key: &[u8], value: i64) {
        let entry = Entry::Counter { key, value };
        self.writer.put(place(&entry), &entry);
        self.counters += 1;
    }

    /// How many counters it took.
    #[must_use]
    pub const fn counters(&self) -> u64 {
        self.counters
    }

    /// The rows of pages that are full.
    pub fn take_rows(&mut self) -> Vec<Row> {
        // The last two stay: a small last page joins the one before it.
        let full = self.writer.pages.len().saturating_sub(2);
        let bodies = self.writer.pages.drain(..full).collect();
        page_rows(&self.root.identity, self.root.fold, bodies, &mut self.root.pages)
    }

    /// The rows of the last pages, the root's row, and the root.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Row>, Vec<u8>, Root) {
        let mut rows = self.take_rows();
        rows.extend(page_rows(&self.root.identity, self.root.fold, self.writer.finish(), &mut self.root.pages));
        let row = self.root.encode();
        (rows, row, self.root)
    }
}
