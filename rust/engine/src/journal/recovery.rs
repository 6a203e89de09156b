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
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::journal::Appender;
use crate::journal::entry::Entry;
use crate::journal::error::JournalError;
use crate::journal::files::{DiskFiles, FileSystem};
use crate::journal::manifest::{MANIFEST_NAME, MANIFEST_NEW_NAME, Manifest, ManifestFile};
use crate::journal::reader::{Chain, SegmentScan, Step, check_origin};
use crate::journal::record::{
    CommitEncoder, HEADER_BYTES, MAGIC, Position, RecordError, RecordHeader, ShardIdentity, Writer, claimed_number,
    claimed_writer,
};
use crate::journal::segment::{
    LOG_FOLDER_NAME, SEGMENT_BYTES, SEGMENT_NEW_SUFFIX, SegmentAppender, SegmentedLog, first_commit_of,
};

/// The lock's name in the shard's folder.
const LOCK_NAME: &str = "lock";

/// How to open a journal.
pub struct JournalOptions {
    /// What people call the shard; written into a new manifest, and ignored where there is one.
    pub name: String,
    /// The size after which a new file is started.
    pub segment_bytes: u64,
    /// The file system.
    pub files: Arc<dyn FileSystem>,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { name: String::from("shard"), segment_bytes: SEGMENT_BYTES, files: Arc::new(DiskFiles) }
    }
}

/// A folder that is locked and whose files are those that the manifest expects.
pub struct Opening {
    log: Arc<SegmentedLog>,
    segment_bytes: u64,
    leftovers: Vec<PathBuf>,
}

/// The end of a commit that was being written when the machine stopped. It was never acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub path: PathBuf,
    /// The length that it is cut to.
    pub keep_bytes: u64,
    /// How many bytes go.
    pub cut_bytes: u64,
    /// The file's first commit.
    first: u64,
}

/// Where the last whole commit stands in the last file.
#[derive(Debug, Clone)]
struct LastCommit {
    first: u64,
    bytes: Range<u64>,
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
    let JournalOptions { name, segment_bytes, files } = options;
    files.create_folder(folder).map_err(JournalError::io("create", folder))?;
    let lock_path = folder.join(LOCK_NAME);
    let lock = files.lock(&lock_path).map_err(JournalError::io("lock", &lock_path))?;
    let lock = lock.ok_or(JournalError::Locked { path: lock_path })?;
    let manifest = match ManifestFile::load(Arc::clone(&files), folder)? {
        Some(manifest) => manifest,
        None => create(&files, folder, name)?,
    };
    let log = Arc::new(SegmentedLog::new(files, folder, manifest, lock));
    let leftovers = check_names(&log)?;
    Ok(Opening { log, segment_bytes, leftovers })
}

/// Makes a shard, if the folder is empty. The folder's own name must be as durable as what will be in it.
fn create(files: &Arc<dyn FileSystem>, folder: &Path, name: String) -> Result<ManifestFile, JournalError> {
    let log_folder = folder.join(LOG_FOLDER_NAME);
    files.create_folder(&log_folder).map_err(JournalError::io("create", &log_folder))?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match files.sync_folder(parent) {
        // Whoever may not even read the parent folder did not make this one in it.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            return Err(JournalError::io("fsync", parent)(error));
        }
        _ => {}
    }
    let is_data = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // A volume's own folder, hidden files, and what an interrupted creation leaves.
        !name.starts_with('.') && !["lost+found", LOCK_NAME, LOG_FOLDER_NAME, MANIFEST_NEW_NAME].contains(&name)
    };
    let found = list(&**files, folder)?.into_iter().find(is_data);
    if let Some(found) = found.or(list(&**files, &log_folder)?.into_iter().next()) {
        return Err(JournalError::ManifestMissing { manifest: folder.join(MANIFEST_NAME), found });
    }
    let manifest = Manifest {
        identity: ShardIdentity(random()?),
        name,
        hash_seed: u64::from_le_bytes(random()?),
        epoch: 0,
        writer_id: 0,
        segments: Vec::new(),
        checkpoint: None,
        clean_end: None,
        created_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs()),
    };
    ManifestFile::create(Arc::clone(files), folder, manifest)
}

