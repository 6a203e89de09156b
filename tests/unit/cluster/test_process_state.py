"""What is known of a process: when it is started again, when it counts as stalled, and what is said of it."""

import random
import signal

import msgspec
import pytest

from pycounter.client.backoff import Backoff
from pycounter.cluster.process_state import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    LAST_LINES,
    LINE_CHARACTERS_MAX,
    STEADY_S,
    Liveness,
    ProcessRecord,
    RestartPolicy,
    exit_reason,
)
from pycounter.topology import Topology

# --- why it ended ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "lines", "reason"),
    [
        (-signal.SIGKILL, ["a line of the log"], "ended by SIGKILL"),
        (-signal.SIGTERM, [], "ended by SIGTERM"),
        (-signal.SIGABRT, ["malloc(): corrupted"], "ended by SIGABRT: malloc(): corrupted"),
        (-99, [], "ended by signal 99"),
        (0, [], "ended with exit code 0"),
        (1, ["loading", "  ValueError: x  "], "ended with exit code 1: ValueError: x"),
        (1, ["pycounter: the log is damaged", "bye"], "ended with exit code 1: the log is damaged"),
        (1, ["pycounter: first", "pycounter: second"], "ended with exit code 1: second"),
    ],
)
def test_the_reason_of_an_end(status, lines, reason):
    assert exit_reason(status, lines) == reason


# --- when it is started again ----------------------------------------------------------------------------------------


def test_delays_grow_while_it_fails_and_are_bounded(seed):
    policy = RestartPolicy(Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S, random.Random(seed)))
    delays = [policy.delay_s(0.0) for _ in range(20)]
    assert BACKOFF_FIRST_S / 2 <= delays[0] <= BACKOFF_FIRST_S
    assert all(later > earlier for earlier, later in zip(delays[:6:2], delays[2:8:2], strict=True))
    assert all(BACKOFF_MAX_S / 2 <= delay <= BACKOFF_MAX_S for delay in delays[8:])


def test_only_who_served_for_a_while_begins_with_a_short_delay_again(seed):
    policy = RestartPolicy(Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S, random.Random(seed)))
    for _ in range(10):
        policy.delay_s(STEADY_S - 0.1)
    assert policy.delay_s(STEADY_S - 0.1) >= BACKOFF_MAX_S / 2, "one that ends again and again soon after its start"
    assert policy.delay_s(STEADY_S) <= BACKOFF_FIRST_S


# --- stalled isn't dead ----------------------------------------------------------------------------------------------

TICK_S = 0.5


def looks(liveness, ticks, *, start=0.0, step_s=TICK_S, is_waiting=True, is_stopped=False):
    """What looks at regular times give, the first at `start`."""
    return [liveness.look(start + tick * step_s, is_waiting=is_waiting, is_stopped=is_stopped) for tick in range(ticks)]


def test_silence_counts_while_an_answer_is_due():
    liveness = Liveness(2.0, TICK_S)
    said = looks(liveness, 7)
    assert said[:4] == [""] * 4
    assert all("has not answered for 2 s" in reason for reason in said[4:])
    liveness.answered()
    assert looks(liveness, 1, start=3.5) == [""]


def test_nobody_stalls_who_was_not_asked():
    assert looks(Liveness(2.0, TICK_S), 100, is_waiting=False) == [""] * 100


def test_answers_in_between_begin_the_count_again():
    liveness = Liveness(2.0, TICK_S)
    for tick in range(100):
        if tick % 3 == 0:
            liveness.answered()
        assert liveness.look(tick * TICK_S, is_waiting=True, is_stopped=False) == ""


def test_who_looks_rarely_has_not_heard_the_silence_in_between():
    liveness = Liveness(4.0, TICK_S)
    assert looks(liveness, 4, step_s=1000.0) == [""] * 4, "the watcher itself was stopped"
    assert looks(liveness, 9, start=4000.0)[-1] != ""


def test_a_stopped_process_is_stalled_at_once_asked_or_not():
    liveness = Liveness(1000.0, TICK_S)
    for is_waiting in (True, False):
        (said,) = looks(liveness, 1, is_waiting=is_waiting, is_stopped=True)
        assert "stopped by a signal" in said


