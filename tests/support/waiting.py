"""Waiting for what another process does."""

import select
import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """Asks again and again until the answer is true, and gives that answer."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
    return result


def is_readable(descriptor: int, timeout_s: float) -> bool:
    """Waits until there is something to read, or an end. For descriptors of any number, unlike `select`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000.0))
