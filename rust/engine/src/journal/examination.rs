//! Reading a folder that nobody has open, without changing it: everything that is wrong with it, not only the first.
//!
//! [`examine`] locks what there is to lock and compares names; [`Examination::read`] walks the whole log as an opening
//! does, and goes on behind damage. Without damage an opening would take the log; with any it would refuse it.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::journal::entry::Entry;
use crate::journal::error::JournalError;
use crate::journal::files::FileSystem;
use crate::journal::manifest::{MANIFEST_NAME, Manifest, ManifestFile};
use crate::journal::reader::{Commit, SegmentScan};
use crate::journal::record::{MAGIC, Position, RecordHeader, ShardIdentity};
use crate::journal::recovery::{LOCK_NAME, check_names, list};
use crate::journal::segment::{LOG_FOLDER_NAME, SegmentedLog, first_commit_of};
use crate::journal::walk::{TornTail, Visitor, Walk};

/// A folder that is locked for reading.
pub struct Examination {
    log: SegmentedLog,
    manifest: Manifest,
    has_manifest: bool,
    /// The manifest can't say who wrote the last file.
    without_writer: bool,
    /// What is wrong, as far as it was read.
    pub damage: Vec<JournalError>,
}

/// What was in the log.
#[derive(Debug, Default)]
pub struct LogFigures {
    /// The first commit in it, damaged ones not counted; 0 if there is none.
    pub first_commit: u64,
    /// The last one.
    pub last_commit: u64,
    /// How many can be read.
    pub commits: u64,
    /// Those of them that lie behind damage.
    pub commits_behind_damage: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Commits that are known to have been there and can't be read, nor are they in the checkpoint.
    pub lost: Vec<RangeInclusive<u64>>,
    /// A commit that was being written when the last run ended: nothing is wrong with that.
    pub torn: Option<TornTail>,
}

/// Locks a folder, as far as it has a lock, and reads its manifest. Nothing is written, then or later.
///
/// # Errors
/// `Locked` if somebody has it open; a manifest of a newer version; what the system says.
pub fn examine(folder: &Path, files: Arc<dyn FileSystem>) -> Result<Examination, JournalError> {
    let lock_path = folder.join(LOCK_NAME);
    let lock = files.lock_existing(&lock_path).map_err(JournalError::io("lock", &lock_path))?;
    let lock = lock.ok_or_else(|| JournalError::locked(&*files, lock_path))?;
    let mut damage = Vec::new();
    let found = match ManifestFile::load(Arc::clone(&files), folder) {
        Err(damaged @ JournalError::ManifestDamaged { .. }) => {
            damage.push(damaged);
            None
        }
        Ok(None) => {
            let (manifest, found) = (folder.join(MANIFEST_NAME), folder.join(LOG_FOLDER_NAME));
            damage.push(JournalError::ManifestMissing { manifest, found });
            None
        }
        manifest => manifest?,
    };
    let has_manifest = found.is_some();
    let manifest_file = match found {
        Some(found) => found,
        None => ManifestFile::holding(Arc::clone(&files), folder, guess(&*files, folder)?),
    };
    let log = SegmentedLog::new(files, folder, manifest_file, lock);
    let mut manifest = Manifest::clone(&log.manifest());
    let newest = manifest.segments.last().copied().unwrap_or(0);
    if has_manifest {
        check_names(&log, &mut |wrong| {
            if let JournalError::SegmentUnexpected { path, .. } = &wrong {
                // What an older manifest doesn't name can be read all the same.
                manifest.segments.extend(first_commit_of(path).filter(|&first| first > newest));
            }
            damage.push(wrong);
            Ok(())
        })?;
    }
    let without_writer = manifest.segments.last().is_none_or(|&last| last != newest) || !has_manifest;
    Ok(Examination { log, manifest, has_manifest, without_writer, damage })
}

/// What a manifest would say that names the files that are there.
fn guess(files: &dyn FileSystem, folder: &Path) -> Result<Manifest, JournalError> {
    let log_folder = folder.join(LOG_FOLDER_NAME);
    let paths = match list(files, &log_folder) {
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        paths => paths?,
    };
    let mut identity = None;
    let mut segments = Vec::new();
    for path in paths {
        let Some(first) = first_commit_of(&path) else { continue };
        segments.push(first);
        if identity.is_none() {
            identity = first_identity(&SegmentScan::open(files, path, first)?)?;
        }
    }
    segments.sort_unstable();
    Ok(Manifest {
        identity: identity.unwrap_or(ShardIdentity([0; 16])),
        name: String::from("shard"),
        hash_seed: 0,
        epoch: u64::MAX,
        writer_id: 0,
        segments,
        checkpoint: None,
        clean_end: None,
        created_at: 0,
    })
}

