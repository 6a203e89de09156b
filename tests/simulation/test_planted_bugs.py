"""The simulation finds what it is there for: bugs planted in the real code, each within so many seeds.

The seeds are always the same, so that the time it takes is too.
"""

import pytest

from pycounter.client import id_client
from pycounter.client.coalescer import Coalescer
from pycounter.client.session import Session
from pycounter.client.session_client import SessionClient
from pycounter.coordinator.removals import Removals
from pycounter.coordinator.shard_set import ShardSet
from pycounter.coordinator.totals import Totals
from tests.simulation.ledger import Violation
from tests.simulation.planted import Bug, planted
from tests.simulation.scenarios import simulate

SEEDS_MAX = 1500

REFUSAL_SETTLES = Bug(
    "a refusal settles an operation of which an earlier attempt is unanswered",
    SessionClient,
    "call",
    "if not (is_ambiguous and error.retryable):",
    "if True:",
)
SHARD_BUGS = [
    Bug(
        "after a lost connection a batch goes on under a new session",
        Session,
        "on_disconnect",
        "self._settle()",
        "self._renew([batch for batch in self.window if not batch.is_answered])",
    ),
    Bug(
        "what was in flight when a connection broke is not sent again",
        Session,
        "_rewind",
        "if not batch.is_answered:",
        "if not batch.is_answered and not batch.is_ambiguous:",
    ),
    Bug(
        "what was in flight when a connection broke is taken for never sent",
        Session,
        "on_disconnect",
        "batch.is_ambiguous = True",
        "batch.is_ambiguous = False",
    ),
    Bug(
        "a lost tail of applied operations is not reported",
        Session,
        "_report",
        "if lost is not None:",
        "if False:",
    ),
    Bug(
        "what was acknowledged at applied counts as durable at once",
        Session,
        "on_results",
        'if batch.level_reached == "durable":',
        "if True:",
    ),
    Bug(
        "a batch of increments answers its callers in the wrong order",
        Coalescer,
        "_answer",
        "zip(replies, results, strict=True)",
        "zip(replies, reversed(results), strict=True)",
    ),
    Bug(
        "a batch that is settled leaves no room",
        Coalescer,
        "_answer",
        "self._room.leave(len(replies))",
        "pass",
    ),
    Bug(
        "the server may be silent for ever",
        SessionClient,
        "_watch",
        "if loop.time() - silent_since > limit:",
        "if False:",
    ),
]


CLUSTER_BUGS = [
    Bug(
        "an operation that was sent goes to another shard when its own falls ill",
        SessionClient,
        "withdraw",
        "taken = self._session.take_unsent(share)",
        "taken = self._session.take_unsent(share) + [one for one in self._session.window if one.is_ambiguous]",
    ),
    Bug(
        "the cache takes the value of a load that was begun before a write",
        Totals,
        "_load",
        "cache.fill(key, total.total, version)",
        "cache.fill(key, total.total, cache.begin(key))",
    ),
    Bug(
        "a removal is repeated under a new id",
        Removals,
        "_settle",
        "caller.call(method, *params, options, ",
        'caller.call(method, *params, {**options, "id": self._clock.random_bytes(ID_BYTES)}, ',
    ),
    Bug(
        "a diversion is noted only once it was answered",
        ShardSet,
        "server_of",
        "self.foreign.note(other, key)",
        "pass",
    ),
]
NEW_IDS = Bug(
    "what is sent again gets a new id",
    id_client,
    "_request_of",
    '{"id": one.id, "level": level}',
    '{"id": one.id + bytes([one.replays, len(str(one.failure)) % 251]), "level": level}',
)
#: With the scenario that they are looked for in, and from which seed on.
BUGS = [
    ("ids", 3000, REFUSAL_SETTLES),
    *(("shard", 1, bug) for bug in SHARD_BUGS),
    *(("cluster", 1, bug) for bug in CLUSTER_BUGS),
    ("coordinator", 1, NEW_IDS),
]


def find(bug, scenario, first, count=SEEDS_MAX):
    """How many histories it takes to see that something is wrong, and what is seen."""
    with planted(bug):
        for number in range(first, first + count):
            try:
                simulate(scenario, number)
            except Violation as seen:
                return number - first + 1, str(seen).splitlines()[0]
    return None


@pytest.mark.parametrize(("scenario", "first", "bug"), BUGS, ids=[bug.name for *_, bug in BUGS])
def test_a_planted_bug_is_found(scenario, first, bug):
    found = find(bug, scenario, first)
    assert found is not None, f"not found in {SEEDS_MAX} seeds"
    print(f"{bug.name}: seen after {found[0]} histories: {found[1]}")
