//! Making a shard's folder that begins with counters: what `restore` and `repair` leave.
//!
//! It is another shard than the one that the counters come from: a new identity, no sessions and no ids, because a
//! retry that they would answer may be about an operation that is not in these counters. Its uptime goes on far ahead,
//! so that an id that tells its age (`born`) is refused as too old instead of counted again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{CheckpointError, CheckpointWriter, Contents, Root, Row};
use crate::folder::FolderError;
use crate::journal::files::{DiskFiles, FileSystem};
use crate::journal::manifest::ManifestFile;
use crate::journal::recovery::new_manifest;
use crate::journal::segment::LOG_FOLDER_NAME;
use crate::journal::{Checkpoint, JournalError, Manifest, Position, ShardIdentity};

/// Thirty days: longer than ids are kept anywhere.
const UPTIME_AHEAD_MS: u64 = 30 * 24 * 3600 * 1000;

/// A folder that is being made. It is no shard's before [`FolderWriter::finish`].
pub struct FolderWriter {
    folder: PathBuf,
    manifest: Manifest,
    checkpoint: Option<CheckpointWriter>,
    root: Option<Root>,
}

impl FolderWriter {
    /// Begins a folder for the shard `name`, whose earlier uptime was `uptime_ms`.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(folder: &Path, name: &str, uptime_ms: u64) -> Result<Self, FolderError> {
        // An epoch has been: the folder is no new one to whoever opens it.
        let manifest = Manifest { epoch: 1, ..new_manifest(name.to_owned())? };
        let checkpoint = CheckpointWriter::new(manifest.identity, uptime_ms.saturating_add(UPTIME_AHEAD_MS));
        Ok(Self { folder: folder.to_path_buf(), manifest, checkpoint: Some(checkpoint), root: None })
    }

    /// The new shard's.
    #[must_use]
    pub const fn identity(&self) -> ShardIdentity {
        self.manifest.identity
    }

    /// Takes the counters of one part, in order. Gives rows to put.
    ///
    /// # Errors
    /// The row isn't the one that the contents name.
    pub fn copy(&mut self, contents: &Contents, part: usize, row: Option<&[u8]>) -> Result<Vec<Row>, CheckpointError> {
        let Some(checkpoint) = &mut self.checkpoint else { return Ok(Vec::new()) };
        contents.read(part, row, &mut |key, value| checkpoint.put(key, value))?;
        Ok(checkpoint.take_rows())
    }

    /// All parts were copied. Gives the last rows and the root's, which is to be put last.
    pub fn finish_rows(&mut self) -> (Vec<Row>, Vec<u8>) {
        let Some(checkpoint) = self.checkpoint.take() else { return (Vec::new(), Vec::new()) };
        let (rows, row, root) = checkpoint.finish();
        self.root = Some(root);
        (rows, row)
    }

    /// The rows are safe: writes the manifest, and from then on the folder is a shard's.
    ///
    /// # Errors
    /// What the system says.
    pub fn finish(&mut self) -> Result<(), FolderError> {
        let Some(root) = self.root.take() else { return Ok(()) };
        let files = DiskFiles;
        let log_folder = self.folder.join(LOG_FOLDER_NAME);
        let io = |action, path: &Path| JournalError::io(action, path.to_path_buf());
        files.create_folder(&log_folder).map_err(io("create", &log_folder))?;
        // Names of the checkpoint's files: RocksDB syncs what is in them.
        sync_below(&self.folder).map_err(io("fsync", &self.folder))?;
        self.manifest.checkpoint = Some(Checkpoint { position: root.position, root_hash: root.hash, fold: root.fold });
        self.manifest.clean_end = Some(Position::START);
        ManifestFile::create(Arc::new(files), &self.folder, self.manifest.clone())?;
        Ok(())
    }
}

/// Makes every file and folder below `folder` durable.
fn sync_below(folder: &Path) -> std::io::Result<()> {
    for path in DiskFiles.list(folder)? {
        if path.is_dir() {
            sync_below(&path)?;
        } else {
            File::open(path)?.sync_all()?;
        }
    }
    DiskFiles.sync_folder(folder)
}
