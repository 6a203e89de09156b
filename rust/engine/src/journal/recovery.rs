//! Opening a shard's folder: lock it, read what it must hold, replay what it holds, and only then write.
//!
//! [`open`] locks and checks names; [`Opening::replay`] reads everything and decides where the log ends, without writing;
//! [`Recovered::start`] cuts a torn end, raises the epoch and starts a new file. Nothing is written before all is read,
//! so a refused start leaves the folder as it was.
//!
//! What a bad record means is decided a commit at a time, because the system may write the pages of an append in any
//! order: after a power cut the later records of the last commit may be whole and an earlier one may not. A commit is
//! appended only when the one before it is durable, so readable records of a *later* commit prove that the bad one had
//! been durable: damage, and the start is refused. Without them, in the last file, the commit is the torn end of the log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::journal::Appender;
use crate::journal::entry::Entry;
use crate::journal::error::JournalError;
use crate::journal::files::{DiskFiles, FileSystem};
use crate::journal::manifest::{MANIFEST_NAME, MANIFEST_NEW_NAME, Manifest, ManifestFile};
use crate::journal::reader::{Commit, SegmentScan};
use crate::journal::record::{CommitEncoder, Position, ShardIdentity, Writer};
use crate::journal::segment::{
    LOG_FOLDER_NAME, SEGMENT_BYTES, SEGMENT_NEW_SUFFIX, SegmentAppender, SegmentedLog, first_commit_of,
};
use crate::journal::simulated_files::Random;
use crate::journal::walk::{LastCommit, TornTail, Visitor, Walk};

/// The lock's name in the shard's folder.
pub(crate) const LOCK_NAME: &str = "lock";

/// How to open a journal.
pub struct JournalOptions {
    /// What people call the shard; written into a new manifest, and ignored where there is one.
    pub name: String,
    /// The size after which a new file is started.
    pub segment_bytes: u64,
    /// The file system.
    pub files: Arc<dyn FileSystem>,
    /// Who a new shard is follows from this; `None`: from the system's random numbers. For simulations, which must
    /// repeat themselves: two shards of one identity would count twice.
    pub seed: Option<u64>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { name: String::from("shard"), segment_bytes: SEGMENT_BYTES, files: Arc::new(DiskFiles), seed: None }
    }
}

/// A folder that is locked and whose files are those that the manifest expects.
pub struct Opening {
    log: Arc<SegmentedLog>,
    segment_bytes: u64,
    leftovers: Vec<PathBuf>,
}

/// A folder whose log was read to its end.
pub struct Recovered {
    opening: Opening,
    last: Option<LastCommit>,
    /// The end of the last whole commit.
    pub end: Position,
    /// What [`Recovered::start`] will cut.
    pub torn: Option<TornTail>,
    /// How many commits were passed on.
    pub commits: u64,
}

/// A journal that can be written to.
pub struct Started {
    /// For reading and for checkpoints.
    pub log: Arc<SegmentedLog>,
    /// For the thread that drains.
    pub encoder: CommitEncoder,
    /// For the commit thread.
    pub appender: SegmentAppender,
    /// The commit that opened the epoch; durable.
    pub position: Position,
}

/// Locks a shard's folder and reads its manifest. Where there is nothing, a new shard is made.
///
/// # Errors
/// `Locked` if it is open already; `ManifestMissing` if there is data but no manifest; files that are missing or do not
/// belong to the log; what the system says.
pub fn open(folder: &Path, options: JournalOptions) -> Result<Opening, JournalError> {
    let JournalOptions { name, segment_bytes, files, seed } = options;
    files.create_folder(folder).map_err(JournalError::io("create", folder))?;
    let lock_path = folder.join(LOCK_NAME);
    let lock = files.lock(&lock_path).map_err(JournalError::io("lock", &lock_path))?;
    let lock = lock.ok_or_else(|| JournalError::locked(&*files, lock_path))?;
    let manifest = match ManifestFile::load(Arc::clone(&files), folder)? {
        Some(manifest) => manifest,
        None => create(&files, folder, name, seed)?,
    };
    let log = Arc::new(SegmentedLog::new(files, folder, manifest, lock));
    let leftovers = check_names(&log, &mut Err)?;
    Ok(Opening { log, segment_bytes, leftovers })
}

