"""What an increment answers: its value, its details, or its error; and when a list of them fails as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from pycounter.client.framing import Level
from pycounter.errors import RpcError, Unavailable

__all__ = ["Detail", "Results", "Withdrawn", "checked"]

#: Of a list of increments: for each its value after, or its error.
Results = list[int | RpcError]


@dataclass(frozen=True, slots=True)
class Detail:
    """What is known of an increment that was answered."""

    #: The value after it.
    value: int
    #: The level that was reached.
    level: Level
    #: The shard's commit that has it.
    commit: int
    #: Is it all of the counter? False: other shards hold some of it, and their part is as old as when it was last seen.
    exact: bool = True
    #: The name of the shard that has it.
    shard: str = ""


class Withdrawn(Unavailable):
    """Taken back before it was sent, by `SessionClient.withdraw`: it may go elsewhere."""


def checked(results: Results) -> Results:
    """The results of a list, if any of its increments counted.

    Raises:
        RpcError: none has, as far as is known. The error is one that leaves an outcome open, if there is one, and else
            the first.
    """
    errors: list[RpcError] = []
    for result in results:
        if isinstance(result, int) or result.effect == "before":
            return results
        errors.append(result)
    if errors:
        raise next((error for error in errors if error.effect == "unknown"), errors[0])
    return results
