//! Reading a shard's folder, or a backup, that no server has open, without changing it: for `check`, `repair`,
//! `restore` and `dump`.
//!
//! In this order: [`FolderReader::load_root`], [`FolderReader::load_page`] for each key that it gave,
//! [`FolderReader::read_log`]; then the counters, part by part. What is wrong is noted in
//! [`FolderReader::damage`] and what isn't is read all the same. One thread.

use std::path::Path;
use std::sync::Arc;

use crate::checkpoint::{CheckpointError, Contents, Root};
use crate::folder::FolderError;
use crate::journal::entry::Entry;
use crate::journal::files::DiskFiles;
use crate::journal::{Examination, JournalError, LogFigures, Manifest, ShardIdentity, examine};
use crate::operation_id_table::{OperationIdSettings, OperationIdTable};
use crate::session_table::{SessionSettings, SessionTable};
use crate::state::RestoreError;

/// A folder that is read.
pub struct FolderReader {
    /// `None`: it is a backup, which has pages and no log.
    examination: Option<Examination>,
    identity: ShardIdentity,
    root: Root,
    lost_pages: Vec<Vec<u8>>,
    sessions: SessionTable,
    ids: OperationIdTable,
    contents: Contents,
    damage: Vec<FolderError>,
    uptime_ms: u64,
    /// Of the log; empty before it was read.
    pub log: LogFigures,
}

impl FolderReader {
    /// Locks a shard's folder, as far as it has a lock, and reads its manifest.
    ///
    /// # Errors
    /// `Locked`, a manifest of a newer version, what the system says.
    pub fn open(folder: &Path) -> Result<Self, FolderError> {
        let examination = examine(folder, Arc::new(DiskFiles))?;
        let identity = examination.manifest().identity;
        Ok(Self::new(Some(examination), identity))
    }

    /// Reads a backup of the shard `identity`.
    #[must_use]
    pub fn of_backup(identity: ShardIdentity) -> Self {
        Self::new(None, identity)
    }

    fn new(examination: Option<Examination>, identity: ShardIdentity) -> Self {
        let root = Root::empty(identity);
        Self {
            examination,
            identity,
            contents: Contents::new(&root),
            root,
            lost_pages: Vec::new(),
            sessions: SessionTable::new(SessionSettings::default()),
            ids: OperationIdTable::new(OperationIdSettings::default()),
            damage: Vec::new(),
            uptime_ms: 0,
            log: LogFigures::default(),
        }
    }

