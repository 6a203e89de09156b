"""A client's session without a network: the test plays the connection and the shard."""

from typing import Any

from pycounter.client.framing import encode_batches
from pycounter.client.session import Batch, Session
from pycounter.client.statistics import ClientStatistics


class Driver:
    """A session, the outcomes of its batches by name, and the tails that it reported."""

    def __init__(self, level="durable", *, in_flight_max=3, window_max=1000):
        self.outcomes = {}
        self.tails: list[Any] = []
        self.level = level
        ids = iter(range(1, 10_000))
        self.session = Session(
            batches_in_flight_max=in_flight_max,
            window_operations_max=window_max,
            statistics=ClientStatistics(),
            on_lost_tail=self.tails.append,
            new_id=lambda: next(ids).to_bytes(16, "big"),
        )

    def add(self, name, items=None, level=None):
        items = items or [(name, 1)]
        ((count, encoded),) = encode_batches(items, 1000, 1 << 20)

        def settle(outcome):
            assert name not in self.outcomes, "settled twice"
            self.outcomes[name] = outcome

        batch = Batch(count, encoded, settle, level or self.level)
        self.session.add(batch)
        return batch

    def send(self):
        sent = []
        while (batch := self.session.take_next()) is not None:
            sent.append(batch)
        return sent
