//! Folding: merging changes read from the log into their pages.

use super::{
    CheckpointError, PageInfo, PageReader, PageWriter, Root, Row, Windows, is_counter, name, open_page, page_rows,
    place,
};
use crate::counter_store::{CounterRef, CounterStore, RestoreRow};
use crate::journal::entry::{Entry, EntryError, EntryReader};
use crate::journal::record::Position;
use crate::planted_bug::{self, PlantedBug, is_planted};
use crate::session_table::row::merge_session_entry;

/// Changes read from the log, to be merged into pages.
pub struct Fold {
    root: Root,
    next: Root,
    windows: Windows,
    /// The changed counters with their last values: a hot counter is in thousands of commits but only once here. Absent
    /// ones were deleted.
    counters: CounterStore,
    restoring: RestoreRow,
    /// Encoded entries of sessions and ids, in the order of the log.
    arena: Vec<u8>,
    /// The entries of sessions and ids; after `seal`, of counters too, sorted by place. Within a place they keep the
    /// order of the log.
    changes: Vec<Change>,
    cleared: bool,
    steps: Vec<Step>,
    garbage: Vec<Vec<u8>>,
}

/// A counter's last change, or one entry of a session or an id.
#[derive(Debug, Clone, Copy)]
struct Change {
    place: u64,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Counter(CounterRef),
    /// The entry's range in the arena.
    Entry(usize),
}

/// One page to rewrite, with its share of the changes.
#[derive(Debug, Clone)]
struct Step {
    /// The index of the page in the old root; `None` if there is no page yet.
    page: Option<usize>,
    changes: std::ops::Range<usize>,
}

impl Fold {
    /// Begins a fold on top of `root`. Its number must be above those of all earlier folds, including failed ones.
    #[must_use]
    pub fn new(root: &Root, number: u64, windows: Windows) -> Self {
        let mut next = root.clone();
        next.fold = number;
        next.pages.clear();
        Self {
            root: root.clone(),
            next,
            windows,
            counters: CounterStore::new().without_stripes(),
            restoring: RestoreRow::default(),
            arena: Vec::new(),
            changes: Vec::new(),
            cleared: false,
            steps: Vec::new(),
            garbage: Vec::new(),
        }
    }

    /// Adds the next entry of the log.
    ///
    /// # Errors
    /// `Memory` if there is none for another counter.
    pub fn add(&mut self, entry: &Entry<'_>) -> Result<(), CheckpointError> {
        match entry {
            Entry::Counter { key, value } => self.restoring.push(&mut self.counters, key, Some(*value))?,
            Entry::Deleted { key } => self.restoring.push(&mut self.counters, key, None)?,
            Entry::Cleared => {
                self.cleared = true;
                // Earlier values no longer matter. Sessions and ids stay.
                self.restoring = RestoreRow::default();
                self.counters.clear();
            }
            Entry::Uptime { uptime_ms } => self.next.uptime_ms = *uptime_ms,
            Entry::OperationId { .. } | Entry::Session { .. } if is_planted(PlantedBug::ResultsLostAtCheckpoint) => {
                planted_bug::without_results(entry).inspect(|entry| self.push(entry));
            }
            _ => self.push(entry),
        }
        Ok(())
    }

