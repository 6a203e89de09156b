//! Codecs: bytes to requests and results to bytes. They know nothing of the shard behind them.

pub mod request;
