//! What the ring promises: even shares, and that only the keys that must move do.

use pycounter_engine::placement::hash_ring::HashRing;

const KEYS: u64 = 1_000_000;

fn ring(count: usize) -> HashRing {
    HashRing::new((0..count).map(|number| (format!("shard-{number}"), 1.0))).unwrap()
}

fn key(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

fn counts(ring: &HashRing) -> Vec<f64> {
    let mut counts = vec![0.0; ring.shards().len()];
    (0..KEYS).for_each(|number| counts[ring.home(&key(number))] += 1.0);
    counts
}

fn extremes(shares: impl IntoIterator<Item = f64>) -> (f64, f64) {
    shares.into_iter().fold((f64::INFINITY, 0.0), |(least, most), share| (share.min(least), share.max(most)))
}

/// How many keys have another home in `after`; panics unless they all come from or go to `shard`.
fn moved(before: &HashRing, after: &HashRing, shard: &str) -> f64 {
    let mut moved = 0;
    for number in 0..KEYS {
        let (from, to) = (before.home_name(&key(number)), after.home_name(&key(number)));
        if from != to {
            assert!(from == shard || to == shard, "{from} to {to} though only {shard} changed");
            moved += 1;
        }
    }
    moved as f64 / KEYS as f64
}

#[test]
fn equal_shards_have_shares_within_ten_percent() {
    for count in [2, 3, 8, 16, 64] {
        let ring = ring(count);
        let (least, most) = extremes(counts(&ring).iter().map(|share| share / KEYS as f64 * count as f64));
        println!("{count} shards: {least:.3} to {most:.3} of the fair share");
        assert!(least > 0.9 && most < 1.1, "{count} shards: {least} to {most}");
    }
}

#[test]
fn shares_of_other_names_are_as_even() {
    let mut worst = (1.0f64, 1.0f64);
    for family in 0..40 {
        let shards = (0..64).map(|number| (format!("10.{family}.0.{number}:7000"), 1.0));
        let (least, most) = extremes(HashRing::new(shards).unwrap().shares().iter().map(|share| share * 64.0));
        worst = (worst.0.min(least), worst.1.max(most));
    }
    println!("2,560 shards: {:.3} to {:.3} of the fair share", worst.0, worst.1);
    assert!(worst.0 > 0.9 && worst.1 < 1.1, "{worst:?}");
}

#[test]
fn shares_follow_weights_and_keys_follow_shares() {
    let ring = HashRing::new([("a", 1.0), ("b", 2.0), ("c", 0.5), ("d", 4.5)]).unwrap();
    assert!((ring.shares().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    for ((name, weight), (share, count)) in ring.shards().iter().zip(ring.shares().iter().zip(counts(&ring))) {
        assert!((share / (weight / 8.0) - 1.0).abs() < 0.1, "{name}: {share}");
        assert!((count / KEYS as f64 - share).abs() < 0.003, "{name}: {count} keys for a share of {share}");
    }
    assert_eq!(HashRing::new([("alone", 0.01)]).unwrap().shares().len(), 1);
}

#[test]
fn a_shard_that_comes_or_goes_moves_only_its_share() {
    for count in [2, 8, 63] {
        let before = ring(count);
        let after = before.with_shard("newcomer", 1.0).unwrap();
        let share = moved(&before, &after, "newcomer");
        assert!(share <= 1.2 / (count + 1) as f64, "{count} shards: {share}");
        assert!(share >= 0.8 / (count + 1) as f64, "{count} shards: {share}");
        assert_eq!(after.without_shard("newcomer").unwrap().digest(), before.digest());
    }
}

#[test]
fn another_weight_moves_only_the_difference() {
    let before = ring(8);
    let after = before.with_weight("shard-3", 2.0).unwrap();
    let share = moved(&before, &after, "shard-3");
    let expected = 2.0 / 9.0 - 1.0 / 8.0;
    assert!((share / expected - 1.0).abs() < 0.15, "{share} instead of {expected}");
    // All of them to the heavier shard.
    let index = before.shards().iter().position(|(name, _)| name == "shard-3").unwrap();
    let lost = (0..KEYS).filter(|&number| before.home(&key(number)) == index && after.home(&key(number)) != index);
    assert_eq!(lost.count(), 0);
}
