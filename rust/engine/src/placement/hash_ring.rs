//! The weighted consistent hash ring: which shard is a key's home.
//!
//! The home depends only on the shards' names and weights and on the key, in every process and every language:
//! `docs/hash-ring.md` gives the bytes that are hashed, `tests/vectors/hash_ring.json` examples to check against.
//!
//! A shard of weight `w` has `w` × [`POINTS_PER_WEIGHT`] points on a circle of 2⁶⁴; a key belongs to the first
//! point at or after its own hash. Point `i` of a shard depends on its name and `i` alone, so a shard that comes,
//! goes or changes its weight moves only the keys that it gains or loses.
//!
//! A ring never changes. Threads that look up while it is replaced share a [`SharedRing`], which never makes
//! them wait.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The seed of every hash: "pyctring" read as a little-endian number. Never changes.
pub const RING_SEED: u64 = u64::from_le_bytes(*b"pyctring");
/// Points of a shard of weight 1: with so many, 64 equal shards' shares stay within 10 % of each other's mean.
pub const POINTS_PER_WEIGHT: u32 = 2048;
/// The smallest weight (20 points).
pub const WEIGHT_MIN: f64 = 0.01;
/// The largest weight.
pub const WEIGHT_MAX: f64 = 100.0;
/// Most points of a ring, 16 bytes each: a weight of 1 for 2,048 shards.
pub const POINTS_MAX: usize = 1 << 22;
/// Longest name of a shard, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Why there is no such ring.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum RingError {
    /// Every key needs a home.
    #[error("a ring needs at least one shard")]
    Empty,
    /// A name that no shard may have.
    #[error("a shard's name has 1 to {NAME_BYTES_MAX} bytes, not {0}")]
    Name(usize),
    /// The name is there twice.
    #[error("shard {0:?} is there already")]
    Duplicate(String),
    /// The name is not there.
    #[error("there is no shard {0:?}")]
    Unknown(String),
    /// Not a number, or out of bounds.
    #[error("the weight of shard {name:?} is {weight}, not between {WEIGHT_MIN} and {WEIGHT_MAX}")]
    Weight {
        /// The shard.
        name: String,
        /// Its weight.
        weight: f64,
    },
    /// The weights add up to too much.
    #[error("the weights add up to more than {} points", POINTS_MAX)]
    TooManyPoints,
}

/// A shard's place on the circle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    shard: u32,
}

/// Shards and their places. Immutable.
#[derive(Debug, Clone)]
pub struct HashRing {
    /// In the order of their names' bytes.
    shards: Vec<(String, f64)>,
    /// In the order of their hashes, then of their shards' names.
    points: Vec<Point>,
    /// For each value of a hash's highest bits the first point that may be at or after it.
    starts: Vec<u32>,
    /// How far a hash is shifted to give its highest bits.
    shift: u32,
}

impl PartialEq for HashRing {
    /// Same names, same weights: same homes.
    fn eq(&self, other: &Self) -> bool {
        self.shards == other.shards
    }
}

/// The hash of a key on the ring.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, RING_SEED)
}

/// The hash of point `number` of a shard: of the number, 4 bytes little-endian, and then the name.
#[must_use]
pub fn point_hash(name: &str, number: u32) -> u64 {
    let mut bytes = Vec::with_capacity(4 + name.len());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    xxh3_64_with_seed(&bytes, RING_SEED)
}

/// How many points a shard of this weight has: `weight` × `POINTS_PER_WEIGHT`, rounded half away from zero.
#[must_use]
pub fn points_of(weight: f64) -> u32 {
    (weight * f64::from(POINTS_PER_WEIGHT)).round() as u32
}

