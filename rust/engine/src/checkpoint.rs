//! The checkpoint: the state at one commit, as pages of about 64 KiB and a root that names them all.
//!
//! A copy-on-write tree of two levels, kept in any ordered store of rows. A *page* holds the entries whose
//! place (a stable hash of kind and key) lies in its range; its row's key carries the number of the *fold*
//! that wrote it, so a page is never overwritten. The *root* lists every page with its hash. It is written
//! last: until then the old root and the old pages are the checkpoint, and after it they are garbage. A crash
//! at any moment thus leaves one exact state, and a page that is missing, old or flipped is found out.
//!
//! Threads: a [`Fold`] belongs to the checkpoint thread; it reads nothing that another thread changes.

use hashbrown::HashTable;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::journal::entry::{Entry, EntryError, EntryReader};
use crate::journal::record::{Position, ShardIdentity};
use crate::operation_id_table::OperationIdSettings;
use crate::planted_bug::{self, PlantedBug, is_planted};
use crate::session_row::merge_session_entry;
use crate::session_table::SessionSettings;

/// The root's row.
pub const ROOT_KEY: &[u8] = b"root";
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"PCP1");
const ROOT_MAGIC: u32 = u32::from_le_bytes(*b"PCR1");
const FORMAT_VERSION: u8 = 1;
const PLACE_SEED: u64 = 0x5043_504c_4143_4531;
/// A page is filled to about this many bytes of entries ...
const PAGE_BYTES_TARGET: usize = 64 * 1024;
/// ... and split once it is over this.
const PAGE_BYTES_MAX: usize = 96 * 1024;
const PAGE_HEADER_BYTES: usize = 4 + 4 + 8 + 8 + 4 + 4;
const ROOT_HEADER_BYTES: usize = 4 + 4 + 16 + 8 + 8 + 8 + 8 + 4;
const ROOT_PAGE_BYTES: usize = 24;

/// A row of the store: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Why a checkpoint can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The manifest names a checkpoint that isn't there.
    #[error(
        "the checkpoint's root is missing, though the manifest names fold {fold}: restore the folder from a backup"
    )]
    RootMissing {
        /// The fold that the manifest names.
        fold: u64,
    },
    /// The root is of another time than the manifest.
    #[error(
        "the checkpoint's root is fold {found}, but the manifest names fold {expected}: parts of this folder are of another time; restore it whole from a backup"
    )]
    RootOfAnotherTime {
        /// What the manifest names.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A row isn't what it must be.
    #[error("the checkpoint's row {row} is damaged ({what}): restore the folder from a backup")]
    Damaged {
        /// Which row, printable.
        row: String,
        /// What is wrong.
        what: String,
    },
    /// The row was written by a newer version.
    #[error(
        "the checkpoint's row {row} has format {version}; this version reads up to {FORMAT_VERSION}: use a newer version"
    )]
    FormatTooNew {
        /// Which row, printable.
        row: String,
        /// Its format.
        version: u8,
    },
    /// A fold was given an entry that doesn't decode.
    #[error("an entry of the log does not decode: {0}")]
    Entry(#[from] EntryError),
}

/// Where one page is, and what it must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageInfo {
    /// The first place of its range, which ends where the next page's begins.
    start: u64,
    fold: u64,
    hash: u64,
}

impl PageInfo {
    fn key(&self) -> Vec<u8> {
        // Big-endian, so that an ordered store holds neighbours side by side.
        let mut key = Vec::with_capacity(17);
        key.push(b'p');
        key.extend_from_slice(&self.start.to_be_bytes());
        key.extend_from_slice(&self.fold.to_be_bytes());
        key
    }
}

/// What the root says: the state is that after `position`, and it is in these pages.
#[derive(Debug, Clone)]
pub struct Root {
    identity: ShardIdentity,
    /// Numbers the folds, from 1; failed ones leave gaps.
    pub fold: u64,
    /// The last commit folded in.
    pub position: Position,
    /// The shard's journaled uptime at that commit, in milliseconds.
    pub uptime_ms: u64,
    /// Of the encoded root; 0 before the first fold.
    pub hash: u64,
    pages: Vec<PageInfo>,
}