/// Makes a shard, if the folder is empty. The folder's own name must be as durable as what will be in it.
fn create(
    files: &Arc<dyn FileSystem>,
    folder: &Path,
    name: String,
    seed: Option<u64>,
) -> Result<ManifestFile, JournalError> {
    let log_folder = folder.join(LOG_FOLDER_NAME);
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A volume's own folder, hidden files, and what an interrupted creation leaves.
        !name.starts_with('.') && !["lost+found", LOCK_NAME, LOG_FOLDER_NAME, MANIFEST_NEW_NAME].contains(&name)
    };
    let in_log = match files.list(&log_folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        found => found.map_err(JournalError::io("list", &log_folder))?.into_iter().next(),
    };
    let found = list(&**files, folder)?.into_iter().find(is_data);
    if let Some(found) = found.or(in_log) {
        return Err(JournalError::ManifestMissing { manifest: folder.join(MANIFEST_NAME), found });
    }
    files.create_folder(&log_folder).map_err(JournalError::io("create", &log_folder))?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match files.sync_folder(parent) {
        // Whoever may not even read the parent folder did not make this one in it.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            return Err(JournalError::io("fsync", parent)(error));
        }
        _ => {}
    }
    let mut manifest = new_manifest(name)?;
    if let Some(seed) = seed {
        let mut random = Random::new(seed);
        manifest.identity = ShardIdentity(std::array::from_fn(|_| random.below(256) as u8));
        manifest.hash_seed = u64::from_le_bytes(std::array::from_fn(|_| random.below(256) as u8));
    }
    ManifestFile::create(Arc::clone(files), folder, manifest)
}

/// Of a shard that has nothing yet.
pub(crate) fn new_manifest(name: String) -> Result<Manifest, JournalError> {
    Ok(Manifest {
        identity: ShardIdentity(random()?),
        name,
        hash_seed: u64::from_le_bytes(random()?),
        epoch: 0,
        writer_id: 0,
        segments: Vec::new(),
        checkpoint: None,
        clean_end: None,
        created_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
    })
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], JournalError> {
    let mut bytes = [0; N];
    let refused = |error: getrandom::Error| io::Error::other(error.to_string());
    getrandom::fill(&mut bytes).map_err(refused).map_err(JournalError::io("read", "the system's random source"))?;
    Ok(bytes)
}

pub(crate) fn list(files: &dyn FileSystem, path: &Path) -> Result<Vec<PathBuf>, JournalError> {
    files.list(path).map_err(JournalError::io("list", path))
}

/// Compares the log's folder with the manifest. The result are files that may go: starts and trims that a crash
/// interrupted leave some. An error of `on_damage` ends the comparison.
pub(crate) fn check_names(
    log: &SegmentedLog,
    on_damage: &mut dyn FnMut(JournalError) -> Result<(), JournalError>,
) -> Result<Vec<PathBuf>, JournalError> {
    let manifest = log.manifest();
    let mut leftovers = Vec::new();
    let mut found = Vec::new();
    let (oldest, newest) = (manifest.segments.first().copied(), manifest.segments.last().copied().unwrap_or(0));
    let covered = manifest.checkpoint.map_or(0, |checkpoint| checkpoint.position.commit);
    let paths = match list(log.files(), log.log_folder()) {
        // A folder that is gone is a folder whose files are gone: named below.
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound && oldest.is_some() => {
            Vec::new()
        }
        paths => paths?,
    };
    for path in paths {
        let unexpected = |reason: &str| JournalError::SegmentUnexpected { path: path.clone(), reason: reason.into() };
        if path.to_str().is_some_and(|path| path.ends_with(SEGMENT_NEW_SUFFIX)) {
            leftovers.push(path);
            continue;
        }
        let Some(first) = first_commit_of(&path) else {
            on_damage(unexpected("it is no file of the log; move it elsewhere"))?;
            continue;
        };
        if manifest.segments.contains(&first) {
            found.push(first);
        } else if oldest.is_some_and(|oldest| first < oldest && oldest - 1 <= covered) {
            // The manifest stopped naming it when a checkpoint had made it superfluous.
            leftovers.push(path);
        } else if first > newest && SegmentScan::open(log.files(), path.clone(), first)?.file_bytes()? == 0 {
            // A file is named by the manifest before anything is written to it, so an unnamed one is empty.
            leftovers.push(path);
        } else if first > newest {
            on_damage(unexpected(
                "it holds records, but the manifest doesn't name it: the manifest is older than the log; restore both from one backup",
            ))?;
        } else {
            on_damage(unexpected(
                "the manifest names files before and after it, but not this one; move it elsewhere if it came from another folder",
            ))?;
        }
    }
    for &first in manifest.segments.iter().filter(|first| !found.contains(first)) {
        on_damage(JournalError::SegmentMissing { path: log.segment_path(first), first })?;
    }
    Ok(leftovers)
}

