"""A client that only reads, in every way there is, and holds what it sees against the history."""

import asyncio

from tests.support.crash.ground import Client
from tests.support.history import Violation
from tests.support.rpc_socket import RpcError
from tests.support.rpc_stream import RpcStream

PAUSE_S = 0.01


class Observer(Client):
    """Reads at `durable`: what it sees must stay, across any number of kills."""

    async def live(self, stream: RpcStream) -> None:
        await self.hello(stream)
        while not self.ground.stopping:
            read = self.random.choice([self._get_many, self._get_many, self._total_many, self._scan, self._top])
            try:
                await read(stream)
            except RpcError as error:
                if not self.may_be_retried(error.code):
                    raise Violation(f"{read.__name__} was refused: {error}") from None
            await asyncio.sleep(self.random.uniform(0, PAUSE_S))

    def _draw_keys(self) -> list[bytes]:
        keys = self.history.keys
        return self.random.sample(keys, min(len(keys), 20))

    async def _get_many(self, stream: RpcStream) -> None:
        keys = self._draw_keys()
        floor = self.history.begin_read(keys)
        options = {"min_commit": self.ground.commit, "level": "durable"}
        values = await stream.call("get_many", keys, options)
        self.history.end_read(floor, dict(zip(keys, values, strict=True)))

    async def _total_many(self, stream: RpcStream) -> None:
        keys = self._draw_keys()
        floor = self.history.begin_read(keys)
        totals = await stream.call("total_many", keys, {"accuracy": "exact", "level": "durable"})
        for total in totals:
            if total[b"exact"] is not True or total[b"missing"] != []:
                raise Violation(f"a lone shard's total is {total!r}")
        values = [total[b"total"] for total in totals]
        self.history.end_read(floor, dict(zip(keys, values, strict=True)))

    async def _scan(self, stream: RpcStream) -> None:
        if self.ground.level != "durable":
            return  # it takes no level
        floor = self.history.begin_read()
        self.history.end_read(floor, {**dict.fromkeys(floor.totals, 0), **await scan_all(stream)})

    async def _top(self, stream: RpcStream) -> None:
        if self.ground.level != "durable":
            return
        floor = self.history.begin_read()
        largest = await stream.call("top", 5, b"hot:")
        values = [value for _, value in largest]
        if values != sorted(values, reverse=True):
            raise Violation(f"top is out of order: {largest!r}")
        self.history.end_read(floor, dict(largest))


async def scan_all(stream: RpcStream) -> dict[bytes, int]:
    """Every counter and its value, page by page."""
    found: dict[bytes, int] = {}
    cursor = 0
    while True:
        cursor, page = await stream.call("scan", cursor, 100, "")
        for key, value in page:
            if key in found:
                raise Violation(f"one scan gave {key!r} twice")
            found[key] = value
        if cursor == 0:
            return found
