//! Picks the next key and writes it.

/// Most keys: eight digits are patched.
pub const KEYS_MAX: u64 = 100_000_000;

/// A key; its number replaces the last eight bytes.
pub(super) const KEY: [u8; 16] = *b"key:000000000000";

/// How keys are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyOrder {
    /// Uniformly at random.
    Uniform,
    /// In order, over and over: as many operations as there are keys touch each key once.
    Sequential,
}

/// The decimal digits of 0 to 99.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[0; 2]; 100];
    let mut number = 0;
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

pub(super) struct KeyPicker {
    order: KeyOrder,
    keys: u64,
    /// The state of xorshift, or the next number in order.
    state: u64,
}

impl KeyPicker {
    pub(super) fn new(order: KeyOrder, keys: u64, seed: u64) -> Self {
        let state = match order {
            // xorshift never leaves 0.
            KeyOrder::Uniform => seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            KeyOrder::Sequential => 0,
        };
        Self { order, keys, state }
    }

    fn next(&mut self) -> u64 {
        match self.order {
            KeyOrder::Uniform => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                // Scales the high half to the number of keys. With at most 10^8 keys the bias is negligible.
                ((self.state >> 32) * self.keys) >> 32
            }
            KeyOrder::Sequential => {
                let number = self.state;
                self.state = if number + 1 == self.keys { 0 } else { number + 1 };
                number
            }
        }
    }

    /// Writes the next key's last eight digits.
    pub(super) fn write_digits(&mut self, digits: &mut [u8; 8]) {
        let number = self.next() as u32;
        let (high, low) = (number / 10_000, number % 10_000);
        let pair = |number: u32| PAIRS[number as usize % 100];
        let ([a, b], [c, d]) = (pair(high / 100), pair(high));
        let ([e, f], [g, h]) = (pair(low / 100), pair(low));
        *digits = [a, b, c, d, e, f, g, h];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn picked(picker: &mut KeyPicker) -> u32 {
        let mut digits = [0; 8];
        picker.write_digits(&mut digits);
        std::str::from_utf8(&digits).expect("digits").parse().expect("a number")
    }

    #[test]
    fn in_order_each_key_comes_once_a_round() {
        let mut picker = KeyPicker::new(KeyOrder::Sequential, 12_345, 1);
        for _ in 0..2 {
            assert!((0..12_345).all(|number| picked(&mut picker) == number));
        }
    }

    #[test]
    fn uniform_keys_reach_both_ends_and_stay_within() {
        let mut picker = KeyPicker::new(KeyOrder::Uniform, 100, 7);
        let seen: HashSet<u32> = (0..10_000).map(|_| picked(&mut picker)).collect();
        assert_eq!(seen.len(), 100);
        assert!(seen.iter().all(|&number| number < 100));
        let mut picker = KeyPicker::new(KeyOrder::Uniform, KEYS_MAX, 7);
        assert!((0..1_000).map(|_| picked(&mut picker)).any(|number| number > 90_000_000));
    }
}
