//! The ordered log of commits: records, segment files, the commit thread, recovery.
//!
//! Reading order: [`entry`] (a fact), [`record`] (a commit's bytes), [`manifest`], [`segment`] (appending), [`reader`]
//! and `walk` (reading), [`recovery`] (opening), [`examination`] (looking only), `commit_slot` and [`commit_thread`]
//! (off the loop). `docs/journal.md` holds the format and the argument why nothing acknowledged is lost.
//!
//! A journal has two sides. One thread appends, through an [`Appender`]. Any thread may read durable commits and move
//! the checkpoint, through a [`Journal`]. A segmented log in a folder is the one journal so far; the traits are what the
//! commit thread, recovery and the checkpointer use, so that a replicated log can stand in.

use std::sync::Arc;

mod commit_slot;
pub mod commit_thread;
#[cfg(test)]
mod damage_tests;
pub mod entry;
pub mod error;
pub mod examination;
#[cfg(test)]
mod fault_tests;
pub mod files;
mod folder_lock;
pub mod manifest;
pub mod reader;
pub mod record;
pub mod recovery;
pub mod segment;
pub mod simulated_files;
pub mod tail;
pub mod unwritten;
mod walk;

pub use error::JournalError;
pub use examination::{Examination, LogFigures, examine};
pub use manifest::{Checkpoint, Manifest};
pub use reader::{Commit, replay};
pub use record::{CommitEncoder, EncodedCommit, Position, ShardIdentity};
pub use recovery::{JournalOptions, Opening, Recovered, Started, open};
pub use segment::{SegmentAppender, SegmentedLog};
pub use walk::TornTail;

/// The writing side: fenced by its epoch, owned by one thread.
pub trait Appender: Send {
    /// Makes a commit durable behind the one before it.
    ///
    /// An error says that this attempt isn't known to have worked. Unless it [is final](JournalError::is_final), the
    /// same commit, and no other, must be appended again until that works: the appender sees to it that its bytes are
    /// in the log once.
    ///
    /// # Errors
    /// Whatever the storage says; `Fenced` if a newer epoch has taken over.
    fn append(&mut self, commit: &EncodedCommit) -> Result<(), JournalError>;

    /// Whether what was appended is still where the next opening will look for it. Asked now and then while there is
    /// nothing to append; an append checks it by itself.
    ///
    /// # Errors
    /// Why not.
    fn check(&self) -> Result<(), JournalError> {
        Ok(())
    }

    /// Notes that the log ends here in good order, so that the next opening knows what must be there. Nothing may be
    /// appended afterwards.
    ///
    /// # Errors
    /// Whatever the storage says. The log is whole nevertheless.
    fn close(&mut self) -> Result<(), JournalError>;
}

/// The side that threads share: reading what is durable, and the checkpoint.
pub trait Journal: Send + Sync {
    /// Reads the commits after a position.
    ///
    /// # Errors
    /// `BeginsLate` if they have been trimmed.
    fn tail(self: Arc<Self>, after: Position) -> Result<Box<dyn CommitSource>, JournalError>;

    /// The newest checkpoint.
    fn checkpoint(&self) -> Option<Checkpoint>;

    /// Notes that a checkpoint is durable.
    ///
    /// # Errors
    /// `OutOfOrder` if it is older than the last one; whatever the storage says.
    fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), JournalError>;

    /// Drops the files that hold nothing above commit `upto`, never the one being written, and says how many.
    ///
    /// # Errors
    /// `OutOfOrder` if `upto` is above the checkpoint; whatever the storage says.
    fn trim(&self, upto: u64) -> Result<u64, JournalError>;
}

/// Commits in order, whole ones only.
pub trait CommitSource: Send {
    /// The end of the last commit that was read.
    fn position(&self) -> Position;

    /// The next commit, if it is at or below `upto`. The caller takes `upto` from what was published as durable, so
    /// bytes that are still being written are never looked at.
    ///
    /// # Errors
    /// A durable commit that is missing or damaged.
    fn next_commit(&mut self, upto: u64) -> Result<Option<Commit<'_>>, JournalError>;
}
