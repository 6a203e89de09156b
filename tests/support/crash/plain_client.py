"""A client of Redis's kind: no ids, so an increment that was not answered has an unknown outcome, and is not resent.

Its counters are its own, for only their bounds can be known.
"""

import asyncio
import re
from collections import deque

from tests.support.crash.ground import RECONNECT_PAUSE_S, Client
from tests.support.history import Operation, Violation
from tests.support.resp_socket import command
from tests.support.rpc_stream import RpcStream

PAUSE_S = 0.005
PIPELINE_MAX = 30
FAILING_DISK = re.compile(rb"-ERR .*\(unknown_outcome\)|-MISCONF |-EXECABORT ")


class PlainClient(Client):
    """Pipelines of INCR, INCRBY and GET, some of them in MULTI and EXEC."""

    async def run(self) -> None:
        made = 0
        keys = [f"plain:{self.name}:{number}".encode() for number in range(3)]
        while not self.ground.stopping:
            address = await self.ground.address()
            try:
                reader, writer = await asyncio.open_connection(*address)
            except OSError:
                await asyncio.sleep(RECONNECT_PAUSE_S)
                continue
            unanswered: deque[Operation] = deque()
            try:
                while not self.ground.stopping:
                    for _ in range(self.random.randint(1, PIPELINE_MAX)):
                        made += 1
                        key, delta = self.random.choice(keys), self.random.randint(1, 3)
                        operation = Operation(f"{self.name}, increment {made}", key, delta)
                        self.history.attempt(operation)
                        unanswered.append(operation)
                    await self._pipeline(reader, writer, unanswered)
                    await asyncio.sleep(self.random.uniform(0, PAUSE_S))
            except (OSError, EOFError):
                for operation in unanswered:
                    self.history.abandon(operation, known_lost=False)
            finally:
                writer.transport.abort()

    async def live(self, stream: RpcStream) -> None:
        raise AssertionError("it speaks RESP")

    async def _pipeline(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, unanswered: deque[Operation]
    ) -> None:
        count = len(unanswered)
        in_transaction = self.random.random() < 0.3
        frames = [command("INCRBY", operation.key, operation.delta) for operation in unanswered]
        if in_transaction:
            frames = [command("MULTI"), *frames, command("EXEC")]
        floor = self.history.begin_read([unanswered[0].key])
        key = unanswered[0].key
        writer.write(b"".join(frames) + command("GET", key))
        if in_transaction:
            expected = [b"+OK\r\n", *[b"+QUEUED\r\n"] * count, b"*%d\r\n" % count]
            for line in expected:
                if await self._line(reader) != line:
                    raise Violation(f"{self.name}: a transaction was not answered {line!r}")
        for _ in range(count):
            line = await self._line(reader)
            if not line.startswith(b":"):
                raise Violation(f"{self.name}: an INCRBY was answered {line!r}")
            self.history.answer(unanswered[0], int(line[1:]))
            unanswered.popleft()
        if not (await self._line(reader)).startswith(b"$"):
            raise Violation(f"{self.name}: GET of a counter that exists was answered nil")
        self.history.end_read(floor, {key: int(await self._line(reader))})

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        line = await reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        if self.ground.disk_may_fail and FAILING_DISK.match(line):
            # With whatever is still unanswered, as if the connection had been cut.
            await asyncio.sleep(RECONNECT_PAUSE_S)
            raise EOFError
        return line
