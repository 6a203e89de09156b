"""Clients that nobody wishes for: `python -m bench.peers.trouble KIND PORT SECONDS`, in a process of its own."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import time
from collections.abc import Callable

from pycounter._native import LoadGenerator

ADDRESS = "127.0.0.1"
INCR = b"*2\r\n$4\r\nINCR\r\n$7\r\ntrouble\r\n"


def pipelines(port: int, seconds: float) -> None:
    """50 clients with 64 increments each under way: no malice, only load."""
    LoadGenerator(ADDRESS, port, connections=50, pipeline=64, keys=100_000, seconds=seconds).run()


def connections(port: int, seconds: float) -> None:
    """Connects, asks once and leaves, as fast as it can."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), 5) as client:
            client.sendall(INCR)


def garbage(port: int, seconds: float) -> None:
    """Requests with bytes changed, until the server hangs up."""
    source = random.Random(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data = bytearray(INCR * 50)
        for _ in range(5):
            data[source.randrange(len(data))] = source.randrange(256)
        with contextlib.suppress(OSError), socket.create_connection((ADDRESS, port), 5) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            client.settimeout(1)
            while client.recv(65536):
                pass


def deaf(port: int, seconds: float) -> None:
    """50 clients that send and never read."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection((ADDRESS, port), 5)) for _ in range(50)]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for client in clients:
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    client.send(INCR * 100)
            time.sleep(0.001)


KINDS: dict[str, Callable[[int, float], None]] = {
    "pipelines": pipelines,
    "connections": connections,
    "garbage": garbage,
    "deaf": deaf,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](int(sys.argv[2]), float(sys.argv[3]))