impl Opening {
    /// What the folder must hold.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.log.manifest()
    }

    /// Reads the whole log, passes the entries of commits after `from` to `sink`, in order, whole commits only, and
    /// finds where it ends. `from` is the end of the state that the caller has: a checkpoint's position, or the start.
    ///
    /// # Errors
    /// Damage, anything that does not form one history, a log that does not reach what is known of it. Whatever `sink`
    /// got is to be thrown away then.
    pub fn replay(self, from: Position, sink: &mut dyn FnMut(&Entry<'_>)) -> Result<Recovered, JournalError> {
        let manifest = self.log.manifest();
        let mut replay = Replay { from, sink, commits: 0 };
        let mut walk = Walk::new(&self.log, &manifest, from, &mut replay);
        let end = walk.run()?;
        let Walk { last, torn, .. } = walk;
        let commits = replay.commits;
        Ok(Recovered { opening: self, last, end, torn, commits })
    }
}

/// Passes entries on, and takes no damage.
struct Replay<'a> {
    from: Position,
    sink: &'a mut dyn FnMut(&Entry<'_>),
    commits: u64,
}

impl Visitor for Replay<'_> {
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), JournalError> {
        if commit.position.commit > self.from.commit {
            commit.deliver(self.sink)?;
            self.commits += 1;
        }
        Ok(())
    }

    fn damage(&mut self, damage: JournalError) -> Result<(), JournalError> {
        Err(damage)
    }
}

