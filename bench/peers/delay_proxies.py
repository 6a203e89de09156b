"""Proxies before shards, half of the delay each way: `python -m bench.peers.delay_proxies SECONDS PORT...`.

A process of its own, so that the client that is measured doesn't pay for them. It is the proxy of the fault tests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack

import uvloop

from tests.support.fault_proxy import FaultProxy


async def serve(delay_s: float, ports: list[int]) -> None:
    """Prints the proxies' ports, and serves until stdin ends."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(FaultProxy(("127.0.0.1", port))) for port in ports]
        for proxy in proxies:
            proxy.to_server.delay_s = proxy.to_client.delay_s = delay_s / 2
        print(json.dumps([proxy.address[1] for proxy in proxies]), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(sys.argv[1]), [int(port) for port in sys.argv[2:]]))
