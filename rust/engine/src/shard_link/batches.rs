//! Increments that travel together: encoded once, when they are accepted, so that what is sent again is the same bytes.

use crate::error_code::ErrorCode;
use crate::wire::msgpack_rpc::reader::{Reader, Value};
use crate::wire::request::Level;

/// Who waits for one increment.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    /// `None` once it was told that its time ran out, or gave up itself, after the increment was sent.
    pub waiter: Option<T>,
    pub deadline_ms: u64,
}

/// Increments at one level. `first` is 0 until they are numbered.
#[derive(Debug)]
pub(super) struct Batch<T> {
    pub level: Level,
    /// Operations; also after an answer, when who waited is forgotten.
    pub count: usize,
    pub first: u64,
    /// Rises with everything that is sent for the first time: what is sent again keeps that order.
    pub order: u64,
    /// The earliest of those that still wait.
    pub deadline_ms: u64,
    pub in_flight: bool,
    /// An earlier attempt was never answered.
    pub is_ambiguous: bool,
    pub is_answered: bool,
    /// Refused for good; its numbers are unused.
    pub is_refused: bool,
    /// Sessions that it had to leave.
    pub renewals: u32,
    /// When it was first sent; 0: never.
    pub sent_at_ms: u64,
    /// When it was last sent.
    pub launched_at_us: u64,
    /// How many of its increments have nobody waiting for them any more. They stay: they were sent once.
    pub abandoned: usize,
    /// Its own; it keeps it whatever becomes of it.
    pub mark: u64,
    /// Why the shard refused it last, for now.
    pub refusal: Option<ErrorCode>,
    /// `[key, delta]` one behind the other.
    pub items: Vec<u8>,
    /// One for each item.
    pub waiting: Vec<Waiting<T>>,
}

/// Longest head of an item: array, bin with 16 bits of size, integer of 64 bits.
const ITEM_OVERHEAD_MAX: usize = 1 + 3 + 9;

/// Memory that an increment takes while it isn't settled, at most.
pub(super) const fn memory_of<T>(key_bytes: usize) -> usize {
    key_bytes + ITEM_OVERHEAD_MAX + size_of::<Waiting<T>>()
}

impl<T> Batch<T> {
    pub(super) const fn new(level: Level, items: Vec<u8>, waiting: Vec<Waiting<T>>) -> Self {
        Self {
            level,
            count: 0,
            first: 0,
            order: 0,
            deadline_ms: u64::MAX,
            in_flight: false,
            is_ambiguous: false,
            is_answered: false,
            is_refused: false,
            renewals: 0,
            sent_at_ms: 0,
            launched_at_us: 0,
            abandoned: 0,
            mark: 0,
            refusal: None,
            items,
            waiting,
        }
    }

    /// The number of its last operation.
    pub(super) const fn last(&self) -> u64 {
        self.first + self.count as u64 - 1
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.items.len() + self.waiting.len() * size_of::<Waiting<T>>()
    }

    /// Appends an increment.
    #[inline]
    pub(super) fn push(&mut self, key: &[u8], delta: i64, deadline_ms: u64, waiter: T) {
        push_item(&mut self.items, key, delta);
        self.waiting.push(Waiting { waiter: Some(waiter), deadline_ms });
        self.count += 1;
        self.deadline_ms = self.deadline_ms.min(deadline_ms);
    }

    /// Of a batch that is not numbered: gives away each increment somebody waits for and for which `is_wanted` says so,
    /// and keeps the others.
    pub(super) fn take(
        &mut self,
        mut is_wanted: impl FnMut(&Waiting<T>) -> bool,
        mut take: impl FnMut(&[u8], i64, u64, T),
    ) {
        let items = std::mem::take(&mut self.items);
        let waiting = std::mem::take(&mut self.waiting);
        self.waiting.reserve(waiting.len());
        self.deadline_ms = u64::MAX;
        let mut reader = Reader::new(&items);
        for mut one in waiting {
            let before = reader.rest();
            let Some((key, delta)) = read_item(&mut reader) else { break };
            if one.waiter.is_some() {
                if is_wanted(&one)
                    && let Some(waiter) = one.waiter.take()
                {
                    take(key, delta, one.deadline_ms, waiter);
                    continue;
                }
                self.deadline_ms = self.deadline_ms.min(one.deadline_ms);
            }
            self.items.extend_from_slice(&before[..before.len() - reader.rest().len()]);
            self.waiting.push(one);
        }
        self.count = self.waiting.len();
    }

    /// Back to what it was before it was numbered. Those for whom nobody waits any more stay in it: they were told not to
    /// repeat it.
    pub(super) const fn reset(&mut self) {
        self.first = 0;
        self.is_ambiguous = false;
        self.is_refused = false;
    }

