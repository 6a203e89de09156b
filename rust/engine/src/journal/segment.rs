//! Segment files: their names, how one is started, cut and dropped, and the appender that writes to the last one.
//!
//! The failure argument, in short (`docs/journal.md` has the whole): a segment's file exists, empty and durable, before
//! the manifest names it; the manifest names it, durably, before anything is written to it. So a file that the manifest
//! doesn't name is empty, and a missing file that it names is a loss. A commit whose append failed is cut off the old
//! file, durably, before a new file is started for the same bytes, so that it is on disk at most once.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::journal::error::JournalError;
use crate::journal::files::{FileSystem, FolderLock, LogFile};
use crate::journal::manifest::{Checkpoint, Manifest, ManifestFile};
use crate::journal::reader::LogReader;
use crate::journal::record::{EncodedCommit, Position};
use crate::journal::{Appender, CommitSource, Journal};

/// A segment is followed by a new one once it has this many bytes, unless a setting says otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// The folder of the segments in the shard's folder.
pub(crate) const LOG_FOLDER_NAME: &str = "log";
/// How a segment's name ends.
const SEGMENT_SUFFIX: &str = ".log";
/// How it ends until it is renamed into place.
pub(crate) const SEGMENT_NEW_SUFFIX: &str = ".log.new";
/// Digits of a segment's name: enough for any commit number.
const SEGMENT_NAME_DIGITS: usize = 20;

/// The first commit of the segment in this file, by its name.
pub(crate) fn first_commit_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_suffix(SEGMENT_SUFFIX)?;
    let is_name = digits.len() == SEGMENT_NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_name { digits.parse().ok() } else { None }
}

/// A shard's folder, locked: the part of its journal that threads share.
pub struct SegmentedLog {
    files: Arc<dyn FileSystem>,
    folder: PathBuf,
    log_folder: PathBuf,
    manifest: ManifestFile,
    /// The next commit begins a new file. Relaxed: an order that comes a commit late does as well.
    is_to_roll: AtomicBool,
    /// Last, so that the folder is unlocked after everything else is closed.
    _lock: FolderLock,
}

impl SegmentedLog {
    pub(crate) fn new(
        files: Arc<dyn FileSystem>,
        folder: &Path,
        manifest: ManifestFile,
        lock: FolderLock,
    ) -> SegmentedLog {
        let log_folder = folder.join(LOG_FOLDER_NAME);
        SegmentedLog {
            files,
            folder: folder.to_path_buf(),
            log_folder,
            manifest,
            is_to_roll: AtomicBool::new(false),
            _lock: lock,
        }
    }