impl Root {
    /// The root of a shard that was never folded.
    #[must_use]
    pub fn empty(identity: ShardIdentity) -> Self {
        Self { identity, fold: 0, position: Position::START, uptime_ms: 0, hash: 0, pages: Vec::new() }
    }

    /// Decodes the root's row and checks that it is this shard's.
    pub fn decode(row: &[u8], identity: ShardIdentity) -> Result<Self, CheckpointError> {
        let damaged = |what: &str| CheckpointError::Damaged { row: "root".into(), what: what.into() };
        let mut reader = Reader(row);
        if reader.u32() != Some(ROOT_MAGIC) {
            return Err(damaged("it does not begin like one"));
        }
        let version = reader.u32().ok_or_else(|| damaged("cut short"))? as u8;
        if version > FORMAT_VERSION {
            return Err(CheckpointError::FormatTooNew { row: "root".into(), version });
        }
        let body = row.len().checked_sub(8).filter(|&n| n >= ROOT_HEADER_BYTES).ok_or_else(|| damaged("cut short"))?;
        let (content, stored) = row.split_at(body);
        let hash = xxh3_64_with_seed(content, 0);
        if stored != hash.to_le_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        // The checksum matched, so what follows can only fail on a bug: it is still checked, not trusted.
        let mut decode = || {
            let found = ShardIdentity(reader.take(16)?.try_into().ok()?);
            let (fold, commit, position_hash, uptime_ms) = (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
            let count = reader.u32()? as usize;
            if reader.0.len() != count.checked_mul(ROOT_PAGE_BYTES)?.checked_add(8)? {
                return None;
            }
            let pages = (0..count)
                .map(|_| Some(PageInfo { start: reader.u64()?, fold: reader.u64()?, hash: reader.u64()? }))
                .collect::<Option<Vec<_>>>()?;
            let position = Position { commit, hash: position_hash };
            Some(Self { identity: found, fold, position, uptime_ms, hash, pages })
        };
        let root = decode().ok_or_else(|| damaged("its length does not match its count"))?;
        if root.identity != identity {
            return Err(damaged("it belongs to another shard"));
        }
        if root.pages.first().is_some_and(|page| page.start != 0)
            || root.pages.windows(2).any(|pair| pair[0].start >= pair[1].start)
        {
            return Err(damaged("its pages are out of order"));
        }
        Ok(root)
    }

    fn encode(&mut self) -> Vec<u8> {
        let mut row = Vec::with_capacity(ROOT_HEADER_BYTES + self.pages.len() * ROOT_PAGE_BYTES + 8);
        row.extend_from_slice(&ROOT_MAGIC.to_le_bytes());
        row.extend_from_slice(&u32::from(FORMAT_VERSION).to_le_bytes());
        row.extend_from_slice(&self.identity.0);
        for number in [self.fold, self.position.commit, self.position.hash, self.uptime_ms] {
            row.extend_from_slice(&number.to_le_bytes());
        }
        row.extend_from_slice(&(self.pages.len() as u32).to_le_bytes());
        for page in &self.pages {
            for number in [page.start, page.fold, page.hash] {
                row.extend_from_slice(&number.to_le_bytes());
            }
        }
        self.hash = xxh3_64_with_seed(&row, 0);
        row.extend_from_slice(&self.hash.to_le_bytes());
        row
    }

    /// The keys of all rows that the checkpoint consists of, beside the root.
    #[must_use]
    pub fn page_keys(&self) -> Vec<Vec<u8>> {
        self.pages.iter().map(PageInfo::key).collect()
    }

    /// Gives every entry of the page in row `key` to `sink`, after checking that it is the one that the root means.
    pub fn read_page(
        &self,
        key: &[u8],
        row: Option<&[u8]>,
        sink: &mut dyn FnMut(&Entry<'_>),
    ) -> Result<(), CheckpointError> {
        let found = self.pages.binary_search_by_key(&start_of(key), |page| page.start);
        let page = match found.ok().map(|index| self.pages[index]) {
            Some(page) if page.key() == key => page,
            _ => {
                return Err(CheckpointError::Damaged { row: printable(key), what: "the root does not name it".into() });
            }
        };
        let mut reader = open_page(&self.identity, &page, row)?;
        while let Some((_, entry)) = reader.next()? {
            sink(&entry);
        }
        Ok(())
    }
}

/// When ended things leave the checkpoint: the tables' own rules.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Of sessions and their tombstones.
    pub sessions: SessionSettings,
    /// Of operation ids.
    pub ids: OperationIdSettings,
}

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

/// Fills pages in the order of places, and begins another once one is full.
#[derive(Debug)]
struct PageWriter {
    start: u64,
    /// (first place of the range, entries, body)
    pages: Vec<(u64, u32, Vec<u8>)>,
    last_place: u64,
}

impl PageWriter {
    fn new(start: u64) -> Self {
        Self { start, pages: vec![(start, 0, Vec::new())], last_place: start }
    }

