//! Codecs: bytes to requests and results to bytes. They know nothing of the shard behind them.
//!
//! Reading order: `scan` (which protocol, where a frame ends), `request` (what can be asked for),
//! `msgpack_rpc`, `resp`, and `glob` for the patterns of `SCAN`.

pub mod glob;
pub mod msgpack_rpc;
pub mod request;
pub mod request_error;
pub mod resp;
pub mod scan;
