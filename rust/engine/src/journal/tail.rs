//! Durable records for replicas: the log from any commit on, in pieces, whoever asks and as often as they ask.
//!
//! A request names a place in the history, and its answer goes on from there; so nothing is lost with a connection. A
//! reader is kept open for each place that was reached, since a replica goes on where it stopped; without one, a file
//! is read from its beginning. Any thread may ask. One at a time: reading is quick, and replicas are few.

use std::sync::{Arc, Mutex, PoisonError};

use crate::journal::reader::LogReader;
use crate::journal::record::{Position, ShardIdentity, record_length};
use crate::journal::segment::SegmentedLog;
use crate::journal::{CommitSource, JournalError};

/// Readers that are kept open.
const READERS_MAX: usize = 16;

/// A reader keeps so much memory for its next commit, however large the last one was.
const COMMIT_KEEP_BYTES: usize = 1 << 20;

/// A place in a shard's history, as a replica names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailPlace {
    /// The last commit that the replica has whole.
    pub after: Position,
    /// How many records of the next commit it has.
    pub index: u32,
}

impl TailPlace {
    /// Before the first commit.
    pub const START: Self = Self { after: Position::START, index: 0 };
}

/// What there is from a place on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tail {
    /// Whole records, in order; none if nothing is new.
    Records(Vec<u8>),
    /// The place isn't in this shard's history, and why: whoever is there knows a state that this shard doesn't.
    Unknown(String),
    /// The log begins later: only a checkpoint leads on.
    BeginsLate,
}

/// Reads for replicas.
pub struct TailReaders {
    log: Arc<SegmentedLog>,
    /// The one used last stands last.
    readers: Mutex<Vec<TailReader>>,
}

impl TailReaders {
    /// Of a log.
    #[must_use]
    pub fn new(log: Arc<SegmentedLog>) -> Self {
        Self { log, readers: Mutex::new(Vec::new()) }
    }

    /// Records from a place on, up to commit `upto`, which is durable: about `bytes`, and at least one if there is one.
    /// Without an `identity` nothing is there yet: then a checkpoint comes first, if there is one.
    ///
    /// # Errors
    /// A durable commit that is missing or damaged.
    pub fn read(
        &self,
        identity: Option<ShardIdentity>,
        epoch: u64,
        place: TailPlace,
        upto: u64,
        bytes: usize,
    ) -> Result<Tail, JournalError> {
        let manifest = self.log.manifest();
        match identity {
            Some(identity) if identity != manifest.identity => {
                return Ok(Tail::Unknown(format!("this is shard {} now", manifest.identity)));
            }
            None if place != TailPlace::START => return Ok(Tail::Unknown("it doesn't say whose it is".to_owned())),
            // A folder that was made from a backup begins with a checkpoint, and its log with commit 1 all the same.
            None if manifest.checkpoint.is_some() => return Ok(Tail::BeginsLate),
            _ => {}
        }
        if epoch > manifest.epoch {
            return Ok(Tail::Unknown(format!("epoch {epoch} is not known here, only up to {}", manifest.epoch)));
        }
        if place.after.commit > upto {
            return Ok(Tail::Unknown(format!("commit {} is not known here, only up to {upto}", place.after.commit)));
        }
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = readers.iter().position(|reader| reader.place == place);
        let mut reader = match known {
            Some(index) => readers.remove(index),
            None => match TailReader::open(&self.log, place) {
                Err(JournalError::BeginsLate { .. }) => return Ok(Tail::BeginsLate),
                Err(JournalError::BrokenChain { .. }) => {
                    let reason = format!("commit {} is another one here", place.after.commit);
                    return Ok(Tail::Unknown(reason));
                }
                reader => reader?,
            },
        };
        let mut records = Vec::new();
        match reader.read(upto, bytes, &mut records) {
            Ok(true) => {}
            Ok(false) => return Ok(Tail::Unknown(format!("commit {} is another one here", place.after.commit + 1))),
            // What was read is good; what is wrong behind it shows when it is asked for.
            Err(_) if !records.is_empty() => return Ok(Tail::Records(records)),
            // An open reader goes on to a file that has been trimmed meanwhile.
            Err(JournalError::BeginsLate { .. } | JournalError::SegmentMissing { .. }) if known.is_some() => {
                return match TailReader::open(&self.log, place) {
                    Err(JournalError::BeginsLate { .. }) => Ok(Tail::BeginsLate),
                    reader => reader.map(|_| Tail::Records(records)),
                };
            }
            // A place that is wrong at a file's very beginning shows at the first record only.
            Err(JournalError::BrokenChain { .. }) if known.is_none() => {
                return Ok(Tail::Unknown(format!("commit {} is another one here", place.after.commit)));
            }
            Err(error) => return Err(error),
        }
        if readers.len() >= READERS_MAX {
            readers.remove(0);
        }
        readers.push(reader);
        Ok(Tail::Records(records))
    }
}

