"""`top` over many counters: right, in order with the connection's other requests, and in more than one turn."""

from tests.support.rpc_socket import RpcError, RpcSocket

COUNTERS = 50_000


def test_top_over_many_turns_is_right_and_the_next_request_comes_after_it(start_shard):
    shard = start_shard(settings={"level": "applied"})
    with RpcSocket(shard.address) as rpc:
        for first in range(0, COUNTERS, 10_000):
            rpc.call("incr_many", [[f"key {number}", number] for number in range(first, first + 10_000)])
        top = rpc.begin("top", 3)
        value = rpc.begin("get", "key 7")
        with RpcSocket(shard.address) as other:
            assert other.call("ping") == b"pong"
        found, read = rpc.outcomes([top, value])
        assert found == [[f"key {COUNTERS - place}".encode(), COUNTERS - place] for place in (1, 2, 3)]
        assert read == 7
        assert rpc.call("top", 2, "key 1") == [[b"key 19999", 19_999], [b"key 19998", 19_998]]
        # More than a reply may hold.
        rpc.call("incr_many", [[f"{number:0>1000}", 1] for number in range(900)])
        rpc.call("incr_many", [[f"{number:0>1000}", 1] for number in range(900, 1500)])
        outcome = rpc.outcome("top", 2**31)
        assert isinstance(outcome, RpcError)
        assert outcome.code == "too_large"
        assert rpc.call("top", 1) == [[f"key {COUNTERS - 1}".encode(), COUNTERS - 1]]
