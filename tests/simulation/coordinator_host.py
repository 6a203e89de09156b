"""The machine of a coordinator: the real router, links and answers, on simulated connections."""

import asyncio
import random
from collections.abc import Callable

from pycounter.coordinator.coordinator_protocol import CoordinatorProtocol
from pycounter.coordinator.coordinator_server import CoordinatorServer
from pycounter.coordinator.routing import Routing
from pycounter.settings import CoordinatorSettings
from pycounter.topology import Topology
from tests.simulation.callers import SimulatedClock
from tests.simulation.network import Network, calls_from
from tests.simulation.virtual_loop import VirtualLoop

PORT = 7400


class NumberedCoordinatorProtocol(CoordinatorProtocol):
    """With a number for its hash, so that a server's clients have one order in every process."""

    __slots__ = ("_number",)

    def __init__(self, server: CoordinatorServer, number: int) -> None:
        super().__init__(server)
        self._number = number

    def __hash__(self) -> int:
        return self._number


class CoordinatorHost:
    """A machine on which a coordinator's process runs, or doesn't."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        name: str,
        topology: Topology,
        settings: CoordinatorSettings,
        chance: random.Random,
        log: Callable[..., None],
    ) -> None:
        self.loop = loop
        self.network = network
        self.name = name
        self.topology = topology
        self.settings = settings
        self.chance = chance
        self.log = log
        self.starts = 0
        self.kills = 0
        self._server: CoordinatorServer | None = None
        self._routing: Routing | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return (self.name, PORT)

    @property
    def calling_name(self) -> str:
        """The host that its connections to shards come from: another one in each run."""
        return f"{self.name}/{self.starts}"

    @property
    def is_running(self) -> bool:
        return self._routing is not None

    def start(self) -> None:
        """Begins to serve, unless the run before hasn't let go of its folder yet."""
        if self._routing is not None or (self._ending is not None and not self._ending.done()):
            return
        self.starts += 1
        self.log("%s: started", self.name)
        with calls_from(self.calling_name):
            server = CoordinatorServer(self.settings)
            clock = SimulatedClock(self.loop, random.Random(self.chance.getrandbits(64)))
            routing = Routing(self.topology, self.settings, (), clock=clock)
            server._routing, server.router = routing, routing.router
            routing.start()
        self._server, self._routing = server, routing
        self.network.listen(*self.address, lambda: NumberedCoordinatorProtocol(server, self.loop.number()))

    def stop(self) -> None:
        """An orderly end: what is in is answered, nobody new is let in."""
        server, routing = self._server, self._routing
        if server is None or routing is None:
            return
        self.log("%s: stops", self.name)
        self._server = self._routing = None
        self.network.stop_listening(*self.address)
        with calls_from(self.calling_name):
            self._ending = self.loop.create_task(self._stop(server, routing), name=f"{self.name} stops")

    async def _stop(self, server: CoordinatorServer, routing: Routing) -> None:
        await server._drain(routing)
        await self._end(server, routing)
        for name in (self.name, self.calling_name):
            for endpoint in self.network.endpoints(name):
                endpoint.vanish()

    def kill(self, why: str) -> None:
        """Nothing of it can be seen any more; what is left only ends its tasks."""
        server, routing = self._server, self._routing
        if server is None or routing is None:
            return
        self.log("%s: killed: %s", self.name, why)
        self.kills += 1
        self._server = self._routing = None
        self.network.stop_listening(*self.address)
        self.network.gone.add(self.calling_name)
        for name in (self.name, self.calling_name):
            for endpoint in self.network.endpoints(name):
                endpoint.vanish()
        self._ending = self.loop.create_task(self._end(server, routing), name=f"{self.name} ends")

    async def _end(self, server: CoordinatorServer, routing: Routing) -> None:
        await server.end_requests()
        await routing.close()
        # The router holds its connections' protocols, and Python's collector doesn't see that.
        for connection in server.clients:
            connection._connection.shutdown()

    async def settled(self) -> None:
        """Waits until it runs and keeps nothing for a shard."""
        while (
            self._routing is None or not self._routing.router.is_settled() or self._routing.replayer.status()["waiting"]
        ):
            await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Waits until nothing of the last run is left."""
        if self._ending is not None:
            await self._ending
