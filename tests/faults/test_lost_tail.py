"""What was acknowledged at `applied` and is gone after kill -9: the client reports it, exactly."""

import asyncio
import contextlib
import random
import signal
from collections import Counter

from pycounter.client import ClientSettings, LostTail, SessionClient
from pycounter.errors import AlreadySettled

KEYS = ["a", "b", "c", "d"]
#: A longer batch is refused for good: the client begins a new session, and sends it in two parts.
RESULTS_MAX = 50


class Counting:
    """A client at `applied`, what it was told, and what was lost."""

    def __init__(self, address, seed):
        self.chance = random.Random(seed)
        self.acknowledged: Counter[str] = Counter()
        self.tails: list[LostTail] = []
        settings = ClientSettings(
            backoff_first_s=0.01, backoff_max_s=0.1, batch_operations_max=1000, window_operations_max=1000
        )
        self.client = SessionClient(*address, level="applied", settings=settings, on_lost_tail=self.tails.append)

    async def count(self, kinds=4):
        """A list, an increment, or a list that is refused and cut."""
        key, delta = self.chance.choice(KEYS), self.chance.randint(1, 9)
        match self.chance.randrange(kinds):
            case 0:
                await self.client.incr(key, delta)
                self.acknowledged[key] += delta
            case 3:
                count = RESULTS_MAX + 1
                with contextlib.suppress(AlreadySettled):
                    await self.client.apply([(key, delta)] * count)
                self.acknowledged[key] += count * delta
            case _:
                count = self.chance.randint(1, 9)
                items = [(self.chance.choice(KEYS), self.chance.randint(1, 9)) for _ in range(count)]
                with contextlib.suppress(AlreadySettled):  # applied, and the result is what is lost
                    await self.client.apply(items)
                for key, delta in items:
                    self.acknowledged[key] += delta

    async def is_right(self):
        """Is each counter what was acknowledged less what was reported as lost?"""
        await self.client.flush()
        lost: Counter[str | bytes] = Counter()
        for tail in self.tails:
            for key, delta in tail.operations:
                lost[key] += delta
        totals = dict(zip(KEYS, await self.client.call("get_many", KEYS), strict=True))
        expected = {key: self.acknowledged[key] - lost[key] for key in KEYS}
        assert totals == expected, f"acknowledged {self.acknowledged}, lost {lost}"


async def test_what_is_on_the_server_and_what_was_lost_is_what_was_acknowledged(start_shard, seed):
    shard = start_shard(settings={"flush_interval_s": 1.0, "results_per_session_max": RESULTS_MAX})
    counting = Counting(shard.address, seed)
    client, chance = counting.client, counting.chance
    async with client:
        for _ in range(12):
            if chance.random() < 0.5:
                await counting.count()
                await client.flush()
            for _ in range(chance.randint(1, 5)):
                await counting.count()
            # Of these none is refused: a refusal after a cut leaves what was behind it unknown.
            in_flight = [asyncio.create_task(counting.count(kinds=3)) for _ in range(chance.randint(0, 3))]
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01]))
            shard.send_signal(signal.SIGKILL)
            await asyncio.to_thread(shard.restart)
            client.address = shard.address
            await asyncio.gather(*in_flight)
            await counting.is_right()
    assert client.statistics.operations_unknown == 0
    assert client.statistics.operations_lost == sum(tail.count for tail in counting.tails) > 0
    assert shard.starts == 13
