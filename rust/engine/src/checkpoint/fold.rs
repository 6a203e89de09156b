//! Folding: changes read from the log are merged into the pages that they belong to.

use hashbrown::HashTable;

use super::{
    CheckpointError, FORMAT_VERSION, PAGE_HEADER_BYTES, PAGE_MAGIC, PageInfo, PageReader, PageWriter, Root, Row,
    Windows, is_counter, name, open_page, page_hash, place,
};
use crate::journal::entry::{Entry, EntryError, EntryReader};
use crate::journal::record::Position;
use crate::planted_bug::{self, PlantedBug, is_planted};
use crate::session_row::merge_session_entry;

/// Changes read from the log, on their way into pages.
#[derive(Debug)]
pub struct Fold {
    root: Root,
    next: Root,
    windows: Windows,
    /// Encoded entries in the order of the log; a counter's first one only.
    arena: Vec<u8>,
    /// Sorted by place, and within it in the order of the log, by `seal`.
    changes: Vec<Change>,
    /// Indexes of the counters' changes, by place: a hot counter is in thousands of commits and only once in here.
    counters: HashTable<u32>,
    cleared: bool,
    steps: Vec<Step>,
    garbage: Vec<Vec<u8>>,
}

/// What the log says of one counter, or one entry of a session or an id.
#[derive(Debug, Clone, Copy)]
struct Change {
    place: u64,
    /// Of the entry in the arena.
    offset: usize,
    later: Later,
}

/// What a later entry said of the same counter.
#[derive(Debug, Clone, Copy)]
enum Later {
    Nothing,
    Value(i64),
    Deleted,
}

impl Change {
    /// The entry that counts.
    fn entry<'a>(&self, arena: &'a [u8]) -> Result<Entry<'a>, CheckpointError> {
        let bytes = arena.get(self.offset..).unwrap_or_default();
        let entry = EntryReader::new(bytes).next().unwrap_or(Err(EntryError::Short))?;
        Ok(match (entry, self.later) {
            (Entry::Counter { key, .. } | Entry::Deleted { key }, Later::Value(value)) => Entry::Counter { key, value },
            (Entry::Counter { key, .. } | Entry::Deleted { key }, Later::Deleted) => Entry::Deleted { key },
            (entry, _) => entry,
        })
    }
}

/// One page to rewrite, with its share of the changes.
#[derive(Debug, Clone)]
struct Step {
    /// Which of the old root's pages; `None` where there is no page yet.
    page: Option<usize>,
    changes: std::ops::Range<usize>,
}

impl Fold {
    /// Begins a fold on top of `root`. Its number must be above that of every earlier fold, failed ones included.
    #[must_use]
    pub fn new(root: &Root, number: u64, windows: Windows) -> Self {
        let mut next = root.clone();
        next.fold = number;
        next.pages.clear();
        Self {
            root: root.clone(),
            next,
            windows,
            arena: Vec::new(),
            changes: Vec::new(),
            counters: HashTable::new(),
            cleared: false,
            steps: Vec::new(),
            garbage: Vec::new(),
        }
    }

    /// Takes the next entry of the log.
    pub fn add(&mut self, entry: &Entry<'_>) {
        match entry {
            Entry::Uptime { uptime_ms } => self.next.uptime_ms = *uptime_ms,
            Entry::OperationId { .. } | Entry::Session { .. } if is_planted(PlantedBug::ResultsLostAtCheckpoint) => {
                planted_bug::without_results(entry).inspect(|entry| self.push(entry));
            }
            Entry::Cleared => {
                self.cleared = true;
                // What the counters were before is of no use now. Sessions and ids outlive them.
                let arena = &self.arena;
                self.changes.retain(|change| change.entry(arena).is_ok_and(|entry| !is_counter(&entry)));
                self.counters.clear();
            }
            Entry::Counter { value, .. } => self.push_counter(entry, Later::Value(*value)),
            Entry::Deleted { .. } => self.push_counter(entry, Later::Deleted),
            _ => self.push(entry),
        }
    }

