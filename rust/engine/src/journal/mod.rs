//! The ordered log of commits: records, segment files, the commit thread, recovery.

pub mod entry;