fn random<const N: usize>() -> Result<[u8; N], JournalError> {
    let mut bytes = [0; N];
    let refused = |error: getrandom::Error| io::Error::other(error.to_string());
    getrandom::fill(&mut bytes).map_err(refused).map_err(JournalError::io("read", "the system's random source"))?;
    Ok(bytes)
}

fn list(files: &dyn FileSystem, path: &Path) -> Result<Vec<PathBuf>, JournalError> {
    files.list(path).map_err(JournalError::io("list", path))
}

/// Compares the log's folder with the manifest. The result are files that may go: starts and trims that a crash
/// interrupted leave some.
fn check_names(log: &SegmentedLog) -> Result<Vec<PathBuf>, JournalError> {
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
        let first = first_commit_of(&path).ok_or_else(|| unexpected("it is no file of the log; move it elsewhere"))?;
        if manifest.segments.contains(&first) {
            found.push(first);
        } else if oldest.is_some_and(|oldest| first < oldest && oldest - 1 <= covered) {
            // The manifest stopped naming it when a checkpoint had made it superfluous.
            leftovers.push(path);
        } else if first > newest && SegmentScan::open(log.files(), path.clone(), first)?.file_bytes()? == 0 {
            // A file is named by the manifest before anything is written to it, so an unnamed one is empty.
            leftovers.push(path);
        } else if first > newest {
            return Err(unexpected(
                "it holds records, but the manifest doesn't name it: the manifest is older than the log; restore both from one backup",
            ));
        } else {
            return Err(unexpected(
                "the manifest names files before and after it, but not this one; move it elsewhere if it came from another folder",
            ));
        }
    }
    if let Some(&first) = manifest.segments.iter().find(|first| !found.contains(first)) {
        return Err(JournalError::SegmentMissing { path: log.segment_path(first), first });
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
        let mut walk = Walk { log: &self.log, manifest: &manifest, from, sink, commits: 0, last: None, torn: None };
        let end = walk.log_end()?;
        let Walk { commits, last, torn, .. } = walk;
        Ok(Recovered { opening: self, last, end, torn, commits })
    }
}

/// One pass over the log.
struct Walk<'a> {
    log: &'a SegmentedLog,
    manifest: &'a Manifest,
    from: Position,
    sink: &'a mut dyn FnMut(&Entry<'_>),
    commits: u64,
    last: Option<LastCommit>,
    torn: Option<TornTail>,
}

