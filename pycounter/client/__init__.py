"""Clients of one server: `SessionClient` counts at a shard exactly once, whatever is cut or killed.

    async with SessionClient("127.0.0.1", 7400) as client:
        await client.incr("visits")
        await client.apply([("visits", 1), ("errors", 2)])

Which file holds what: `framing` turns messages into bytes and back. The rules of exactly once, batches and their
futures are in Rust, `pycounter._native.SessionLink`; `link_connection` keeps one connected, `link_room` bounds what is
accepted, `session_client` is what callers see, and `outcomes` what they get. `event_loop` refuses calls on another loop
than the client's.

Beside it, for requests that need no session: `connection` is one TCP connection and `hello` what a server says first
on it, `pool` has many, `retry` says what may be sent again, and `caller` does so. `unknown_operations` is the list of
what nobody knows yet.
`pycounter.connect` makes one client for all shards of these.
"""

from pycounter.client.lost_tail import LostTail
from pycounter.client.outcomes import Detail
from pycounter.client.session_client import SessionClient
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import BatchHealth, ClientStatistics
from pycounter.client.unknown_operations import UnknownOperation, UnknownOperations

__all__ = [
    "BatchHealth",
    "ClientSettings",
    "ClientStatistics",
    "Detail",
    "LostTail",
    "SessionClient",
    "UnknownOperation",
    "UnknownOperations",
]