    /// The shard's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The manifest, as last made durable.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.manifest.current()
    }

    /// Has the next commit begin a new file.
    pub(crate) fn roll(&self) {
        self.is_to_roll.store(true, Ordering::Relaxed);
    }

    pub(crate) fn files(&self) -> &dyn FileSystem {
        &*self.files
    }

    pub(crate) fn log_folder(&self) -> &Path {
        &self.log_folder
    }

    pub(crate) fn segment_path(&self, first: u64) -> PathBuf {
        self.log_folder.join(format!("{first:020}{SEGMENT_SUFFIX}"))
    }

    /// Starts the segment whose first commit is `first`: an empty file, durable under its name, and named by the
    /// manifest, to which `change` is made as well.
    ///
    /// Nothing is touched if a newer epoch has taken over: the folder under this path may be another one by now, put
    /// there while this process stood still, and its file of this name in use.
    ///
    /// If a file of this name exists, it is replaced. It holds nothing acknowledged then: either nothing, from a start
    /// that failed, or commit `first` itself after an append that failed. Replacing (rather than cutting) it leaves
    /// nothing to what pages of the old file the system may still have, and is atomic: the name is there throughout.
    pub(crate) fn start_segment(
        &self,
        first: u64,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<Box<dyn LogFile>, JournalError> {
        self.check_epoch()?;
        let path = self.segment_path(first);
        let new = self.log_folder.join(format!("{first:020}{SEGMENT_NEW_SUFFIX}"));
        let mut file = self.files.create(&new).map_err(JournalError::io("create", &new))?;
        file.sync_data().map_err(JournalError::io("fsync", &new))?;
        self.files.rename(&new, &path).map_err(JournalError::io("rename to", &path))?;
        self.files.sync_folder(&self.log_folder).map_err(JournalError::io("fsync", &self.log_folder))?;
        self.manifest.update(|manifest| {
            if manifest.segments.last() != Some(&first) {
                manifest.segments.push(first);
            }
            change(manifest);
            Ok(())
        })?;
        Ok(file)
    }

    /// Is the folder under this path still the one that this process opened last? To be asked before a file is touched
    /// by its name.
    ///
    /// # Errors
    /// `Fenced` if not.
    pub(crate) fn check_epoch(&self) -> Result<(), JournalError> {
        self.manifest.check_epoch(self.manifest().epoch)
    }

    /// Is the open segment still the file under its name? Two calls that read nothing from the disk.
    ///
    /// # Errors
    /// `Vanished` if not.
    fn check_in_place(&self, open: &OpenSegment) -> Result<(), JournalError> {
        let path = self.segment_path(open.extent.first);
        match open.file.is_at(&path) {
            Ok(true) => Ok(()),
            Ok(false) => Err(JournalError::Vanished { path }),
            Err(error) => Err(JournalError::io("look at", path)(error)),
        }
    }

    /// Cuts a segment to its first `bytes` bytes, durably.
    pub(crate) fn cut(&self, first: u64, bytes: u64) -> Result<(), JournalError> {
        self.check_epoch()?;
        let path = self.segment_path(first);
        let mut file = self.files.open_write(&path).map_err(JournalError::io("open", &path))?;
        file.set_len(bytes).map_err(JournalError::io("truncate", &path))?;
        file.sync_data().map_err(JournalError::io("fsync", &path))
    }

    /// Writes the bytes that stand there once more, and fsyncs.
    ///
    /// What an opening reads may be in the system's memory only: the writer may have been killed between write and
    /// fsync, or after an fsync that failed, which leaves pages that no later fsync writes. Writing them again makes
    /// them new to the system; what is on disk is either the same already or was never acknowledged.
    pub(crate) fn write_again(&self, first: u64, range: Range<u64>) -> Result<(), JournalError> {
        let path = self.segment_path(first);
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
        let reader = self.files.open_read(&path).map_err(JournalError::io("open", &path))?;
        let read = reader.read_at(&mut bytes, range.start).map_err(JournalError::io("read", &path))?;
        bytes.truncate(read);
        let mut file = self.files.open_write(&path).map_err(JournalError::io("open", &path))?;
        file.write_all_at(&bytes, range.start).map_err(JournalError::io("write", &path))?;
        file.sync_data().map_err(JournalError::io("fsync", &path))
    }
}

impl Journal for SegmentedLog {
    fn tail(self: Arc<Self>, after: Position) -> Result<Box<dyn CommitSource>, JournalError> {
        Ok(Box::new(LogReader::new(self, after)?))
    }

    fn checkpoint(&self) -> Option<Checkpoint> {
        self.manifest().checkpoint
    }

    fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), JournalError> {
        self.manifest.update(|manifest| {
            let before = manifest.checkpoint.map_or(0, |checkpoint| checkpoint.position.commit);
            if checkpoint.position.commit < before {
                let (commit, text) = (checkpoint.position.commit, "a checkpoint at commit");
                return Err(JournalError::OutOfOrder(format!("{text} {commit} after one at {before}")));
            }
            manifest.checkpoint = Some(checkpoint);
            Ok(())
        })
    }

    fn trim(&self, upto: u64) -> Result<u64, JournalError> {
        let mut dropped = Vec::new();
        self.manifest.update(|manifest| {
            let covered = manifest.checkpoint.map_or(0, |checkpoint| checkpoint.position.commit);
            if upto > covered {
                return Err(JournalError::OutOfOrder(format!("trim up to commit {upto}, checkpoint at {covered}")));
            }
            // A segment can go if the next one begins at or below `upto + 1`; the last has no next one and stays.
            let goes = manifest.segments.iter().skip(1).take_while(|&&next| next - 1 <= upto).count();
            dropped.extend(manifest.segments.drain(..goes));
            Ok(())
        })?;
        for &first in &dropped {
            // A crash in between leaves files that are older than any in the manifest: opening removes those.
            let path = self.segment_path(first);
            self.files.remove(&path).map_err(JournalError::io("remove", path))?;
        }
        Ok(dropped.len() as u64)
    }
}