# --- the record ------------------------------------------------------------------------------------------------------


@pytest.fixture
def record():
    """A shard that serves."""
    record = ProcessRecord("shard-0", "shard")
    record.began(17)
    record.ready(100.0, address="127.0.0.1:4001", identity="ab" * 16)
    return record


def test_a_life(record):
    assert (record.state, record.pid, record.reason, record.is_settled) == ("ok", 17, "", True)
    record.failed("ended by SIGKILL")
    assert (record.state, record.pid, record.ready_at) == ("down", 0, None)
    record.restarts += 1
    record.began(18)
    assert (record.state, record.pid) == ("starting", 18)
    record.ready(101.0, address="127.0.0.1:4001", identity="ab" * 16)
    assert (record.state, record.reason) == ("ok", "ended by SIGKILL"), "why it was started again stays readable"


def test_one_that_can_not_start_stays_down_while_it_is_tried():
    record = ProcessRecord("shard-0", "shard")
    record.began(17)
    assert (record.state, record.is_settled) == ("starting", False)
    record.failed("ended with exit code 1: damaged")
    assert record.is_settled
    record.began(18)
    assert (record.state, record.reason) == ("down", "ended with exit code 1: damaged")
    record.ready(1.0, address="127.0.0.1:1", identity="ab")
    record.failed("ended by SIGKILL")
    record.began(19)
    assert record.state == "starting"


def test_what_a_look_gives(record):
    record.looked("", "ok", "")
    assert (record.state, record.reason) == ("ok", "")
    record.looked("has not answered", "ok", "")
    assert (record.state, record.reason) == ("stalled", "has not answered")
    record.looked("", "ok", "")
    assert (record.state, record.reason) == ("ok", "it was stalled, and has recovered")
    record.looked("", "read_only", "No space left on device")
    assert (record.state, record.reason) == ("read_only", "No space left on device")
    record.looked("has not answered", "read_only", "No space left on device")
    assert record.state == "stalled"
    record.looked("", "", "")
    assert record.state == "ok"


def test_a_replica_serves_once_it_says_that_it_has_caught_up():
    record = ProcessRecord("shard-0-replica-0", "replica")
    record.began(17)
    record.ready(1.0, address="127.0.0.1:1", identity="")
    assert record.state == "starting"
    record.looked("", "", "")
    assert record.state == "starting", "it hasn't been asked yet"
    record.looked("", "starting", "127.0.0.1:2: Connection refused")
    assert (record.state, record.reason) == ("starting", "127.0.0.1:2: Connection refused")
    record.looked("", "ok", "")
    assert (record.state, record.reason) == ("ok", "")
    record.looked("stopped", "ok", "")
    record.looked("", "starting", "")
    assert record.state == "starting", "it has dropped its state"
    record.failed("ended by SIGKILL")
    record.began(18)
    record.ready(2.0, address="127.0.0.1:1", identity="")
    record.looked("", "ok", "")
    assert (record.state, record.reason) == ("ok", "ended by SIGKILL")


def test_a_look_at_one_that_is_not_ready_changes_nothing():
    record = ProcessRecord("shard-0", "shard")
    record.began(17)
    record.looked("stopped", "ok", "")
    assert record.state == "starting"


def test_a_replica_that_is_started_again_has_nothing_of_its_last_life(record):
    record.facts = {"lag_ms": 7}
    record.said("a line")
    record.failed("ended by SIGKILL")
    assert record.facts == {}
    record.began(18)
    assert list(record.last_lines) == []


def test_last_lines_are_bounded(record):
    for number in range(1000):
        record.said(str(number) * 10_000)
    assert len(record.last_lines) == LAST_LINES
    assert max(map(len, record.last_lines)) == LINE_CHARACTERS_MAX


def test_the_longest_reason_fits_into_a_topology(record):
    record.said("x" * 10_000)
    record.failed(exit_reason(1, list(record.last_lines)))
    document = {"version": 1, "shards": [{"name": "shard-0", "state": "down"}], "processes": [record.info()]}
    assert Topology.from_wire(msgspec.to_builtins(document)).process("shard-0") == record.info()
