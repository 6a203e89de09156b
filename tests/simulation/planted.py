"""Bugs planted on purpose, to show that the simulation sees them: one change of the source of one function each."""

import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bug:
    """How to break a promise."""

    name: str
    #: A class or a module.
    owner: Any
    #: Of a method or a function.
    method: str
    #: The text in its source, and what stands there instead.
    right: str
    wrong: str


@contextlib.contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Breaks the method, inside."""
    original = inspect.getattr_static(bug.owner, bug.method)
    function = original.__func__ if isinstance(original, (classmethod, staticmethod)) else original
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(bug.right) != 1:
        raise LookupError(f"{bug.name}: {bug.owner.__name__}.{bug.method} has not just one {bug.right!r}")
    broken: dict[str, Any] = {}
    code = compile("from __future__ import annotations\n" + source.replace(bug.right, bug.wrong), bug.name, "exec")
    exec(code, function.__globals__, broken)
    setattr(bug.owner, bug.method, broken[bug.method])
    try:
        yield
    finally:
        setattr(bug.owner, bug.method, original)