impl HashRing {
    /// A ring of these shards, whatever their order.
    ///
    /// # Errors
    /// No shard, a bad name or weight, a name twice, or too many points.
    pub fn new<N: Into<String>>(shards: impl IntoIterator<Item = (N, f64)>) -> Result<Self, RingError> {
        let mut sorted = BTreeMap::new();
        for (name, weight) in shards {
            let name = name.into();
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(RingError::Name(name.len()));
            }
            if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&weight) {
                return Err(RingError::Weight { name, weight });
            }
            if let Some((name, _)) = sorted.get_key_value(&name) {
                let name: &String = name;
                return Err(RingError::Duplicate(name.clone()));
            }
            sorted.insert(name, weight);
        }
        if sorted.is_empty() {
            return Err(RingError::Empty);
        }
        let count = sorted.values().map(|&weight| points_of(weight) as usize).sum::<usize>();
        if count > POINTS_MAX {
            return Err(RingError::TooManyPoints);
        }
        Ok(Self::place(sorted.into_iter().collect(), count))
    }

    /// Builds the points of valid shards.
    fn place(shards: Vec<(String, f64)>, count: usize) -> Self {
        let mut points = Vec::with_capacity(count);
        let mut bytes = Vec::with_capacity(4 + NAME_BYTES_MAX);
        for (shard, (name, weight)) in (0u32..).zip(&shards) {
            bytes.clear();
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(name.as_bytes());
            for number in 0..points_of(*weight) {
                bytes[..4].copy_from_slice(&number.to_le_bytes());
                points.push(Point { hash: xxh3_64_with_seed(&bytes, RING_SEED), shard });
            }
        }
        points.sort_unstable();
        // About one point for each start, so that a lookup passes about one point that is too early.
        let bits = points.len().next_power_of_two().trailing_zeros().max(1);
        let shift = u64::BITS - bits;
        let mut starts = Vec::with_capacity(1 << bits);
        let mut next = 0;
        for high in 0..1u64 << bits {
            while points.get(next).is_some_and(|point| point.hash >> shift < high) {
                next += 1;
            }
            starts.push(next as u32);
        }
        Self { shards, points, starts, shift }
    }

    /// The home of a key: an index into [`HashRing::shards`].
    #[must_use]
    pub fn home(&self, key: &[u8]) -> usize {
        self.home_of_hash(key_hash(key))
    }

    /// The home of a key whose [`key_hash`] is known.
    #[must_use]
    pub fn home_of_hash(&self, hash: u64) -> usize {
        let start = self.starts[(hash >> self.shift) as usize] as usize;
        let found = self.points[start..].iter().find(|point| point.hash >= hash);
        // Beyond the last point the circle closes.
        found.unwrap_or(&self.points[0]).shard as usize
    }

    /// The name of a key's home.
    #[must_use]
    pub fn home_name(&self, key: &[u8]) -> &str {
        &self.shards[self.home(key)].0
    }

    /// The homes of several keys.
    pub fn homes<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> impl Iterator<Item = usize> {
        keys.into_iter().map(|key| self.home(key))
    }

    /// The shards and their weights, in the order of their names' bytes.
    #[must_use]
    pub fn shards(&self) -> &[(String, f64)] {
        &self.shards
    }

    /// Each shard's share of all possible hashes, in the order of [`HashRing::shards`]; they add up to 1.
    #[must_use]
    pub fn shares(&self) -> Vec<f64> {
        let mut lengths = vec![0u128; self.shards.len()];
        let mut before = self.points.last().map_or(0, |point| point.hash);
        for point in &self.points {
            lengths[point.shard as usize] += u128::from(point.hash.wrapping_sub(before));
            before = point.hash;
        }
        if self.points.len() == 1 {
            return vec![1.0];
        }
        lengths.into_iter().map(|length| length as f64 / 2f64.powi(64)).collect()
    }

    /// This ring and one more shard.
    ///
    /// # Errors
    /// As [`HashRing::new`].
    pub fn with_shard(&self, name: &str, weight: f64) -> Result<Self, RingError> {
        Self::new(self.shards.iter().cloned().chain([(name.to_owned(), weight)]))
    }

    /// This ring with another weight for a shard.
    ///
    /// # Errors
    /// There is no such shard, or as [`HashRing::new`].
    pub fn with_weight(&self, name: &str, weight: f64) -> Result<Self, RingError> {
        self.without(name)?.chain([(name.to_owned(), weight)]).collect::<Vec<_>>().try_into()
    }

    /// This ring without a shard.
    ///
    /// # Errors
    /// There is no such shard, or no other.
    pub fn without_shard(&self, name: &str) -> Result<Self, RingError> {
        self.without(name)?.collect::<Vec<_>>().try_into()
    }

    fn without(&self, name: &str) -> Result<impl Iterator<Item = (String, f64)>, RingError> {
        if !self.shards.iter().any(|(other, _)| other == name) {
            return Err(RingError::Unknown(name.to_owned()));
        }
        let name = name.to_owned();
        Ok(self.shards.iter().filter(move |(other, _)| *other != name).cloned())
    }

    /// A hash of all points in order, to compare rings across languages: for each point its hash, 8 bytes
    /// little-endian, and its shard's index, 4 bytes little-endian.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let bytes: Vec<u8> = self
            .points
            .iter()
            .flat_map(|point| point.hash.to_le_bytes().into_iter().chain(point.shard.to_le_bytes()))
            .collect();
        xxh3_64_with_seed(&bytes, RING_SEED)
    }
}