/// The file that is written to.
struct OpenSegment {
    file: Box<dyn LogFile>,
    extent: Extent,
}

/// A segment as far as it is known to be durable.
#[derive(Debug, Clone, Copy)]
struct Extent {
    first: u64,
    bytes: u64,
}

/// Appends commits, one at a time, in order. Owned by the commit thread.
pub struct SegmentAppender {
    log: Arc<SegmentedLog>,
    segment_bytes: u64,
    /// The end of the last durable commit.
    end: Position,
    open: Option<OpenSegment>,
    /// A segment whose last append failed: it may hold bytes beyond its durable ones.
    broken: Option<Extent>,
}

impl SegmentAppender {
    /// Appends to `file`, the new and empty segment for the commit after `end`.
    pub(crate) fn new(log: Arc<SegmentedLog>, segment_bytes: u64, end: Position, file: Box<dyn LogFile>) -> Self {
        let extent = Extent { first: end.commit + 1, bytes: 0 };
        Self { log, segment_bytes, end, open: Some(OpenSegment { file, extent }), broken: None }
    }

    /// Was a new file ordered, and has this one anything to be dropped?
    fn is_to_roll(&self, open: &OpenSegment) -> bool {
        open.extent.bytes > 0 && self.log.is_to_roll.swap(false, Ordering::Relaxed)
    }

    /// The segment for `commit`: the open one, or a new one if it is full or failed.
    fn segment_for(&mut self, commit: &EncodedCommit) -> Result<OpenSegment, JournalError> {
        if let Some(broken) = self.broken {
            // A segment that failed at its first commit is the one to be replaced.
            if broken.bytes > 0 {
                self.log.cut(broken.first, broken.bytes)?;
            }
            self.broken = None;
        }
        match self.open.take() {
            Some(open) if open.extent.bytes < self.segment_bytes && !self.is_to_roll(&open) => Ok(open),
            _ => {
                let file = self.log.start_segment(commit.number, |_| ())?;
                Ok(OpenSegment { file, extent: Extent { first: commit.number, bytes: 0 } })
            }
        }
    }
}

impl Appender for SegmentAppender {
    fn append(&mut self, commit: &EncodedCommit) -> Result<(), JournalError> {
        if commit.expected() != self.end {
            let (expected, end) = (commit.expected(), self.end);
            return Err(JournalError::OutOfOrder(format!("a commit after {expected:?} where the log ends at {end:?}")));
        }
        let mut open = self.segment_for(commit)?;
        let path = || self.log.segment_path(open.extent.first);
        let written = open.file.write_all_at(&commit.bytes, open.extent.bytes);
        let durable = written
            .map_err(|error| JournalError::io("write", path())(error))
            .and_then(|()| open.file.sync_data().map_err(|error| JournalError::io("fsync", path())(error)))
            .and_then(|()| self.log.check_in_place(&open));
        if let Err(error) = durable {
            // The handle is dropped here: what the system thinks of its pages is no longer known.
            self.broken = Some(open.extent);
            return Err(error);
        }
        open.extent.bytes += commit.bytes.len() as u64;
        self.open = Some(open);
        self.end = commit.position();
        Ok(())
    }

    fn check(&self) -> Result<(), JournalError> {
        self.open.as_ref().map_or(Ok(()), |open| self.log.check_in_place(open))
    }

    fn close(&mut self) -> Result<(), JournalError> {
        let end = self.end;
        self.log.manifest.update(|manifest| {
            manifest.clean_end = Some(end);
            Ok(())
        })
    }
}
