"""A coordinator in the test's own event loop: it counts once for each id, and misbehaves as the test says."""

from collections import Counter
from typing import Any

from pycounter.errors import Forbidden, IdReused, RpcError
from tests.support.scripted_shard import ScriptedShard


class ScriptedCoordinator(ScriptedShard):
    """Keeps ids for ever. `before` and `after` may raise, or return SILENCE or CUT, for each request of increments."""

    def __init__(self) -> None:
        super().__init__()
        #: What each id counted, and its result.
        self.ids: dict[bytes, tuple[Any, int, int]] = {}
        #: How often each id came.
        self.attempts: Counter[bytes] = Counter()
        self.before: Any = lambda: None
        self.after: Any = lambda: None
        self.handlers = {
            "hello": lambda said: {"server": "pycounter", "identity": self.identity, "time": 7},
            "ping": lambda: "pong",
            "get": lambda key, *_: self.totals[key],
            "apply": self._refuse_sessions,
            "incr": self.incr_once,
            "incr_many": self.incr_many,
            "drain": self.drain,
        }

    @staticmethod
    def _refuse_sessions(*_: object) -> None:
        raise Forbidden("a coordinator takes no sessions")

    def drain(self, key: Any, options: dict[str, Any]) -> Any:
        """Part of the small coordinator."""
        if (said := self.before()) is not None:
            return said
        print_of = ("drain", 0)
        if options["id"] not in self.ids:
            self.ids[options["id"]] = (*print_of, self.totals.pop(key, 0))
        said = self.after()
        return self.ids[options["id"]][2] if said is None else said

    def incr_once(self, key: Any, delta: int, options: dict[str, Any]) -> Any:
        """Part of the small coordinator."""
        if (said := self.before()) is not None:
            return said
        value = self.count_once(key, delta, options["id"])
        said = self.after()
        if said is not None:
            return said
        if options.get("detail"):
            return {"value": value, "exact": True, "level": options["level"], "commit": 3}
        return value

    def incr_many(self, items: list[Any], options: dict[str, Any]) -> Any:
        """Part of the small coordinator."""
        if (said := self.before()) is not None:
            return said
        results: list[Any] = []
        for key, delta, operation_id in items:
            try:
                results.append(self.count_once(key, delta, operation_id))
            except RpcError as error:
                results.append(error.wire_text)
        said = self.after()
        return results if said is None else said

    def count_once(self, key: Any, delta: int, operation_id: bytes) -> int:
        """Counts, unless the id has counted."""
        self.attempts[operation_id] += 1
        if operation_id in self.ids:
            if self.ids[operation_id][:2] != (key, delta):
                raise IdReused("no")
            return self.ids[operation_id][2]
        self.totals[key] += delta
        self.ids[operation_id] = (key, delta, self.totals[key])
        return self.totals[key]
