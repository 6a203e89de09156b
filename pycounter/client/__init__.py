"""The client of one shard: `SessionClient` counts exactly once, whatever is cut or killed.

    async with SessionClient("127.0.0.1", 7400) as client:
        await client.incr("visits")
        await client.apply([("visits", 1), ("errors", 2)])

Which file holds what, from the socket upwards: `framing` turns messages into bytes and back; `connection` is one TCP
connection, and `hello` what a shard says first on it; `session` is the rules of exactly once, without any input or
output, and `applied_tail` what they remember of operations that a crash may take back; `room` bounds what is accepted;
`coalescer` makes batches of single increments; `session_client` joins them and reconnects.
"""

from pycounter.client.applied_tail import LostTail
from pycounter.client.session_client import SessionClient
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import ClientStatistics

__all__ = ["ClientSettings", "ClientStatistics", "LostTail", "SessionClient"]
