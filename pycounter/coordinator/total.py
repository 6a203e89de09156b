"""A counter's total over all shards, and what is known of how good it is."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["I64", "Total", "wire_integer"]

#: What a counter of one shard can hold, and a delta be.
I64 = range(-(2**63), 2**63)


def wire_integer(value: int) -> int | str:
    """A sum as replies carry it: an integer of 64 bits, a decimal text beyond that."""
    return value if value in I64 else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """The sum of a counter's partials.

    Where `missing` isn't empty, `total` is the sum of the others only.
    """

    total: int
    #: What each shard that was asked holds, by its name. Empty where the total came from the cache.
    partials: dict[str, int] = field(default_factory=dict)
    #: Shards that should have been asked, and neither they nor their replicas could answer.
    missing: tuple[str, ...] = ()
    #: Did every shard of the cluster answer, itself?
    exact: bool = False
    #: So old it may be: the time in the cache, or the lag of a replica. 0: as it was when the shards answered.
    age_ms: int = 0
    #: Shards for which a replica answered, and how many milliseconds that was behind.
    replicas: dict[str, int] = field(default_factory=dict)

    def to_wire(self) -> dict[str, object]:
        """As `total` answers it."""
        wire: dict[str, object] = {
            "total": wire_integer(self.total),
            "partials": self.partials,
            "missing": list(self.missing),
            "exact": self.exact,
            "age_ms": self.age_ms,
        }
        if self.replicas:
            wire["replicas"] = self.replicas
        return wire
