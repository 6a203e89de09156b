"""Two nodes made a Redis Cluster, each with half of the slots."""

from __future__ import annotations

import time
from typing import Any

import redis

from bench.peers import peers
from bench.peers.run import Run
from bench.peers.servers import BenchError, Server

SLOTS = 16_384
JOIN_TIMEOUT_S = 30.0


def two_nodes(run: Run) -> list[Server]:
    """The nodes, ready. Raises BenchError where they don't find each other."""
    nodes = [run.servers.fresh(peers.REDIS_NODE) for _ in range(2)]
    # redis-py has no types for commands that it has no method for.
    clients: list[Any] = [redis.Redis(port=node.port, decode_responses=True) for node in nodes]
    try:
        for number, client in enumerate(clients):
            first = number * SLOTS // 2
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, first + SLOTS // 2 - 1)
        other = nodes[1].port
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", other, peers.cluster_bus(other))
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while not all(_is_whole(client) for client in clients):
            if time.monotonic() > deadline:
                raise BenchError("the nodes of Redis Cluster did not find each other")
            time.sleep(0.1)
    except redis.RedisError as error:
        raise BenchError(f"Redis Cluster does not start: {error}") from error
    finally:
        for client in clients:
            client.close()
    return nodes


def _is_whole(client: Any) -> bool:
    said = str(client.execute_command("CLUSTER", "INFO"))
    return "cluster_state:ok" in said and "cluster_known_nodes:2" in said
