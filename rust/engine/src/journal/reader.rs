//! Reading commits: a window over one segment's file, the chain that each record must continue, and the reader that
//! follows a log while it is being written.
//!
//! Recovery and [`LogReader`] share `SegmentScan` and `Chain`; they differ in what a bad record means. To recovery
//! it may be the torn end of the log. To a reader of durable commits it is damage, always.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::journal::CommitSource;
use crate::journal::entry::{Entry, EntryError, EntryReader};
use crate::journal::error::JournalError;
use crate::journal::files::{FileSystem, LogFile};
use crate::journal::manifest::Manifest;
use crate::journal::record::{
    HEADER_BYTES, Position, RECORD_VERSION, RecordError, RecordHeader, RecordKind, ShardIdentity, Writer, record_length,
};
use crate::journal::segment::SegmentedLog;

/// How much is read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// A whole commit, checked.
#[derive(Debug, Clone, Copy)]
pub struct Commit<'a> {
    /// Its end.
    pub position: Position,
    /// The epoch that it was written in.
    pub epoch: u64,
    /// Its records, as they are on disk.
    pub records: &'a [u8],
    /// The file that it is in.
    path: &'a Path,
}

impl<'a> Commit<'a> {
    /// Its entries, in order. None for the commit that opens an epoch.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry<'a>, EntryError>> + use<'a> {
        entries_of(self.records)
    }

    /// Passes its entries on.
    ///
    /// # Errors
    /// An entry that this version cannot read; those before it were passed on.
    pub fn deliver(&self, sink: &mut dyn FnMut(&Entry<'_>)) -> Result<(), JournalError> {
        for entry in self.entries() {
            let unreadable =
                |source| JournalError::Entry { path: self.path.to_path_buf(), number: self.position.commit, source };
            sink(&entry.map_err(unreadable)?);
        }
        Ok(())
    }
}

/// The entries of whole records that were checked, or never left memory.
pub(crate) fn entries_of(records: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, EntryError>> {
    let mut rest = records;
    let bodies = std::iter::from_fn(move || {
        let length = record_length(rest.first_chunk()?)?;
        let (record, after) = rest.split_at_checked(length)?;
        rest = after;
        record.get(HEADER_BYTES..)
    });
    bodies.flat_map(EntryReader::new)
}

/// Reads commits up to `upto` and passes their entries to `sink`; stops after the commit with which `about_bytes` are
/// reached. Says where it stopped: at `upto` if there is no more.
///
/// # Errors
/// As [`CommitSource::next_commit`], and an entry that cannot be read.
pub fn replay(
    source: &mut dyn CommitSource,
    upto: u64,
    about_bytes: usize,
    sink: &mut dyn FnMut(&Entry<'_>),
) -> Result<Position, JournalError> {
    let mut read = 0;
    while read < about_bytes {
        let Some(commit) = source.next_commit(upto)? else { break };
        commit.deliver(sink)?;
        read += commit.records.len();
    }
    Ok(source.position())
}

/// What the next record must continue.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) identity: ShardIdentity,
    /// The newest epoch that may be met.
    epoch_max: u64,
    /// The number of the last commit.
    pub(crate) commit: u64,
    /// The hash of its last record; unknown where reading begins in the middle of the history.
    pub(crate) hash: Option<u64>,
    /// Who wrote it; unknown before the first record.
    pub(crate) writer: Option<Writer>,
    /// Where in the file reading last went on behind damage.
    pub(crate) jumped_to: Option<u64>,
}

impl Chain {
    /// Before the segment that begins with commit `first`, on the way to `from`.
    pub(crate) fn before(manifest: &Manifest, first: u64, from: Position) -> Self {
        let commit = first - 1;
        let hash = match commit {
            0 => Some(Position::START.hash),
            commit if commit == from.commit => Some(from.hash),
            _ => None,
        };
        Self { identity: manifest.identity, epoch_max: manifest.epoch, commit, hash, writer: None, jumped_to: None }
    }

    /// Goes on with commit `number` behind damage: what was before it is unknown.
    pub(crate) const fn jump_before(&mut self, number: u64) {
        *self = Self {
            identity: self.identity,
            epoch_max: u64::MAX,
            commit: number - 1,
            hash: None,
            writer: None,
            jumped_to: None,
        };
    }

    /// The number of the next commit.
    pub(crate) const fn next(&self) -> u64 {
        self.commit + 1
    }

    /// Does a record with a good checksum go on from here? `index` and `hash` are the place in the open commit.
    fn check(&self, header: &RecordHeader, index: u32, hash: Option<u64>) -> Result<(), String> {
        let Writer { epoch, writer_id, .. } = header.writer;
        if epoch > self.epoch_max {
            return Err(format!(
                "the record is of epoch {epoch}, the manifest of epoch {}: the manifest is older than the log",
                self.epoch_max
            ));
        }
        if header.number != self.next() || header.index != index {
            let (number, found) = (header.number, header.index);
            return Err(format!(
                "record {found} of commit {number} where record {index} of commit {} belongs",
                self.next()
            ));
        }
        if hash.is_some_and(|hash| hash != header.previous_hash) {
            return Err(format!("commit {} does not continue the commit before it", header.number));
        }
        match (self.writer, header.kind) {
            (Some(before), RecordKind::EpochOpened) if epoch <= before.epoch => {
                Err(format!("epoch {epoch} is opened after epoch {}", before.epoch))
            }
            (_, RecordKind::EpochOpened) if index != 0 || !header.is_final => {
                Err(format!("epoch {epoch} is opened inside a commit"))
            }
            (Some(before), RecordKind::Commit) if before != header.writer => Err(format!(
                "epoch {epoch}, writer {writer_id:016x} writes in epoch {} of writer {:016x}",
                before.epoch, before.writer_id
            )),
            _ => Ok(()),
        }
    }
}

/// What is next in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// A whole commit, which [`SegmentScan::commit`] gives.
    Commit,
    /// The end of the file, right after a whole commit or at its beginning.
    End,
    /// The commit that begins at `start` cannot be read whole: its record at `at` is incomplete or not a record.
    Bad {
        /// Where the commit begins.
        start: u64,
        /// Where its first bad record does.
        at: u64,
    },
}

