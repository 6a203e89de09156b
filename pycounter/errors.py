"""Every exception that PyCounter raises.

Errors say what happened, what was or wasn't applied, and what to do. Errors that a server answered have a class
for each code; `code`, `retryable` and `effect` say the rest to programs.
"""

from __future__ import annotations

import os
from typing import ClassVar, Literal

from pycounter import _native

Effect = Literal["nothing", "before", "unknown"]


class PyCounterError(Exception):
    """The base of all exceptions of this package."""


class BadKey(PyCounterError, ValueError):
    """A key is a str or bytes of 1 to 1,024 bytes. Nothing was applied."""


class CounterOverflow(PyCounterError, OverflowError):
    """The value would leave the range of a signed 64-bit integer. The counter is unchanged."""


class AfterFork(PyCounterError):
    """A map that was opened before a fork was used in the child. Open it after the fork, in one process."""


class SettingsError(PyCounterError, ValueError):
    """A setting is wrong. The message names it and where it came from."""


class StorageError(PyCounterError):
    """The disk, or what is on it, failed.

    Attributes:
        path: the folder it is about.
    """

    path: str | None

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else os.fspath(path)


class FolderLocked(StorageError):
    """Another process has the folder open. One writer at a time is what keeps counts right."""


class FormatTooNew(StorageError):
    """The folder was written by a newer version. Nothing was changed."""


class DamagedData(StorageError):
    """Data on disk can't be what was written. The message names file, range and remedy. Nothing was changed."""


class StorageFull(StorageError):
    """The disk is full."""


class NotDurable(StorageError):
    """Changes are applied in memory but not on disk yet. They are written again until that works: don't repeat them."""


class ConnectionLost(PyCounterError):
    """The server can't be reached, or the connection broke."""


class RpcError(PyCounterError):
    """A server refused a request.

    Attributes:
        code: the word on the wire, such as "overloaded".
        message: the server's sentence.
        retryable: may the same request succeed later, under the same id?
        effect: "nothing" was applied by this attempt, it was applied "before", or that is "unknown".
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    effect: ClassVar[Effect] = "unknown"

    def __init__(self, message: str) -> None:
        super().__init__(f"{self.code}: {message}")
        self.message = message


def _class_of(name: str, retryable: bool, effect: str, meaning: str) -> type[RpcError]:
    title = "".join(word.capitalize() for word in name.split("_"))
    outcome = {
        "nothing": "This attempt changed nothing.",
        "before": "An earlier attempt was applied.",
        "unknown": "It may or may not have been applied.",
    }[effect]
    attributes = {
        "__doc__": f"{meaning[0].upper()}{meaning[1:]}. {outcome}",
        "__module__": __name__,
        "code": name,
        "retryable": retryable,
        "effect": effect,
    }
    return type(f"{title}Error", (RpcError,), attributes)


#: The class of each error code.
BY_CODE: dict[str, type[RpcError]] = {row[0]: _class_of(*row) for row in _native.error_codes()}
globals().update({kind.__name__: kind for kind in BY_CODE.values()})


def from_wire(text: str) -> RpcError:
    """The exception for an error as it comes over the wire, `code: message`."""
    code, _, message = text.partition(": ")
    kind = BY_CODE.get(code)
    return kind(message) if kind is not None else RpcError(text)
