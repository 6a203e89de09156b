//! Estimates how often keys were read recently, in bounded memory: a count-min sketch with decay.
//!
//! A key has four 16-bit counters in one cache line, and its estimate is the smallest of them: never less than its reads
//! since the last halving (unless it saturates), sometimes more, when other keys share all four. Only the smallest are
//! raised (conservative update), which keeps the estimates of rare keys low. After ten reads for each counter of a row,
//! all counters are halved, so that a key that was hot an hour ago doesn't stay hot.
//!
//! Keys are hashed with a random seed, so nobody outside can choose keys that share counters.

/// Counters of a block: one cache line.
const BLOCK: usize = 32;
/// Counters of a key, each in its own row.
const ROWS: usize = 4;
const ROW: usize = BLOCK / ROWS;
/// Reads for each counter of a row before all are halved.
const PERIOD: u64 = 10;
const BLOCKS_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Block([u16; BLOCK]);

/// Read estimates for any number of keys.
#[derive(Debug)]
pub struct FrequencySketch {
    blocks: Box<[Block]>,
    /// Reads since the last halving.
    reads: u64,
    period: u64,
}

impl FrequencySketch {
    /// A sketch that distinguishes about `keys` keys: 8 to 16 bytes each, at most 64 MiB.
    #[must_use]
    pub fn new(keys: usize) -> Self {
        let blocks = keys.div_ceil(ROW).clamp(1, BLOCKS_MAX).next_power_of_two();
        Self { blocks: vec![Block([0; BLOCK]); blocks].into(), reads: 0, period: PERIOD * (blocks * ROW) as u64 }
    }

    /// Counts a read and returns the new estimate, at most 65,535.
    pub fn record(&mut self, hash: u64) -> u16 {
        let (block, slots) = self.places(hash);
        let counters = &mut self.blocks[block].0;
        let least = slots.map(|slot| counters[slot]).into_iter().min().unwrap_or(0);
        let raised = least.saturating_add(1);
        for slot in slots {
            counters[slot] = counters[slot].max(raised);
        }
        self.reads += 1;
        if self.reads >= self.period {
            self.halve();
        }
        raised
    }

    /// The estimate.
    #[must_use]
    pub fn estimate(&self, hash: u64) -> u16 {
        let (block, slots) = self.places(hash);
        slots.map(|slot| self.blocks[block].0[slot]).into_iter().min().unwrap_or(0)
    }

    /// Bytes of all counters.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.blocks)
    }

    fn places(&self, hash: u64) -> (usize, [usize; ROWS]) {
        let block = (hash >> 32) as usize & (self.blocks.len() - 1);
        (block, std::array::from_fn(|row| row * ROW + (hash >> (3 * row)) as usize % ROW))
    }

    fn halve(&mut self) {
        for counter in self.blocks.iter_mut().flat_map(|block| &mut block.0) {
            *counter /= 2;
        }
        self.reads = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// Good enough as a keyed hash here: the steps of splitmix64.
    fn hash(number: u64) -> u64 {
        let mut mixed = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    #[test]
    fn it_never_tells_less_than_was_read_and_seldom_more() {
        let mut sketch = FrequencySketch::new(10_000);
        let mut truth: HashMap<u64, u16> = HashMap::new();
        for read in 0..50_000 {
            // Half of all reads go to a hundred keys.
            let key = if read % 2 == 0 { hash(read) % 100 } else { hash(read) % 10_000 };
            *truth.entry(key).or_default() += 1;
            sketch.record(hash(key));
        }
        let over = |(&key, &reads): (&u64, &u16)| {
            let estimate = sketch.estimate(hash(key));
            assert!(estimate >= reads, "{estimate} < {reads}");
            usize::from(estimate > reads + 5)
        };
        let too_high = truth.iter().map(over).sum::<usize>();
        assert!(too_high * 50 < truth.len(), "{too_high} of {} are over by more than 5", truth.len());
    }

    #[test]
    fn what_is_no_longer_read_is_forgotten() {
        let mut sketch = FrequencySketch::new(64);
        for _ in 0..500 {
            sketch.record(hash(0));
        }
        let before = sketch.estimate(hash(0));
        for read in 0..20 * sketch.period {
            sketch.record(hash(1 + read % 40));
        }
        assert!(before >= 400 && sketch.estimate(hash(0)) < before / 4, "{before}, {}", sketch.estimate(hash(0)));
    }

    #[test]
    fn a_count_saturates() {
        let mut sketch = FrequencySketch::new(1 << 17);
        for _ in 0..70_000 {
            sketch.record(7);
        }
        assert_eq!(sketch.record(7), u16::MAX);
    }

    #[test]
    fn its_memory_is_bounded_by_the_number_of_keys() {
        assert_eq!(FrequencySketch::new(0).bytes(), 64);
        assert_eq!(FrequencySketch::new(100_000).bytes(), 1 << 20);
        assert_eq!(FrequencySketch::new(usize::MAX).bytes(), 64 << 20);
    }
}
