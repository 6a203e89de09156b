"""What was acknowledged at `applied` and is not known to be durable: kept until it is confirmed, lost, or unknown.

A session may end while it has such a tail. The tail outlives it, because the shard may still crash.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pycounter.client.framing import Item, decode_items

__all__ = ["AppliedTail", "LostTail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTail:
    """Operations that were acknowledged at `applied` and are gone: the shard crashed before it wrote them to disk."""

    session: bytes
    #: The numbers between which they lie.
    first_sequence: int
    last_sequence: int
    #: All of them, oldest first. They weren't applied: they may be applied again as new ones.
    operations: list[Item]

    @property
    def count(self) -> int:
        """How many operations are lost."""
        return len(self.operations)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A batch; `refused` are the positions of items that were answered with an error, so didn't count."""

    first: int
    count: int
    items: bytes
    refused: frozenset[int]

    @property
    def last(self) -> int:
        return self.first + self.count - 1


class AppliedTail:
    """How far one session was answered, how much of that is known to be durable, and the operations between.

    Levels may be mixed. An answer at `durable` covers the operations with lower numbers too: the shard applied them
    before. Those with higher numbers stay.
    """

    def __init__(self, session: bytes) -> None:
        self.session = session
        #: The highest number that was answered.
        self.answered_max = 0
        #: Up to here, what was answered is known to be durable.
        self.confirmed_through = 0
        #: So many are remembered.
        self.operations = 0
        #: The shard may have forgotten the session without a crash.
        self.may_be_forgotten = False
        self._batches: deque[_Answered] = deque()

    def answer(self, first: int, count: int, items: bytes, refused: frozenset[int]) -> None:
        """A batch was answered at `applied`."""
        self._batches.append(_Answered(first, count, items, refused))
        self.operations += count
        self.answered_max = max(self.answered_max, first + count - 1)

    def answer_durably(self, last: int) -> None:
        """A batch that ends with this number was answered at `durable`."""
        self.answered_max = max(self.answered_max, last)
        self.confirm(last)

    def confirm(self, through: int) -> None:
        """What was answered up to this number is durable."""
        self.confirmed_through = max(self.confirmed_through, min(through, self.answered_max))
        while self._batches and self._batches[0].last <= through:
            self.operations -= self._batches.popleft().count

    def is_unknown(self, last_sequence: int | None) -> bool:
        """After a crash: does an unknown session (None) leave open what became of the operations?

        A session that was never durable is unknown because all of it is lost. Another one was forgotten, and that may
        have been before the crash or after it.
        """
        return last_sequence is None and (self.may_be_forgotten or self.confirmed_through > 0)

    def take_lost(self, last: int) -> LostTail | None:
        """After a crash that left the session at this number: what is lost. The tail is empty then."""
        batches = [batch for batch in self._batches if batch.last > last]
        self.clear()
        operations: list[Item] = []
        for batch in batches:
            items = decode_items(batch.items)
            kept_from = max(0, last + 1 - batch.first)
            operations += [
                item for place, item in enumerate(items) if place >= kept_from and place not in batch.refused
            ]
        if not operations:
            return None
        return LostTail(
            session=self.session,
            first_sequence=max(last + 1, min(batch.first for batch in batches)),
            last_sequence=max(batch.last for batch in batches),
            operations=operations,
        )

    def clear(self) -> int:
        """Forgets the operations; gives how many these were."""
        count = self.operations
        self._batches.clear()
        self.operations = 0
        return count
