"""The rules of exactly once against a model of a shard, with every misfortune that a network and a crash can bring."""

import random
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycounter.client.framing import decode_items
from pycounter.client.session import Batch
from pycounter.errors import AlreadySettled, RpcError, SessionLost, from_wire
from tests.support.session_driver import Driver


class ModelShard:
    """Sessions of a shard as the rules have them; a restart takes back what no commit covers."""

    def __init__(self):
        self.sessions = {}
        self.totals: Counter[str] = Counter()
        self.ended = set()
        self.snapshots = 0
        self.commit()

    def commit(self):
        self.durable = self.snapshot()

    def snapshot(self):
        """What a commit that begins now makes durable."""
        self.snapshots += 1
        sessions = {k: list(v) for k, v in self.sessions.items()}
        return self.snapshots, sessions, Counter(self.totals), set(self.ended)

    def end_commit(self, snapshot):
        self.durable = max(self.durable, snapshot, key=lambda one: one[0])

    def restart(self):
        _, sessions, totals, ended = self.durable
        self.sessions, self.totals, self.ended = {k: list(v) for k, v in sessions.items()}, Counter(totals), set(ended)

    def apply(self, session, first, items):
        results = self.sessions.get(session)
        if results is None:
            if first > 1 or session in self.ended:
                return "session_unknown: no"
            results = self.sessions[session] = []
        if first > len(results) + 1:
            return "sequence_gap: no"
        answers = []
        for number, (key, delta) in enumerate(items, first):
            if number > len(results):
                self.totals[key] += delta
                results.append((key, delta, self.totals[key]))
            assert results[number - 1][:2] == (key, delta), "id_reused"
            answers.append(results[number - 1][2])
        return answers

    def bye(self, session):
        if self.sessions.pop(session, None) is not None:
            self.ended.add(session)

    def forget_sessions(self):
        self.ended |= self.sessions.keys()
        self.sessions.clear()

    def hello(self, session):
        """Waits for a commit, so that all it could see is durable."""
        self.commit()
        known = self.sessions.get(session)
        return None if known is None else len(known)


REFUSALS = ["overloaded", "read_only", "unknown_outcome", "too_large", "forbidden"]


