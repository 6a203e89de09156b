"""Room that is kept in a folder for the day when its disk is full.

A start needs room, and so does a checkpoint, which then makes a lot of it by dropping the log. On a disk that the log
itself has filled neither could be written. So a file that holds nothing keeps some: a start takes all of it, a
checkpoint half of it while the shard runs, and it is filled again once there is room. Half is always left for a start,
whatever commits take of what a checkpoint was lent.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

__all__ = ["RESERVE_NAME", "Reserve", "free_bytes"]

_log = logging.getLogger(__name__)

#: The file in the shard's folder. Hidden: it is nobody's data.
RESERVE_NAME = ".reserve"
#: No more than this part of what is free is kept.
SHARE_OF_FREE = 16


def free_bytes(directory: str | os.PathLike[str]) -> int:
    """Bytes that this process may still write on the folder's disk."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


class Reserve:
    """The reserve of one folder.

    Args:
        directory: the shard's folder.
        size_bytes: how much to keep; 0: none. Less where little is free.
    """

    def __init__(self, directory: str | os.PathLike[str], size_bytes: int) -> None:
        self._path = Path(directory) / RESERVE_NAME
        self._size_bytes = size_bytes

    def release(self) -> None:
        """Gives all of it back, for a start. The start goes on if that fails."""
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the reserve %s can't be released: %s", self._path, error.strerror)

    def lend(self) -> None:
        """Gives half of it back, for a checkpoint."""
        try:
            os.truncate(self._path, self._path.stat().st_size // 2)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning("the reserve %s can't be lent: %s", self._path, error.strerror)

    def fill(self) -> None:
        """Keeps it again, if there is room.

        Raises:
            OSError: there was none after all; what was kept before is kept.
        """
        held = self._path.stat().st_size if self._path.exists() else 0
        wanted = min(self._size_bytes, (free_bytes(self._path.parent) + held) // SHARE_OF_FREE)
        if wanted <= held:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, held, wanted - held)
        except OSError:
            os.ftruncate(descriptor, held)
            raise
        finally:
            os.close(descriptor)
