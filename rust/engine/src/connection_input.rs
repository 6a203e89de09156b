//! What a shard's and a router's connections share of their input: the protocol that it speaks, and the bound on what
//! clients have sent and that can't be carried out yet.

use crate::resp_connection::RespState;
use crate::wire::msgpack_rpc::FrameScanner;
use crate::wire::resp::Version;
use crate::wire::scan;

/// Told to a connection that ends because of the bound.
pub const TOO_MUCH: &str = "unfinished requests of all connections fill their bound, and this one's are large";

/// What a connection speaks, known from its first byte on.
#[derive(Debug)]
pub enum Protocol {
    /// Nothing was received.
    Unknown,
    /// MessagePack-RPC.
    MsgpackRpc(FrameScanner),
    /// RESP, version 2 or 3.
    Resp(Box<RespState>),
}

impl Protocol {
    /// By a connection's first byte; `None` if it is no protocol's.
    pub fn detect(first: u8) -> Option<Self> {
        Some(match scan::detect(first)? {
            scan::Protocol::MsgpackRpc => Self::MsgpackRpc(FrameScanner::default()),
            scan::Protocol::Resp => Self::Resp(Box::default()),
        })
    }

    /// `msgpack-rpc`, `resp2`, `resp3`, or nothing yet.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::MsgpackRpc(_) => "msgpack-rpc",
            Self::Resp(state) if state.version == Version::Resp3 => "resp3",
            Self::Resp(_) => "resp2",
        }
    }

    /// How RESP replies are written.
    pub const fn version(&self) -> Version {
        match self {
            Self::Resp(state) => state.version,
            _ => Version::Resp2,
        }
    }
}

/// Does what all connections leave unfinished fill the bound, and does this one bring more than its share? Half of
/// `bytes_max` is anybody's; of the other half each connection has its even share.
pub const fn is_too_much(all_bytes: usize, own_bytes: usize, bytes_max: usize, connections_max: usize) -> bool {
    let half = bytes_max / 2;
    let connections = if connections_max == 0 { 1 } else { connections_max };
    all_bytes > half && own_bytes > half / connections
}
