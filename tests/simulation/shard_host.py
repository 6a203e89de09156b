"""The machine of a shard: the real protocol and the real engine, on a simulated disk, and a process that can die.

It stands where `ShardServer` does: that one belongs to signals, threads and sockets.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pycounter._native import Shard, SimulatedDisk
from pycounter.errors import StorageError
from pycounter.net.clients import Clients
from pycounter.server.shard_protocol import ShardProtocol
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import load_checkpoint
from tests.simulation.memory_store import Died, MemoryStore
from tests.simulation.network import Network
from tests.simulation.virtual_loop import VirtualLoop

TICK_S = 0.1
PORT = 7400
CONNECTIONS_MAX = 64
HELD_BYTES_MAX = 1 << 20
#: A failed commit is tried again after a pause between these, as the commit thread does.
RETRY_S = (0.1, 1.0)


@dataclass
class DiskWeather:
    """How long a commit takes, in seconds, and how long until the loop hears of its end."""

    commit_s: float = 0.0005
    #: The chance that a commit takes up to `slow_s`.
    slow: float = 0.05
    slow_s: float = 0.1
    wake_s: float = 0.0002


class NumberedShardProtocol(ShardProtocol):
    """With a number for its hash, so that a server's clients have one order in every process."""

    __slots__ = ("_number",)

    def __init__(self, server: Any, number: int) -> None:
        super().__init__(server)
        self._number = number

    def __hash__(self) -> int:
        return self._number


class Process:
    """One run of the shard's server; nothing of it is left once it died. What `ShardProtocol` needs of a server."""

    def __init__(self, host: "ShardHost", shard: Shard) -> None:
        self.host = host
        self.shard = shard
        self.checkpointer = Checkpointer(shard, host.store, log_bytes=1, interval_s=1.0)  # type: ignore[arg-type]
        self.clients = Clients(connections_max=CONNECTIONS_MAX, held_bytes_max=HELD_BYTES_MAX)
        self.alive = True
        self._step_scheduled = False
        #: What is to be done once it runs again.
        self._postponed: list[Callable[[], Any]] = []

    # --- for ShardProtocol -----------------------------------------------------------------------------------------

    def answer_later(self, connection: ShardProtocol, msgid: int | None, method: str, argument: str) -> None:
        connection.reply(msgid, f"unknown_method: {method} is not known to this server", None)

    # --- the loop's side of the shard ------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[[], Any]) -> None:
        """What the engine asks of its loop."""
        self.host.loop.call_soon(self._run, callback)

    def _run(self, callback: Callable[[], Any]) -> None:
        if self._may_run(lambda: self._run(callback)):
            callback()
            self._look()

    def _may_run(self, again: Callable[[], Any]) -> bool:
        """Does the process live, and run? If it is stopped, it does this later."""
        if self.alive and self.host.freezes:
            self._postponed.append(again)
            return False
        return self.alive

    def go_on(self) -> None:
        """It was stopped, and runs again."""
        postponed, self._postponed = self._postponed, []
        for again in postponed:
            self.host.loop.call_soon(again)

    def _look(self) -> None:
        """Has the disk take its time with a commit that is under way."""
        if not self._step_scheduled and self.shard.commit_in_flight():
            self._step_scheduled = True
            self.host.loop.call_later(self.host.commit_s(), self._step)

    def _step(self) -> None:
        if not self._may_run(self._step):
            return
        host = self.host
        self._step_scheduled = False
        outcome = self.shard.commit_step()
        if host.is_doomed and outcome is not True:
            host.kill("in the middle of a commit")
            return
        host.loop.call_later(host.disk_weather.wake_s * host.chance.random(), self._release)
        if outcome is False:
            host.log("%s: a commit failed", host.name)
            self._step_scheduled = True
            host.loop.call_later(host.chance.uniform(*RETRY_S), self._step)

    def _release(self) -> None:
        if not self._may_run(self._release):
            return
        for connection, replies in self.shard.release():
            connection.write(replies)
        self._look()

    def tick(self) -> None:
        if self._may_run(self.tick):
            self.shard.tick()
            self._look()
            if self.host.chance.random() < self.host.checkpoints:
                self._checkpoint()
            self.host.loop.call_later(TICK_S, self.tick)

    def _checkpoint(self) -> None:
        """Everything that is durable now goes into pages; the process may die between two of its steps."""
        host = self.host
        if host.chance.random() < host.dies_in_checkpoint:
            host.store.die_after = host.chance.randrange(6)
        try:
            folded = self.checkpointer.checkpoint()
        except StorageError as error:
            host.log("%s: the checkpoint failed: %s", host.name, error)
            if host.is_doomed:
                host.loop.call_soon(host.kill, "in the middle of a checkpoint")
        except Died:
            host.loop.call_soon(host.kill, "in the middle of a checkpoint")
        else:
            host.log("%s: checkpoint of commit %d", host.name, folded)
        finally:
            host.store.die_after = None