    fn put(&mut self, at: u64, entry: &Entry<'_>) {
        // Entries at one place stay together, since a range begins at a place.
        if self.pages.last().is_some_and(|(_, _, body)| body.len() >= PAGE_BYTES_TARGET) && at != self.last_place {
            self.pages.push((at, 0, Vec::new()));
        }
        self.last_place = at;
        if let Some((_, count, body)) = self.pages.last_mut() {
            entry.encode(body);
            *count += 1;
        }
    }

    /// The pages; a small last one joins the one before it, so that a full page doesn't shed crumbs.
    fn finish(mut self) -> Vec<(u64, u32, Vec<u8>)> {
        if let [.., (_, count, body), (_, last_count, last_body)] = &mut self.pages[..]
            && body.len() + last_body.len() <= PAGE_BYTES_MAX
        {
            *count += *last_count;
            body.append(last_body);
            self.pages.pop();
        }
        self.pages
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

/// What the entry is about: its kind and its key. A counter and its deletion are about the same.
fn name<'e>(entry: &'e Entry<'_>) -> (u8, &'e [u8]) {
    match entry {
        Entry::Counter { key, .. } | Entry::Deleted { key } => (1, key),
        Entry::Session { session, .. } | Entry::SessionEnded { session, .. } => (2, &session.0),
        Entry::OperationId { id, .. } => (3, id),
        Entry::Cleared | Entry::Uptime { .. } => (0, &[]),
    }
}

fn place(entry: &Entry<'_>) -> u64 {
    let (kind, key) = name(entry);
    xxh3_64_with_seed(key, PLACE_SEED.wrapping_add(u64::from(kind)))
}

const fn is_counter(entry: &Entry<'_>) -> bool {
    matches!(entry, Entry::Counter { .. } | Entry::Deleted { .. })
}

/// Covers the shard's identity too, so that a page of another folder is found out.
fn page_hash(identity: &ShardIdentity, row: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&identity.0);
    hasher.update(row);
    hasher.digest()
}

fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// The start of the range, from a page's row key.
fn start_of(key: &[u8]) -> u64 {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Checks a page's row against what the root says of it, and opens it.
fn open_page<'r>(
    identity: &ShardIdentity,
    page: &PageInfo,
    row: Option<&'r [u8]>,
) -> Result<PageReader<'r>, CheckpointError> {
    let damaged = |what: &str| CheckpointError::Damaged { row: printable(&page.key()), what: what.into() };
    let row = row.ok_or_else(|| damaged("it is missing"))?;
    let content = row.len().checked_sub(8).filter(|&n| n >= PAGE_HEADER_BYTES).ok_or_else(|| damaged("cut short"))?;
    let (content, stored) = row.split_at(content);
    let hash = page_hash(identity, content);
    if stored != hash.to_le_bytes() || hash != page.hash {
        return Err(damaged("its checksum does not match"));
    }
    Ok(PageReader { key: page.key(), entries: EntryReader::new(&content[PAGE_HEADER_BYTES..]) })
}

/// A page's entries, each with its place.
struct PageReader<'r> {
    key: Vec<u8>,
    entries: EntryReader<'r>,
}

impl<'r> PageReader<'r> {
    fn next(&mut self) -> Result<Option<(u64, Entry<'r>)>, CheckpointError> {
        let damaged =
            |error: EntryError| CheckpointError::Damaged { row: printable(&self.key), what: error.to_string() };
        let entry = self.entries.next().transpose().map_err(damaged)?;
        Ok(entry.map(|entry| (place(&entry), entry)))
    }
}