/// Reads one segment's file, commit by commit. Memory: one commit and one read.
pub(crate) struct SegmentScan {
    path: PathBuf,
    file: Box<dyn LogFile>,
    /// The segment's first commit.
    pub(crate) first: u64,
    /// Where the next commit begins.
    offset: u64,
    /// Bytes of the file from `window_start` on.
    window: Vec<u8>,
    window_start: u64,
    /// The last commit in `window`.
    last: std::ops::Range<usize>,
}

impl SegmentScan {
    pub(crate) fn open(files: &dyn FileSystem, path: PathBuf, first: u64) -> Result<Self, JournalError> {
        let file = files.open_read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => JournalError::SegmentMissing { path: path.clone(), first },
            _ => JournalError::io("open", &path)(error),
        })?;
        Ok(Self { path, file, first, offset: 0, window: Vec::new(), window_start: 0, last: 0..0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next commit begins.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn file_bytes(&self) -> Result<u64, JournalError> {
        self.file.length().map_err(JournalError::io("read", &self.path))
    }

    /// Everything from `offset` on.
    pub(crate) fn rest(&self, offset: u64) -> Result<Vec<u8>, JournalError> {
        let length = usize::try_from(self.file_bytes()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        let read = self.file.read_at(&mut bytes, offset).map_err(JournalError::io("read", &self.path))?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The next commit begins at `offset`.
    pub(crate) fn go_to(&mut self, offset: u64) {
        self.offset = offset;
        self.forget();
    }

    /// Forgets what was read beyond the last commit: it may have been written to since.
    fn forget(&mut self) {
        self.window.clear();
        self.window_start = self.offset;
    }

    /// The `count` bytes at `at`, or as many as the file has; those from `self.offset` on stay in the window.
    fn fill(&mut self, at: u64, count: usize) -> Result<&[u8], JournalError> {
        let begin = (at - self.window_start) as usize;
        if begin + count > self.window.len() {
            let consumed = (self.offset - self.window_start) as usize;
            self.window.drain(..consumed.min(self.window.len()));
            self.window_start = self.offset;
            let (held, needed) = (self.window.len(), (at - self.window_start) as usize + count);
            self.window.resize(needed.max(held + READ_BYTES), 0);
            let from = self.window_start + held as u64;
            let read = self.file.read_at(&mut self.window[held..], from);
            self.window.truncate(held + *read.as_ref().unwrap_or(&0));
            read.map_err(JournalError::io("read", &self.path))?;
        }
        let begin = ((at - self.window_start) as usize).min(self.window.len());
        let end = (begin + count).min(self.window.len());
        Ok(&self.window[begin..end])
    }

    /// Reads the next commit and moves `chain` past it.
    pub(crate) fn step(&mut self, chain: &mut Chain) -> Result<Step, JournalError> {
        let start = self.offset;
        let (mut at, mut index, mut hash) = (start, 0_u32, chain.hash);
        loop {
            let bad = Step::Bad { start, at };
            let header_bytes = self.fill(at, HEADER_BYTES)?;
            if header_bytes.is_empty() && index == 0 {
                return Ok(Step::End);
            }
            let Some(length) = header_bytes.first_chunk().and_then(record_length) else { return Ok(bad) };
            let header = match RecordHeader::parse(self.fill(at, length)?) {
                Ok(header) => header,
                Err(RecordError::Bad) => return Ok(bad),
                Err(RecordError::Version(found) | RecordError::Kind(found)) => {
                    let (found, known) = (u64::from(found), u64::from(RECORD_VERSION));
                    return Err(JournalError::NewerFormat { path: self.path.clone(), offset: at, found, known });
                }
            };
            if header.writer.identity != chain.identity {
                let (expected, found) = (chain.identity, header.writer.identity);
                return Err(JournalError::OtherShard { path: self.path.clone(), offset: at, expected, found });
            }
            if let Err(reason) = chain.check(&header, index, hash) {
                return Err(JournalError::BrokenChain { path: self.path.clone(), offset: at, reason });
            }
            chain.writer = Some(header.writer);
            hash = Some(header.hash);
            at += length as u64;
            index += 1;
            if header.is_final {
                let begin = (start - self.window_start) as usize;
                self.last = begin..begin + (at - start) as usize;
                self.offset = at;
                (chain.commit, chain.hash) = (header.number, hash);
                return Ok(Step::Commit);
            }
        }
    }

    /// The commit that `step` has just read.
    pub(crate) fn commit(&self, chain: &Chain) -> Commit<'_> {
        Commit {
            position: Position { commit: chain.commit, hash: chain.hash.unwrap_or(0) },
            epoch: chain.writer.map_or(0, |writer| writer.epoch),
            records: self.window.get(self.last.clone()).unwrap_or(&[]),
            path: &self.path,
        }
    }
}

/// Reads durable commits of a log that is being written, from a position on.
///
/// It asks the manifest which file a commit is in, rather than where a file ends: so it never looks at bytes that are
/// not durable, nor at those that a failed append left behind.
pub struct LogReader {
    log: Arc<SegmentedLog>,
    manifest: Arc<Manifest>,
    /// Reading began after this.
    from: Position,
    chain: Chain,
    scan: SegmentScan,
    /// What the window was read under.
    upto: u64,
}

impl LogReader {
    pub(crate) fn new(log: Arc<SegmentedLog>, from: Position) -> Result<Self, JournalError> {
        let manifest = log.manifest();
        let Some(first) = manifest.segment_of(from.commit.saturating_add(1)) else {
            return Err(begins_late(&log, &manifest, from));
        };
        let scan = SegmentScan::open(log.files(), log.segment_path(first), first)?;
        let chain = Chain::before(&manifest, first, from);
        Ok(Self { log, manifest, from, chain, scan, upto: 0 })
    }

    /// Goes on to the next file if the next commit is in it.
    fn follow(&mut self) -> Result<(), JournalError> {
        let next = self.chain.next();
        if self.manifest.successor(self.scan.first) == Some(next) {
            self.scan = SegmentScan::open(self.log.files(), self.log.segment_path(next), next)?;
        }
        Ok(())
    }

    fn unreadable(&self, upto: u64) -> JournalError {
        let next = self.chain.next();
        if self.manifest.segment_of(next).is_none() {
            return begins_late(&self.log, &self.manifest, self.position());
        }
        let reason = format!("commit {next} cannot be read, though commits up to {upto} are durable");
        JournalError::BrokenChain { path: self.scan.path().to_path_buf(), offset: self.scan.offset(), reason }
    }
}

fn begins_late(log: &SegmentedLog, manifest: &Manifest, from: Position) -> JournalError {
    let first = manifest.segments.first().copied().unwrap_or(0);
    JournalError::BeginsLate { path: log.log_folder().to_path_buf(), first, checkpoint: from.commit }
}

impl CommitSource for LogReader {
    fn position(&self) -> Position {
        match self.chain.hash {
            Some(hash) if self.chain.commit >= self.from.commit => Position { commit: self.chain.commit, hash },
            _ => self.from,
        }
    }

    fn next_commit(&mut self, upto: u64) -> Result<Option<Commit<'_>>, JournalError> {
        if upto > self.upto {
            // Commits up to `upto` are durable now, so their bytes and the files that hold them are settled; what was
            // read before then, beyond the last commit, may not have been.
            self.upto = upto;
            self.scan.forget();
            self.manifest = self.log.manifest();
        }
        loop {
            if self.chain.commit >= upto.min(self.upto) {
                return Ok(None);
            }
            self.follow()?;
            if self.scan.step(&mut self.chain)? != Step::Commit {
                return Err(self.unreadable(upto));
            }
            check_origin(&self.chain, self.from, &self.scan)?;
            if self.chain.commit > self.from.commit {
                return Ok(Some(self.scan.commit(&self.chain)));
            }
        }
    }
}

/// The state that is continued must be of this very history: the commit that it ends with must be the log's.
pub(crate) fn check_origin(chain: &Chain, from: Position, scan: &SegmentScan) -> Result<(), JournalError> {
    if chain.commit != from.commit || chain.hash == Some(from.hash) {
        return Ok(());
    }
    let reason = format!("commit {} is not the one that the checkpoint was made from", from.commit);
    Err(JournalError::BrokenChain { path: scan.path().to_path_buf(), offset: scan.offset(), reason })
}
