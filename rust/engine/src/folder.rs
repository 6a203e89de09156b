//! A shard's folder, from the lock to a running journal: checkpoint pages first, then the log behind them; and later
//! the folding of the log into new pages.
//!
//! [`Recovery`] is used by one thread, before anything else runs. [`Checkpointer`] is shared with the checkpoint
//! thread, which reads durable commits only, and the root, which nobody else changes.

pub mod reader;
pub mod writer;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::checkpoint::{CheckpointError, Fold, Root, Windows};
use crate::journal::commit_thread::CommitThread;
use crate::journal::tail::TailReaders;
use crate::journal::{
    self, Checkpoint, CommitEncoder, Journal, JournalError, JournalOptions, Manifest, Opening, Position,
    SegmentAppender, SegmentedLog,
};
use crate::placement::foreign_list::ForeignList;
use crate::placement::hash_ring::HashRing;
use crate::state::{RestoreError, State, StateSettings};

/// A fold's changes take about this much memory at most ...
const FOLD_MEMORY_BYTES: usize = 64 << 20;
/// ... and it reads about this much log at most: hot counters take a lot of log and little memory.
const FOLD_LOG_BYTES: usize = 512 << 20;
/// The log is read in portions of about this size, with a look at the memory after each.
const PORTION_BYTES: usize = 4 << 20;

/// Why a folder can't be opened, or a checkpoint not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Of the log or the manifest.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Of the pages.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The memory bound is too low for what is stored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// A folder being opened: locked, its manifest read.
pub struct Recovery {
    opening: Opening,
    root: Root,
    state: State,
    windows: Windows,
    created: bool,
}

/// A folder that was read to the end and can be written to.
pub struct Recovered {
    /// As after the last durable commit.
    pub state: State,
    /// For whoever drains.
    pub encoder: CommitEncoder,
    /// Writes.
    pub journal: CommitThread,
    /// For the checkpoint thread.
    pub checkpointer: Arc<Checkpointer>,
    /// For replicas.
    pub tails: Arc<TailReaders>,
    /// The shard's uptime in all its earlier runs, in milliseconds.
    pub uptime_ms: u64,
    /// Commits read from the log.
    pub commits_replayed: u64,
    /// The shard's name, given to the folder when it was made.
    pub name: String,
    /// The folder's identity, as 32 hexadecimal digits.
    pub identity: String,
    /// Of this run.
    pub epoch: u64,
    /// Bytes cut from the log's end: a commit that was being written when the last run ended.
    pub torn_bytes: u64,
}

impl Recovery {
    /// Locks the folder and reads its manifest; makes both if the folder is empty.
    pub fn open(folder: &Path, options: JournalOptions, settings: &StateSettings) -> Result<Self, FolderError> {
        let opening = journal::open(folder, options)?;
        let manifest = opening.manifest();
        let state = State::new(manifest.hash_seed, settings)?;
        let windows = Windows { sessions: settings.sessions, ids: settings.ids };
        let created = manifest.epoch == 0;
        Ok(Self { root: Root::empty(manifest.identity), opening, state, windows, created })
    }

    /// The shard is one of this ring's: it lists its foreign counters. To be called before anything is loaded.
    pub fn list_foreign(&mut self, ring: HashRing) {
        let list = ForeignList::new(ring, &self.manifest().name);
        self.state.list_foreign(list);
    }

    /// What the folder says of itself.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.opening.manifest()
    }

    /// Was the folder empty before?
    #[must_use]
    pub const fn created(&self) -> bool {
        self.created
    }

    /// Takes the checkpoint's root, or that there is none. Gives the keys of the pages to load.
    pub fn load_root(&mut self, row: Option<&[u8]>) -> Result<Vec<Vec<u8>>, FolderError> {
        let manifest = self.manifest();
        if let Some(root) = Root::of_folder(row, manifest.identity, manifest.checkpoint)? {
            self.root = root;
        }
        Ok(self.root.page_keys())
    }

    /// Takes one of those pages.
    pub fn load_page(&mut self, key: &[u8], row: Option<&[u8]>) -> Result<(), FolderError> {
        let state = &mut self.state;
        let mut refused = None;
        self.root.read_page(key, row, &mut |entry| {
            if let Err(error) = state.restore(entry) {
                refused.get_or_insert(error);
            }
        })?;
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Replays the log behind the checkpoint, then starts the journal: from here on the folder changes.
    pub fn start(self) -> Result<Recovered, FolderError> {
        self.start_with(CommitThread::start)
    }

    /// The same without a commit thread, for simulations: see [`CommitThread::step`].
    pub fn start_by_hand(self) -> Result<Recovered, FolderError> {
        self.start_with(CommitThread::start_by_hand)
    }

    fn start_with(
        self,
        start: impl FnOnce(SegmentAppender, u64) -> std::io::Result<CommitThread>,
    ) -> Result<Recovered, FolderError> {
        let Self { opening, root, mut state, windows, .. } = self;
        let mut uptime_ms = root.uptime_ms;
        let mut refused = None;
        let replayed = opening.replay(root.position, &mut |entry| {
            if let journal::entry::Entry::Uptime { uptime_ms: at } = entry {
                uptime_ms = uptime_ms.max(*at);
            }
            if let Err(error) = state.restore(entry) {
                refused.get_or_insert(error);
            }
        })?;
        if let Some(error) = refused {
            return Err(error.into());
        }
        state.finish_restore()?;
        let commits_replayed = replayed.commits;
        let torn_bytes = replayed.torn.as_ref().map_or(0, |torn| torn.cut_bytes);
        let started = replayed.start()?;
        let manifest = started.log.manifest();
        let journal = start(started.appender, started.position.commit)
            .map_err(|error| JournalError::io("start a thread for", started.log.folder())(error))?;
        let tails = Arc::new(TailReaders::new(Arc::clone(&started.log)));
        Ok(Recovered {
            state,
            encoder: started.encoder,
            journal,
            checkpointer: Arc::new(Checkpointer {
                log: started.log,
                numbers: AtomicU64::new(root.fold),
                root: Mutex::new(root),
                windows,
                pins: Mutex::default(),
            }),
            tails,
            uptime_ms,
            commits_replayed,
            name: manifest.name.clone(),
            identity: manifest.identity.to_string(),
            epoch: manifest.epoch,
            torn_bytes,
        })
    }
}