    /// What the manifest says, where there is one that can be read.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.examination.as_ref().filter(|it| it.has_manifest()).map(Examination::manifest)
    }

    /// Whose folder it is; zeros if nothing in it says so.
    #[must_use]
    pub const fn identity(&self) -> ShardIdentity {
        self.identity
    }

    /// Takes the checkpoint's root, or that there is none. Gives the keys of the pages to load.
    ///
    /// # Errors
    /// The root is of a newer version.
    pub fn load_root(&mut self, row: Option<&[u8]>) -> Result<Vec<Vec<u8>>, FolderError> {
        let expected = match &mut self.examination {
            Some(examination) if !examination.has_manifest() => {
                if let Some(identity) = row.and_then(Root::identity_in) {
                    examination.assume_identity(identity);
                    self.identity = identity;
                }
                None
            }
            Some(examination) => examination.manifest().checkpoint,
            None if row.is_none() => {
                self.damage.push(CheckpointError::RootMissing { fold: 1 }.into());
                return Ok(Vec::new());
            }
            None => None,
        };
        let root = match Root::of_folder(row, self.identity, expected) {
            Err(newer @ CheckpointError::FormatTooNew { .. }) => return Err(newer.into()),
            Err(wrong) => {
                // An older root, or one of another time, still names pages that belong together.
                let readable = row.and_then(|row| Root::decode(row, self.identity).ok());
                self.damage.push(wrong.into());
                readable
            }
            Ok(root) => root,
        };
        self.root = root.unwrap_or_else(|| Root::empty(self.identity));
        self.uptime_ms = self.root.uptime_ms;
        Ok(self.root.page_keys())
    }

    /// Takes one of those pages, `None` where the store lacks it or can't give it.
    pub fn load_page(&mut self, key: &[u8], row: Option<&[u8]>) {
        let Self { root, sessions, ids, .. } = self;
        let mut refused = None;
        let read = root.read_page(key, row, &mut |entry| restore(sessions, ids, entry, &mut refused));
        if let Err(damaged) = read {
            self.damage.push(damaged.into());
            self.lost_pages.push(key.to_vec());
        }
        self.damage.extend(refused.map(FolderError::from));
    }

    /// The store can't be opened, so that nothing of the checkpoint can be read.
    pub fn lose_checkpoint(&mut self) {
        if let Some(checkpoint) = self.manifest().and_then(|manifest| manifest.checkpoint) {
            self.damage.push(CheckpointError::RootMissing { fold: checkpoint.fold }.into());
        }
    }

    /// Reads the whole log. `on_bytes` is told now and then how much was read, and may end it by answering false.
    ///
    /// # Errors
    /// A record of a newer version, `Stopped`, what the system says.
    pub fn read_log(&mut self, on_bytes: &mut dyn FnMut(u64) -> bool) -> Result<(), FolderError> {
        let mut contents = Contents::new(&self.root.clone().without_pages(&self.lost_pages));
        if let Some(examination) = &mut self.examination {
            let Self { sessions, ids, uptime_ms, .. } = self;
            let (mut refused, mut added) = (None, Ok(()));
            let mut take = |entry: &Entry<'_>| {
                if let Entry::Uptime { uptime_ms: at } = entry {
                    *uptime_ms = (*uptime_ms).max(*at);
                }
                restore(sessions, ids, entry, &mut refused);
                if added.is_ok() {
                    added = contents.add(entry);
                }
            };
            self.log = examination.read(self.root.position, &mut take, on_bytes)?;
            added?;
            self.damage.extend(refused.map(FolderError::from));
        }
        contents.seal()?;
        self.contents = contents;
        self.ids.finish_restore();
        if let Err(gap) = self.sessions.finish_restore() {
            self.damage.push(RestoreError::from(gap).into());
        }
        Ok(())
    }

    /// Bytes of the log's files.
    ///
    /// # Errors
    /// What the system says.
    pub fn log_bytes(&self) -> Result<u64, FolderError> {
        Ok(self.examination.as_ref().map_or(Ok(0), Examination::log_bytes)?)
    }

    /// Everything that is wrong, the log first.
    pub fn damage(&self) -> impl Iterator<Item = Damage<'_>> {
        let log = self.examination.iter().flat_map(|it| &it.damage).map(Damage::Log);
        log.chain(self.damage.iter().map(Damage::Folder))
    }

    /// Files in the log's folder that no journal made, if nothing else is wrong.
    #[must_use]
    pub fn only_foreign_files(&self) -> Option<Vec<std::path::PathBuf>> {
        self.examination.as_ref().filter(|_| self.damage.is_empty())?.only_foreign_files()
    }

    /// The last commit that the checkpoint holds.
    #[must_use]
    pub const fn checkpoint_commit(&self) -> u64 {
        self.root.position.commit
    }

    /// How many pages the checkpoint names, and how many of them can't be read.
    #[must_use]
    pub fn pages(&self) -> (usize, usize) {
        (self.root.page_keys().len(), self.lost_pages.len())
    }

    /// Live sessions and remembered ends of sessions, and operation ids; some may have run out.
    #[must_use]
    pub fn promises(&self) -> (usize, usize) {
        let sessions = self.sessions.stats();
        (sessions.sessions + sessions.tombstones, self.ids.stats().ids)
    }

    /// The shard's journaled uptime, in milliseconds.
    #[must_use]
    pub const fn uptime_ms(&self) -> u64 {
        self.uptime_ms
    }

    /// The counters that can be read.
    #[must_use]
    pub const fn contents(&self) -> &Contents {
        &self.contents
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, Copy)]
pub enum Damage<'a> {
    /// With the manifest or the log.
    Log(&'a JournalError),
    /// With the checkpoint or the tables.
    Folder(&'a FolderError),
}

fn restore(
    sessions: &mut SessionTable,
    ids: &mut OperationIdTable,
    entry: &Entry<'_>,
    refused: &mut Option<RestoreError>,
) {
    sessions.restore(entry);
    if let Err(error) = ids.restore(entry) {
        refused.get_or_insert(error.into());
    }
}