impl TryFrom<Vec<(String, f64)>> for HashRing {
    type Error = RingError;

    fn try_from(shards: Vec<(String, f64)>) -> Result<Self, RingError> {
        Self::new(shards)
    }
}

/// The ring in force, replaced whole: readers load it without waiting, and keep the one they loaded for as long
/// as they hold it.
#[derive(Debug)]
pub struct SharedRing(ArcSwap<HashRing>);

impl SharedRing {
    /// Puts a ring in force.
    #[must_use]
    pub fn new(ring: HashRing) -> Self {
        Self(ArcSwap::from_pointee(ring))
    }

    /// The ring in force, cheaply, for a few lookups.
    pub fn load(&self) -> impl std::ops::Deref<Target = Arc<HashRing>> {
        self.0.load()
    }

    /// Puts another ring in force.
    pub fn replace(&self, ring: HashRing) {
        self.0.store(Arc::new(ring));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> impl Iterator<Item = (String, f64)> {
        (0..count).map(|number| (format!("shard-{number}"), 1.0))
    }

    #[test]
    fn a_lookup_finds_what_a_search_of_all_points_finds() {
        let ring = HashRing::new([("a", 0.01), ("b", 0.02), ("c", 0.5)]).unwrap();
        let naive = |hash: u64| {
            let after = ring.points.iter().filter(|point| point.hash >= hash).min();
            after.or(ring.points.iter().min()).unwrap().shard as usize
        };
        for number in 0..20_000u64 {
            let hash = key_hash(&number.to_le_bytes());
            assert_eq!(ring.home_of_hash(hash), naive(hash));
        }
        for point in &ring.points {
            for hash in [point.hash.wrapping_sub(1), point.hash, point.hash.wrapping_add(1)] {
                assert_eq!(ring.home_of_hash(hash), naive(hash));
            }
        }
        for hash in [0, u64::MAX] {
            assert_eq!(ring.home_of_hash(hash), naive(hash));
        }
    }

    #[test]
    fn bad_rings_are_refused() {
        let none: [(&str, f64); 0] = [];
        assert_eq!(HashRing::new(none).err(), Some(RingError::Empty));
        assert_eq!(HashRing::new([("", 1.0)]).err(), Some(RingError::Name(0)));
        assert_eq!(HashRing::new([("x".repeat(256), 1.0)]).err(), Some(RingError::Name(256)));
        assert_eq!(HashRing::new([("a", 1.0), ("a", 2.0)]).err(), Some(RingError::Duplicate("a".into())));
        for weight in [0.0, -1.0, 0.009, 100.1, f64::NAN, f64::INFINITY, -0.0] {
            assert!(matches!(HashRing::new([("a", weight)]), Err(RingError::Weight { .. })), "{weight}");
        }
        let heavy = (0..22).map(|number| (number.to_string(), 100.0));
        assert_eq!(HashRing::new(heavy).err(), Some(RingError::TooManyPoints));
        let ring = HashRing::new([("a", 1.0)]).unwrap();
        assert_eq!(ring.without_shard("a").err(), Some(RingError::Empty));
        assert_eq!(ring.without_shard("b").err(), Some(RingError::Unknown("b".into())));
        assert_eq!(ring.with_weight("b", 1.0).err(), Some(RingError::Unknown("b".into())));
        assert_eq!(ring.with_shard("a", 1.0).err(), Some(RingError::Duplicate("a".into())));
    }

    #[test]
    fn the_order_of_shards_does_not_matter() {
        let forth = HashRing::new(names(20)).unwrap();
        let back = HashRing::new(names(20).collect::<Vec<_>>().into_iter().rev()).unwrap();
        assert_eq!(forth, back);
        assert_eq!(forth.digest(), back.digest());
        assert_eq!(
            forth.without_shard("shard-3").unwrap().with_shard("shard-3", 1.0).unwrap().digest(),
            forth.digest()
        );
    }

    #[test]
    fn readers_keep_their_ring_while_it_is_replaced() {
        let shared = SharedRing::new(HashRing::new([("a", 1.0)]).unwrap());
        let before = shared.load();
        shared.replace(HashRing::new([("b", 1.0)]).unwrap());
        assert_eq!(before.home_name(b"key"), "a");
        assert_eq!(shared.load().home_name(b"key"), "b");
    }
}
