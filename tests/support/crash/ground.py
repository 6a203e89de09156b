"""What the clients of one arena share: where the shard is just now, which counters there are, and a client's frame."""

import asyncio
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from tests.support.history import History, Operation, Violation
from tests.support.rpc_socket import RpcError
from tests.support.rpc_stream import RpcStream

RECONNECT_PAUSE_S = 0.005
FAILING_DISK_CODES = frozenset({"unknown_outcome", "read_only"})
"""What is told while the disk fails: of changes that may last or not, and of what can't be said or done."""
REFUSED_KEY = b"(refused)"
"""Under this name the history knows operations that must be refused, and so are in no counter."""

HOT_KEYS = [b"hot:%d" % number for number in range(4)]
COLD_KEYS = [b"cold:%d" % number for number in range(300)]
SIGNED_KEYS = [b"signed:%d" % number for number in range(4)]
DRAINED_KEYS = [b"drained:%d" % number for number in range(2)]
EDGE_KEYS = [b"edge:%d" % number for number in range(3)]
LARGEST = 2**63 - 1


@dataclass(slots=True)
class Ground:
    """The state of an arena."""

    history: History
    level: str = "durable"
    """The level of operations that name none."""
    token: bytes | None = None
    stopping: bool = False
    """Clients begin nothing new; they end once all they began is settled."""
    epoch: int = 0
    identity: bytes = b""
    commit: int = 0
    """The newest commit that a durable answer named."""
    disk_may_fail: bool = False
    """Then, and only then, an outcome may be unknown though the connection holds."""
    overloaded: int = 0
    """Refusals that told a client to wait: to see that a scenario provokes them."""
    _address: tuple[str, int] | None = None
    _published: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(self, address: tuple[str, int]) -> None:
        """The shard listens here from now on."""
        self._address = address
        self._published.set()

    def withdraw(self) -> None:
        """The shard is gone."""
        self._address = None
        self._published.clear()

    async def address(self) -> tuple[str, int]:
        """Where the shard is; waits until it is anywhere."""
        while self._address is None:
            await self._published.wait()
        return self._address


class Client(ABC):
    """Connects, lives until the connection is lost, and so on until all it began is settled."""

    def __init__(self, name: str, ground: Ground, seed: int | str) -> None:
        self.name = name
        self.ground = ground
        self.history = ground.history
        self.random = random.Random(f"{seed}:{name}")
        self.connections = 0
        self.epoch = 0

    async def run(self) -> None:
        """Lives as often as it takes. Raises Violation."""
        while True:
            address = await self.ground.address()
            try:
                stream = await RpcStream.open(address)
            except OSError:
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            self.connections += 1
            try:
                await self.live(stream)
                return
            except ConnectionError:
                # A callback may have seen a violation in the last bytes before the end.
                if stream.failure is not None:
                    raise stream.failure from None
                await asyncio.sleep(0)
            finally:
                stream.close()

    @abstractmethod
    async def live(self, stream: RpcStream) -> None:
        """One connection's life: returns when all is settled and the ground is stopping. Raises ConnectionError."""

    async def hello(self, stream: RpcStream, **fields: bytes) -> dict[bytes, object]:
        """Greets the shard and checks that it is the one that it was."""
        if self.ground.token is not None:
            fields["token"] = self.ground.token
        try:
            said = await stream.call("hello", {"client": self.name, **fields})
        except RpcError as error:
            if self.may_be_retried(error.code):
                await asyncio.sleep(RECONNECT_PAUSE_S)
                raise ConnectionResetError from None
            raise Violation(f"hello was refused: {error}") from None
        ground = self.ground
        if ground.identity not in (b"", said[b"identity"]):
            raise Violation(f"the shard's identity changed from {ground.identity!r} to {said[b'identity']!r}")
        if said[b"epoch"] < ground.epoch:
            raise Violation(f"the epoch fell from {ground.epoch} to {said[b'epoch']}")
        ground.identity, ground.epoch = said[b"identity"], said[b"epoch"]
        self.epoch = ground.epoch
        assert isinstance(said, dict)
        return said

    def may_be_retried(self, code: str, codes: frozenset[str] = frozenset()) -> bool:
        """Is this a refusal that a client must expect: one of `codes`, or what a failing disk adds?"""
        return code in codes or (code in FAILING_DISK_CODES and self.ground.disk_may_fail)

    def see_commit(self, commit: int) -> None:
        """A durable answer named this commit."""
        self.ground.commit = max(self.ground.commit, commit)

    def draw_counter(self) -> tuple[bytes, int]:
        """A counter and an increment: some counters that everyone wants, many others, a few special ones."""
        draw = self.random.random()
        if draw < 0.5:
            return self.random.choice(HOT_KEYS), 1
        if draw < 0.85:
            return self.random.choice(COLD_KEYS), self.random.choice((1, 1, 1, 2, 7, 0))
        if draw < 0.92:
            return self.random.choice(SIGNED_KEYS), self.random.randint(-5, 5)
        if draw < 0.95:
            return self.random.choice(EDGE_KEYS), LARGEST
        if draw < 0.98:
            return self.random.choice(DRAINED_KEYS), self.random.randint(1, 3)
        return f"own:{self.name}".encode(), 1


def outcome(operation: Operation, answer: object) -> int | str:
    """An item's answer as the history knows it: a value or an error's code."""
    if isinstance(answer, bytes):
        return answer.decode().partition(":")[0]
    if operation.key == REFUSED_KEY or not isinstance(answer, int):
        raise Violation(f"{operation} was answered {answer!r}")
    return answer
