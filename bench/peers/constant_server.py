"""A server that parses increments and answers all of them by 1: `python -m bench.peers.constant_server PORT [--bare]`.

Behind uvloop it is the floor of any server that is made as PyCounter's is. With --bare there is no Python in it: what
it reaches is as much as the load generator can generate.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from pycounter._native import ConstantReplies, serve_constant_replies


class ConstantProtocol(asyncio.Protocol):
    """As `pycounter.server.shard_protocol`, with nothing behind it."""

    __slots__ = ("_feed", "_write")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._feed = ConstantReplies().feed
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        self._write(self._feed(data))


async def _serve(port: int) -> None:
    listener = await asyncio.get_running_loop().create_server(ConstantProtocol, "127.0.0.1", port, backlog=1024)
    await listener.serve_forever()


if __name__ == "__main__":
    if "--bare" in sys.argv:
        serve_constant_replies(int(sys.argv[1]))
    else:
        uvloop.run(_serve(int(sys.argv[1])))