    /// Memory used by the changes, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let counters = usize::try_from(self.counters.memory_bytes()).unwrap_or(usize::MAX);
        self.arena.len() + counters + (self.changes.len() + self.counters.len()) * size_of::<Change>()
    }

    fn push(&mut self, entry: &Entry<'_>) {
        self.changes.push(Change { place: place(entry), what: What::Entry(self.arena.len()) });
        entry.encode(&mut self.arena);
    }

    fn entry(&self, change: Change) -> Result<Entry<'_>, CheckpointError> {
        match change.what {
            What::Counter(counter) => {
                let key = self.counters.key(counter);
                Ok(self.counters.get(counter).map_or(Entry::Deleted { key }, |value| Entry::Counter { key, value }))
            }
            What::Entry(offset) => {
                let bytes = self.arena.get(offset..).unwrap_or_default();
                Ok(EntryReader::new(bytes).next().unwrap_or(Err(EntryError::Short))?)
            }
        }
    }

    /// Ends the input once all entries up to `position` were added, and determines which pages to rewrite.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn seal(&mut self, position: Position) -> Result<(), CheckpointError> {
        self.restoring.flush(&mut self.counters)?;
        self.next.position = position;
        let (counters, changes) = (&self.counters, &mut self.changes);
        counters.for_each_ref(|counter| {
            let place = place(&Entry::Deleted { key: counters.key(counter) });
            changes.push(Change { place, what: What::Counter(counter) });
        });
        // Stable: entries of one session or id keep the order of the log.
        changes.sort_by_key(|change| change.place);
        let pages = &self.root.pages;
        if pages.is_empty() {
            self.steps.push(Step { page: None, changes: 0..self.changes.len() });
            return Ok(());
        }
        let mut from = 0;
        for index in 0..pages.len() {
            let end = pages.get(index + 1).map_or(self.changes.len(), |next| {
                from + self.changes[from..].partition_point(|change| change.place < next.start)
            });
            if end > from || self.cleared {
                self.steps.push(Step { page: Some(index), changes: from..end });
            } else {
                self.next.pages.push(pages[index]);
            }
            from = end;
        }
        Ok(())
    }

    /// The last commit folded in.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.next.position
    }

    /// How many commits this fold adds to the old root.
    #[must_use]
    pub const fn commits(&self) -> u64 {
        self.next.position.commit - self.root.position.commit
    }

    /// How many pages will be rewritten.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The row that `merge` needs for this step, `None` if it needs none.
    #[must_use]
    pub fn old_key(&self, step: usize) -> Option<Vec<u8>> {
        self.steps.get(step)?.page.map(|index| self.root.pages[index].key())
    }

    /// Merges one step's changes into its old page and returns the rows to put.
    pub fn merge(&mut self, step: usize, old_row: Option<&[u8]>) -> Result<Vec<Row>, CheckpointError> {
        let Some(Step { page, .. }) = self.steps.get(step) else { return Ok(Vec::new()) };
        let page = page.map(|index| self.root.pages[index]);
        self.garbage.extend(page.as_ref().map(PageInfo::key));
        let mut writer = PageWriter::new(page.map_or(0, |page| page.start));
        self.read(step, old_row, &mut |at, entry| writer.put(at, entry))?;
        Ok(self.write_pages(writer))
    }

    /// One step's page with its changes applied: entries with their places, in the order of places.
    pub(super) fn read(
        &self,
        step: usize,
        old_row: Option<&[u8]>,
        sink: &mut impl FnMut(u64, &Entry<'_>),
    ) -> Result<(), CheckpointError> {
        let Some(Step { page, changes }) = self.steps.get(step).cloned() else { return Ok(()) };
        let mut old = match page {
            Some(index) => open_page(&self.root.identity, &self.root.pages[index], old_row)?,
            None => PageReader { key: Vec::new(), entries: EntryReader::new(&[]) },
        };
        let mut changes = self.changes.get(changes).unwrap_or_default();
        // All entries at one place: just one unless 64-bit hashes collide.
        let mut here: Vec<Entry<'_>> = Vec::new();
        let mut kept = old.next()?;
        while let Some(at) = lowest(kept.as_ref().map(|kept| kept.0), changes.first().map(|change| change.place)) {
            here.clear();
            while let Some((_, entry)) = kept.take_if(|kept| kept.0 == at) {
                if !(self.cleared && is_counter(&entry)) {
                    here.push(entry);
                }
                kept = old.next()?;
            }
            while let Some((change, rest)) = changes.split_first().filter(|(change, _)| change.place == at) {
                changes = rest;
                let change = self.entry(*change)?;
                match here.iter_mut().find(|entry| name(entry) == name(&change)) {
                    Some(entry) => merge_into(entry, change),
                    None => here.push(change),
                }
            }
            for entry in here.iter().filter(|entry| self.is_live(entry)) {
                sink(at, entry);
            }
        }
        Ok(())
    }

    /// All pages in order: the index in the root, and the step that changes it.
    pub(super) fn parts(&self) -> Vec<(Option<usize>, Option<usize>)> {
        let mut parts: Vec<_> = (0..self.root.pages.len()).map(|page| (Some(page), None)).collect();
        for (number, step) in self.steps.iter().enumerate() {
            match step.page.and_then(|page| parts.get_mut(page)) {
                Some(part) => part.1 = Some(number),
                None => parts.push((None, Some(number))),
            }
        }
        parts
    }

    pub(super) const fn root(&self) -> &Root {
        &self.root
    }

    /// Whether the entry is still live at the fold's uptime.
    fn is_live(&self, entry: &Entry<'_>) -> bool {
        let now_ms = self.next.uptime_ms;
        match entry {
            Entry::Session { used_ms, .. } => !self.windows.sessions.session_has_expired(*used_ms, now_ms),
            Entry::SessionEnded { ended_ms, .. } => !self.windows.sessions.tombstone_has_expired(*ended_ms, now_ms),
            Entry::OperationId { seen_ms, .. } => !self.windows.ids.id_has_expired(*seen_ms, now_ms),
            Entry::Deleted { .. } => false,
            Entry::Counter { .. } | Entry::Cleared | Entry::Uptime { .. } => true,
        }
    }

    fn write_pages(&mut self, writer: PageWriter) -> Vec<Row> {
        // An empty page's range goes to the page before it; the first page has none before it.
        let is_first = writer.start == 0;
        let mut bodies = writer.finish();
        bodies.retain(|(_, count, _)| *count > 0 || is_first);
        page_rows(&self.root.identity, self.next.fold, bodies, &mut self.next.pages)
    }

    /// The root's row, to be written once all pages are safe; the root; and the keys that are garbage afterwards.
    pub fn finish(&mut self) -> (Vec<u8>, Root, Vec<Vec<u8>>) {
        self.next.pages.sort_unstable_by_key(|page| page.start);
        let row = self.next.encode();
        (row, self.next.clone(), std::mem::take(&mut self.garbage))
    }
}

fn lowest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Applies a later entry to an earlier one with the same name.
fn merge_into<'a>(entry: &mut Entry<'a>, change: Entry<'a>) {
    *entry = match change {
        Entry::Session { .. } | Entry::SessionEnded { .. } => merge_session_entry(Some(entry.clone()), change),
        change => change,
    };
}