/// Folds the log into pages, on a thread of its own. One fold at a time.
pub struct Checkpointer {
    log: Arc<SegmentedLog>,
    root: Mutex<Root>,
    windows: Windows,
    /// The last fold's number, also if that fold failed: whether its root reached the store may be unknown, so its
    /// pages must stay as they are until another root is there. Relaxed: only that no number comes twice matters.
    numbers: AtomicU64,
    /// By number: the log above this commit is kept, for somebody who reads an older checkpoint.
    pins: Mutex<BTreeMap<u64, u64>>,
}

impl Checkpointer {
    /// Keeps the log above commit `after`, as far as it is there, until [`Checkpointer::unpin`]. Gives the pin's number.
    pub fn pin(&self, after: u64) -> u64 {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let number = pins.last_key_value().map_or(1, |(last, _)| last + 1);
        pins.insert(number, after);
        number
    }

    /// Keeps no more than the log above commit `after` for a pin from now on.
    pub fn move_pin(&self, pin: u64, after: u64) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).insert(pin, after);
    }

    /// Ends a pin. What it kept goes with the next checkpoint.
    pub fn unpin(&self, pin: u64) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(&pin);
    }

    /// What a root's row says, if it is this folder's: of the checkpoint that it names.
    pub fn read_root(&self, row: &[u8]) -> Result<Root, FolderError> {
        Ok(Root::decode(row, self.log.manifest().identity)?)
    }

    fn root(&self) -> Root {
        self.root.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Commits behind the checkpoint, up to `durable`.
    #[must_use]
    pub fn commits_behind(&self, durable: u64) -> u64 {
        durable.saturating_sub(self.root.lock().unwrap_or_else(PoisonError::into_inner).position.commit)
    }

    /// Bytes of the log's files; those below the checkpoint are gone but for the part of one file.
    pub fn log_bytes(&self) -> Result<u64, FolderError> {
        let mut bytes = 0;
        for &first in &self.log.manifest().segments {
            let path = self.log.segment_path(first);
            let length = self.log.files().open_read(&path).and_then(|file| file.length());
            bytes += length.map_err(JournalError::io("measure", path))?;
        }
        Ok(bytes)
    }

    /// Has the next commit begin a new file, so that the one before it can be dropped.
    pub fn roll_log(&self) {
        self.log.roll();
    }

    /// Reads durable commits, as many as fit into the memory for it, to be folded. `None`: there is nothing new.
    pub fn begin(&self, durable: u64) -> Result<Option<Fold>, FolderError> {
        self.log.check_epoch()?;
        let root = self.root();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let mut fold = Fold::new(&root, number, self.windows);
        let mut source = Arc::clone(&self.log).tail(root.position)?;
        let mut reached = root.position;
        for _ in 0..FOLD_LOG_BYTES / PORTION_BYTES {
            let before = reached;
            let mut refused = Ok(());
            reached = journal::replay(&mut *source, durable, PORTION_BYTES, &mut |entry| {
                if refused.is_ok() {
                    refused = fold.add(entry);
                }
            })?;
            refused?;
            if reached == before || fold.memory_bytes() >= FOLD_MEMORY_BYTES {
                break;
            }
        }
        if reached.commit <= root.position.commit {
            return Ok(None);
        }
        fold.seal(reached)?;
        Ok(Some(fold))
    }

    /// The root is safe in the store: tells the manifest, and drops the log below it.
    pub fn end(&self, root: Root) -> Result<(), FolderError> {
        let Position { commit, .. } = root.position;
        self.log.set_checkpoint(Checkpoint { position: root.position, root_hash: root.hash, fold: root.fold })?;
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = root;
        let pinned = self.pins.lock().unwrap_or_else(PoisonError::into_inner).values().min().copied();
        self.log.trim(commit.min(pinned.unwrap_or(u64::MAX)))?;
        Ok(())
    }
}
