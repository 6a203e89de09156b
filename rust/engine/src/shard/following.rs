//! A replica's side: a shard that takes in another shard's durable records and answers reads only.
//!
//! The host asks the primary (`tail`) and hands on what comes. Here it is checked (identity, numbers, hashes), put into
//! the counters, and counted as seen. A replica holds counters only, no sessions and no ids, and nothing on disk: it can
//! always have all of it from its primary again. A state that is taken in anew is built aside, while the old one still
//! answers.
//!
//! Records are put in one by one: within a commit of several records a read may see the first ones and not yet the last
//! ones. Each counter still only moves forward, from one durable value to a later one.

use std::time::{Duration, Instant};

use super::{Identity, Shard, ShardSettings};
use crate::checkpoint::{CheckpointError, read_sent_page};
use crate::clock::Clock;
use crate::error_code::ErrorCode;
use crate::figure::{Figure, Figures};
use crate::journal::commit_thread::CommitThread;
use crate::journal::entry::{EntryError, EntryReader};
use crate::journal::record::{CommitEncoder, HEADER_BYTES, Position, RecordError, RecordHeader, ShardIdentity, Writer};
use crate::journal::tail::TailPlace;
use crate::state::RestoreError;
use crate::state::{State, StateSettings};
use crate::wire::request::Request;
use crate::wire::resp::Command;

/// What a change is told.
const TAKES_NO_CHANGES: &str = "a replica takes no changes and no sessions: send them to its shard";
/// What a read is told before there is anything to read.
const NOTHING_YET: &str = "this replica has not caught up with its shard yet";

