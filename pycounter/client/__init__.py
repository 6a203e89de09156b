"""Clients of one shard: `SessionClient` for speed and exactly once, `OneShotClient` for a single command.

    async with SessionClient("127.0.0.1", 7400) as client:
        await client.incr("visits")
        await client.apply([("visits", 1), ("errors", 2)])

Which file holds what, from the socket upwards: `framing` turns messages into bytes and back; `connection` is one TCP
connection; `session` is the rules of exactly once, without any input or output; `session_client` joins them and
reconnects; `one_shot` is the blocking client of the command line.
"""

from pycounter.client.one_shot import OneShotClient
from pycounter.client.session import LostTail
from pycounter.client.session_client import SessionClient
from pycounter.client.settings import ClientSettings
from pycounter.client.statistics import ClientStatistics

__all__ = ["ClientSettings", "ClientStatistics", "LostTail", "OneShotClient", "SessionClient"]