class ShardHost:
    """A machine with a disk on which a shard's process runs, or doesn't."""

    def __init__(
        self,
        loop: VirtualLoop,
        network: Network,
        name: str,
        chance: random.Random,
        *,
        log: Callable[..., None],
        level: str = "durable",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.loop = loop
        self.network = network
        self.name = name
        self.chance = chance
        self.log = log
        self.disk = SimulatedDisk(chance.getrandbits(64))
        self.disk_weather = DiskWeather()
        self.store = MemoryStore(random.Random(chance.getrandbits(64)))
        #: The chance of a checkpoint at each tick.
        self.checkpoints = 0.0
        #: The chance that the process dies in one.
        self.dies_in_checkpoint = 0.1
        self.process: Process | None = None
        self.kills = 0
        self.starts = 0
        self.freezes = 0
        #: The process is to die within a commit.
        self.is_doomed = False
        self.settings = {"level": level, **(settings or {})}

    @property
    def address(self) -> tuple[str, int]:
        return (self.name, PORT)

    def commit_s(self) -> float:
        weather = self.disk_weather
        if self.chance.random() < weather.slow:
            return weather.slow_s * self.chance.random()
        return weather.commit_s * (0.5 + self.chance.random())

    def make(self) -> str:
        """Makes the folder, as whoever sets up a cluster does. Gives the shard's identity."""
        shard = Shard(f"/{self.name}", name=self.name, simulated=self.disk)
        identity = shard.identity
        shard.close_folder()
        return identity

    def start(self) -> None:
        """Opens the folder and listens. A disk that fails meanwhile ends the process, which is to be started again."""
        assert self.process is None
        self.network.revive(self.name)
        self.is_doomed = False
        shard = None
        try:
            shard = Shard(f"/{self.name}", name=self.name, simulated=self.disk, **self.settings)
            load_checkpoint(shard, self.store)
            process = Process(self, shard)
            replayed = shard.start(process.call_soon)
        except StorageError as error:
            self.log("%s: can't start: %s", self.name, error)
            self.store.crash(power=False)
            self.disk.kill()
            if shard is not None:
                shard.close_folder()
            return
        self.starts += 1
        self.log("%s: started, epoch %d, %d commits replayed", self.name, shard.epoch, replayed)
        shard.set_topology(f"{self.name}:{PORT}")
        self.process = process
        self.network.listen(*self.address, lambda: NumberedShardProtocol(process, self.loop.number()))
        self.loop.call_later(TICK_S * self.chance.random(), process.tick)

    def freeze(self) -> None:
        """The process is stopped, not ended: the kernel takes what comes for it, and nothing leaves."""
        self.freezes += 1
        self.network.hold("*", self.name)
        self.network.hold(self.name, "*")

    def thaw(self) -> None:
        """It goes on, if nobody else has stopped it."""
        if not self.freezes:
            return
        self.freezes -= 1
        self.network.release("*", self.name)
        self.network.release(self.name, "*")
        if not self.freezes and self.process is not None:
            self.process.go_on()

    def kill(self, why: str, *, power: bool = False) -> None:
        """The process ends between two instructions; with it, perhaps, the whole machine's memory."""
        process = self.process
        if process is None:
            return
        self.log("%s: %s: %s", self.name, "the power fails" if power else "killed", why)
        self.kills += 1
        self.process = None
        process.alive = False
        self.network.stop_listening(*self.address)
        if power:
            self.network.silent.add(self.name)
        for endpoint in self.network.endpoints(self.name):
            endpoint.go_silent() if power else endpoint.vanish()
        self.store.crash(power=power)
        if power:
            self.disk.crash()
        else:
            self.disk.kill()
        process.shard.stop()
        # The engine holds its connections' protocols, and Python's collector doesn't see that.
        for connection in process.clients:
            connection._connection.shutdown()
