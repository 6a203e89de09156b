//! The ordered log of commits: records, segment files, the commit thread, recovery.

pub mod entry;
pub mod error;
pub mod files;
pub mod record;
