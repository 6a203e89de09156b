"""The load balancer against an own clock: who serves what, and why."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pycounter.coordinator.load_balancer import LoadBalancer
from pycounter.coordinator.settings import TuningSettings
from pycounter.coordinator.shard_health import SampleWindow, is_shard_failure
from pycounter.errors import BadKey, CounterOverflow, ReadOnly, SettingsError, Unavailable

SETTINGS = TuningSettings()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def balancer_of(shards: int, **settings: float) -> tuple[LoadBalancer, Clock]:
    clock = Clock()
    names = [f"shard-{number}" for number in range(shards)]
    return LoadBalancer(names, TuningSettings(**settings), clock), clock  # type: ignore[arg-type]


def feed(
    balancer: LoadBalancer, clock: Clock, shard: int, latency_s: float, ok: bool = True, samples: int = 100
) -> None:
    for _ in range(samples):
        clock.now += 0.001
        balancer.record(shard, latency_s, ok)
    balancer.tick()


def states(balancer: LoadBalancer) -> list[str]:
    return [serving.state for serving in balancer.serving]


def test_at_first_every_shard_keeps_what_is_its_own() -> None:
    balancer, _ = balancer_of(3)
    assert [(serving.state, serving.weight, serving.divert_to) for serving in balancer.serving] == [
        ("healthy", 1.0, None)
    ] * 3
    assert [balancer.divert(home) for home in range(3)] == [None] * 3


@pytest.mark.parametrize(("latency_s", "state"), [(0.0499, "healthy"), (0.050, "unhealthy"), (math.nan, "unhealthy")])
def test_a_mean_of_50_ms_is_too_slow(latency_s: float, state: str) -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, latency_s)
    assert states(balancer) == [state, "healthy"]


def test_one_failure_among_a_hundred_is_too_many_and_weighs_half() -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, 0.001, samples=99)
    assert states(balancer)[0] == "healthy"
    feed(balancer, clock, 0, 0.001, ok=False, samples=1)
    assert states(balancer)[0] == "unhealthy"
    assert balancer.serving[0].weight == 0.5


def test_between_the_limits_a_shard_stays_what_it_is() -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, 0.045, samples=5000)
    assert states(balancer)[0] == "healthy"
    feed(balancer, clock, 0, 0.055)
    feed(balancer, clock, 0, 0.045, samples=5000)
    assert states(balancer)[0] == "unhealthy"
    feed(balancer, clock, 0, 0.0399, samples=5000)
    assert states(balancer)[0] == "healthy"


def test_few_samples_judge_nobody() -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, 10.0, samples=SETTINGS.health_samples_min - 1)
    assert states(balancer)[0] == "healthy"
    feed(balancer, clock, 0, 10.0, samples=1)
    assert states(balancer)[0] == "unhealthy"


def test_the_others_take_half_and_the_fastest_takes_it() -> None:
    balancer, clock = balancer_of(4)
    for shard, latency_s in enumerate([0.200, 0.030, 0.002, 0.010]):
        feed(balancer, clock, shard, latency_s)
    targets = [balancer.divert(0) for _ in range(1000)]
    assert targets.count(None) == 500
    assert targets.count(2) == 500
    # Evenly, not in runs.
    assert all(first != second for first, second in pairwise(targets))


def test_the_target_stays_for_a_small_advantage_and_goes_for_a_great_one() -> None:
    balancer, clock = balancer_of(3)
    for shard, latency_s in enumerate([0.200, 0.010, 0.011]):
        feed(balancer, clock, shard, latency_s)
    assert balancer.serving[0].divert_to == 1
    feed(balancer, clock, 2, 0.009)
    assert balancer.serving[0].divert_to == 1
    feed(balancer, clock, 2, 0.002)
    assert balancer.serving[0].divert_to == 2
    # Half the latency, and a millisecond: not worth another holder of each counter.
    feed(balancer, clock, 1, 0.001)
    assert balancer.serving[0].divert_to == 2


def test_where_all_are_about_as_slow_nobody_diverts() -> None:
    balancer, clock = balancer_of(3)
    feed(balancer, clock, 1, 0.049)
    feed(balancer, clock, 2, 0.047)
    feed(balancer, clock, 0, 0.055)
    assert states(balancer) == ["unhealthy", "healthy", "healthy"]
    assert [balancer.divert(0) for _ in range(10)] == [None] * 10
    feed(balancer, clock, 2, 0.020)
    balancer.tick()
    assert {balancer.divert(0) for _ in range(10)} == {None, 2}


def test_a_dead_shard_keeps_nothing_and_a_short_cut_changes_nothing() -> None:
    balancer, clock = balancer_of(2)
    balancer.set_connected(0, True)
    balancer.set_connected(0, False)
    assert states(balancer) == ["healthy", "healthy"]
    clock.now += SETTINGS.disconnected_grace_s
    assert states(balancer) == ["dead", "healthy"]
    assert [balancer.divert(0) for _ in range(10)] == [1] * 10
    balancer.set_connected(0, True)
    assert states(balancer) == ["unhealthy", "healthy"]

    before = len(balancer.events)
    balancer.set_connected(1, True)
    balancer.set_connected(1, False)
    clock.now += SETTINGS.disconnected_grace_s / 2
    balancer.set_connected(1, True)
    clock.now += 1.0
    balancer.tick()
    assert len(balancer.events) == before


def test_a_shard_that_connects_for_the_first_time_is_healthy() -> None:
    balancer, clock = balancer_of(2)
    balancer.set_connected(0, False)
    clock.now += 5.0
    assert states(balancer)[0] == "dead"
    balancer.set_connected(0, True)
    assert states(balancer)[0] == "healthy"


def test_with_one_shard_left_it_serves_all_and_with_none_nobody_does() -> None:
    balancer, clock = balancer_of(3)
    feed(balancer, clock, 2, 0.100)
    for shard in (0, 1):
        balancer.set_connected(shard, False)
    clock.now += 1.0
    assert states(balancer) == ["dead", "dead", "unhealthy"]
    assert [balancer.divert(home) for home in range(3)] == [2, 2, None]
    assert any(event.what == "degraded" for event in balancer.events)
    balancer.set_connected(2, False)
    clock.now += 1.0
    for home in range(3):
        with pytest.raises(Unavailable, match="no shard can take it"):
            balancer.divert(home)
    assert balancer.refused == 3
    balancer.set_connected(1, True)
    assert [balancer.divert(home) for home in range(3)] == [1, None, 1]


def test_a_sick_shard_keeps_everything_when_no_other_is_healthy() -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, 0.100)
    feed(balancer, clock, 1, 0.090)
    assert [balancer.divert(home) for home in (0, 1) * 10] == [None] * 20


def test_the_breaker_opens_tries_and_closes() -> None:
    balancer, clock = balancer_of(2)
    assert balancer.probes_due() == [0, 1]
    for _ in range(SETTINGS.breaker_failures):
        assert states(balancer)[0] != "dead"
        balancer.record(0, 2.0, False)
    assert states(balancer)[0] == "dead"
    assert balancer.status()[0]["breaker"] == "open"
    clock.now += SETTINGS.breaker_open_s * 0.99
    assert balancer.probes_due() == []
    clock.now += SETTINGS.breaker_open_s * 0.01
    assert 0 in balancer.probes_due()
    assert balancer.status()[0]["breaker"] == "half-open"
    assert states(balancer)[0] == "dead"
    balancer.record_probe(0, 1.0, False)
    # Twice as long now.
    clock.now += SETTINGS.breaker_open_s * 1.5
    assert 0 not in balancer.probes_due()
    clock.now += SETTINGS.breaker_open_s * 0.5
    assert 0 in balancer.probes_due()
    balancer.record_probe(0, 0.001, True)
    assert states(balancer)[0] == "unhealthy"
    for _ in range(SETTINGS.recovery_samples):
        clock.now += 1.0
        assert 0 in balancer.probes_due()
        balancer.record_probe(0, 0.001, True)
    assert states(balancer)[0] == "healthy"
    story = [event.what for event in balancer.events if event.shard == "shard-0"]
    assert [what for what in story if what.startswith("breaker")] == [
        "breaker open",
        "breaker half-open",
        "breaker open",
        "breaker half-open",
        "breaker closed",
    ]
    assert story[-2:] == ["healthy", "serving"]


def test_an_answer_to_what_was_sent_before_makes_an_open_breaker_try_at_once() -> None:
    balancer, clock = balancer_of(2, breaker_open_s=20.0)
    for _ in range(SETTINGS.breaker_failures):
        balancer.record(0, 2.0, False)
    clock.now += 1.1
    assert 0 not in balancer.probes_due()
    balancer.record(0, 3.0, True)
    assert 0 in balancer.probes_due()


def test_a_probe_without_an_outcome_is_repeated() -> None:
    balancer, clock = balancer_of(1)
    for _ in range(SETTINGS.breaker_failures):
        balancer.record(0, 2.0, False)
    clock.now += SETTINGS.breaker_open_s
    assert balancer.probes_due() == [0]
    assert balancer.probes_due() == []
    clock.now += SETTINGS.probe_interval_s
    assert balancer.probes_due() == [0]


def test_a_read_only_shard_gets_no_changes_and_is_read() -> None:
    balancer, _ = balancer_of(2)
    balancer.set_writable(0, False)
    assert balancer.divert(0) == 1
    assert balancer.decide_read(0, ["replica"]) is None
    assert "read_only" in balancer.status()[0]["reason"]
    balancer.set_writable(0, True)
    assert balancer.divert(0) is None


def test_reads_go_to_the_primary_else_to_a_well_replica_else_to_the_primary() -> None:
    balancer, clock = balancer_of(1)
    balancer.set_replicas(0, ["near", "far"])
    assert balancer.decide_read(0, ["near", "far"]) is None
    # Unhealthy for changes, and well enough for reads.
    feed(balancer, clock, 0, 0.099)
    assert states(balancer) == ["unhealthy"]
    assert balancer.decide_read(0, ["near", "far"]) is None
    feed(balancer, clock, 0, 0.100)
    for _ in range(10):
        balancer.record_replica(0, "near", 0.002, True)
        balancer.record_replica(0, "far", 0.050, True)
    assert balancer.decide_read(0, ["near", "far"]) == "near"
    assert balancer.decide_read(0, ["far"]) == "far"
    assert balancer.decide_read(0, []) is None
    balancer.record_replica(0, "near", 0.002, False)
    assert balancer.decide_read(0, ["near", "far"]) == "far"
    for _ in range(100):
        balancer.record_replica(0, "far", 0.100, True)
    assert balancer.decide_read(0, ["near", "far"]) is None
    # What is long ago doesn't count.
    clock.now += SETTINGS.health_window_s + 1
    assert balancer.decide_read(0, ["near", "far"], "replica") in {"near", "far"}


def test_reads_of_a_cut_shard_go_to_its_replica_at_once() -> None:
    balancer, _ = balancer_of(1)
    balancer.set_connected(0, False)
    assert balancer.decide_read(0, ["replica"]) == "replica"


def test_reads_from_anybody_take_turns() -> None:
    balancer, _ = balancer_of(1)
    asked = [balancer.decide_read(0, ["a", "b"], "any") for _ in range(9)]
    assert all(asked.count(who) == 3 for who in ("a", "b", None))
    assert balancer.decide_read(0, ["a"], "replica") == "a"
    assert balancer.decide_read(0, [], "replica") is None


def test_replicas_that_went_are_forgotten_and_those_that_stay_are_not() -> None:
    balancer, _ = balancer_of(1)
    balancer.set_replicas(0, ["a", "b"])
    for name in ("a", "b", "unheard of"):
        balancer.record_replica(0, name, 1.0, True)
    balancer.set_replicas(0, ["b", "c"])
    assert [(replica["name"], replica["samples"]) for replica in balancer.status()[0]["replicas"]] == [
        ("b", 1),
        ("c", 0),
    ]


def test_every_change_of_what_is_served_is_an_event_with_its_reason() -> None:
    balancer, clock = balancer_of(2)
    feed(balancer, clock, 0, 0.075)
    assert [(event.shard, event.what) for event in balancer.events] == [
        ("shard-0", "unhealthy"),
        ("shard-0", "diverting"),
    ]
    assert balancer.events[0].reason == "mean 75.0 ms, 0 of 10 failed"
    assert "shard-1 takes the others" in balancer.events[1].reason
    assert [event["what"] for event in balancer.events_status()] == ["unhealthy", "diverting"]


def test_the_owner_is_told_once_that_something_has_changed() -> None:
    balancer, clock = balancer_of(2)
    assert not balancer.tick()
    for _ in range(20):
        balancer.record(0, 0.075, True)
    assert balancer.tick()
    assert not balancer.tick()
    clock.now += 1
    assert not balancer.tick()


def test_events_are_bounded() -> None:
    balancer, clock = balancer_of(2, events_max=10)
    for _ in range(50):
        balancer.set_connected(0, False)
        clock.now += 1
        balancer.tick()
        balancer.set_connected(0, True)
    assert len(balancer.events) == 10


def test_a_callers_fault_is_not_the_shards() -> None:
    assert not is_shard_failure(BadKey())
    assert not is_shard_failure(CounterOverflow())
    assert is_shard_failure(ReadOnly())
    assert is_shard_failure(Unavailable())


@pytest.mark.parametrize(
    "wrong",
    [
        {"health_samples": 0},
        {"health_samples": 5},
        {"unhealthy_weight": 1.5},
        {"recovery_samples": 1000},
        {"recovery_s": 100.0},
        {"breaker_open_s": 31.0},
        {"health_latency_max_s": math.nan},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        TuningSettings(**wrong)  # type: ignore[arg-type]


def test_settings_come_from_a_files_table() -> None:
    settings = TuningSettings.from_table({"health_latency_max_s": 1, "cache_l1_entries": 7})
    assert (settings.health_latency_max_s, settings.cache_l1_entries) == (1.0, 7)
    assert settings.health_samples == SETTINGS.health_samples
    for wrong in ({"health": 1}, {"health_samples": 1.5}, {"recovery_s": "2"}, {"recovery_s": True}, {"recovery_s": 0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            TuningSettings.from_table(wrong)


LATENCIES = st.one_of(st.floats(0, 0.3), st.sampled_from([0.0399, 0.04, 0.0499, 0.05, 2.0]))


@given(st.lists(st.tuples(st.floats(0, 40), LATENCIES, st.booleans())))
def test_a_windows_figures_are_those_of_its_samples(samples: list[tuple[float, float, bool]]) -> None:
    window = SampleWindow(100, 30.0)
    now = 0.0
    kept: list[tuple[float, float, bool]] = []
    for pause, latency_s, ok in samples:
        now += pause
        window.add(now, latency_s, ok)
        kept = [sample for sample in [*kept, (now, latency_s, ok)] if now - sample[0] <= 30.0][-100:]
        assert len(window) == len(kept)
        assert window.mean_s == pytest.approx(sum(sample[1] for sample in kept) / len(kept), abs=1e-6)
        assert window.error_rate == pytest.approx(sum(not sample[2] for sample in kept) / len(kept))


@given(LATENCIES, st.booleans(), st.floats(0.0001, 2.0), st.lists(st.tuples(LATENCIES, st.booleans()), max_size=120))
def test_constant_input_never_goes_to_and_fro(
    latency_s: float, ok: bool, pause_s: float, before: list[tuple[float, bool]]
) -> None:
    """Whatever was before: once only the same sample comes, a shard changes into what it stays."""
    balancer, clock = balancer_of(2)
    for earlier in before:
        clock.now += pause_s
        balancer.record(0, *earlier)
    # What came before has left the window.
    for _ in range(SETTINGS.health_samples + int(SETTINGS.recovery_max_s / pause_s) % 1000):
        clock.now += pause_s
        balancer.record(0, latency_s, ok)
    clock.now += SETTINGS.recovery_max_s
    seen = []
    for _ in range(300):
        clock.now += pause_s
        for shard in balancer.probes_due():
            balancer.record_probe(shard, latency_s, ok)
        balancer.record(0, latency_s, ok)
        balancer.tick()
        seen.append(states(balancer)[0])
    assert sum(first != second for first, second in pairwise(seen)) <= 1


def test_a_failure_now_and_then_makes_a_shard_change_ever_more_rarely() -> None:
    """One failure in 500 at a thousand requests a second: in the window a fifth of the time."""
    balancer, clock = balancer_of(2)
    changes: list[float] = []
    state = "healthy"
    for number in range(300_000):
        clock.now += 0.001
        balancer.record(0, 0.001, number % 500 != 0)
        if balancer.serving[0].state != state:
            state = balancer.serving[0].state
            changes.append(clock.now)
    assert len(changes) <= 24


@given(st.lists(st.tuples(st.integers(0, 2), LATENCIES, st.booleans()), max_size=400), st.integers(1, 3))
def test_a_shard_that_is_well_again_recovers(story: list[tuple[int, float, bool]], shards: int) -> None:
    balancer, clock = balancer_of(shards)
    for shard, latency_s, ok in story:
        clock.now += 0.01
        balancer.record(shard % shards, latency_s, ok)
    # Probes alone suffice.
    for _ in range(int(SETTINGS.recovery_max_s + SETTINGS.health_window_s + SETTINGS.breaker_open_max_s)):
        clock.now += 1.0
        for shard in balancer.probes_due():
            balancer.record_probe(shard, 0.001, True)
        balancer.tick()
    assert states(balancer) == ["healthy"] * shards
    assert [balancer.divert(home) for home in range(shards)] == [None] * shards


class BalancerMachine(RuleBasedStateMachine):
    """Anything may happen to four shards: nothing goes to a worse shard than it must."""

    def __init__(self) -> None:
        super().__init__()
        self.balancer, self.clock = balancer_of(4)
        self.kept = [0] * 4
        self.diverted = [0] * 4

    @rule(shard=st.integers(0, 3), latency_s=LATENCIES, ok=st.booleans(), samples=st.integers(1, 120))
    def samples(self, shard: int, latency_s: float, ok: bool, samples: int) -> None:
        self.balancer.record_many([(shard, latency_s, ok)] * samples)

    @rule(shard=st.integers(0, 3), is_connected=st.booleans())
    def connection(self, shard: int, is_connected: bool) -> None:
        self.balancer.set_connected(shard, is_connected)

    @rule(shard=st.integers(0, 3), is_writable=st.booleans())
    def disk(self, shard: int, is_writable: bool) -> None:
        self.balancer.set_writable(shard, is_writable)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 5.0, 31.0, 70.0]), ticks=st.booleans())
    def time(self, seconds: float, ticks: bool) -> None:
        self.clock.now += seconds
        if ticks:
            self.balancer.tick()

    @rule(latency_s=LATENCIES, ok=st.booleans())
    def probes(self, latency_s: float, ok: bool) -> None:
        for shard in self.balancer.probes_due():
            self.balancer.record_probe(shard, latency_s, ok)

    @rule(home=st.integers(0, 3), operations=st.integers(1, 50))
    def operations(self, home: int, operations: int) -> None:
        serving = self.balancer.serving
        kept = 0
        for _ in range(operations):
            try:
                target = self.balancer.divert(home)
            except Unavailable:
                assert all(each.state == "dead" for each in serving)
                return
            kept += target is None
            assert target != home
            served_by = serving[home if target is None else target].state
            if serving[home].state == "healthy":
                assert target is None
            elif target is not None:
                assert served_by == "healthy" or all(each.state != "healthy" for each in serving)
            assert served_by != "dead"
        if serving[home].weight == 0.5 and serving[home].divert_to is not None:
            assert abs(kept - operations / 2) <= 1

    @precondition(lambda self: self.balancer.events)
    @invariant()
    def weights_follow_states(self) -> None:
        for each in self.balancer.serving:
            assert each.weight == {"healthy": 1.0, "unhealthy": 0.5, "dead": 0.0}[each.state]
            assert each.weight < 1.0 or each.divert_to is None
        assert len(self.balancer.events) <= SETTINGS.events_max
        assert all(event.reason for event in self.balancer.events)


TestBalancerMachine = BalancerMachine.TestCase
