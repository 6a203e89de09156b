"""Opening a shard's folder: the checkpoint's pages go to the engine, which then replays the log behind them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from pycounter.errors import IsBackup, StorageError
from pycounter.storage import forking
from pycounter.storage.checkpoint_store import CheckpointStore
from pycounter.storage.reserve import Reserve

__all__ = ["CLUSTER_FILE_NAME", "Recoverable", "Rows", "load_checkpoint", "open_folder"]

ROOT_KEY = b"root"
#: Says that a folder is a backup, and of what.
NOTE_NAME = "backup.json"
#: Says that a folder is a cluster's, whose shards have folders of their own below it.
CLUSTER_FILE_NAME = "cluster.json"
_log = logging.getLogger(__name__)


class Recoverable(Protocol):
    """What recovery needs of a shard or an embedded map."""

    def load_root(self, root: bytes | None) -> list[bytes]:
        """Takes the root; gives the keys of the pages."""

    def load_page(self, key: bytes, page: bytes | None) -> None:
        """Takes a page."""

    def close_folder(self) -> None:
        """Unlocks the folder of one that was not started."""


class Rows(Protocol):
    """What loading needs of a `CheckpointStore`."""

    def get(self, key: bytes) -> bytes | None:
        """A row."""

    def keys(self) -> list[bytes]:
        """Of all rows."""

    def delete(self, keys: Sequence[bytes]) -> None:
        """Drops rows."""


F = TypeVar("F", bound=Recoverable)


def open_folder(directory: str | os.PathLike[str], open_engine: Callable[[], F]) -> tuple[F, CheckpointStore]:
    """Locks the folder with `open_engine` and loads its checkpoint. The caller then calls `start`.

    Args:
        directory: the shard's folder; made if missing.
        open_engine: makes the engine's object for the folder, which locks it.

    Returns:
        The engine's object, loaded, and the open store.

    Raises:
        IsBackup: it is a backup, which would be a second shard of one identity.
        StorageError: a cluster's; or locked, damaged, or unreadable: the folder is unlocked again.
    """
    directory = os.fsdecode(directory)
    try:
        directory.encode()
    except UnicodeEncodeError as error:
        # The checkpoint's store takes no other names. Found out later, it would leave half a folder.
        shown = os.fsencode(directory).decode(errors="backslashreplace")
        raise StorageError(f"the name of {shown} isn't UTF-8: nothing was made; use another one", directory) from error
    if _has(directory, NOTE_NAME) and not _has(directory, "manifest.json"):
        raise IsBackup(
            f"{directory} is a backup: nothing was changed; make a folder of it with `pycounter restore`", directory
        )
    if _has(directory, CLUSTER_FILE_NAME):
        raise StorageError(
            f"{directory} is the folder of a cluster: give --shards N as it was started with; its shards are in "
            f"{Path(directory) / 'shards'}",
            directory,
        )
    with forking.gate:  # no child gets a copy of a lock that nobody knows of yet
        engine = open_engine()
    try:
        # The folder is locked from here on; everything below may need the room.
        Reserve(directory, 0).release()
        store = CheckpointStore(directory)
        try:
            load_checkpoint(engine, store)
        except BaseException:
            store.close()
            raise
    except BaseException:
        engine.close_folder()
        raise
    return engine, store


def _has(directory: str | os.PathLike[str], name: str) -> bool:
    try:
        return (Path(directory) / name).exists()
    except OSError as error:
        raise StorageError(f"the folder {directory} can't be read: {error.strerror}", directory) from error


def load_checkpoint(engine: Recoverable, store: Rows) -> None:
    """Gives the engine what the store has, and deletes what belongs to no checkpoint. Raises StorageError."""
    named = engine.load_root(store.get(ROOT_KEY))
    for key in named:
        engine.load_page(key, store.get(key))
    garbage = set(store.keys()) - {ROOT_KEY, *named}
    if garbage:
        # Of a fold that a crash interrupted, before its root or after it.
        _log.info("deleting %d rows that an interrupted checkpoint left", len(garbage))
        store.delete(sorted(garbage))
