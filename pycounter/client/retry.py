"""When a request is sent again: how often, after what, and how much later."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pycounter.client.backoff import Backoff
from pycounter.durations import check_numbers
from pycounter.errors import RpcError

__all__ = ["BEFORE_THE_ID", "CHANGES_WITH_ID", "READS", "Repeat", "RetryPolicy", "repeat_of"]

#: Methods that change nothing: sent again whatever became of the attempt before.
READS = frozenset(
    {"get", "get_many", "total", "total_many", "scan", "scan_foreign", "top", "ping", "stats", "health", "topology"}
)
#: Methods that take an id in their options: sent again under it, to the same shard only.
CHANGES_WITH_ID = frozenset({"incr", "drain", "delete", "delete_all"})
#: Methods whose items have ids of their own, and how many parts such an item has.
_ITEM_WITH_ID = {"incr_many": 3, "delete_many": 2}
#: Refusals for good that come before the id is looked up: they say nothing about an attempt before. The server may have
#: been started anew with other settings since.
BEFORE_THE_ID = frozenset({"unauthenticated", "forbidden", "bad_request", "unknown_method", "too_large", "wrong_shard"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """A bounded number of attempts, further and further apart, and only after errors that are named here.

    Raises:
        SettingsError: a value is out of range.
    """

    #: Attempts after the first.
    retries: int = 3
    #: The pause before the first of them; each of the next is twice as long. The half of each is drawn by chance.
    first_s: float = 0.100
    max_s: float = 2.0
    #: Refusals that may pass. A lost connection is `unavailable`.
    codes: frozenset[str] = frozenset({"unavailable", "overloaded", "read_only", "storage", "unknown_outcome"})

    def __post_init__(self) -> None:
        check_numbers(self, may_be_zero={"retries", "first_s", "max_s"})

    def may_pass(self, error: RpcError) -> bool:
        """Is it worth another attempt?"""
        return error.code in self.codes and error.retryable

    def pauses(self, chance: random.Random) -> Backoff:
        """The pauses of one request."""
        return Backoff(self.first_s, self.max_s, chance)


#: What may be done with a request whose reply doesn't come: send it again anywhere, to the same shard, or nowhere.
Repeat = Literal["always", "same_shard", "never"]


def repeat_of(method: str, params: Sequence[object]) -> Repeat:
    """Reads are repeated always, a change under an operation id at the same shard, and any other change never."""
    if method in READS:
        return "always"
    if method in _ITEM_WITH_ID:
        items, parts = params[0] if params else None, _ITEM_WITH_ID[method]
        has_id = isinstance(items, list) and all(
            isinstance(item, (list, tuple)) and len(item) == parts for item in items
        )
    else:
        options = params[-1] if params else None
        has_id = method in CHANGES_WITH_ID and isinstance(options, dict) and options.get("id") is not None
    return "same_shard" if has_id else "never"
