"""The standard streams of a command: open, and with one clear error where the output can't be written."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO, cast

from pycounter.errors import PyCounterError

__all__ = ["OutputError", "finish_output", "open_standard_streams"]


class OutputError(PyCounterError):
    """The standard output can't be written. `is_pipe` if its reader has gone, as `head` does."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"can't write to the standard output: {error.strerror}")
        self.is_pipe = error.errno == errno.EPIPE


class _Output(io.TextIOWrapper):
    """The standard output; errors of the system become `OutputError`."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputError(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputError(error) from error


def open_standard_streams() -> None:
    """Opens closed ones on /dev/null, where nothing else can take their numbers, and watches the output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, so this one.
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if cast("TextIO | None", getattr(sys, name)) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    output: Any = sys.stdout
    output.flush()
    # Not the old one's buffer, which may remember another file under this number.
    buffer = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = _Output(buffer, encoding=output.encoding, errors=output.errors, line_buffering=output.line_buffering)


def finish_output() -> None:
    """Writes what is buffered. Raises OutputError."""
    try:
        sys.stdout.flush()
    except OutputError:
        # The interpreter would try again at its end, and complain in its own words.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.close(devnull)
        raise
