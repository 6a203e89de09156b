//! The ring against `tests/vectors/hash_ring.json`, which another implementation made: the Python in
//! `docs/hash-ring.md`.

use std::path::Path;

use pycounter_engine::placement::hash_ring::{HashRing, POINTS_PER_WEIGHT, RING_SEED, key_hash, point_hash, points_of};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    seed: String,
    points_per_weight: u32,
    key_hashes: Vec<KeyHash>,
    point_hashes: Vec<PointHash>,
    rings: Vec<Ring>,
}

#[derive(Deserialize)]
struct KeyHash {
    key_hex: String,
    hash: String,
}

#[derive(Deserialize)]
struct PointHash {
    shard: String,
    number: u32,
    hash: String,
}

#[derive(Deserialize)]
struct Ring {
    shards: Vec<Shard>,
    points: u32,
    digest: String,
    homes: Vec<Home>,
}

#[derive(Deserialize)]
struct Shard {
    name: String,
    weight: f64,
}

#[derive(Deserialize)]
struct Home {
    key_hex: String,
    home: String,
}

fn vectors() -> Vectors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/hash_ring.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn number(hex: &str) -> u64 {
    u64::from_str_radix(hex.strip_prefix("0x").unwrap(), 16).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn constants_and_hashes_agree() {
    let vectors = vectors();
    assert_eq!(number(&vectors.seed), RING_SEED);
    assert_eq!(vectors.points_per_weight, POINTS_PER_WEIGHT);
    assert!(vectors.key_hashes.len() > 40 && vectors.point_hashes.len() > 20);
    for vector in &vectors.key_hashes {
        assert_eq!(key_hash(&bytes(&vector.key_hex)), number(&vector.hash), "key {}", vector.key_hex);
    }
    for vector in &vectors.point_hashes {
        let hash = point_hash(&vector.shard, vector.number);
        assert_eq!(hash, number(&vector.hash), "point {} of {}", vector.number, vector.shard);
    }
}

#[test]
fn rings_agree_to_the_last_point() {
    for vector in vectors().rings {
        let shards = vector.shards.iter().map(|shard| (shard.name.as_str(), shard.weight));
        let ring = HashRing::new(shards).unwrap();
        assert_eq!(ring.shards().iter().map(|&(_, weight)| points_of(weight)).sum::<u32>(), vector.points);
        assert_eq!(ring.digest(), number(&vector.digest));
        assert!(vector.homes.len() > 60);
        for home in vector.homes {
            assert_eq!(ring.home_name(&bytes(&home.key_hex)), home.home, "key {}", home.key_hex);
        }
    }
}
