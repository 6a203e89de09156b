//! `pycounter._native`: registers the classes; the logic is in the engine.
mod counter_arithmetic;
mod counter_backend;
mod counter_bulk;
mod counter_pages;
mod counters;
mod delta;
mod errors;
mod exit_status;
mod folder_copies;
mod foreign_keys;
mod glob;
mod item_list;
mod journaled_counters;
mod journaled_folder;
mod key;
mod key_array;
mod latest_values;
mod link_reports;
mod load_generator;
mod opened_map;
mod owned_by_process;
mod pending;
mod read_cache;
mod replica;
mod router;
mod session_link;
mod shard;
mod simulated_disk;
mod split_items;

mod hash_ring;

use pyo3::prelude::*;

#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("DEBUG_BUILD", cfg!(debug_assertions))?;
    module.add("VERSION", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<counters::Counters>()?;
    counters::register_as_mapping(module.py())?;
    module.add_class::<journaled_counters::JournaledCounters>()?;
    module.add_class::<hash_ring::HashRing>()?;
    module.add_class::<foreign_keys::ForeignKeys>()?;
    module.add_class::<read_cache::ReadCache>()?;
    module.add_class::<journaled_folder::JournaledFolder>()?;
    module.add_class::<journaled_folder::Fold>()?;
    module.add_class::<folder_copies::FolderReader>()?;
    module.add_class::<folder_copies::FolderWriter>()?;
    module.add_class::<shard::Shard>()?;
    module.add_class::<shard::Connection>()?;
    module.add_class::<replica::Replica>()?;
    module.add_class::<router::Router>()?;
    module.add_class::<router::RouterLink>()?;
    module.add_class::<router::RouterConnection>()?;
    module.add_class::<session_link::SessionLink>()?;
    module.add_class::<split_items::SplitItems>()?;
    module.add_class::<latest_values::LatestValues>()?;
    module.add_class::<simulated_disk::SimulatedDisk>()?;
    module.add_class::<load_generator::LoadGenerator>()?;
    module.add_class::<load_generator::LoadReport>()?;
    module.add_class::<load_generator::ConstantReplies>()?;
    module.add_function(wrap_pyfunction!(load_generator::serve_constant_replies, module)?)?;
    module.add_function(wrap_pyfunction!(errors::error_codes, module)?)?;
    module.add_function(wrap_pyfunction!(exit_status::fail_at_exit, module)?)?;
    module.add_function(wrap_pyfunction!(glob::glob_matches, module)?)?;
    Ok(())
}
