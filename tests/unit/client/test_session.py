"""The rules of exactly once, without a network: single rules first, then all of them against a model of a shard."""

import random
from collections import Counter, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycounter.client.framing import decode_items, encode_batches
from pycounter.client.session import Batch, Next, Session
from pycounter.client.statistics import ClientStatistics
from pycounter.errors import AlreadySettled, RpcError, SessionLost, TooLarge, Unavailable, from_wire


class Driver:
    """A session, the outcomes of its batches by name, and the tails that it reported."""

    def __init__(self, level="durable", *, in_flight_max=3, window_max=1000):
        self.outcomes = {}
        self.tails: list[Any] = []
        ids = iter(range(1, 10_000))
        self.session = Session(
            level=level,
            batches_in_flight_max=in_flight_max,
            window_operations_max=window_max,
            statistics=ClientStatistics(),
            on_lost_tail=self.tails.append,
            new_id=lambda: next(ids).to_bytes(16, "big"),
        )

    def add(self, name, items=None):
        items = items or [(name, 1)]
        ((count, encoded),) = encode_batches(items, 1000, 1 << 20)

        def settle(outcome):
            assert name not in self.outcomes, "settled twice"
            self.outcomes[name] = outcome

        batch = Batch(count, encoded, settle)
        self.session.add(batch)
        return batch

    def send(self):
        sent = []
        while (batch := self.session.take_next()) is not None:
            sent.append(batch)
        return sent


def ok(driver, batch, value=1):
    driver.session.on_results(batch, [value] * batch.count)


def refuse(driver, batch, code):
    return driver.session.on_refusal(batch, from_wire(f"{code}: no"))


def test_numbers_follow_each_other_and_acknowledgements_only_rise():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b", [("b", 1)] * 5), driver.add("c")
    assert driver.send() == [a, b, c]
    assert [batch.first for batch in (a, b, c)] == [1, 2, 7]
    ok(driver, b)
    assert driver.session.acked_through == 0
    ok(driver, a)
    assert driver.session.acked_through == 6
    assert driver.outcomes == {"a": [1], "b": [1] * 5}


def test_flight_and_window_are_bounded():
    driver = Driver(in_flight_max=2, window_max=10)
    batches = [driver.add(str(n), [("k", 1)] * 4) for n in range(4)]
    assert driver.send() == batches[:2]
    ok(driver, batches[1])
    assert driver.send() == [], "eight of ten are unsettled, as the first isn't"
    ok(driver, batches[0])
    assert driver.send() == batches[2:]


def test_item_errors_are_outcomes_of_items():
    driver = Driver()
    batch = driver.add("a", [("a", 1), ("", 1)])
    driver.send()
    driver.session.on_results(batch, [5, "bad_key: a key is a string of 1 to 1024 bytes"])
    value, error = driver.outcomes["a"]
    assert (value, error.code) == (5, "bad_key")


def test_wrong_number_of_results_is_no_answer():
    driver = Driver()
    batch = driver.add("a")
    driver.send()
    with pytest.raises(ValueError, match="2 results for 1"):
        driver.session.on_results(batch, [1, 2])
    assert driver.outcomes == {}


def test_after_a_cut_the_unanswered_go_again_in_order_under_their_numbers():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    driver.send()
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=False)
    assert driver.send() == [a, c]
    assert (a.first, c.first) == (1, 3)
    assert driver.session.statistics.operations_resent == 2


def test_a_refusal_for_now_rewinds_once_everything_has_landed():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    driver.send()
    assert refuse(driver, a, "overloaded") is Next.PAUSE
    assert driver.send() == [], "the gap behind it hasn't been answered"
    refuse(driver, b, "sequence_gap")
    refuse(driver, c, "sequence_gap")
    assert driver.send() == [a, b, c]


def test_a_refusal_for_good_takes_no_numbers_and_the_rest_moves_to_a_new_session():
    driver = Driver()
    a, b, c = driver.add("a"), driver.add("b"), driver.add("c")
    first_session = driver.session.id
    driver.send()
    ok(driver, a)
    refuse(driver, b, "too_large")
    assert isinstance(driver.outcomes["b"], TooLarge)
    assert driver.session.id == first_session, "the one behind it is in flight"
    refuse(driver, c, "sequence_gap")
    assert driver.session.id != first_session
    assert driver.session.ended == [first_session]
    assert driver.send() == [c]
    assert c.first == 1