/// Takes fixed-width numbers off a slice.
struct Reader<'r>(&'r [u8]);

impl<'r> Reader<'r> {
    fn take(&mut self, count: usize) -> Option<&'r [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::journal::entry::{Fingerprint, StoredResult};
    use crate::wire::request::SessionId;

    const IDENTITY: ShardIdentity = ShardIdentity([7; 16]);

    fn windows() -> Windows {
        Windows {
            sessions: SessionSettings { tombstone_window_ms: 1_000, ..SessionSettings::default() },
            ids: OperationIdSettings { ids_window_ms: 1_000, born_ahead_ms: 0, ..OperationIdSettings::default() },
        }
    }

    /// The rows of a checkpoint, as a store would hold them.
    #[derive(Default)]
    struct Store {
        rows: BTreeMap<Vec<u8>, Vec<u8>>,
        root: Option<Root>,
    }

    impl Store {
        fn root(&self) -> Root {
            self.root.clone().unwrap_or_else(|| Root::empty(IDENTITY))
        }

        fn fold(&mut self, commit: u64, entries: &[Entry<'_>]) {
            let mut fold = Fold::new(&self.root(), self.root().fold + 1, windows());
            for entry in entries {
                fold.add(entry);
            }
            fold.seal(Position { commit, hash: commit });
            for step in 0..fold.steps() {
                let old = fold.old_key(step).map(|key| self.rows[&key].clone());
                for (key, row) in fold.merge(step, old.as_deref()).unwrap() {
                    assert!(self.rows.insert(key, row).is_none(), "a page was overwritten");
                }
            }
            let (row, root, garbage) = fold.finish();
            assert_eq!(Root::decode(&row, IDENTITY).unwrap().pages, root.pages);
            for key in garbage {
                self.rows.remove(&key).unwrap();
            }
            assert_eq!(self.rows.len(), root.page_keys().len(), "rows that nobody names are left");
            self.root = Some(root);
        }

        fn counters(&self) -> BTreeMap<Vec<u8>, i64> {
            let mut counters = BTreeMap::new();
            self.read(|entry| {
                if let Entry::Counter { key, value } = entry {
                    assert!(counters.insert(key.to_vec(), *value).is_none(), "a counter is in two pages");
                }
            });
            counters
        }

        fn read(&self, mut sink: impl FnMut(&Entry<'_>)) {
            let root = self.root();
            for key in root.page_keys() {
                root.read_page(&key, self.rows.get(&key).map(Vec::as_slice), &mut sink).unwrap();
            }
        }
    }

    fn key(number: u32) -> Vec<u8> {
        format!("counter-{number:08}").into_bytes()
    }

    #[test]
    fn pages_split_as_they_grow_and_hold_everything_once() {
        let mut store = Store::default();
        let mut expected = BTreeMap::new();
        for round in 0..4_u32 {
            let keys: Vec<_> = (0..5_000 * (round + 1)).map(|number| key(number * (4 - round))).collect();
            let entries: Vec<_> = keys.iter().map(|key| Entry::Counter { key, value: i64::from(round) }).collect();
            expected.extend(keys.iter().map(|key| (key.clone(), i64::from(round))));
            store.fold(u64::from(round) + 1, &entries);
            assert_eq!(store.counters(), expected);
        }
        assert!(store.rows.len() > 5);
        for row in store.rows.values() {
            assert!(row.len() < PAGE_BYTES_MAX + 4096, "a page of {} bytes", row.len());
        }
    }

    #[test]
    fn untouched_pages_stay_and_cleared_ones_go() {
        let mut store = Store::default();
        let keys: Vec<_> = (0..50_000).map(key).collect();
        store.fold(1, &keys.iter().map(|key| Entry::Counter { key, value: 1 }).collect::<Vec<_>>());
        let before = store.root();
        store.fold(2, &[Entry::Counter { key: &keys[0], value: 2 }]);
        let same = store.root().pages.iter().filter(|page| before.pages.contains(page)).count();
        assert_eq!(same, before.pages.len() - 1, "one change rewrote more than one page");
        let late = key(99);
        let session = SessionId([1; 16]);
        store.fold(3, &[Entry::SessionEnded { session, ended_ms: 0 }]);
        store.fold(
            4,
            &[Entry::Counter { key: b"early", value: 5 }, Entry::Cleared, Entry::Counter { key: &late, value: 9 }],
        );
        assert_eq!(store.counters(), BTreeMap::from([(late, 9)]));
        let mut sessions = 0;
        store.read(|entry| sessions += usize::from(matches!(entry, Entry::SessionEnded { .. })));
        assert_eq!(sessions, 1, "clearing the counters took a session with it");
    }

    #[test]
    fn ids_leave_after_their_window_and_not_before() {
        let mut store = Store::default();
        let id = |id: &'static [u8], seen_ms| Entry::OperationId {
            id,
            fingerprint: Fingerprint(1),
            result: StoredResult::Value(1),
            seen_ms,
        };
        store.fold(1, &[Entry::Uptime { uptime_ms: 100 }, id(b"old", 100)]);
        let ids = |store: &Store| {
            let mut ids = Vec::new();
            store.read(|entry| {
                if let Entry::OperationId { id, .. } = entry {
                    ids.push(id.to_vec());
                }
            });
            ids
        };
        store.fold(2, &[Entry::Uptime { uptime_ms: 1_100 }, id(b"new", 1_100)]);
        assert_eq!(ids(&store).len(), 2);
        store.fold(3, &[Entry::Uptime { uptime_ms: 1_101 }, id(b"newer", 1_101)]);
        assert_eq!(ids(&store).len(), 2);
        assert!(!ids(&store).contains(&b"old".to_vec()));
    }

