"""The simulated network: what it must not deliver."""

import asyncio
import random
from typing import Any

from tests.simulation.network import Endpoint, Network, Weather
from tests.simulation.virtual_loop import VirtualLoop


class Side(asyncio.Protocol):
    """Keeps what it received."""

    def __init__(self) -> None:
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data


def test_nothing_written_after_a_cut_arrives():
    loop = VirtualLoop(random.Random(1), 1000)
    weather = Weather(split=0.0, loss=0.0, jitter_s=0.0)
    network = Network(loop, random.Random(1), weather, lambda *line: None)
    near: Any = Endpoint(network, "near", "far", 1)
    far: Any = Endpoint(network, "far", "near", 1)
    near.peer, far.peer = far, near
    sides = Side(), Side()
    near.made(sides[0])
    far.made(sides[1])
    # The answer is on its way when the request is cut, and then more is written behind it.
    near.cut_after = 3
    near.write(b"request")
    loop.call_later(weather.latency_s / 2, far.write, b"lost with the cut")
    loop.call_later(weather.latency_s * 1.1, far.write, b"written after the cut")
    loop.call_later(1.0, loop.stop)
    loop.run_forever()
    loop.close()
    assert sides[1].received == b"req"
    assert sides[0].received == b""
