"""A Unix socket to listen on: for clients on this machine, and only those who may write to it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from pycounter.errors import PyCounterError
from pycounter.net.server_process import BACKLOG

__all__ = ["UnixSocket"]

#: The system's bound, without the zero behind it.
PATH_BYTES_MAX = 107


class UnixSocket:
    """Listens at a path until it is closed. Who may connect follows from the umask, as for any file that is made.

    Raises (constructor):
        PyCounterError: it can't be listened on, and why; nothing was removed.
    """

    def __init__(self, path: str) -> None:
        self.path = str(Path(path).absolute())
        self._entry = Path(self.path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_stale()
            self.listener.bind(self.path)
            # Another server may have this path one day: only the own file is removed.
            self._file = self._entry.stat().st_ino
            self.listener.listen(BACKLOG)
            self.listener.setblocking(False)
        except BaseException as error:
            self.listener.close()
            if isinstance(error, OSError):
                raise PyCounterError(f"can't listen on {self.path}: {self._reason(error)}") from error
            raise

    def close(self) -> None:
        """Listens no more, and removes the file. Idempotent."""
        self.listener.close()
        with contextlib.suppress(OSError):
            if self._entry.stat().st_ino == self._file:
                self._entry.unlink()

    def _remove_stale(self) -> None:
        """Removes the file of a server that was killed. Raises PyCounterError where it is anything else."""
        try:
            mode = self._entry.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise PyCounterError(f"can't listen on {self.path}: it is there and is no socket; nothing was removed")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                self._entry.unlink()
                return
            except BlockingIOError:
                pass
        raise PyCounterError(f"can't listen on {self.path}: another server does")

    def _reason(self, error: OSError) -> str:
        size = len(os.fsencode(self.path))
        if size > PATH_BYTES_MAX:
            return f"the path has {size} bytes, and that of a socket may have {PATH_BYTES_MAX} at most"
        if error.errno == errno.ENOENT:
            return f"there is no folder {self._entry.parent}"
        return error.strerror or str(error)