def test_a_refusal_for_good_after_an_unanswered_attempt_settles_nothing():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=False)
    assert driver.send() == [a]
    refuse(driver, a, "forbidden")
    assert isinstance(driver.outcomes["a"], SessionLost)
    assert driver.send() == []


def test_unknown_outcome_is_retried_under_the_same_number():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    assert refuse(driver, a, "unknown_outcome") is Next.PAUSE
    assert driver.send() == [a]
    assert a.first == 1
    refuse(driver, a, "session_unknown")
    assert isinstance(driver.outcomes["a"], SessionLost)


def test_session_unknown_reports_the_ambiguous_and_keeps_the_rest():
    driver = Driver(in_flight_max=1)
    a, b = driver.add("a"), driver.add("b")
    assert driver.send() == [a]
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    driver.send()
    refuse(driver, a, "session_unknown")
    lost = driver.outcomes["a"]
    assert isinstance(lost, SessionLost)
    assert "operation 1" in str(lost)
    assert "'a' +1" in str(lost)
    assert driver.send() == [b], "it was never sent"


def test_session_unknown_without_an_unanswered_attempt_is_a_fresh_start():
    driver = Driver()
    a = driver.add("a")
    driver.send()
    ok(driver, a)
    b = driver.add("b")
    driver.send()
    refuse(driver, b, "session_unknown")
    assert "b" not in driver.outcomes
    assert driver.send() == [b]
    assert (b.first, driver.session.statistics.operations_unknown) == (1, 0)


def test_a_shard_that_knows_no_session_is_not_asked_for_ever():
    driver = Driver()
    a = driver.add("a")
    for _ in range(10):
        for batch in driver.send():
            refuse(driver, batch, "session_unknown")
    assert isinstance(driver.outcomes["a"], Unavailable)
    assert a.is_answered


def test_a_forgotten_session_is_seen_in_hello():
    driver = Driver()
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    ok(driver, a)
    driver.session.on_disconnect()
    driver.session.on_resume(None, restarted=True)
    assert isinstance(driver.outcomes["b"], SessionLost)
    assert driver.send() == []
    assert b.is_answered


def test_a_session_ahead_of_its_client_is_not_this_session():
    driver = Driver()
    driver.add("a")
    driver.send()
    driver.session.on_disconnect()
    driver.session.on_resume(9, restarted=True)
    assert isinstance(driver.outcomes["a"], SessionLost)


def test_a_lost_tail_is_reported_with_its_operations_and_the_unanswered_go_to_a_new_session():
    driver = Driver("applied", in_flight_max=4)
    a, b = driver.add("a"), driver.add("b", [("b", 2), ("b", 3)])
    c = driver.add("c")
    driver.send()
    ok(driver, a)
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=True)
    (tail,) = driver.tails
    assert (tail.first_sequence, tail.last_sequence, tail.count) == (3, 3, 1)
    assert tail.operations == [("b", 3)]
    assert driver.send() == [c]
    assert c.first == 1
    assert driver.session.statistics.operations_lost == 1


def test_a_lost_tail_settles_what_the_shard_still_has():
    driver = Driver("applied")
    driver.add("a")
    b = driver.add("b")
    driver.add("c")
    driver.send()
    ok(driver, b)
    driver.session.on_disconnect()
    driver.session.on_resume(1, restarted=True)
    assert isinstance(driver.outcomes["a"], AlreadySettled)
    assert [tail.count for tail in driver.tails] == [1]


def test_confirmed_operations_are_no_longer_remembered():
    driver = Driver("applied")
    for name in "abc":
        driver.add(name)
    for batch in driver.send():
        ok(driver, batch)
    driver.session.confirm(2)
    assert driver.session.unconfirmed_operations == 1
    driver.session.on_disconnect()
    driver.session.on_resume(2, restarted=True)
    assert driver.tails[0].operations == [("c", 1)]


def test_a_batch_that_was_not_sent_can_be_taken_back():
    driver = Driver(in_flight_max=1)
    a, b = driver.add("a"), driver.add("b")
    driver.send()
    assert driver.session.drop(b)
    assert not driver.session.drop(a)


def test_abandoning_names_what_is_unknown_and_gives_back_the_rest():
    driver = Driver(in_flight_max=1)
    driver.add("a", [("a", 1), ("a", 2)])
    b = driver.add("b")
    driver.send()
    assert driver.session.abandon("it is another shard") == [b]
    assert "operations 1 to 2" in str(driver.outcomes["a"])
    assert "another shard" in str(driver.outcomes["a"])


