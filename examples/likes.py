"""Likes with a live top ten: fifty fans like posts, and a table shows the most liked ones meanwhile.

    pycounter serve --data ./counters
    python likes.py --likes 100000

Each like counts exactly once and is on disk when it is answered. Kill the server with -9 meanwhile and start it again:
the fans wait, and the number of likes at the end is right.
"""

import argparse
import asyncio
import contextlib
import random

from rich.live import Live
from rich.table import Table

import pycounter
from pycounter.errors import RpcError

PREFIX = "likes:"
POSTS = [f"{PREFIX}post-{number}" for number in range(1, 201)]
POPULARITY = [1 / number for number in range(1, 201)]
FANS = 50


async def like(client: pycounter.Client, times: int) -> None:
    """One fan. Like all the others it waits for each answer; their likes reach the server together."""
    for post in random.choices(POSTS, POPULARITY, k=times):
        await client.incr(post, timeout_s=60.0)


async def show(client: pycounter.Client, live: Live) -> None:
    """Shows the ten most liked posts of this moment; if the server doesn't answer, those of the last time."""
    table = Table("post", "likes", title="Most liked")
    with contextlib.suppress(RpcError):
        for post, likes in await client.top(10, PREFIX):
            table.add_row(str(post).removeprefix(PREFIX), f"{likes:,}")
        live.update(table)


async def main() -> None:
    """Likes as often as asked for, shows the top ten four times a second, and counts all likes at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="pycounter://127.0.0.1:7400")
    parser.add_argument("--likes", type=int, default=100_000)
    options = parser.parse_args()
    async with pycounter.connect(options.url) as client:
        async with asyncio.TaskGroup() as group:
            fans = {group.create_task(like(client, len(range(fan, options.likes, FANS)))) for fan in range(FANS)}
            with Live() as live:
                while fans:
                    _, fans = await asyncio.wait(fans, timeout=0.25)
                    await show(client, live)
        print(f"\n{sum([likes async for _, likes in client.scan(PREFIX)]):,} likes in all")


if __name__ == "__main__":
    asyncio.run(main())
