"""Every exception that PyCounter raises on purpose.

    PyCounterError
    ├── RpcError              what a server can answer: one class per code, with .code, .retryable and .effect
    │   ├── BadKey, CounterOverflow, ...   also raised in process, by `Counters` and `pycounter.open`
    │   ├── UnknownCode       a code that this version doesn't know
    │   ├── SessionLost       a session can't go on, and nobody can tell whether this operation was applied
    │   └── RemovalUnsettled  a counter was taken from some shards, and others haven't answered
    ├── StorageError          the disk, the folder, the data in this process: .path
    │   └── FolderLocked, FormatTooNew, DamagedData, StorageFull, NotDurable, IsBackup
    ├── AfterFork             used in a forked child
    ├── WrongLoop             a client was used on another event loop than its own
    ├── SettingsError         a setting is wrong: .setting and .source
    └── TopologyError         a list of shards makes no sense

The codes themselves are listed once, in the engine; a test compares the classes here with that list. The native
module raises these classes by name.
"""

import os
from typing import ClassVar, Literal

#: What an error says about the refused attempt: it changed `nothing`; an earlier attempt was applied `before`; or that
#: is `unknown`.
Effect = Literal["nothing", "before", "unknown"]


class PyCounterError(Exception):
    """What every exception of PyCounter derives from. `str(error)` is one sentence for people."""

    @property
    def message(self) -> str:
        """The sentence."""
        return str(self)


# --- what a server can answer ------------------------------------------------------------------------------------


class RpcError(PyCounterError):
    """An answer other than a result. `code` is the word on the wire."""

    code: ClassVar[str]
    retryable: ClassVar[bool]
    effect: ClassVar[Effect]

    @property
    def wire_text(self) -> str:
        """As it stands in a reply: `code: message`."""
        return f"{self.code}: {self}"


class BadRequest(RpcError):
    """The request is malformed."""

    code, retryable, effect = "bad_request", False, "nothing"


class UnknownMethod(RpcError):
    """There is no such method."""

    code, retryable, effect = "unknown_method", False, "nothing"


class BadKey(RpcError, ValueError):
    """A key is a string of 1 to 1024 bytes."""

    code, retryable, effect = "bad_key", False, "nothing"


class BadDelta(RpcError, ValueError):
    """A delta is a signed 64-bit integer."""

    code, retryable, effect = "bad_delta", False, "nothing"


class CounterOverflow(RpcError, OverflowError):
    """The value would leave the range of 64 bits."""

    code, retryable, effect = "overflow", False, "nothing"


class TooLarge(RpcError):
    """The request is over a size limit."""

    code, retryable, effect = "too_large", False, "nothing"


class Unauthenticated(RpcError):
    """The token is missing or wrong."""

    code, retryable, effect = "unauthenticated", False, "nothing"


class Forbidden(RpcError):
    """This is not allowed here."""

    code, retryable, effect = "forbidden", False, "nothing"


class SessionUnknown(RpcError):
    """The shard does not know this session, or it has ended."""

    code, retryable, effect = "session_unknown", False, "nothing"


class SequenceGap(RpcError):
    """Operations before this one are missing."""

    code, retryable, effect = "sequence_gap", True, "nothing"


class AlreadySettled(RpcError):
    """The client acknowledged this result before; it is no longer kept."""

    code, retryable, effect = "already_settled", False, "before"


class IdReused(RpcError):
    """This id belongs to another operation."""

    code, retryable, effect = "id_reused", False, "nothing"


class IdExpired(RpcError):
    """The id is older than the time for which results are kept."""

    code, retryable, effect = "id_expired", False, "unknown"


class Overloaded(RpcError):
    """A bound is reached."""

    code, retryable, effect = "overloaded", True, "nothing"


class ReadOnly(RpcError):
    """The shard cannot write to its disk and takes no changes until it can."""

    code, retryable, effect = "read_only", True, "nothing"