    /// Bytes of memory that the changes take.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.arena.len() + self.changes.len() * (size_of::<Change>() + size_of::<u32>())
    }

    fn push(&mut self, entry: &Entry<'_>) {
        self.changes.push(Change { place: place(entry), offset: self.arena.len(), later: Later::Nothing });
        entry.encode(&mut self.arena);
    }

    fn push_counter(&mut self, entry: &Entry<'_>, later: Later) {
        let place = place(entry);
        let (changes, arena) = (&mut self.changes, &self.arena);
        let is_same = |&index: &u32| {
            let change = &changes[index as usize];
            change.place == place && change.entry(arena).is_ok_and(|known| name(&known) == name(entry))
        };
        if let Some(&index) = self.counters.find(place, is_same) {
            changes[index as usize].later = later;
            return;
        }
        // Far below 2^32: the changes' memory is bounded.
        let index = changes.len() as u32;
        self.push(entry);
        let changes = &self.changes;
        self.counters.insert_unique(place, index, |&index| changes[index as usize].place);
    }

    /// All entries up to `position` were added: works out which pages to rewrite.
    pub fn seal(&mut self, position: Position) {
        self.next.position = position;
        self.counters = HashTable::new();
        self.changes.sort_unstable_by_key(|change| (change.place, change.offset));
        let pages = &self.root.pages;
        if pages.is_empty() {
            self.steps.push(Step { page: None, changes: 0..self.changes.len() });
            return;
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
    }

    /// The last commit folded in.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.next.position
    }

    /// How many pages are to be rewritten.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The row that `merge` needs for this step, `None` where it needs none.
    #[must_use]
    pub fn old_key(&self, step: usize) -> Option<Vec<u8>> {
        self.steps.get(step)?.page.map(|index| self.root.pages[index].key())
    }

    /// Merges one step's changes into its old page. Gives the rows to put.
    pub fn merge(&mut self, step: usize, old_row: Option<&[u8]>) -> Result<Vec<Row>, CheckpointError> {
        let Some(Step { page, changes }) = self.steps.get(step).cloned() else { return Ok(Vec::new()) };
        let (start, mut old) = match page {
            Some(index) => {
                let page = self.root.pages[index];
                self.garbage.push(page.key());
                (page.start, open_page(&self.root.identity, &page, old_row)?)
            }
            None => (0, PageReader { key: Vec::new(), entries: EntryReader::new(&[]) }),
        };
        let mut writer = PageWriter::new(start);
        let mut changes = self.changes.get(changes).unwrap_or_default();
        // All entries at one place: one, but for a collision of 64 bits.
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
                let change = change.entry(&self.arena)?;
                match here.iter_mut().find(|entry| name(entry) == name(&change)) {
                    Some(entry) => merge_into(entry, change),
                    None => here.push(change),
                }
            }
            for entry in here.iter().filter(|entry| self.is_live(entry)) {
                writer.put(at, entry);
            }
        }
        Ok(self.write_pages(writer))
    }

    /// Is the entry still to be kept at the fold's uptime?
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
        let mut rows = Vec::new();
        let all = writer.start;
        for (start, count, body) in writer.finish() {
            // The range of an empty page goes to the page before it; the first page has none before it.
            if count == 0 && all != 0 {
                continue;
            }
            let mut row = Vec::with_capacity(PAGE_HEADER_BYTES + body.len() + 8);
            row.extend_from_slice(&PAGE_MAGIC.to_le_bytes());
            row.extend_from_slice(&u32::from(FORMAT_VERSION).to_le_bytes());
            row.extend_from_slice(&start.to_le_bytes());
            row.extend_from_slice(&self.next.fold.to_le_bytes());
            row.extend_from_slice(&count.to_le_bytes());
            row.extend_from_slice(&(body.len() as u32).to_le_bytes());
            row.extend_from_slice(&body);
            let hash = page_hash(&self.root.identity, &row);
            row.extend_from_slice(&hash.to_le_bytes());
            let page = PageInfo { start, fold: self.next.fold, hash };
            rows.push((page.key(), row));
            self.next.pages.push(page);
        }
        rows
    }

    /// The root's row, to be written once all pages are safe, the root itself, and the keys that are garbage after it.
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

/// Applies a later entry to an earlier one of the same name.
fn merge_into<'a>(entry: &mut Entry<'a>, change: Entry<'a>) {
    *entry = match change {
        Entry::Session { .. } | Entry::SessionEnded { .. } => merge_session_entry(Some(entry.clone()), change),
        change => change,
    };
}