class Simulation:
    """A client's session and a model shard over cut connections whose bytes may arrive late."""

    def __init__(self, seed, level):
        self.chance = chance = random.Random(seed)
        self.level = level
        self.shard = ModelShard()
        default = "applied" if level == "mixed" else level
        self.driver = Driver(default, in_flight_max=chance.randint(1, 4), window_max=12)
        self.session = self.driver.session
        self.wires: list[deque[Any]] = [deque()]  # bytes under way, the present connection last
        self.replies: deque[Any] = deque()
        names = [str(n) for n in range(chance.randint(1, 25))]
        self.deltas = {name: [(name, chance.randint(1, 9)) for _ in range(chance.randint(1, 4))] for name in names}
        self.unsent = deque(names)
        self.misfortunes = chance.randint(0, 12)

    def run(self):
        for _ in range(20_000):
            if len(self.driver.outcomes) == len(self.deltas):
                break
            self.step(self.chance.random())
        assert len(self.driver.outcomes) == len(self.deltas), "it never settles"
        for wire in self.wires:
            while wire:
                self.deliver(wire, is_present=False)  # the last late copies
        self.session.on_disconnect()
        if self.chance.random() < 0.5:
            self.shard.restart()
            self.resume(restarted=True)

    def step(self, step):
        session, shard = self.session, self.shard
        if step < 0.25 and self.unsent:
            name = self.unsent.popleft()
            level = self.chance.choice(["durable", "applied"]) if self.level == "mixed" else None
            self.driver.add(name, self.deltas[name], level)
        elif step < 0.5:
            if (batch := session.take_next()) is not None:
                self.wires[-1].append((batch, session.id, batch.first, decode_items(batch.items)))
        elif step < 0.75:
            wire = self.chance.choice(self.wires)
            if wire:
                self.deliver(wire, is_present=wire is self.wires[-1])
        elif step < 0.88:
            if self.replies:
                self.answer(*self.take_reply())
        elif step < 0.885:
            self.wires[-1].append((session.acknowledged(),))
        elif step < 0.91:
            self.wires[-1].extend(("bye", session_id) for session_id in session.ended)
            session.ended.clear()
        elif step < 0.955:
            self.refuse()
        elif step < 0.96:
            shard.commit()
        elif step < 0.99 and self.misfortunes:
            self.misfortunes -= 1
            self.cut(restarted=self.chance.random() < 0.5)

    def deliver(self, wire, *, is_present):
        what, *where = wire.popleft()
        if what == "bye":
            self.shard.bye(*where)
            return
        answer = self.shard.apply(*where) if isinstance(what, Batch) else self.shard.hello(self.session.id)
        if is_present:
            self.replies.append((what, answer, self.shard.snapshot()))

    def take_reply(self):
        """What waits for no commit may overtake what does."""
        first, *_ = self.replies
        if self.is_durable(first[0]) and self.chance.random() < 0.5:
            overtaking = next((reply for reply in self.replies if not self.is_durable(reply[0])), first)
            self.replies.remove(overtaking)
            return overtaking
        return self.replies.popleft()

    @staticmethod
    def is_durable(what):
        return not isinstance(what, Batch) or what.level == "durable"

    def answer(self, what, answer, snapshot):
        if self.is_durable(what):
            # It waited for the commit that covers it; what was applied since has none yet.
            self.shard.end_commit(snapshot)
        if not isinstance(what, Batch):
            self.session.confirm(what)
        elif isinstance(answer, str):
            self.session.on_refusal(what, from_wire(answer))
        else:
            self.session.on_results(what, answer)

    def refuse(self):
        """Refuses a batch for now or for good, before it is looked at."""
        if self.misfortunes and self.wires[-1] and isinstance(self.wires[-1][0][0], Batch):
            self.misfortunes -= 1
            batch, *_ = self.wires[-1].popleft()
            self.replies.append((batch, f"{self.chance.choice(REFUSALS)}: no", self.shard.snapshot()))

    def cut(self, *, restarted):
        # After a restart an unknown session is a lost one: no shard forgets a session that was just in use.
        forgets = not restarted and self.chance.random() < 0.1
        self.session.on_disconnect()
        self.replies.clear()
        if restarted:
            self.wires.clear()  # the sockets of a process that is gone
            self.shard.restart()
        if forgets:
            self.shard.forget_sessions()
        self.wires.append(deque())
        self.resume(restarted=restarted)

    def resume(self, *, restarted):
        """What the client does on a new connection. It may end in the middle: then the epoch isn't learnt."""
        session, shard = self.session, self.shard
        last = shard.hello(session.id)
        if restarted or session.is_behind(last):
            for tail in list(session.retired):
                if self.chance.random() < 0.2:
                    if self.chance.random() < 0.3:
                        shard.restart()
                    return self.resume(restarted=True)
                session.resolve(tail, shard.hello(tail.session))
        session.on_resume(last, restarted=restarted)
        return None

    def check(self):
        """Each operation is in the totals, or in a report of a lost tail, exactly as often as its outcome says."""
        lost: Counter[str] = Counter()
        for tail in self.driver.tails:
            assert len(tail.operations) == tail.count
            for key, delta in tail.operations:
                lost[key] += delta
        for name, items in self.deltas.items():
            whole = sum(delta for _, delta in items)
            counted = self.shard.totals[name] + lost[name]
            outcome = self.driver.outcomes[name]
            if isinstance(outcome, list | AlreadySettled):
                assert counted == whole, f"{name}: {outcome}"
            elif isinstance(outcome, SessionLost):
                assert counted in {0, whole}
            else:
                assert isinstance(outcome, RpcError)
                assert counted == 0, f"{name} was refused and counted: {outcome}"


@pytest.mark.parametrize("level", ["durable", "applied", "mixed"])
@settings(max_examples=500)
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_happens_each_operation_counts_as_its_outcome_says(level, seed):
    simulation = Simulation(seed, level)
    simulation.run()
    simulation.check()
