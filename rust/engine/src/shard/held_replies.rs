//! Replies that wait for their commit, and what becomes of them if it fails.

use std::collections::VecDeque;

use crate::error_code::{Effect, ErrorCode};

/// What a reply tells, and so what becomes of it if it is held and its commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReplyKind {
    /// Nothing of any counter, session or id. It leaves as it is, and needs to wait only for its turn.
    Neutral,
    /// What the shard has in memory; it changed nothing. It becomes `read_only`: nothing was applied, ask again.
    Seen,
    /// That something was changed, by this attempt or an earlier one. It becomes `unknown_outcome`.
    Changed,
}

impl ReplyKind {
    /// Of a change's reply.
    pub(super) fn of(outcome: Result<i64, ErrorCode>) -> Self {
        outcome.map_or_else(Self::of_refusal, |_| Self::Changed)
    }

    /// Of a refusal. One that leaves open what earlier attempts did must not turn into one that doesn't.
    pub(super) fn of_refusal(code: ErrorCode) -> Self {
        match (code, code.effect()) {
            (ErrorCode::ReadOnly | ErrorCode::Overloaded, _) => Self::Neutral,
            (_, Effect::Nothing) => Self::Seen,
            (_, Effect::Before | Effect::Unknown) => Self::Changed,
        }
    }
}

/// Whole replies, one behind the other, of which some are marked with their kind. The others are `Changed`: so plain
/// increments, nearly all there is, are marked at no cost.
#[derive(Debug, Default)]
pub(super) struct MarkedReplies {
    pub(super) bytes: Vec<u8>,
    /// In order, without overlap.
    marks: Vec<Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    start: usize,
    end: usize,
    kind: ReplyKind,
}

impl MarkedReplies {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
    }

    /// Gives everything from `start` on its kind.
    pub(super) fn mark_from(&mut self, start: usize, kind: ReplyKind) {
        self.mark(Mark { start, end: self.bytes.len(), kind });
    }

    /// Takes back what was written, and marked, last.
    pub(super) fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
        while let Some(last) = self.marks.last_mut().filter(|last| last.end > len) {
            last.end = len;
            if last.start >= len {
                self.marks.pop();
            }
        }
    }

    fn mark(&mut self, mark: Mark) {
        if mark.kind == ReplyKind::Changed || mark.start == mark.end {
            return;
        }
        match self.marks.last_mut() {
            Some(last) if last.end == mark.start && last.kind == mark.kind => last.end = mark.end,
            _ => self.marks.push(mark),
        }
    }

    fn append(&mut self, other: &Self) {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        for mark in &other.marks {
            self.mark(Mark { start: offset + mark.start, end: offset + mark.end, ..*mark });
        }
    }

    fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.marks.len() * size_of::<Mark>()
    }

    /// Gives `each` run of replies of one kind, in order.
    fn runs(&self, mut each: impl FnMut(ReplyKind, &[u8])) {
        let mut position = 0;
        let end = Mark { start: self.bytes.len(), end: self.bytes.len(), kind: ReplyKind::Changed };
        for mark in self.marks.iter().chain([&end]) {
            for (kind, range) in [(ReplyKind::Changed, position..mark.start), (mark.kind, mark.start..mark.end)] {
                if let Some(run) = self.bytes.get(range).filter(|run| !run.is_empty()) {
                    each(kind, run);
                }
            }
            position = mark.end;
        }
    }
}

/// Encoded replies in the order in which they may leave, each group with the commit that it waits for.
/// The commits never fall along the queue.
#[derive(Debug, Default)]
pub(super) struct HeldReplies {
    groups: VecDeque<(u64, MarkedReplies)>,
    bytes: usize,
}

impl HeldReplies {
    pub(super) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Memory that they take, marks included.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds replies that wait for `commit`; takes a buffer from `pool` where it needs one.
    pub(super) fn push(&mut self, commit: u64, replies: &MarkedReplies, pool: &mut Vec<Vec<u8>>) {
        if self.groups.back().is_none_or(|(last, _)| *last != commit) {
            let bytes = pool.pop().unwrap_or_default();
            self.groups.push_back((commit, MarkedReplies { bytes, marks: Vec::new() }));
        }
        if let Some((_, group)) = self.groups.back_mut() {
            self.bytes -= group.memory_bytes();
            group.append(replies);
            self.bytes += group.memory_bytes();
        }
    }

