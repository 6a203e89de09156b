"""When the callers of a shard are served in two halves: against a model of a shard, a disk and a client."""

import random

from pycounter.client.halves import Halves

CALLERS = 100


class World:
    """Callers that count on at once; the disk makes one write at a time, the client serves one caller at a time."""

    def __init__(self, *, serving_s, disk_s, hops_s=0.0, callers=CALLERS, noise=0.0, seed=0):
        self.now = 0.0
        self.serving_s, self.disk_s, self.hops_s, self.callers = serving_s, disk_s, hops_s, callers
        self.noise, self.chance = noise, random.Random(seed)
        self.halves = Halves(lambda: self.now)
        self.disk_free_at = 0.0
        #: (when they are answered, how many) of batches, in order.
        self.answers = []
        self.gathered = 0
        self.leave(callers, 0.0)
        #: How many answers were given together, and apart.
        self.ways = [0, 0]

    def leave(self, count, when):
        begin = max(when + self.hops_s, self.disk_free_at)
        self.disk_free_at = begin + self.disk_s * (1 + self.noise * self.chance.random())
        self.answers.append((self.disk_free_at, count))

    def run(self, answers, pause_s=0.0):
        self.ways = [0, 0]
        for number in range(answers):
            answered_at, count = self.answers.pop(0)
            self.now = max(self.now, answered_at) + pause_s * (number % 50 == 0)
            unsettled = count + sum(others for _, others in self.answers)
            size = self.halves.on_answer(count, unsettled)
            self.ways[size is not None] += 1
            for _ in range(count):
                self.now += self.serving_s / self.callers
                self.gathered += 1
                if self.gathered == size:
                    self.leave(self.gathered, self.now)
                    self.gathered = 0
            if self.gathered and not self.answers:
                self.leave(self.gathered, self.now)
                self.gathered = 0
        return self.ways[1] / answers


def test_two_halves_where_the_client_is_slower_than_the_disk():
    assert World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4).run(5000) > 0.9


def test_all_together_where_the_disk_is_slower():
    assert World(serving_s=4e-4, disk_s=5e-3).run(5000) < 0.1
    assert World(serving_s=0.0, disk_s=1e-4).run(5000) < 0.1


def test_a_noisy_disk_does_not_change_that():
    for seed in range(5):
        assert World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4, noise=1.0, seed=seed).run(5000) > 0.8, seed
        assert World(serving_s=4e-4, disk_s=5e-3, noise=1.0, seed=seed).run(5000) < 0.2, seed


def test_it_is_noticed_when_the_disk_becomes_slow_or_fast():
    world = World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4)
    world.run(6000)
    world.disk_s = 5e-3
    world.run(6000)
    assert world.run(6000) < 0.1
    world.disk_s = 1e-4
    world.run(6000)
    assert world.run(6000) > 0.9


def test_pauses_say_nothing():
    assert World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4).run(5000, pause_s=1.0) == 0


def test_a_half_follows_the_callers():
    halves = Halves(lambda: 0.0)
    halves._is_apart = True
    assert {halves.on_answer(*answer) for answer in [(50, 100), (50, 50)] * 100} == {50}
    # Fewer callers are noticed, if not at once.
    assert [halves.on_answer(20, 41) for _ in range(200)][-1] == 21


def test_few_callers_stay_together():
    assert World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4, callers=14).run(5000) == 0
    assert World(serving_s=4e-4, disk_s=1e-4, hops_s=2e-4, callers=16).run(5000) > 0.9
