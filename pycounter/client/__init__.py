"""Clients of one server: `SessionClient` counts at a shard exactly once, whatever is cut or killed.

    async with SessionClient("127.0.0.1", 7400) as client:
        await client.incr("visits")
        await client.apply([("visits", 1), ("errors", 2)])

Which file holds what, from the socket upwards: `framing` turns messages into bytes and back; `connection` is one TCP
connection, and `hello` what a server says first on it; `session` is the rules of exactly once, without any input or
output, and `applied_tail` what they remember of operations that a crash may take back; `room` bounds what is accepted;
`coalescer` makes batches of single increments; `session_connection` joins them and reconnects; `session_client` is what
callers see of it.

Beside it, for requests that need no session: `pool` has connections, `retry` says what may be sent again, `caller`
does so, and `id_client` counts under operation ids, for servers that take no sessions. `unknown_operations` is the list
of what nobody knows yet, of either. `pycounter.connect` makes one client for all shards of these.
"""

from pycounter.client.applied_tail import LostTail
from pycounter.client.coalescer import Detail
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
