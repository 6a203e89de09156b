"""Operations that were acknowledged at `applied` and lost in a crash."""

from __future__ import annotations

from dataclasses import dataclass

from pycounter.client.framing import Item

__all__ = ["LostTail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LostTail:
    """Operations that were acknowledged at `applied` and are gone: the shard crashed before it wrote them to disk."""

    session: bytes
    #: The numbers between which they lie.
    first_sequence: int
    last_sequence: int
    #: All of them, oldest first; a key is str where it is valid UTF-8. They may be applied again, as new ones.
    operations: list[Item]

    @property
    def count(self) -> int:
        """How many operations are lost."""
        return len(self.operations)