/// Of the first record that can be read.
fn first_identity(scan: &SegmentScan) -> Result<Option<ShardIdentity>, JournalError> {
    let bytes = scan.rest(0)?;
    let records = memchr::memmem::find_iter(&bytes, &MAGIC);
    let mut headers = records.filter_map(|at| RecordHeader::parse(bytes.get(at..).unwrap_or_default()).ok());
    Ok(headers.next().map(|header| header.writer.identity))
}

impl Examination {
    /// The manifest; where it can't be read, what is known without it.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Can the manifest be read?
    #[must_use]
    pub const fn has_manifest(&self) -> bool {
        self.has_manifest
    }

    /// The checkpoint's root says whose folder it is, where the manifest doesn't.
    pub fn assume_identity(&mut self, identity: ShardIdentity) {
        if !self.has_manifest {
            self.manifest.identity = identity;
        }
    }

    /// Bytes of the log's files.
    ///
    /// # Errors
    /// What the system says.
    pub fn log_bytes(&self) -> Result<u64, JournalError> {
        let mut bytes = 0;
        for &first in &self.manifest.segments {
            match SegmentScan::open(self.log.files(), self.log.segment_path(first), first) {
                Err(JournalError::SegmentMissing { .. }) => {}
                scan => bytes += scan?.file_bytes()?,
            }
        }
        Ok(bytes)
    }

    /// Reads the whole log and passes on the entries of commits after `from`, the checkpoint's position.
    /// `on_bytes` is told from time to time how much was read; if it answers false, the reading ends.
    ///
    /// # Errors
    /// A record of a newer version, `Stopped`, what the system says. What is wrong with the log is no error here.
    pub fn read(
        &mut self,
        from: Position,
        sink: &mut dyn FnMut(&Entry<'_>),
        on_bytes: &mut dyn FnMut(u64) -> bool,
    ) -> Result<LogFigures, JournalError> {
        let figures = LogFigures::default();
        let mut notes = Notes { from, sink, on_bytes, told: 0, next: from.commit + 1, figures, damage: Vec::new() };
        let mut walk = Walk::new(&self.log, &self.manifest, from, &mut notes);
        walk.without_writer = self.without_writer;
        let _ = walk.run()?;
        let torn = walk.torn.take();
        let Manifest { checkpoint, clean_end, .. } = &self.manifest;
        let known = checkpoint.map_or(0, |it| it.position.commit).max(clean_end.map_or(0, |it| it.commit));
        notes.lose_up_to(known + 1);
        let Notes { mut figures, damage, .. } = notes;
        figures.torn = torn;
        for found in damage {
            // Files that are missing were noticed by their names.
            let is_known = matches!(&found, JournalError::SegmentMissing { path, .. } if self.knows_missing(path));
            if !is_known {
                self.damage.push(found);
            }
        }
        Ok(figures)
    }

    fn knows_missing(&self, missing: &Path) -> bool {
        self.damage.iter().any(|known| matches!(known, JournalError::SegmentMissing { path, .. } if path == missing))
    }

    /// Files in the log's folder that no journal made, if nothing else is wrong.
    #[must_use]
    pub fn only_foreign_files(&self) -> Option<Vec<PathBuf>> {
        let foreign = |damage: &JournalError| match damage {
            JournalError::SegmentUnexpected { path, .. } if first_commit_of(path).is_none() => Some(path.clone()),
            _ => None,
        };
        self.damage.iter().map(foreign).collect()
    }
}

/// How much is read between two calls of `on_bytes`.
const TELL_BYTES: u64 = 1 << 20;

struct Notes<'a> {
    from: Position,
    sink: &'a mut dyn FnMut(&Entry<'_>),
    on_bytes: &'a mut dyn FnMut(u64) -> bool,
    told: u64,
    /// The next commit that the state lacks.
    next: u64,
    figures: LogFigures,
    damage: Vec<JournalError>,
}

impl Notes<'_> {
    fn lose_up_to(&mut self, number: u64) {
        if number > self.next {
            self.figures.lost.push(self.next..=number - 1);
            self.next = number;
        }
    }
}

impl Visitor for Notes<'_> {
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), JournalError> {
        let number = commit.position.commit;
        let figures = &mut self.figures;
        if figures.commits == 0 {
            figures.first_commit = number;
        }
        figures.last_commit = number;
        figures.commits += 1;
        figures.commits_behind_damage += u64::from(!self.damage.is_empty());
        figures.bytes += commit.records.len() as u64;
        if figures.bytes - self.told >= TELL_BYTES {
            self.told = figures.bytes;
            if !(self.on_bytes)(self.told) {
                return Err(JournalError::Stopped);
            }
        }
        if number > self.from.commit {
            self.lose_up_to(number);
            self.next = number + 1;
            if let Err(unreadable) = commit.deliver(self.sink) {
                self.damage(unreadable)?;
            }
        }
        Ok(())
    }

    fn damage(&mut self, damage: JournalError) -> Result<(), JournalError> {
        self.damage.push(damage);
        Ok(())
    }
}
