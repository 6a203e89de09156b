//! Everything that can go wrong with a journal. Each message names the file, what is wrong with it and what to do.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::journal::entry::EntryError;
use crate::journal::files::FileSystem;
use crate::journal::record::ShardIdentity;

/// Why a journal cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// Another process, or another journal of this process, holds the folder.
    #[error(
        "{} is locked: {}. Only one writer at a time keeps counts right",
        path.display(),
        if *here { "this process has the folder open; close it first" } else { "another process has the folder open; stop it first" }
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// It is this process.
        here: bool,
    },
    /// Data without a manifest: this is no empty folder.
    #[error("{} is missing, but {} is there: a shard's data without its manifest is not taken for an empty shard; restore the manifest or the whole folder from a backup, or choose an empty folder", manifest.display(), found.display())]
    ManifestMissing {
        /// Where it should be.
        manifest: PathBuf,
        /// What is there instead.
        found: PathBuf,
    },
    /// The manifest cannot be trusted.
    #[error("{} is damaged: {reason}; restore the folder from a backup", path.display())]
    ManifestDamaged {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer version.
    #[error("{} at byte {offset} has format {found}, newer than {known}, the newest that this version knows: run a newer version; nothing was changed", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// Its format.
        found: u64,
        /// The newest format known here.
        known: u64,
    },
    /// A file of the log that the manifest names is not there.
    #[error("{} is missing, with the commits from {first} on: the manifest expects it; restore it from a backup", path.display())]
    SegmentMissing {
        /// The file.
        path: PathBuf,
        /// Its first commit.
        first: u64,
    },
    /// A file in the log's folder that cannot be there.
    #[error("{} does not belong to this log: {reason}", path.display())]
    SegmentUnexpected {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The log belongs to another shard.
    #[error("{} at byte {offset} belongs to shard {found}, not to {expected}: two folders were mixed; put each shard's files back into its own folder", path.display())]
    OtherShard {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// The shard of this folder.
        expected: ShardIdentity,
        /// The shard that wrote the record.
        found: ShardIdentity,
    },
    /// Bytes of acknowledged commits cannot be read, and later ones can.
    #[error(
        "{} is damaged between bytes {} and {}: commits up to {before} are readable before them, from {after} on after them, those between are lost; restore the folder from a backup (starting without them would take back acknowledged counts)",
        path.display(), range.start, range.end
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The unreadable bytes.
        range: Range<u64>,
        /// The last readable commit before them.
        before: u64,
        /// The first commit known to come after them.
        after: u64,
    },
    /// Readable records that do not continue what is before them.
    #[error("{} at byte {offset}: {reason}; the files do not form one history, restore the folder from a backup", path.display())]
    BrokenChain {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// The log ends earlier than it is known to have ended.
    #[error("{} is readable up to byte {offset}, with commit {end}, but {known_by} knows of commit {known}: acknowledged commits are lost; restore the folder from a backup", path.display())]
    EndsEarly {
        /// The last file.
        path: PathBuf,
        /// Where its last readable commit ends.
        offset: u64,
        /// The last commit in it.
        end: u64,
        /// A commit that was there.
        known: u64,
        /// Who says so.
        known_by: &'static str,
    },
    /// The log begins later than the state that it should continue.
    #[error("the log in {} begins with commit {first}, but the checkpoint ends with {checkpoint}: the commits between are lost; restore the newer checkpoint or the folder from a backup", path.display())]
    BeginsLate {
        /// The log's folder.
        path: PathBuf,
        /// Its first commit.
        first: u64,
        /// The last commit of the state.
        checkpoint: u64,
    },
    /// A record with a good checksum holds something that this version cannot read.
    #[error("{}: commit {number} cannot be read: {source}; it was written by another version", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The commit.
        number: u64,
        /// What is wrong with it.
        source: EntryError,
    },
    /// The file that is written to is no longer under its name.
    #[error(
        "{} was removed, moved or replaced while it was in use: what is written would be lost, so nothing is \
         acknowledged; put the folder back where it was, or restore a backup",
        path.display()
    )]
    Vanished {
        /// The file's name.
        path: PathBuf,
    },
    /// A newer epoch has taken over: this writer must stop.
    #[error("epoch {theirs} has taken over {} from epoch {ours}: this process must not write any more", path.display())]
    Fenced {
        /// The manifest.
        path: PathBuf,
        /// This writer's epoch.
        ours: u64,
        /// The epoch found.
        theirs: u64,
    },
    /// Whoever reads doesn't want to go on.
    #[error("the reading was stopped")]
    Stopped,
    /// The caller broke the order: a bug in this program.
    #[error("the journal was used out of order: {0}; please report it")]
    OutOfOrder(String),
}

impl JournalError {
    /// The error of a lock that somebody holds.
    pub(super) fn locked(files: &dyn FileSystem, path: PathBuf) -> Self {
        Self::Locked { here: files.is_locked_here(&path), path }
    }

    /// Is trying again pointless? Then the writer stops for good.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, JournalError::Fenced { .. } | JournalError::OutOfOrder(_))
    }

    /// Where it is: the file or folder, and which of its bytes.
    #[must_use]
    pub fn place(&self) -> Option<(&Path, Option<Range<u64>>)> {
        match self {
            Self::Io { path, .. }
            | Self::Locked { path, .. }
            | Self::ManifestMissing { manifest: path, .. }
            | Self::ManifestDamaged { path, .. }
            | Self::SegmentMissing { path, .. }
            | Self::SegmentUnexpected { path, .. }
            | Self::BeginsLate { path, .. }
            | Self::Entry { path, .. }
            | Self::Vanished { path }
            | Self::Fenced { path, .. } => Some((path, None)),
            Self::Damaged { path, range, .. } => Some((path, Some(range.clone()))),
            Self::NewerFormat { path, offset, .. }
            | Self::OtherShard { path, offset, .. }
            | Self::EndsEarly { path, offset, .. }
            | Self::BrokenChain { path, offset, .. } => Some((path, Some(*offset..*offset))),
            Self::Stopped | Self::OutOfOrder(_) => None,
        }
    }

    /// Wraps an error of the operating system.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> JournalError {
        let path = path.into();
        move |source| JournalError::Io { action, path, source }
    }
}
