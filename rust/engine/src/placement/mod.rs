//! Where counters belong and where they are: the ring gives each key its home shard, and the lists of foreign counters
//! name the other shards that hold part of a key.

pub mod foreign_keys;
pub mod foreign_list;
pub mod hash_ring;