# --- against a model ---------------------------------------------------------------------------------------------


class ModelShard:
    """Sessions of a shard as the rules have them; a restart takes back what no commit covers."""

    def __init__(self, chance):
        self.chance = chance
        self.sessions = {}
        self.totals: Counter[str] = Counter()
        self.ended = set()
        self.commit()

    def commit(self):
        self.durable = ({k: list(v) for k, v in self.sessions.items()}, Counter(self.totals), set(self.ended))

    def restart(self):
        sessions, totals, ended = self.durable
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


REFUSALS = ["overloaded", "read_only", "unknown_outcome", "too_large", "forbidden"]


def run_simulation(seed, level):
    """A client and a model shard over cut connections whose bytes may arrive late; checks conservation at the end."""
    chance = random.Random(seed)
    shard = ModelShard(chance)
    driver = Driver(level, in_flight_max=chance.randint(1, 4), window_max=12)
    session = driver.session
    wires: list[deque[Any]] = [deque()]  # bytes under way, the present connection last
    replies: deque[Any] = deque()
    names = [str(n) for n in range(chance.randint(1, 25))]
    deltas = {name: [(name, chance.randint(1, 9)) for _ in range(chance.randint(1, 4))] for name in names}
    unsent = deque(names)
    misfortunes = chance.randint(0, 12)

    def deliver(wire, is_present):
        batch, session_id, first, items = wire.popleft()
        answer = shard.apply(session_id, first, items)
        if is_present:
            replies.append((batch, answer))

    for _ in range(20_000):
        if len(driver.outcomes) == len(names):
            break
        step = chance.random()
        if step < 0.25 and unsent:
            name = unsent.popleft()
            driver.add(name, deltas[name])
        elif step < 0.5:
            if (batch := session.take_next()) is not None:
                wires[-1].append((batch, session.id, batch.first, decode_items(batch.items)))
        elif step < 0.75:
            wire = chance.choice(wires)
            if wire:
                deliver(wire, wire is wires[-1])
        elif step < 0.9 and replies:
            batch, answer = replies.popleft()
            if level == "durable":
                shard.commit()
            if isinstance(answer, str):
                session.on_refusal(batch, from_wire(answer))
            else:
                session.on_results(batch, answer)
        elif step < 0.92 and misfortunes and wires[-1]:
            # Refused for now or for good, before it is looked at.
            misfortunes -= 1
            batch, *_ = wires[-1].popleft()
            replies.append((batch, f"{chance.choice(REFUSALS)}: no"))
        elif step < 0.94:
            shard.commit()
        elif step < 0.97 and misfortunes:
            misfortunes -= 1
            restarted = chance.random() < 0.5
            # After a restart an unknown session is a lost one: no shard forgets a session that was just in use.
            forgets = not restarted and chance.random() < 0.1
            session.on_disconnect()
            replies.clear()
            if restarted:
                wires.clear()  # the sockets of a process that is gone
                shard.restart()
            if forgets:
                for known in shard.sessions:
                    shard.ended.add(known)
                shard.sessions.clear()
            wires.append(deque())
            shard.commit()
            known = shard.sessions.get(session.id)
            session.on_resume(None if known is None else len(known), restarted=restarted)
    assert len(driver.outcomes) == len(names), "it never settles"
    for wire in wires:
        while wire:
            deliver(wire, is_present=False)  # the last late copies

    lost: Counter[str] = Counter()
    for tail in driver.tails:
        assert len(tail.operations) == tail.count
        for key, delta in tail.operations:
            lost[key] += delta
    for name in names:
        whole = sum(delta for _, delta in deltas[name])
        counted = shard.totals[name] + lost[name]
        outcome = driver.outcomes[name]
        if isinstance(outcome, list | AlreadySettled):
            assert counted == whole, f"{name}: {outcome}"
        elif isinstance(outcome, SessionLost):
            assert counted in {0, whole}
        else:
            assert isinstance(outcome, RpcError)
            assert counted == 0, f"{name} was refused and counted: {outcome}"


# Known and documented in docs/durability.md: what such a session had acknowledged is in nobody's list any more.
ENDED_THEN_CRASHED = pytest.mark.xfail(
    reason="acknowledged at applied, then the session was refused for good, then the shard crashed: not reported"
)


@pytest.mark.parametrize("level", ["durable", pytest.param("applied", marks=ENDED_THEN_CRASHED)])
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_happens_each_operation_counts_as_its_outcome_says(level, seed):
    run_simulation(seed, level)
