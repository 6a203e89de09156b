"""The end of all trouble: everything is there again, and what ends afterwards stays ended."""

import random
from types import SimpleNamespace
from typing import Any

from tests.simulation.trouble import Plan, Trouble
from tests.simulation.virtual_loop import VirtualLoop


class Coordinator:
    """One that can be started, or has yet to let go of its folder."""

    def __init__(self, *, is_running):
        self.is_running = self.is_free = is_running

    def start(self):
        self.is_running = self.is_running or self.is_free


def test_a_coordinator_that_ended_for_good_is_not_started_because_another_one_takes_its_time():
    loop = VirtualLoop(random.Random(1), 1000)
    quick, slow = Coordinator(is_running=True), Coordinator(is_running=False)
    world: Any = SimpleNamespace(
        loop=loop,
        network=SimpleNamespace(heal=lambda: None),
        log=lambda *line: None,
        shards=[],
        coordinators=[quick, slow],
        clients=[],
        plan=Plan(),
    )
    Trouble(world, random.Random(1)).end()
    assert quick.is_running
    assert not slow.is_running
    quick.is_running = False
    loop.call_later(0.25, setattr, slow, "is_free", True)
    loop.call_later(1.0, loop.stop)
    loop.run_forever()
    loop.close()
    assert slow.is_running
    assert not quick.is_running
