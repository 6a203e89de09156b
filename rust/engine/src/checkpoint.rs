//! The checkpoint: the state at one commit, as pages of about 64 KiB and a root that names them all.
//!
//! A copy-on-write tree of two levels, kept in any ordered store of rows. A *page* holds the entries whose place (a
//! stable hash of kind and key) lies in its range. Its row's key contains the number of the *fold* that wrote it, so a
//! page is never overwritten. The *root* lists every page with its hash and is written last: until then the old root and
//! pages are the checkpoint; afterwards they are garbage. So a crash at any moment leaves one exact state, and a page
//! that is missing, outdated or corrupt is detected.
//!
//! Threads: a [`Fold`] belongs to the checkpoint thread and reads nothing that another thread changes.

mod contents;
mod fold;
mod writer;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::counter_store::StoreError;
use crate::journal::Checkpoint;
use crate::journal::entry::{Entry, EntryError, EntryReader};
use crate::journal::record::{Position, ShardIdentity};
use crate::operation_id_table::OperationIdSettings;
use crate::session_table::SessionSettings;

pub use contents::Contents;
pub use fold::Fold;
pub use writer::CheckpointWriter;

/// The root's row.
pub const ROOT_KEY: &[u8] = b"root";
const PAGE_MAGIC: u32 = u32::from_le_bytes(*b"PCP1");
const ROOT_MAGIC: u32 = u32::from_le_bytes(*b"PCR1");
const FORMAT_VERSION: u8 = 1;
const PLACE_SEED: u64 = 0x5043_504c_4143_4531;
/// Target size of a page's entries, in bytes ...
const PAGE_BYTES_TARGET: usize = 64 * 1024;
/// ... and the size above which it is split.
const PAGE_BYTES_MAX: usize = 96 * 1024;
const PAGE_HEADER_BYTES: usize = 4 + 4 + 8 + 8 + 4 + 4;
const ROOT_HEADER_BYTES: usize = 4 + 4 + 16 + 8 + 8 + 8 + 8 + 4;
const ROOT_PAGE_BYTES: usize = 24;

/// A row of the store: key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// Why a checkpoint is unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The checkpoint named by the manifest is missing.
    #[error(
        "the checkpoint's root is missing, though the manifest names fold {fold}: restore the folder from a backup"
    )]
    RootMissing {
        /// The fold in the manifest.
        fold: u64,
    },
    /// The root doesn't belong to the manifest.
    #[error(
        "the checkpoint's root is fold {found}, but the manifest names fold {expected}: parts of this folder are of another time; restore it whole from a backup"
    )]
    RootOfAnotherTime {
        /// The fold in the manifest.
        expected: u64,
        /// The fold of the root.
        found: u64,
    },
    /// A row is corrupt.
    #[error("the checkpoint's row {row} is damaged ({what}): restore the folder from a backup")]
    Damaged {
        /// Which row, printable.
        row: String,
        /// What is wrong.
        what: String,
    },
    /// A row was written by a newer version.
    #[error(
        "the checkpoint's row {row} has format {version}; this version reads up to {FORMAT_VERSION}: use a newer version"
    )]
    FormatTooNew {
        /// Which row, printable.
        row: String,
        /// The row's format version.
        version: u8,
    },
    /// Not enough memory for a fold's counters.
    #[error("{0}: the checkpoint is tried again later")]
    Memory(#[from] StoreError),
    /// A fold got an entry that doesn't decode.
    #[error("an entry of the log does not decode: {0}")]
    Entry(#[from] EntryError),
}

/// One page: its range, its fold and its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageInfo {
    /// The first place of its range, which ends where the next page's range begins.
    start: u64,
    fold: u64,
    hash: u64,
}

impl PageInfo {
    fn key(&self) -> Vec<u8> {
        // Big-endian, so that an ordered store keeps neighbours together.
        let mut key = Vec::with_capacity(17);
        key.push(b'p');
        key.extend_from_slice(&self.start.to_be_bytes());
        key.extend_from_slice(&self.fold.to_be_bytes());
        key
    }
}

/// A root: the state after `position` is in these pages.
#[derive(Debug, Clone)]
pub struct Root {
    identity: ShardIdentity,
    /// The fold's number, from 1; failed folds leave gaps.
    pub fold: u64,
    /// The last commit folded in.
    pub position: Position,
    /// The shard's journaled uptime at that commit, in milliseconds.
    pub uptime_ms: u64,
    /// The hash of the encoded root; 0 before the first fold.
    pub hash: u64,
    pages: Vec<PageInfo>,
}

impl Root {
    /// The root of a shard without a checkpoint.
    #[must_use]
    pub fn empty(identity: ShardIdentity) -> Self {
        Self { identity, fold: 0, position: Position::START, uptime_ms: 0, hash: 0, pages: Vec::new() }
    }

