"""What a client is told that isn't let in. In a process the moment between the two can't be hit on purpose."""

from typing import Any

import pytest

from pycounter.net.client_protocol import TOO_MANY_CONNECTIONS
from pycounter.server.shard_protocol import ShardProtocol


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str) -> None:
        return None


class Shard:
    def connect(self, protocol: object, address: str) -> Any:
        return self

    def feed(self, data: bytes) -> None:
        raise AssertionError("nothing is read from a client that isn't let in")


class FullServer:
    """Lets nobody in."""

    def __init__(self, *, stopping: bool) -> None:
        self.stopping = stopping
        self.clients = self
        self.shard = Shard()

    def admit(self, connection: object) -> bool:
        return False


@pytest.mark.parametrize(("stopping", "said"), [(False, TOO_MANY_CONNECTIONS), (True, b"")])
def test_only_a_full_server_says_that_it_is_full(stopping, said):
    server: Any = FullServer(stopping=stopping)
    transport: Any = Transport()
    ShardProtocol(server).connection_made(transport)
    assert (transport.written, transport.closed) == (said, True)
