//! The shard behind the link: a real one, on a simulated disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pycounter_engine::clock::Clock;
use pycounter_engine::folder::Recovery;
use pycounter_engine::journal::JournalOptions;
use pycounter_engine::journal::simulated_files::SimulatedFiles;
use pycounter_engine::operation_id_table::OperationIdSettings;
use pycounter_engine::session_table::SessionSettings;
use pycounter_engine::shard::{Shard, ShardSettings};
use pycounter_engine::state::StateSettings;
use pycounter_engine::wire::request::Level;

/// Small, so that the shard refuses by itself now and then.
const DIRTY_COUNTERS_MAX: usize = 24;

/// Opens the shard of this era from its folder.
pub fn open(files: &SimulatedFiles, clock: &Clock, era: usize) -> Shard {
    let state = StateSettings {
        counters_bytes_max: 1 << 24,
        dirty_counters_max: DIRTY_COUNTERS_MAX,
        sessions: SessionSettings { results_per_session_max: 120, ..SessionSettings::default() },
        ids: OperationIdSettings::default(),
    };
    let options = JournalOptions { files: Arc::new(files.clone()), ..JournalOptions::default() };
    let folder = format!("/shard-{era}");
    let mut recovery = Recovery::open(Path::new(&folder), options, &state).expect("the folder opens");
    assert!(recovery.load_root(None).expect("there is no checkpoint").is_empty());
    let settings = ShardSettings {
        level: Level::Durable,
        server_version: "test".into(),
        tokens: vec![b"secret".to_vec()],
        frame_bytes_max: 1 << 20,
        input_bytes_max: 1 << 28,
        connections_max: 10_000,
        reply_bytes_max: 1 << 20,
        held_bytes_max: 1 << 30,
        flush_interval: Duration::from_secs(1),
    };
    Shard::with_clock(recovery.start_by_hand().expect("the log is whole"), settings, clock.clone())
}