    /// Moves what waits for nothing later than `durable` to `out`.
    pub(super) fn release(&mut self, durable: u64, out: &mut Vec<u8>, pool: &mut Vec<Vec<u8>>) {
        while self.groups.front().is_some_and(|(commit, _)| *commit <= durable) {
            if let Some((_, group)) = self.groups.pop_front() {
                self.bytes -= group.memory_bytes();
                out.extend_from_slice(&group.bytes);
                give_back(group.bytes, pool);
            }
        }
    }

    /// Takes everything, whatever it waits for: gives `each` run of replies of one kind, in order.
    pub(super) fn take_all(&mut self, pool: &mut Vec<Vec<u8>>, mut each: impl FnMut(ReplyKind, &[u8])) {
        for (_, group) in self.groups.drain(..) {
            group.runs(&mut each);
            give_back(group.bytes, pool);
        }
        self.bytes = 0;
    }
}

/// Puts a buffer into the pool, emptied. Bounded, so that an idle server is small again.
pub(super) fn give_back(mut buffer: Vec<u8>, pool: &mut Vec<Vec<u8>>) {
    const POOLED_BUFFERS_MAX: usize = 256;
    const POOLED_BUFFER_BYTES_MAX: usize = 64 * 1024;
    if pool.len() < POOLED_BUFFERS_MAX && buffer.capacity() <= POOLED_BUFFER_BYTES_MAX {
        buffer.clear();
        pool.push(buffer);
    }
}

#[cfg(all(test, not(pycounter_loom)))]
mod tests {
    use super::*;
    use ReplyKind::{Changed, Neutral, Seen};

    fn runs(replies: &MarkedReplies) -> Vec<(ReplyKind, Vec<u8>)> {
        let mut runs = Vec::new();
        replies.runs(|kind, run| runs.push((kind, run.to_vec())));
        runs
    }

    fn marked(parts: &[(ReplyKind, &[u8])]) -> MarkedReplies {
        let mut replies = MarkedReplies::default();
        for (kind, part) in parts {
            let start = replies.len();
            replies.bytes.extend_from_slice(part);
            replies.mark_from(start, *kind);
        }
        replies
    }

    #[test]
    fn runs_are_in_order_and_neighbours_of_a_kind_are_one() {
        let parts =
            [(Changed, &b"a"[..]), (Seen, b"b"), (Seen, b"c"), (Neutral, b"d"), (Changed, b"e"), (Changed, b"f")];
        let expected = [(Changed, &b"a"[..]), (Seen, b"bc"), (Neutral, b"d"), (Changed, b"ef")];
        let expected = expected.map(|(kind, run)| (kind, run.to_vec()));
        assert_eq!(runs(&marked(&parts)), expected);
        // In any two portions, and through a queue.
        for split in 0..=parts.len() {
            let (mut held, mut pool) = (HeldReplies::default(), Vec::new());
            for portion in [&parts[..split], &parts[split..]] {
                held.push(1, &marked(portion), &mut pool);
            }
            assert_eq!(held.bytes(), 6 + 2 * size_of::<Mark>());
            let mut taken = Vec::new();
            held.take_all(&mut pool, |kind, run| taken.push((kind, run.to_vec())));
            assert_eq!(taken, expected, "split at {split}");
            assert!(held.is_empty() && held.bytes() == 0);
        }
    }

    #[test]
    fn what_is_taken_back_loses_its_marks() {
        let mut replies = marked(&[(Changed, b"aa"), (Seen, b"bb"), (Neutral, b"cc")]);
        replies.truncate(3);
        assert_eq!(runs(&replies), [(Changed, b"aa".to_vec()), (Seen, b"b".to_vec())]);
        replies.truncate(2);
        replies.bytes.extend_from_slice(b"dd");
        assert_eq!(runs(&replies), [(Changed, b"aadd".to_vec())]);
    }
}