impl Walk<'_> {
    fn log_end(&mut self) -> Result<Position, JournalError> {
        let Some(&first) = self.manifest.segments.first() else {
            return self.checked_end(Position::START);
        };
        if first > self.from.commit.saturating_add(1) {
            let (path, checkpoint) = (self.log.log_folder().to_path_buf(), self.from.commit);
            return Err(JournalError::BeginsLate { path, first, checkpoint });
        }
        let mut chain = Chain::before(self.manifest, first, self.from);
        for &first in &self.manifest.segments {
            self.segment(first, &mut chain)?;
        }
        self.checked_end(Position { commit: chain.commit, hash: chain.hash.unwrap_or(0) })
    }

    /// Does the log reach what is known to have been durable?
    fn checked_end(&self, end: Position) -> Result<Position, JournalError> {
        let checkpoint = self.manifest.checkpoint.map(|checkpoint| checkpoint.position);
        let known = [
            (Some(self.from), "the checkpoint"),
            (checkpoint, "the manifest's checkpoint"),
            (self.manifest.clean_end, "the manifest, from a stop in good order,"),
        ];
        for (position, known_by) in known {
            if let Some(Position { commit: known, .. }) = position.filter(|known| known.commit > end.commit) {
                let last = self.manifest.segments.last();
                let path = last.map_or(self.log.log_folder().to_path_buf(), |&first| self.log.segment_path(first));
                let offset = self.last.as_ref().map_or(0, |last| last.bytes.end);
                return Err(JournalError::EndsEarly { path, offset, end: end.commit, known, known_by });
            }
        }
        if let Some(clean_end) = self.manifest.clean_end.filter(|&clean_end| clean_end != end) {
            return Err(JournalError::BrokenChain {
                path: self.log.log_folder().to_path_buf(),
                offset: 0,
                reason: format!(
                    "the log ends with commit {}, but was closed in good order after commit {}",
                    end.commit, clean_end.commit
                ),
            });
        }
        Ok(end)
    }

    /// Reads one file to its end, or to the first commit of the next one.
    fn segment(&mut self, first: u64, chain: &mut Chain) -> Result<(), JournalError> {
        let successor = self.manifest.successor(first);
        let mut scan = SegmentScan::open(self.log.files(), self.log.segment_path(first), first)?;
        self.last = None;
        while successor != Some(chain.next()) {
            let start = scan.offset();
            match (scan.step(chain)?, successor) {
                (Step::Commit, _) => {
                    self.last = Some(LastCommit { first, bytes: start..scan.offset() });
                    check_origin(chain, self.from, &scan)?;
                    if chain.commit > self.from.commit {
                        scan.commit(chain).deliver(self.sink)?;
                        self.commits += 1;
                    }
                }
                (Step::End, None) => return Ok(()),
                (Step::Bad { start, at }, None) => return self.torn_or_damaged(&scan, chain, start, at),
                (Step::End, Some(after)) => {
                    return Err(damaged(&scan, chain, scan.offset(), after, scan.file_bytes()?));
                }
                (Step::Bad { at, .. }, Some(after)) => {
                    let (end, after) = match later_commit(&scan, at, chain, None)? {
                        Some((offset, number)) => (offset, number.min(after)),
                        None => (scan.file_bytes()?, after),
                    };
                    return Err(damaged(&scan, chain, at, after, end));
                }
            }
        }
        // The next file begins with the next commit. What may still be here is that commit, whole or in part, from an
        // append that failed; nothing later, for that would be another history.
        let rest = scan.offset();
        if let Some((offset, number)) = later_commit(&scan, rest, chain, chain.writer)? {
            let reason = format!("commit {number} is here, but the next file begins with commit {}", chain.next());
            return Err(JournalError::BrokenChain { path: scan.path().to_path_buf(), offset, reason });
        }
        Ok(())
    }

    /// The last file has a bad record at `at`, in the commit that begins at `start`.
    fn torn_or_damaged(&mut self, scan: &SegmentScan, chain: &Chain, start: u64, at: u64) -> Result<(), JournalError> {
        // Every record of the last file is of the newest opening. Its random writer id is in no reply, so no client
        // can have put bytes into a key that pass for one.
        let Manifest { identity, epoch, writer_id, .. } = *self.manifest;
        if let Some((offset, number)) = later_commit(scan, at, chain, Some(Writer { identity, epoch, writer_id }))? {
            return Err(damaged(scan, chain, at, number, offset));
        }
        let cut_bytes = scan.file_bytes()?.saturating_sub(start);
        self.torn = Some(TornTail { path: scan.path().to_path_buf(), keep_bytes: start, cut_bytes, first: scan.first });
        Ok(())
    }
}

fn damaged(scan: &SegmentScan, chain: &Chain, from: u64, after: u64, to: u64) -> JournalError {
    JournalError::Damaged { path: scan.path().to_path_buf(), range: from..to, before: chain.commit, after }
}

/// Looks for a whole record of a commit later than the next one, from `offset` on: where it is and its number.
fn later_commit(
    scan: &SegmentScan,
    offset: u64,
    chain: &Chain,
    writer: Option<Writer>,
) -> Result<Option<(u64, u64)>, JournalError> {
    let rest = scan.rest(offset)?;
    // A record takes a header at least, which bounds the numbers that can follow.
    let numbers = chain.next() + 1..=chain.next().saturating_add((rest.len() / HEADER_BYTES) as u64);
    for at in memchr::memmem::find_iter(&rest, &MAGIC) {
        let candidate = rest.get(at..).unwrap_or_default();
        let Some(header) = candidate.first_chunk::<HEADER_BYTES>() else { break };
        // Compared before the checksum is computed, which costs up to a whole record's length.
        let number = claimed_number(header);
        let plausible = numbers.contains(&number) && writer.is_none_or(|writer| writer == claimed_writer(header));
        if plausible && RecordHeader::parse(candidate) != Err(RecordError::Bad) {
            return Ok(Some((offset + at as u64, number)));
        }
    }
    Ok(None)
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
