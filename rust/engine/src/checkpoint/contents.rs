//! A folder's counters, read without changing it: its pages merged with the log's changes, part by part.

use super::{CheckpointError, Fold, Root, Windows};
use crate::journal::entry::Entry;
use crate::operation_id_table::OperationIdSettings;
use crate::session_table::SessionSettings;

/// The counters of a checkpoint and the log behind it, in the order of places, which depends only on the keys. Memory:
/// the counters changed by the log, and one page.
pub struct Contents {
    fold: Fold,
    /// For each page: its index in the root, and the fold's step that changes it.
    parts: Vec<(Option<usize>, Option<usize>)>,
}

impl Contents {
    /// Begins with a checkpoint's pages.
    #[must_use]
    pub fn new(root: &Root) -> Self {
        // Irrelevant: sessions and ids are skipped.
        let windows = Windows { sessions: SessionSettings::default(), ids: OperationIdSettings::default() };
        Self { fold: Fold::new(root, root.fold + 1, windows), parts: Vec::new() }
    }

    /// Adds the next entry of the log; sessions and ids are skipped.
    ///
    /// # Errors
    /// `Memory` if there is none for another counter.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<(), CheckpointError> {
        match entry {
            Entry::Counter { .. } | Entry::Deleted { .. } | Entry::Cleared => self.fold.add(entry),
            _ => Ok(()),
        }
    }

    /// Ends the input once the whole log was added, and determines the parts.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn seal(&mut self) -> Result<(), CheckpointError> {
        self.fold.seal(self.fold.root().position)?;
        self.parts = self.fold.parts();
        Ok(())
    }

    /// How many parts there are to read.
    #[must_use]
    pub const fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The row that a part needs, `None` if it needs none.
    #[must_use]
    pub fn key(&self, part: usize) -> Option<Vec<u8>> {
        let page = self.parts.get(part)?.0?;
        self.fold.root().page_key(page)
    }

    /// Passes every counter of a part to `sink`.
    ///
    /// # Errors
    /// The row doesn't match the root.
    pub fn read(
        &self,
        part: usize,
        row: Option<&[u8]>,
        sink: &mut dyn FnMut(&[u8], i64),
    ) -> Result<(), CheckpointError> {
        let mut counters = |entry: &Entry<'_>| {
            if let Entry::Counter { key, value } = entry {
                sink(key, *value);
            }
        };
        match self.parts.get(part) {
            Some((_, Some(step))) => self.fold.read(*step, row, &mut |_, entry| counters(entry)),
            Some((Some(_), None)) => {
                let key = self.key(part).unwrap_or_default();
                self.fold.root().read_page(&key, row, &mut counters)
            }
            _ => Ok(()),
        }
    }
}
