"""The native link by itself: what it refuses, whom it keeps alive, and that nothing wakes it in vain."""

import asyncio
import functools
import gc
import weakref

import pytest

from pycounter._native import SessionLink
from pycounter.errors import BadDelta, BadKey


class Clock:
    """Time stands still until it is told to move."""

    now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


def link_of(**settings):
    return SessionLink(clock=Clock(), **settings)


@pytest.mark.parametrize(
    ("key", "delta", "error"),
    [
        ("", 1, BadKey),
        ("k" * 1025, 1, BadKey),
        ("\ud800", 1, BadKey),
        (7, 1, BadKey),
        (None, 1, BadKey),
        ("a", 1 << 63, BadDelta),
        ("a", 1.0, BadDelta),
        ("a", "1", BadDelta),
    ],
)
async def test_what_cannot_be_sent_is_refused_before_anything_is_done(key, delta, error):
    link = link_of()
    with pytest.raises(error, match="nothing was"):
        link.incr(key, delta, asyncio.get_running_loop().create_future())
    reply = asyncio.get_running_loop().create_future()
    link.incr_many([(key, delta)], reply)
    (refused,) = await reply
    assert type(refused) is error
    assert (link.unsettled, link.next_wake()) == (0, None)


async def test_a_link_that_nobody_holds_is_collected_with_its_futures():
    loop = asyncio.get_running_loop()

    class Owner:
        link: SessionLink

        def on_flush(self):
            raise AssertionError("nothing is flushed")

    owner = Owner()
    owner.link = SessionLink(clock=Clock())
    owner.link.start(lambda _: None, owner.on_flush)
    reply = loop.create_future()
    reply.add_done_callback(functools.partial(print, owner))
    owner.link.incr("a", 1, reply)
    seen = weakref.ref(owner)
    del owner, reply
    gc.collect()
    assert seen() is None


async def test_room_is_bounded_and_abandoned_increments_that_were_never_sent_leave_it():
    loop = asyncio.get_running_loop()
    link = link_of(pending_operations_max=2)
    replies = [loop.create_future() for _ in range(3)]
    numbers = [link.incr("a", 1, reply) for reply in replies]
    assert numbers[2] == -1
    assert link.unsettled == 2
    # A number is another's once it is settled: whoever comes late harms nobody.
    link.abandon(numbers[0], replies[1])
    assert link.flush() is None
    assert link.unsettled == 2
    link.abandon(numbers[0], replies[0])
    assert link.flush() is None
    assert link.unsettled == 1


async def test_a_deadline_wakes_it_once():
    clock = Clock()
    link = SessionLink(clock=clock, timeout_s=2.0)
    reply = asyncio.get_running_loop().create_future()
    link.incr("a", 1, reply)
    wake_s = link.next_wake() or 0.0
    assert wake_s == pytest.approx(2.0, abs=0.01)
    assert link.next_wake() is None, "it was said before"
    clock.now_s += wake_s
    link.tick()
    assert "can't be reached" in str(reply.exception())
    assert link.next_wake() is None
