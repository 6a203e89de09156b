"""A server in the test's own event loop that tells a topology, as a coordinator does."""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

from pycounter.errors import UnknownMethod
from pycounter.topology import format_address
from tests.support.scripted_shard import SILENCE, ScriptedShard


class TopologyServer:
    """Tells where shards are. `can_watch`: it also answers `watch_topology`; later, if nothing is new."""

    def __init__(self, addresses: Mapping[str, tuple[str, int]], *, can_watch: bool = True) -> None:
        self.document: dict[str, Any] = {"version": 1, "cluster": "c0ffee", "shards": [], "strict": []}
        self.can_watch = can_watch
        self.server = ScriptedShard()
        self.server.handlers = {
            "hello": lambda said: {"server": "pycounter", "identity": "c0ffee", "time": 1},
            "ping": lambda: "pong",
            "topology": lambda: self.document,
            "watch_topology": self._watch,
        }
        self.place(addresses)

    def place(self, addresses: Mapping[str, tuple[str, int]], **changes: Any) -> None:
        """The shards are here now: a newer topology. `changes` are fields of every shard."""
        self.document = {
            **self.document,
            "version": self.document["version"] + 1,
            "shards": [
                {"name": name, "address": format_address(*address), "state": "ok", **changes}
                for name, address in addresses.items()
            ],
        }

    @property
    def url(self) -> str:
        """For `pycounter.connect`."""
        return f"pycounter://{format_address(*self.server.address)}"

    def _watch(self, known: int = 0) -> Any:
        if not self.can_watch:
            raise UnknownMethod("watch_topology")
        return self.document if self.document["version"] > known else SILENCE

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.server.__aexit__(*error)
        await asyncio.sleep(0)