    #[test]
    fn a_wrong_row_is_found_out() {
        let mut store = Store::default();
        store.fold(1, &[Entry::Counter { key: b"a", value: 1 }]);
        let first = store.rows.clone();
        store.fold(2, &[Entry::Counter { key: b"a", value: 2 }]);
        let root = store.root();
        let key = root.page_keys().remove(0);
        let row = store.rows[&key].clone();
        let read = |row: Option<&[u8]>| root.read_page(&key, row, &mut |_| {});
        assert!(read(Some(&row)).is_ok());
        assert!(read(None).is_err());
        assert!(read(first.values().next().map(Vec::as_slice)).is_err(), "an older version of the page passed");
        for at in 0..row.len() {
            let mut flipped = row.clone();
            flipped[at] ^= 1;
            assert!(read(Some(&flipped)).is_err(), "a flipped bit at {at} passed");
            assert!(read(Some(&row[..at])).is_err(), "a row cut at {at} passed");
        }
        let mut next = root.clone();
        let encoded = next.encode();
        for at in 0..encoded.len() {
            let mut flipped = encoded.clone();
            flipped[at] ^= 1;
            assert!(Root::decode(&flipped, IDENTITY).is_err());
            assert!(Root::decode(&encoded[..at], IDENTITY).is_err());
        }
        assert!(Root::decode(&encoded, ShardIdentity([8; 16])).is_err());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, i64),
        Delete(u8),
        Clear,
    }

    proptest! {
        #[test]
        fn folding_in_any_portions_gives_the_last_values(
            steps in prop::collection::vec(
                prop_oneof![
                    8 => (any::<u8>(), any::<i64>()).prop_map(|(key, value)| Step::Set(key, value)),
                    3 => any::<u8>().prop_map(Step::Delete),
                    1 => Just(Step::Clear),
                ],
                0..200,
            ),
            portion in 1..50_usize,
        ) {
            let mut store = Store::default();
            let mut expected = BTreeMap::new();
            let keys: Vec<_> = (0..=u8::MAX).map(|number| key(u32::from(number))).collect();
            for (commit, portion) in steps.chunks(portion).enumerate() {
                let entries: Vec<_> = portion.iter().map(|step| match *step {
                    Step::Set(number, value) => {
                        expected.insert(keys[usize::from(number)].clone(), value);
                        Entry::Counter { key: &keys[usize::from(number)], value }
                    }
                    Step::Delete(number) => {
                        expected.remove(&keys[usize::from(number)]);
                        Entry::Deleted { key: &keys[usize::from(number)] }
                    }
                    Step::Clear => {
                        expected.clear();
                        Entry::Cleared
                    }
                }).collect();
                store.fold(commit as u64 + 1, &entries);
                prop_assert_eq!(&store.counters(), &expected);
            }
        }
    }
}