impl Recovered {
    /// What the folder must hold.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        self.opening.manifest()
    }

    /// Makes the log ready for writing: cuts a torn end, raises the epoch, and appends the commit that opens it to a new
    /// file. An old file is never written to again.
    ///
    /// # Errors
    /// What the system says. The folder can be opened again then.
    pub fn start(self) -> Result<Started, JournalError> {
        let Recovered { opening: Opening { log, segment_bytes, leftovers }, last, end, torn, .. } = self;
        for path in leftovers {
            match log.files().remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(JournalError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        if let Some(last) = last {
            log.write_again(last.first, last.bytes)?;
        }
        if let Some(torn) = torn {
            log.cut(torn.first, torn.keep_bytes)?;
        }
        let Manifest { identity, epoch, .. } = *log.manifest();
        let writer = Writer { identity, epoch: epoch + 1, writer_id: u64::from_le_bytes(random()?) };
        let mut encoder = CommitEncoder::new(writer, end);
        let opened = encoder.epoch_opened();
        // One change of the manifest raises the epoch and names the new file, before anything is in it.
        let file = log.start_segment(opened.number, |manifest| {
            manifest.epoch = writer.epoch;
            manifest.writer_id = writer.writer_id;
            manifest.clean_end = None;
        })?;
        let mut appender = SegmentAppender::new(Arc::clone(&log), segment_bytes, end, file);
        appender.append(&opened)?;
        Ok(Started { log, encoder, appender, position: opened.position() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{Checkpoint, Journal};

    fn options(segment_bytes: u64) -> JournalOptions {
        JournalOptions { segment_bytes, ..JournalOptions::default() }
    }

    fn append(started: &mut Started, value: i64) -> Position {
        let number = started.encoder.next_number();
        started.encoder.begin(number, 0);
        started.encoder.put_counter(b"key", value);
        let commit = started.encoder.finish();
        started.appender.append(&commit).unwrap();
        commit.position()
    }

    /// The values of `key` in the order of the log.
    fn reopen(folder: &Path, from: Position) -> Result<(Vec<i64>, Recovered), JournalError> {
        let mut values = Vec::new();
        let recovered = open(folder, options(200))?.replay(from, &mut |entry| {
            if let Entry::Counter { value, .. } = entry {
                values.push(*value);
            }
        })?;
        Ok((values, recovered))
    }

    #[test]
    fn a_log_is_replayed_over_files_and_openings() {
        let folder = tempfile::tempdir().unwrap();
        let mut middle = Position::START;
        for opening in 0..3 {
            let (values, recovered) = reopen(folder.path(), Position::START).unwrap();
            assert_eq!(values, (0..opening * 5).collect::<Vec<_>>());
            assert_eq!((recovered.manifest().epoch, recovered.torn.clone()), (opening as u64, None));
            let mut started = recovered.start().unwrap();
            for value in opening * 5..opening * 5 + 5 {
                let position = append(&mut started, value);
                if value == 6 {
                    middle = position;
                }
            }
        }
        let (values, recovered) = reopen(folder.path(), middle).unwrap();
        assert_eq!(values, (7..15).collect::<Vec<_>>());
        assert!(recovered.manifest().segments.len() > 4);
        drop(recovered);
        let wrong = Position { hash: middle.hash + 1, ..middle };
        assert!(matches!(reopen(folder.path(), wrong), Err(JournalError::BrokenChain { .. })));
    }

    #[test]
    fn a_reader_follows_a_log_that_is_written_and_sees_nothing_above_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let (_, recovered) = reopen(folder.path(), Position::START).unwrap();
        let mut started = recovered.start().unwrap();
        let mut reader = Arc::clone(&started.log).tail(Position::START).unwrap();
        for value in 0..20 {
            let position = append(&mut started, value);
            if value % 3 == 0 {
                let mut last = None;
                while let Some(commit) = reader.next_commit(position.commit - 1).unwrap() {
                    last = Some(commit.position.commit);
                }
                assert_eq!(last, Some(position.commit - 1));
                assert_eq!(reader.position().commit, position.commit - 1);
            }
        }
    }

    #[test]
    fn trimming_keeps_what_the_checkpoint_needs() {
        let folder = tempfile::tempdir().unwrap();
        let (_, recovered) = reopen(folder.path(), Position::START).unwrap();
        let mut started = recovered.start().unwrap();
        let positions: Vec<_> = (0..20).map(|value| append(&mut started, value)).collect();
        assert!(matches!(started.log.trim(5), Err(JournalError::OutOfOrder(_))));
        started.log.set_checkpoint(Checkpoint { position: positions[9], root_hash: 1, fold: 1 }).unwrap();
        assert!(started.log.trim(positions[9].commit).unwrap() > 0);
        let first = started.log.manifest().segments[0];
        assert!(first <= positions[9].commit + 1);
        assert!(matches!(Arc::clone(&started.log).tail(Position::START), Err(JournalError::BeginsLate { .. })));
        drop(started);
        assert!(matches!(reopen(folder.path(), Position::START), Err(JournalError::BeginsLate { .. })));
        let (values, _) = reopen(folder.path(), positions[9]).unwrap();
        assert_eq!(values, (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn one_opening_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path(), options(200)).unwrap();
        assert!(matches!(open(folder.path(), options(200)), Err(JournalError::Locked { .. })));
        drop(first);
        open(folder.path(), options(200)).unwrap();
    }
}