class StorageFailed(RpcError):
    """The server's storage failed; `StorageError` is for storage in this process."""

    code, retryable, effect = "storage", True, "nothing"


class Unavailable(RpcError):
    """The shard cannot be reached."""

    code, retryable, effect = "unavailable", True, "nothing"


class DeadlineExceeded(RpcError):
    """The time for this request ran out."""

    code, retryable, effect = "deadline", True, "unknown"


class UnknownOutcome(RpcError):
    """It may or may not have been applied: retry under the same id, at the same shard."""

    code, retryable, effect = "unknown_outcome", True, "unknown"


class WrongShard(RpcError):
    """Another shard has this identity or this key."""

    code, retryable, effect = "wrong_shard", False, "nothing"


class InternalError(RpcError):
    """A bug in the server."""

    code, retryable, effect = "internal", False, "unknown"


class UnknownCode(RpcError):
    """An answer with a code that this version doesn't know: nothing is assumed about the effect."""

    code, retryable, effect = "", False, "unknown"


#: The class for each code on the wire.
BY_CODE: dict[str, type[RpcError]] = {kind.code: kind for kind in RpcError.__subclasses__() if kind is not UnknownCode}


def from_wire(text: str) -> RpcError:
    """The exception for an error as a reply carries it, `code: message`."""
    code, _, message = text.partition(": ")
    kind = BY_CODE.get(code)
    if kind is None:
        return UnknownCode(text)
    return kind(message or (kind.__doc__ or code))


class SessionLost(UnknownOutcome):
    """The session can't go on and nobody can tell whether this operation was applied: retrying may count it twice."""

    retryable = False


class RemovalUnsettled(UnknownOutcome):
    """Some shards may have taken what they held of a counter, and not all of them have answered.

    Repeated under the same id within the shards' window, it ends: those that took it answer with the same amounts.

    Attributes:
        operation_id: the id.
        taken: what shards have taken, by their names.
        unsettled: why nobody knows of the others, or that they took nothing, by their names.
    """

    def __init__(
        self, message: str, *, operation_id: bytes, taken: dict[str, int], unsettled: dict[str, RpcError]
    ) -> None:
        super().__init__(message)
        self.operation_id = operation_id
        self.taken = taken
        self.unsettled = unsettled


# --- storage -----------------------------------------------------------------------------------------------------


class StorageError(PyCounterError):
    """The storage in this process refused. `path` is the folder or file, where it is known."""

    def __init__(self, message: str = "", path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.path = None if path is None else os.fspath(path)


class FolderLocked(StorageError):
    """The folder is open already, in another process or in this one: the message says which."""


class FormatTooNew(StorageError):
    """The folder was written by a newer version."""


class DamagedData(StorageError):
    """Data is missing or changed. The message names file, range and remedy."""


class StorageFull(StorageError):
    """No space is left on the device."""


class NotDurable(StorageError):
    """Changes are applied in memory but not on disk yet. They are written again until that works: don't repeat them."""


class IsBackup(StorageError):
    """The folder is a backup, which is restored and never served: a second shard of one identity would count twice."""


# --- the process -------------------------------------------------------------------------------------------------


class AfterFork(PyCounterError):
    """Something that belongs to the parent process was used in a forked child."""


class WrongLoop(PyCounterError, RuntimeError):
    """A client was used on another event loop than the one that connected it. Nothing was sent."""


class SettingsError(PyCounterError, ValueError):
    """A setting is wrong.

    Attributes:
        setting: its name, such as `port`.
        source: where the value came from, such as `PYCOUNTER_PORT`, `--port` or a file's name.
    """

    def __init__(self, message: str, *, setting: str = "", source: str = "") -> None:
        super().__init__(message)
        self.setting = setting
        self.source = source


class TopologyError(PyCounterError, ValueError):
    """A topology that a server sent, or that stands in a file, is none. The message names the field."""
