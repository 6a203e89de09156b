//! One pass over a log: file by file, commit by commit, and what a bad record means.
//!
//! An opening stops at the first damage. An examination is told of it too, and then goes on behind it. Both take the
//! same steps, so what an examination finds in order is what an opening accepts.

use std::ops::Range;
use std::path::PathBuf;

use crate::journal::error::JournalError;
use crate::journal::manifest::Manifest;
use crate::journal::reader::{Chain, Commit, SegmentScan, Step, check_origin};
use crate::journal::record::{
    HEADER_BYTES, MAGIC, Position, RecordError, RecordHeader, Writer, claimed_number, claimed_writer,
};
use crate::journal::segment::SegmentedLog;

/// Who is shown the log.
pub(crate) trait Visitor {
    /// A whole commit, in order.
    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), JournalError>;

    /// Something that the log can't be in order with. An error ends the walk; otherwise it goes on behind the damage.
    fn damage(&mut self, damage: JournalError) -> Result<(), JournalError>;
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
    pub(crate) first: u64,
}

/// Where the last whole commit stands in the last file.
#[derive(Debug, Clone)]
pub(crate) struct LastCommit {
    pub(crate) first: u64,
    pub(crate) bytes: Range<u64>,
}

/// One pass over the log. Commits up to `from` are checked like the others; whoever continues a state skips them.
pub(crate) struct Walk<'a> {
    log: &'a SegmentedLog,
    manifest: &'a Manifest,
    from: Position,
    visitor: &'a mut dyn Visitor,
    /// There is no manifest to say who wrote the last file.
    pub(crate) without_writer: bool,
    /// The last commit of the file that was read last.
    pub(crate) last: Option<LastCommit>,
    pub(crate) torn: Option<TornTail>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(
        log: &'a SegmentedLog,
        manifest: &'a Manifest,
        from: Position,
        visitor: &'a mut dyn Visitor,
    ) -> Self {
        Self { log, manifest, from, visitor, without_writer: false, last: None, torn: None }
    }

    /// Reads everything. The result is where the log ends.
    pub(crate) fn run(&mut self) -> Result<Position, JournalError> {
        let Some(&first) = self.manifest.segments.first() else {
            return self.checked_end(Position::START);
        };
        if first > self.from.commit.saturating_add(1) {
            let (path, checkpoint) = (self.log.log_folder().to_path_buf(), self.from.commit);
            self.visitor.damage(JournalError::BeginsLate { path, first, checkpoint })?;
        }
        let mut chain = Chain::before(self.manifest, first, self.from);
        for &first in &self.manifest.segments {
            if chain.next() != first {
                // Only behind damage.
                chain.jump_before(first);
            }
            self.segment(first, &mut chain)?;
        }
        self.checked_end(Position { commit: chain.commit, hash: chain.hash.unwrap_or(0) })
    }

    /// Does the log reach what is known to have been durable?
    fn checked_end(&mut self, end: Position) -> Result<Position, JournalError> {
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
                self.visitor.damage(JournalError::EndsEarly { path, offset, end: end.commit, known, known_by })?;
                return Ok(end);
            }
        }
        if let Some(clean_end) = self.manifest.clean_end.filter(|&clean_end| clean_end != end) {
            let reason = format!(
                "the log ends with commit {}, but was closed in good order after commit {}",
                end.commit, clean_end.commit
            );
            let path = self.log.log_folder().to_path_buf();
            self.visitor.damage(JournalError::BrokenChain { path, offset: 0, reason })?;
        }
        Ok(end)
    }

    /// Reads one file to its end, or to the first commit of the next one.
    fn segment(&mut self, first: u64, chain: &mut Chain) -> Result<(), JournalError> {
        let successor = self.manifest.successor(first);
        let mut scan = match SegmentScan::open(self.log.files(), self.log.segment_path(first), first) {
            Err(missing @ JournalError::SegmentMissing { .. }) => return self.visitor.damage(missing),
            scan => scan?,
        };
        self.last = None;
        chain.jumped_to = None;
        while successor != Some(chain.next()) {
            let start = scan.offset();
            let step = match scan.step(chain) {
                Err(foreign @ (JournalError::OtherShard { offset, .. } | JournalError::BrokenChain { offset, .. })) => {
                    self.visitor.damage(foreign)?;
                    if go_on_behind(&mut scan, offset, chain, successor)? { continue } else { return Ok(()) }
                }
                step => step?,
            };
            let (damage, at) = match (step, successor) {
                (Step::Commit, _) => {
                    self.last = Some(LastCommit { first, bytes: start..scan.offset() });
                    if let Err(other) = check_origin(chain, self.from, &scan) {
                        self.visitor.damage(other)?;
                    }
                    self.visitor.commit(&scan.commit(chain))?;
                    continue;
                }
                (Step::End, None) => return Ok(()),
                (Step::Bad { start, at }, None) => match self.torn_or_damaged(&scan, chain, start, at)? {
                    Some(damage) => (damage, at),
                    None => return Ok(()),
                },
                (Step::End, Some(after)) => {
                    (damaged(&scan, chain, scan.offset(), after, scan.file_bytes()?), scan.offset())
                }
                (Step::Bad { at, .. }, Some(after)) => {
                    let (end, after) = match later_commit(&scan, at, chain, None)? {
                        Some((offset, number)) => (offset, number.min(after)),
                        None => (scan.file_bytes()?, after),
                    };
                    (damaged(&scan, chain, at, after, end), at)
                }
            };
            self.visitor.damage(damage)?;
            if !go_on_behind(&mut scan, at, chain, successor)? {
                return Ok(());
            }
        }
        // The next file begins with the next commit. What may still be here is that commit, whole or in part, from an
        // append that failed; nothing later, for that would be another history.
        let rest = scan.offset();
        if let Some((offset, number)) = later_commit(&scan, rest, chain, chain.writer)? {
            let reason = format!("commit {number} is here, but the next file begins with commit {}", chain.next());
            self.visitor.damage(JournalError::BrokenChain { path: scan.path().to_path_buf(), offset, reason })?;
        }
        Ok(())
    }

    /// The last file has a bad record at `at`, in the commit that begins at `start`. No damage: it is torn.
    fn torn_or_damaged(
        &mut self,
        scan: &SegmentScan,
        chain: &Chain,
        start: u64,
        at: u64,
    ) -> Result<Option<JournalError>, JournalError> {
        // Every record of the last file is of the newest opening. Its random writer id is in no reply, so no client
        // can have put bytes into a key that pass for one.
        let Manifest { identity, epoch, writer_id, .. } = *self.manifest;
        let writer = Some(Writer { identity, epoch, writer_id }).filter(|_| !self.without_writer);
        if let Some((offset, number)) = later_commit(scan, at, chain, writer)? {
            return Ok(Some(damaged(scan, chain, at, number, offset)));
        }
        let cut_bytes = scan.file_bytes()?.saturating_sub(start);
        self.torn = Some(TornTail { path: scan.path().to_path_buf(), keep_bytes: start, cut_bytes, first: scan.first });
        Ok(None)
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
    let later = |number: u64, found: &Writer| number > chain.next() && writer.is_none_or(|writer| writer == *found);
    let found = whole_records(&rest, chain, later).next();
    Ok(found.map(|(at, number, _)| (offset + at as u64, number)))
}

