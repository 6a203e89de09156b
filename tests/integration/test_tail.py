"""`tail` on the wire: pieces, waiting, and what ends the waiting."""

import struct

import pytest

from tests.support.rpc_socket import RpcError, RpcSocket

#: Of a record's header: length of the body, index, number, previous hash, own hash (docs/journal.md).
HEADER_BYTES = 72


def records(data):
    """(commit, index, is it the last, previous hash, hash) of each record."""
    found = []
    while data:
        (length, index) = struct.unpack_from("<II", data, 8)
        number, previous, own = struct.unpack_from("<QQQ", data, 48)
        found.append((number, index, bool(data[6] & 1), previous, own))
        data = data[HEADER_BYTES + length :]
    return found


class Place:
    """Where a replica stands."""

    def __init__(self, identity):
        self.identity = identity
        self.after = self.hash = self.index = self.last = 0

    def ask(self, **options):
        return (
            self.after,
            0,
            self.identity if self.last else None,
            {"hash": self.hash, "index": self.index, **options},
        )

    def take(self, data):
        found = records(data)
        for number, index, is_final, previous, own in found:
            assert (number, index, previous) == (self.after + 1, self.index, self.last)
            self.last = own
            if is_final:
                self.after, self.hash, self.index = number, own, 0
            else:
                self.index += 1
        return found


@pytest.fixture
def place(shard):
    return Place(shard.ready.identity)


def test_a_large_log_comes_in_pieces_that_join(rpc, place):
    rpc.call("incr_many", [[f"{number:0900}", 1] for number in range(1000)])
    # Together these may be one commit, of several records.
    rpc.outcomes([rpc.begin("incr_many", [[f"{part}-{number:0900}", 1] for number in range(1000)]) for part in "abc"])
    for number in range(20):
        rpc.call("incr", f"{number}")
    sizes = []
    while data := rpc.call("tail", *place.ask())[b"records"]:
        place.take(data)
        sizes.append(len(data))
    assert place.after == rpc.call("health")[b"commit_durable"]
    assert len(sizes) > 3
    assert max(sizes) < 262_144 + 900_000


def test_a_question_waits_for_the_next_commit(shard, rpc, place):
    place.take(rpc.call("tail", *place.ask())[b"records"])
    with RpcSocket(shard.address) as other:
        msgid = rpc.begin("tail", *place.ask(wait_ms=10_000))
        assert rpc.is_silent(0.2)
        other.call("incr", "a")
        (answered, answer), *_ = rpc.responses(1)
        assert answered == msgid
        assert len(place.take(answer[b"records"])) == 1
    # And no longer than it wants.
    answer = rpc.call("tail", *place.ask(wait_ms=30))
    assert (answer[b"records"], answer[b"durable"]) == (b"", place.after)
    assert answer[b"waited_ms"] >= 29


def test_a_stop_answers_who_waits(shard, rpc, place):
    place.take(rpc.call("tail", *place.ask())[b"records"])
    rpc.begin("tail", *place.ask(wait_ms=10_000))
    rpc.begin("watch_topology", 1)
    rpc.call("ping")
    assert shard.terminate(timeout_s=9) == 0
    assert len([message for message in rpc.read_to_end() if message[2] is None]) == 2


def test_a_place_that_was_never_there_is_told(rpc, place):
    rpc.call("incr", "a")
    place.take(rpc.call("tail", *place.ask())[b"records"])
    for wrong in (
        (place.after + 1, 0, place.identity, {"hash": place.hash}),
        (place.after, 99, place.identity, {"hash": place.hash}),
        (place.after, 0, "f" * 32, {"hash": place.hash}),
        (place.after - 1, 0, place.identity, {"hash": place.hash}),
    ):
        answer = rpc.call("tail", *wrong)
        assert answer[b"anew"], wrong
        assert answer[b"identity"] == place.identity.encode()


def test_too_many_questions_at_once_are_refused(rpc, place):
    place.take(rpc.call("tail", *place.ask())[b"records"])
    begun = [rpc.begin("tail", *place.ask(wait_ms=10_000)) for _ in range(65)]
    msgid, refused = rpc.response()
    assert msgid == begun[-1]
    assert isinstance(refused, RpcError)
    assert refused.code == "overloaded"
    rpc.begin("incr", "a")
    answers = dict(rpc.responses(65))
    assert all(answers[msgid][b"records"] for msgid in begun[:64])


def test_who_leaves_while_waiting_harms_nobody(shard, place):
    with RpcSocket(shard.address) as waiting:
        place.take(waiting.call("tail", *place.ask())[b"records"])
        waiting.begin("tail", *place.ask(wait_ms=10_000))
    with RpcSocket(shard.address) as rpc:
        rpc.call("incr", "a")
        assert len(place.take(rpc.call("tail", *place.ask())[b"records"])) == 1