/// The log from one place on.
struct TailReader {
    source: LogReader,
    /// Of the next record that is wanted.
    place: TailPlace,
    /// The commit that it is in, and how much of it was read: all of it where the next commit is still to be read.
    commit: Vec<u8>,
    read: usize,
    /// That commit's end.
    end: Position,
    /// Records before it, still to be passed over.
    skip: u32,
}

impl TailReader {
    /// # Errors
    /// `BeginsLate`; `BrokenChain` where the commit isn't the one that is named.
    fn open(log: &Arc<SegmentedLog>, place: TailPlace) -> Result<Self, JournalError> {
        let mut source = LogReader::new(Arc::clone(log), place.after)?;
        // Reads up to the place, and compares the commit that is there with the one that is named.
        source.next_commit(place.after.commit)?;
        Ok(Self { source, place, commit: Vec::new(), read: 0, end: place.after, skip: place.index })
    }

    /// False: there are fewer records in the commit than were to be passed over.
    fn read(&mut self, upto: u64, bytes: usize, out: &mut Vec<u8>) -> Result<bool, JournalError> {
        while out.len() < bytes {
            if self.read == self.commit.len() {
                let Some(commit) = self.source.next_commit(upto)? else { break };
                self.commit.clear();
                self.commit.extend_from_slice(commit.records);
                self.commit.shrink_to(COMMIT_KEEP_BYTES);
                (self.read, self.end) = (0, commit.position);
            }
            let rest = self.commit.get(self.read..).unwrap_or_default();
            let length = rest.first_chunk().and_then(record_length).unwrap_or(rest.len()).min(rest.len());
            if self.skip == 0 {
                out.extend_from_slice(&rest[..length]);
                self.place.index += 1;
            }
            self.read += length;
            self.skip = self.skip.saturating_sub(1);
            if self.read == self.commit.len() {
                if self.skip > 0 {
                    return Ok(false);
                }
                self.place = TailPlace { after: self.end, index: 0 };
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::record::{HEADER_BYTES, RecordHeader};
    use crate::journal::recovery::{JournalOptions, Started, open};
    use crate::journal::simulated_files::SimulatedFiles;
    use crate::journal::{Appender, Checkpoint, Journal};
    use std::path::Path;

    const START: TailPlace = TailPlace::START;

    fn started(files: &SimulatedFiles, from: Position) -> Started {
        let options = JournalOptions { segment_bytes: 4_000, files: Arc::new(files.clone()), ..Default::default() };
        let mut started =
            open(Path::new("/shard"), options).unwrap().replay(from, &mut |_| ()).unwrap().start().unwrap();
        started.encoder.limit_body(1_200);
        started
    }

    fn append(started: &mut Started, counters: u64) {
        let number = started.encoder.next_number();
        started.encoder.begin(number, 0);
        for counter in 0..counters {
            started.encoder.put_counter(format!("counter-{counter}-of-commit-{number}").as_bytes(), counter as i64);
        }
        let commit = started.encoder.finish();
        started.appender.append(&commit).unwrap();
        started.position = commit.position();
    }

    /// What a replica has after these records, which must continue what it had.
    fn go_on(mut place: TailPlace, mut hash: u64, records: &[u8]) -> (TailPlace, u64, usize) {
        let (mut rest, mut count) = (records, 0);
        while !rest.is_empty() {
            let header = RecordHeader::parse(rest).unwrap();
            assert!(header.record_bytes() >= HEADER_BYTES);
            let expected = (place.after.commit + 1, place.index, hash);
            assert_eq!((header.number, header.index, header.previous_hash), expected);
            hash = header.hash;
            place = match header.is_final {
                true => TailPlace { after: Position { commit: header.number, hash }, index: 0 },
                false => TailPlace { index: place.index + 1, ..place },
            };
            rest = &rest[header.record_bytes()..];
            count += 1;
        }
        (place, hash, count)
    }

    #[test]
    fn a_log_is_read_in_pieces_from_any_place_by_anybody() {
        let files = SimulatedFiles::new(1);
        let mut started = started(&files, Position::START);
        let identity = Some(started.log.manifest().identity);
        for commit in 0..30 {
            append(&mut started, if commit % 5 == 0 { 300 } else { 3 });
        }
        let upto = started.position.commit;
        let kept = TailReaders::new(Arc::clone(&started.log));
        let (mut place, mut hash, mut places) = (START, 0, 0);
        while place.after.commit < upto {
            let Tail::Records(records) = kept.read(identity, 1, place, upto, 100).unwrap() else { panic!() };
            // Without a reader that stands there already, it is the same.
            let fresh = TailReaders::new(Arc::clone(&started.log));
            assert_eq!(fresh.read(identity, 1, place, upto, 100).unwrap(), Tail::Records(records.clone()));
            let count;
            (place, hash, count) = go_on(place, hash, &records);
            assert!(count > 0);
            places += 1;
        }
        assert!(places > 60, "large commits come in pieces");
        assert_eq!(place.after, started.position);
        assert_eq!(kept.read(identity, 1, place, upto, 100).unwrap(), Tail::Records(Vec::new()));
        // What isn't durable yet isn't given.
        append(&mut started, 3);
        assert_eq!(kept.read(identity, 1, place, upto, 100).unwrap(), Tail::Records(Vec::new()));
        let Tail::Records(records) = kept.read(identity, 1, place, upto + 1, 100).unwrap() else { panic!() };
        assert_eq!(go_on(place, hash, &records).0.after, started.position);
    }

    #[test]
    fn who_names_records_that_are_not_there_yet_changes_nothing_for_the_others() {
        let files = SimulatedFiles::new(3);
        let mut started = started(&files, Position::START);
        let identity = Some(started.log.manifest().identity);
        append(&mut started, 3);
        let readers = TailReaders::new(Arc::clone(&started.log));
        let read = |place, upto| readers.read(identity, 1, place, upto, 100).unwrap();
        let place = TailPlace { after: started.position, index: 0 };
        let upto = started.position.commit;
        assert_eq!(read(TailPlace { index: 2, ..place }, upto), Tail::Records(Vec::new()));
        append(&mut started, 3);
        let Tail::Records(records) = read(place, upto + 1) else { panic!("the place is in this history") };
        assert_eq!(go_on(place, place.after.hash, &records).0.after, started.position);
        assert!(matches!(read(TailPlace { index: 2, ..place }, upto + 1), Tail::Unknown(_)));
    }

    #[test]
    fn a_place_that_the_log_does_not_know_is_told_apart_from_one_that_it_has_dropped() {
        let files = SimulatedFiles::new(2);
        let mut started = started(&files, Position::START);
        let identity = Some(started.log.manifest().identity);
        let mut positions = vec![started.position];
        for _ in 0..100 {
            append(&mut started, 3);
            positions.push(started.position);
        }
        let upto = started.position.commit;
        let readers = TailReaders::new(Arc::clone(&started.log));
        let read = |identity, epoch, commit, hash, index| {
            readers.read(identity, epoch, TailPlace { after: Position { commit, hash }, index }, upto, 100).unwrap()
        };
        for &Position { commit, hash } in &positions {
            assert!(matches!(read(identity, 1, commit, hash, 0), Tail::Records(_)));
            assert!(matches!(read(Some(ShardIdentity([9; 16])), 1, commit, hash, 0), Tail::Unknown(_)));
            assert!(matches!(read(None, 1, commit, hash, 0), Tail::Unknown(_)));
            assert!(matches!(read(identity, 2, commit, hash, 0), Tail::Unknown(_)));
            assert!(matches!(read(identity, 1, commit + upto, hash, 0), Tail::Unknown(_)));
            // At the very end it shows with the next commit.
            if commit < upto {
                assert!(matches!(read(identity, 1, commit, hash ^ 1, 0), Tail::Unknown(_)), "commit {commit}");
                assert!(matches!(read(identity, 1, commit, hash, 77), Tail::Unknown(_)));
            }
        }
        for identity in [identity, None] {
            assert!(matches!(readers.read(identity, 1, START, upto, 100).unwrap(), Tail::Records(_)));
        }
        let middle = positions[60];
        started.log.set_checkpoint(Checkpoint { position: middle, root_hash: 0, fold: 1 }).unwrap();
        assert_eq!(readers.read(None, 1, START, upto, 100).unwrap(), Tail::BeginsLate, "a checkpoint comes first");
        assert!(started.log.trim(middle.commit).unwrap() > 0);
        let first = started.log.manifest().segments[0];
        for &Position { commit, hash } in &positions {
            let fresh = TailReaders::new(Arc::clone(&started.log));
            let place = TailPlace { after: Position { commit, hash }, index: 0 };
            let tail = fresh.read(identity, 1, place, upto, 100).unwrap();
            assert_eq!(tail == Tail::BeginsLate, commit + 1 < first, "commit {commit}, the log begins with {first}");
        }
    }
}