    /// Decodes a folder's root row against `expected`, the manifest's entry. `None`: no checkpoint yet.
    ///
    /// The root may be ahead of the manifest if a crash or a failing disk came between the two.
    pub fn of_folder(
        row: Option<&[u8]>,
        identity: ShardIdentity,
        expected: Option<Checkpoint>,
    ) -> Result<Option<Self>, CheckpointError> {
        let fold = expected.map_or(0, |checkpoint| checkpoint.fold);
        let Some(row) = row else {
            return if fold == 0 { Ok(None) } else { Err(CheckpointError::RootMissing { fold }) };
        };
        let root = Self::decode(row, identity)?;
        let same = expected.is_some_and(|it| it.fold == root.fold && it.root_hash == root.hash);
        if !same && root.fold <= fold {
            return Err(CheckpointError::RootOfAnotherTime { expected: fold, found: root.fold });
        }
        Ok(Some(root))
    }

    /// The identity in a root row.
    #[must_use]
    pub fn identity_in(row: &[u8]) -> Option<ShardIdentity> {
        row.get(8..24)?.try_into().ok().map(ShardIdentity)
    }

    /// This checkpoint without these pages: what is left of a damaged one.
    #[must_use]
    pub fn without_pages(mut self, keys: &[Vec<u8>]) -> Self {
        self.pages.retain(|page| !keys.contains(&page.key()));
        self
    }

    /// Decodes a root row and checks that it belongs to this shard.
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
        // The checksum matched, so only a bug can make the rest fail. Check it all the same.
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

    /// The keys of the checkpoint's rows, except the root's.
    #[must_use]
    pub fn page_keys(&self) -> Vec<Vec<u8>> {
        self.pages.iter().map(PageInfo::key).collect()
    }

    fn page_key(&self, page: usize) -> Option<Vec<u8>> {
        self.pages.get(page).map(PageInfo::key)
    }

    /// Passes every entry of the page in row `key` to `sink`, after checking the page against the root.
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

/// Passes every entry of a page to `sink`, checking only the page's own checksum: a replica trusts its primary to send
/// the pages of the root.
///
/// # Errors
/// The row isn't a page of this shard, or is corrupt.
pub fn read_sent_page(
    identity: &ShardIdentity,
    row: &[u8],
    sink: &mut dyn FnMut(&Entry<'_>),
) -> Result<(), CheckpointError> {
    let number = |at: usize| row.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let hash = row.len().checked_sub(8).and_then(number);
    let (start, fold, hash) = (number(8).unwrap_or(0), number(16).unwrap_or(0), hash.unwrap_or(0));
    let mut reader = open_page(identity, &PageInfo { start, fold, hash }, Some(row))?;
    while let Some((_, entry)) = reader.next()? {
        sink(&entry);
    }
    Ok(())
}

/// When sessions and ids leave the checkpoint: the same rules as the tables'.
#[derive(Debug, Clone, Copy)]
pub struct Windows {
    /// Rules for sessions and their tombstones.
    pub sessions: SessionSettings,
    /// Rules for operation ids.
    pub ids: OperationIdSettings,
}

/// Fills pages in the order of places, starting another when one is full.
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
        // Entries with the same place stay together, because a range begins at a place.
        if self.pages.last().is_some_and(|(_, _, body)| body.len() >= PAGE_BYTES_TARGET) && at != self.last_place {
            self.pages.push((at, 0, Vec::new()));
        }
        self.last_place = at;
        if let Some((_, count, body)) = self.pages.last_mut() {
            entry.encode(body);
            *count += 1;
        }
    }

    /// The pages. A small last one is merged into the one before it, so that splits don't leave tiny pages.
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

/// Encodes pages as rows and adds their root entries to `pages`.
fn page_rows(
    identity: &ShardIdentity,
    fold: u64,
    bodies: Vec<(u64, u32, Vec<u8>)>,
    pages: &mut Vec<PageInfo>,
) -> Vec<Row> {
    let encode = |(start, count, body): (u64, u32, Vec<u8>)| {
        let mut row = Vec::with_capacity(PAGE_HEADER_BYTES + body.len() + 8);
        row.extend_from_slice(&PAGE_MAGIC.to_le_bytes());
        row.extend_from_slice(&u32::from(FORMAT_VERSION).to_le_bytes());
        row.extend_from_slice(&start.to_le_bytes());
        row.extend_from_slice(&fold.to_le_bytes());
        row.extend_from_slice(&count.to_le_bytes());
        row.extend_from_slice(&(body.len() as u32).to_le_bytes());
        row.extend_from_slice(&body);
        let hash = page_hash(identity, &row);
        row.extend_from_slice(&hash.to_le_bytes());
        let page = PageInfo { start, fold, hash };
        pages.push(page);
        (page.key(), row)
    };
    bodies.into_iter().map(encode).collect()
}

/// The name of an entry: its kind and key. A counter and its deletion have the same name.
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

/// Covers the shard's identity too, so that a page from another folder is detected.
fn page_hash(identity: &ShardIdentity, row: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&identity.0);
    hasher.update(row);
    hasher.digest()
}

fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

/// The start of a page's range, from its row key.
fn start_of(key: &[u8]) -> u64 {
    key.get(1..9).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Checks a page's row against its root entry, and opens it.
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

/// A page's entries with their places.
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

/// Reads fixed-width numbers from a slice.
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
mod tests;
