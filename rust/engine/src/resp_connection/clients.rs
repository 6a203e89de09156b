//! CLIENT INFO, LIST and KILL: what a server knows of its connections.

use std::fmt::Write as _;

use super::RespState;
use crate::wire::resp::{self, ClientFilter, Version, words};

/// What to do with connections.
#[derive(Debug)]
pub(crate) enum Clients<'a> {
    /// A line about each.
    List(ClientFilter<'a>),
    /// Close them; answer how many.
    Kill(ClientFilter<'a>),
    /// Close them; answer OK, or an error if there is none.
    KillOne(ClientFilter<'a>),
}

/// The other end of a connection. Times are in milliseconds, on the server's own clock.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// As the host tells it; empty where it doesn't.
    pub(crate) address: Box<str>,
    pub(crate) connected_ms: u64,
    /// When its last bytes came.
    pub(crate) heard_ms: u64,
}

impl ClientFilter<'_> {
    /// Is this connection meant? `own` is the one that asks.
    pub(crate) fn matches(&self, id: u64, peer: &Peer, own: u64) -> bool {
        let is_left_out = self.nobody || self.skip_self && id == own;
        !is_left_out
            && self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
            && self.address.is_none_or(|address| address == peer.address.as_bytes())
    }
}

/// Answers CLIENT LIST and CLIENT INFO.
pub(crate) fn write_clients<'a>(
    out: &mut Vec<u8>,
    version: Version,
    now_ms: u64,
    clients: impl Iterator<Item = (u64, &'a Peer, &'a RespState)>,
) {
    let mut clients: Vec<_> = clients.collect();
    clients.sort_unstable_by_key(|(id, ..)| *id);
    let mut text = String::new();
    for (id, peer, state) in clients {
        let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
        let seconds = |since_ms: u64| now_ms.saturating_sub(since_ms) / 1000;
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "id={id} addr={} name={} age={} idle={} flags={} db=0 sub=0 psub=0 multi={} user=default resp={} lib-name={} lib-ver={}",
            peer.address,
            shown(&state.name),
            seconds(peer.connected_ms),
            seconds(peer.heard_ms),
            if state.transaction.is_some() { "x" } else { "N" },
            state.transaction.as_ref().map_or(-1, |transaction| transaction.lengths.len() as i64),
            state.version.number(),
            shown(&state.library_name),
            shown(&state.library_version),
        );
    }
    resp::write_text(out, version, &text);
}

/// Answers CLIENT KILL.
pub(crate) fn write_killed(out: &mut Vec<u8>, killed: usize) {
    resp::write_int(out, killed as i64);
}

/// Answers CLIENT KILL of an address.
pub(crate) fn write_killed_one(out: &mut Vec<u8>, killed: usize) {
    if killed > 0 {
        resp::write_simple(out, "OK");
    } else {
        resp::write_command_error(out, &words::NO_SUCH_CLIENT);
    }
}