/// Why a replica can't go on with what it was sent. It has to begin anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// No record, or not the one that comes next.
    #[error("what the primary sent does not continue commit {commit}: {reason}")]
    Broken {
        /// The last whole commit.
        commit: u64,
        /// What is wrong.
        reason: String,
    },
    /// A page that isn't one.
    #[error(transparent)]
    Page(#[from] CheckpointError),
    /// An entry that this version can't read.
    #[error("what the primary sent can't be read, it may be of a newer version: {0}")]
    Entry(#[from] EntryError),
    /// It doesn't fit.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The system gives no eventfd or no random numbers.
    #[error("the system refuses: {0}")]
    System(std::io::Error),
}

/// What a replica knows of its primary, and how far it is.
pub(super) struct Following {
    settings: StateSettings,
    /// The replica's own name, and where its primary is.
    name: String,
    primary_address: String,
    primary: Option<ShardIdentity>,
    /// The newest epoch that was met.
    epoch: u64,
    /// What comes next.
    place: TailPlace,
    /// The hash of the last record.
    hash: u64,
    /// Taken in, to replace the one that answers.
    building: Option<State>,
    /// Is what is here a state of this primary's, if only of its beginning?
    has_state: bool,
    /// A checkpoint's pages are coming in.
    is_in_checkpoint: bool,
    /// Has it caught up once, with this primary?
    is_ready: bool,
    /// When its state was the primary's newest.
    current_at: Option<Instant>,
    /// The primary is gone: why, and how far behind it the state was then if it has ended.
    lost: Option<(String, Option<Duration>)>,
    /// States dropped because the primary didn't know them.
    dropped: u64,
    commits: u64,
}

impl Following {
    fn lag(&self, now: Instant) -> Option<Duration> {
        let current_at = self.current_at?;
        let at_its_end = self.lost.as_ref().and_then(|(_, lag)| *lag);
        Some(at_its_end.unwrap_or_else(|| now.saturating_duration_since(current_at)))
    }
}

fn fresh_state(settings: &StateSettings) -> Result<State, FollowError> {
    let seed = getrandom::u64().map_err(|error| FollowError::System(std::io::Error::other(error.to_string())))?;
    Ok(State::new(seed, settings)?)
}

impl Shard {
    /// A replica that knows nothing yet.
    ///
    /// # Errors
    /// The system gives no memory, eventfd or random number.
    pub fn replica(
        settings: ShardSettings,
        state_settings: StateSettings,
        name: &str,
        primary_address: &str,
        clock: Clock,
    ) -> Result<Self, FollowError> {
        let state = fresh_state(&state_settings)?;
        let journal = CommitThread::elsewhere().map_err(FollowError::System)?;
        let writer = Writer { identity: ShardIdentity([0; 16]), epoch: 0, writer_id: 0 };
        let encoder = CommitEncoder::new(writer, Position::START);
        let identity = Identity { name: String::new(), identity: String::new(), epoch: 0 };
        let mut shard = Self::assemble(state, encoder, journal, identity, settings, clock);
        shard.following = Some(Box::new(Following {
            settings: state_settings,
            name: name.to_owned(),
            primary_address: primary_address.to_owned(),
            primary: None,
            epoch: 0,
            place: TailPlace { after: Position::START, index: 0 },
            hash: 0,
            building: None,
            has_state: false,
            is_in_checkpoint: false,
            is_ready: false,
            current_at: None,
            lost: None,
            dropped: 0,
            commits: 0,
        }));
        Ok(shard)
    }

    /// What to ask the primary for: its identity if there is a state, the newest epoch met, the place in its history, and
    /// the hash of the last record.
    #[must_use]
    pub fn follow_place(&self) -> Option<(Option<ShardIdentity>, u64, TailPlace)> {
        let following = self.following.as_deref()?;
        Some((following.primary.filter(|_| following.has_state), following.epoch, following.place))
    }

    /// Who the primary says that it is. Another one than before: what is here is dropped.
    ///
    /// # Errors
    /// There is no memory for an empty state.
    pub fn follow_primary(&mut self, primary: ShardIdentity, name: &str, epoch: u64) -> Result<(), FollowError> {
        let Some(following) = self.following.as_deref_mut() else { return Ok(()) };
        let is_other = following.primary.is_some_and(|known| known != primary);
        following.primary = Some(primary);
        self.identity = Identity { name: name.to_owned(), identity: primary.to_string(), epoch };
        if is_other { self.follow_anew() } else { Ok(()) }
    }

    /// Drops the state: the primary doesn't know it.
    ///
    /// # Errors
    /// There is no memory for an empty state.
    pub fn follow_anew(&mut self) -> Result<(), FollowError> {
        let Some(following) = self.following.as_deref_mut() else { return Ok(()) };
        self.state = fresh_state(&following.settings)?;
        following.dropped += u64::from(std::mem::take(&mut following.has_state));
        (following.building, following.is_ready, following.current_at) = (None, false, None);
        following.is_in_checkpoint = false;
        (following.place, following.hash, following.epoch) = (TailPlace { after: Position::START, index: 0 }, 0, 0);
        self.handed_over = 0;
        self.journal.follow(0);
        Ok(())
    }

    /// Begins to take in a checkpoint. What is here answers until that has caught up.
    ///
    /// # Errors
    /// There is no memory for an empty state.
    pub fn follow_checkpoint(&mut self) -> Result<(), FollowError> {
        let Some(following) = self.following.as_deref_mut() else { return Ok(()) };
        let fresh = fresh_state(&following.settings)?;
        following.is_in_checkpoint = true;
        if following.is_ready {
            following.building = Some(fresh);
        } else {
            self.state = fresh;
        }
        Ok(())
    }

    /// Takes in a page of the checkpoint.
    ///
    /// # Errors
    /// It isn't one of this primary's, or doesn't fit.
    pub fn follow_page(&mut self, row: &[u8]) -> Result<(), FollowError> {
        let Some(following) = self.following.as_deref_mut() else { return Ok(()) };
        let Some(identity) = following.primary else { return Ok(()) };
        let state = following.building.as_mut().unwrap_or(&mut self.state);
        let mut refused = Ok(());
        read_sent_page(&identity, row, &mut |entry| {
            if refused.is_ok() {
                refused = state.restore_counters(entry);
            }
        })?;
        refused?;
        Ok(state.finish_counters()?)
    }

    /// All pages are in: records go on from here.
    pub fn follow_from(&mut self, position: Position) {
        if let Some(following) = self.following.as_deref_mut() {
            (following.place, following.hash) = (TailPlace { after: position, index: 0 }, position.hash);
            (following.has_state, following.is_in_checkpoint) = (true, false);
            if following.building.is_none() {
                self.handed_over = position.commit;
                self.journal.follow(position.commit);
            }
        }
    }

    /// Takes in whole records. Gives the last whole commit.
    ///
    /// # Errors
    /// They don't continue what is here, or don't fit. Those before the one that is wrong are in.
    pub fn follow_records(&mut self, records: &[u8]) -> Result<u64, FollowError> {
        let Some(following) = self.following.as_deref_mut() else { return Ok(0) };
        if std::mem::take(&mut following.is_in_checkpoint) && following.building.take().is_none() {
            // A checkpoint that was cut off in the middle, and the log goes on without it.
            self.state = fresh_state(&following.settings)?;
        }
        let mut rest = records;
        while !rest.is_empty() {
            let header = check(following, rest)?;
            let (record, after) = rest.split_at_checked(header.record_bytes()).unwrap_or((rest, &[]));
            let state = following.building.as_mut().unwrap_or(&mut self.state);
            for entry in EntryReader::new(record.get(HEADER_BYTES..).unwrap_or_default()) {
                state.restore_counters(&entry?)?;
            }
            state.finish_counters()?;
            following.has_state = true;
            (following.hash, following.epoch) = (header.hash, header.writer.epoch);
            following.place = if header.is_final {
                following.commits += 1;
                TailPlace { after: Position { commit: header.number, hash: header.hash }, index: 0 }
            } else {
                TailPlace { index: following.place.index + 1, ..following.place }
            };
            rest = after;
        }
        if following.building.is_none() {
            self.handed_over = following.place.after.commit;
            self.journal.follow(self.handed_over);
        }
        Ok(following.place.after.commit)
    }

    /// Commit `durable` was the primary's newest `age` ago. If the state has it, it is current as of then.
    pub fn follow_heard(&mut self, durable: u64, age: Duration) {
        let Some(following) = self.following.as_deref_mut() else { return };
        following.lost = None;
        if following.place.after.commit < durable || following.primary.is_none() {
            return;
        }
        if let Some(state) = following.building.take() {
            self.state = state;
            self.handed_over = following.place.after.commit;
            self.journal.follow(self.handed_over);
        }
        following.is_ready = true;
        following.current_at = self.clock.now().checked_sub(age).max(following.current_at);
    }

    /// The primary can't be reached, and why. If it has `ended` its lag stays what it is: a process that has ended makes
    /// nothing durable. Otherwise it may still be counting.
    pub fn follow_lost(&mut self, reason: &str, ended: bool) {
        let now = self.clock.now();
        let Some(following) = self.following.as_deref_mut() else { return };
        let lag = following.lag(now).filter(|_| ended);
        following.lost = Some((reason.to_owned(), lag));
    }

    /// Why this replica doesn't answer a request: it is a change, or nothing can be read yet.
    pub(super) fn refusal_of(&self, request: &Request<'_>) -> Option<(ErrorCode, &'static str)> {
        let following = self.following.as_deref()?;
        match request {
            Request::Hello { .. }
            | Request::Ping
            | Request::Stats
            | Request::Health { .. }
            | Request::Topology
            | Request::WatchTopology { .. } => None,
            Request::Get { .. }
            | Request::GetMany { .. }
            | Request::Total { .. }
            | Request::TotalMany { .. }
            | Request::Scan { .. }
            | Request::Top { .. } => unready(following),
            _ => Some((ErrorCode::Forbidden, TAKES_NO_CHANGES)),
        }
    }

    /// The same for a command of RESP that is about counters.
    pub(super) fn refusal_of_command(&self, command: &Command<'_>) -> Option<(ErrorCode, &'static str)> {
        let following = self.following.as_deref()?;
        match command {
            Command::Info { .. } => None,
            Command::IncrBy { .. }
            | Command::GetDel { .. }
            | Command::Del { .. }
            | Command::Set { .. }
            | Command::SetNx { .. }
            | Command::MSet { .. }
            | Command::FlushAll => Some((ErrorCode::Forbidden, TAKES_NO_CHANGES)),
            _ => unready(following),
        }
    }

    /// How long ago its state was its primary's newest, in milliseconds; 0 at a shard. `None`: it never was.
    pub(super) fn lag_ms(&self) -> Option<u64> {
        let Some(following) = self.following.as_deref() else { return Some(0) };
        let lag = following.lag(self.clock.now())?;
        Some(u64::try_from(lag.as_millis()).unwrap_or(u64::MAX))
    }

    /// What `health` says of a replica.
    pub(super) fn replica_health(&self, following: &Following) -> Figures {
        use Figure::{Number, Text};
        let mut health = vec![
            ("name", Text(following.name.clone())),
            ("of", Text(self.identity.name.clone())),
            ("primary", Text(following.primary_address.clone())),
            ("identity", Text(self.identity.identity.clone())),
            ("epoch", Number(self.identity.epoch)),
            ("state", Text(if following.is_ready { "ok" } else { "starting" }.to_owned())),
            ("connected", Number(u64::from(following.lost.is_none() && following.primary.is_some()))),
            ("commit", Number(self.handed_over)),
            ("commit_durable", Number(self.handed_over)),
            ("states_dropped", Number(following.dropped)),
        ];
        if let Some(lag) = self.lag_ms().filter(|_| following.is_ready) {
            health.push(("lag_ms", Number(lag)));
        }
        if let Some((reason, _)) = &following.lost {
            health.push(("reason", Text(reason.clone())));
        }
        health
    }

    /// Of a replica: its own name and where its primary is.
    pub(super) fn replica_of(&self) -> Option<(&str, &str)> {
        let following = self.following.as_deref()?;
        Some((&following.name, &following.primary_address))
    }
}

fn unready(following: &Following) -> Option<(ErrorCode, &'static str)> {
    (!following.is_ready).then_some((ErrorCode::Unavailable, NOTHING_YET))
}

/// Is what `bytes` begin with the record that comes next?
fn check(following: &Following, bytes: &[u8]) -> Result<RecordHeader, FollowError> {
    let broken = |reason: String| FollowError::Broken { commit: following.place.after.commit, reason };
    let header = RecordHeader::parse(bytes).map_err(|error| match error {
        RecordError::Bad => broken("the bytes are no whole record".into()),
        RecordError::Version(found) | RecordError::Kind(found) => broken(format!("a record of format or kind {found}")),
    })?;
    let (number, index) = (following.place.after.commit + 1, following.place.index);
    if Some(header.writer.identity) != following.primary {
        return Err(broken(format!("a record of shard {}", header.writer.identity)));
    }
    if header.number != number || header.index != index {
        let (found, at) = (header.number, header.index);
        return Err(broken(format!("record {at} of commit {found} where record {index} of commit {number} belongs")));
    }
    if header.previous_hash != following.hash {
        return Err(broken(format!("commit {number} has another history")));
    }
    if header.writer.epoch < following.epoch {
        return Err(broken(format!("epoch {} after epoch {}", header.writer.epoch, following.epoch)));
    }
    Ok(header)
}