    /// Two batches with half of it each; it has at least two increments.
    pub(super) fn split(mut self) -> [Self; 2] {
        let half = self.count / 2;
        let mut second = Self::new(self.level, Vec::new(), self.waiting.split_off(half));
        let mut reader = Reader::new(&self.items);
        for _ in 0..half {
            read_item(&mut reader);
        }
        second.items = reader.rest().to_vec();
        self.items.truncate(self.items.len() - second.items.len());
        second.count = self.count - half;
        second.order = self.order;
        second.mark = self.mark;
        second.sent_at_ms = self.sent_at_ms;
        second.renewals = self.renewals;
        self.count = half;
        for part in [&mut self, &mut second] {
            part.is_refused = false;
            part.abandoned = part.waiting.iter().filter(|one| one.waiter.is_none()).count();
            let waiting = part.waiting.iter().filter(|one| one.waiter.is_some());
            part.deadline_ms = waiting.map(|one| one.deadline_ms).min().unwrap_or(u64::MAX);
        }
        [self, second]
    }

    /// Of a batch that was sent: takes the waiters that `is_gone` names. Their increments stay.
    pub(super) fn abandon(&mut self, mut is_gone: impl FnMut(&T) -> bool, mut drop_waiter: impl FnMut(T)) {
        for one in &mut self.waiting {
            if let Some(waiter) = one.waiter.take_if(|waiter| is_gone(waiter)) {
                self.abandoned += 1;
                drop_waiter(waiter);
            }
        }
    }

    /// Leaves it empty.
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.waiting.clear();
        self.count = 0;
        self.abandoned = 0;
        self.deadline_ms = u64::MAX;
    }

    /// Each increment and who waits for it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], i64, &Waiting<T>)> {
        let mut reader = Reader::new(&self.items);
        self.waiting.iter().filter_map(move |one| read_item(&mut reader).map(|(key, delta)| (key, delta, one)))
    }

    /// Tells those whose time has run out; they still stand in it. Gives their number.
    pub(super) fn expire(&mut self, now_ms: u64, mut tell: impl FnMut(T)) -> u64 {
        let mut told = 0;
        self.deadline_ms = u64::MAX;
        for one in &mut self.waiting {
            if one.waiter.is_none() {
                continue;
            }
            if one.deadline_ms > now_ms {
                self.deadline_ms = self.deadline_ms.min(one.deadline_ms);
            } else if let Some(waiter) = one.waiter.take() {
                told += 1;
                self.abandoned += 1;
                tell(waiter);
            }
        }
        told
    }
}

/// `[key, delta]`. The key as bin: nobody has to look whether it is text.
#[inline]
pub(super) fn push_item(out: &mut Vec<u8>, key: &[u8], delta: i64) {
    out.reserve(key.len() + ITEM_OVERHEAD_MAX);
    if let Ok(len) = u8::try_from(key.len()) {
        out.extend_from_slice(&[0x92, 0xc4, len]);
    } else {
        // Longer ones than 64 KiB are no keys, and are refused before they come here.
        let [high, low] = (key.len() as u16).to_be_bytes();
        out.extend_from_slice(&[0x92, 0xc5, high, low]);
    }
    out.extend_from_slice(key);
    match i8::try_from(delta) {
        Ok(small @ -32..) => out.extend_from_slice(&small.to_be_bytes()),
        _ => {
            out.push(0xd3);
            out.extend_from_slice(&delta.to_be_bytes());
        }
    }
}

/// Reads what `push_item` wrote.
pub(super) fn read_item<'a>(reader: &mut Reader<'a>) -> Option<(&'a [u8], i64)> {
    let (Ok(Value::Array(2)), Ok(Value::Text(key))) = (reader.read(), reader.read()) else { return None };
    match reader.read() {
        Ok(Value::Unsigned(delta)) => Some((key, i64::try_from(delta).ok()?)),
        Ok(Value::Negative(delta)) => Some((key, delta)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_out_is_what_was_put_in() {
        let long = vec![b'k'; 1024];
        let items: Vec<(&[u8], i64)> = vec![
            (b"a", 1),
            (b"\xff\x00", -1),
            (b"b", -32),
            (b"b", -33),
            (b"b", 127),
            (b"b", 128),
            (&long, i64::MAX),
            (&long[..255], i64::MIN),
            (&long[..256], 0),
        ];
        let mut batch = Batch::new(Level::Durable, Vec::new(), Vec::new());
        for (place, &(key, delta)) in items.iter().enumerate() {
            batch.push(key, delta, 100 + place as u64, place);
        }
        assert_eq!((batch.count, batch.deadline_ms), (items.len(), 100));
        let mut taken = Vec::new();
        let is_odd = |one: &Waiting<usize>| one.waiter.is_some_and(|place| place % 2 == 1);
        batch.take(is_odd, |key, delta, _, place| taken.push((key.to_vec(), delta, place)));
        assert_eq!(taken.len(), 4);
        assert_eq!((batch.count, batch.deadline_ms), (5, 100));
        batch.take(|_| true, |key, delta, _, place| taken.push((key.to_vec(), delta, place)));
        assert_eq!((batch.count, batch.items.len(), batch.deadline_ms), (0, 0, u64::MAX));
        taken.sort_by_key(|&(_, _, place)| place);
        let expected: Vec<_> = items.iter().enumerate().map(|(n, &(key, delta))| (key.to_vec(), delta, n)).collect();
        assert_eq!(taken, expected);
    }
}