/// Moves behind damage at `offset`: to the next commit whose beginning can be read. False: this file has none.
fn go_on_behind(
    scan: &mut SegmentScan,
    offset: u64,
    chain: &mut Chain,
    successor: Option<u64>,
) -> Result<bool, JournalError> {
    // Where the walk went on once it doesn't go on again, whatever stands there: each jump is a step forward.
    let offset = offset + u64::from(chain.jumped_to == Some(offset));
    let rest = scan.rest(offset)?;
    let ours = |number: u64, writer: &Writer| {
        number >= chain.next() && successor.is_none_or(|next| number < next) && writer.identity == chain.identity
    };
    let begins = |header: &RecordHeader| header.index == 0;
    let found = whole_records(&rest, chain, ours).find(|(_, _, header)| header.as_ref().is_some_and(begins));
    let Some((at, number, _)) = found else { return Ok(false) };
    let at = offset + at as u64;
    scan.go_to(at);
    chain.jump_before(number);
    chain.jumped_to = Some(at);
    Ok(true)
}

/// Whole records among any bytes: where, the commit, and the header if this version can read it.
fn whole_records<'b>(
    bytes: &'b [u8],
    chain: &Chain,
    wanted: impl Fn(u64, &Writer) -> bool + 'b,
) -> impl Iterator<Item = (usize, u64, Option<RecordHeader>)> + 'b {
    // A record takes a header at least, which bounds the numbers that can follow.
    let numbers = chain.next()..=chain.next().saturating_add((bytes.len() / HEADER_BYTES) as u64);
    memchr::memmem::find_iter(bytes, &MAGIC).filter_map(move |at| {
        let candidate = bytes.get(at..).unwrap_or_default();
        let header = candidate.first_chunk::<HEADER_BYTES>()?;
        // Compared before the checksum is computed, which costs up to a whole record's length.
        let number = claimed_number(header);
        if !numbers.contains(&number) || !wanted(number, &claimed_writer(header)) {
            return None;
        }
        match RecordHeader::parse(candidate) {
            Err(RecordError::Bad) => None,
            header => Some((at, number, header.ok())),
        }
    })
}
