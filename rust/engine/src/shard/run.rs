//! A run of plain increments: parsed, hashed and prefetched before the first of them is applied.

use crate::counter_store::CounterRef;

/// A part of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    start: u32,
    length: u32,
}

impl Part {
    /// Where `part` is in `chunk`.
    pub(super) fn of(chunk: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr() as usize - chunk.as_ptr() as usize;
        // A chunk is far below 4 GiB: input is bounded by the frame size and the host's chunk size.
        Self { start: start as u32, length: part.len() as u32 }
    }

    pub(super) fn get(self, chunk: &[u8]) -> &[u8] {
        let start = self.start as usize;
        chunk.get(start..start + self.length as usize).unwrap_or_default()
    }
}

/// An increment that is parsed and not yet applied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    pub(super) hash: u64,
    pub(super) delta: i64,
    /// The counter that it most likely is, once that was looked for.
    pub(super) likely: Option<CounterRef>,
    pub(super) msgid: u32,
    pub(super) key: Part,
    pub(super) id: Option<Part>,
}
