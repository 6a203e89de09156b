//! A coordinator's router with real shards behind its links, without sockets.

mod bounds;
mod cluster;
mod diversion;
mod hostile;
mod nonsense;
mod order;
mod routing;
mod unserved;
mod whole_counters;
