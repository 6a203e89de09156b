"""How a coordinator hears of its supervisor and is heard: lines of JSON on standard input and output.

Neither is ever waited for. One event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Mapping

from pycounter.errors import TopologyError
from pycounter.topology import Topology

__all__ = ["SupervisorPipe"]

_log = logging.getLogger(__name__)

LINE_BYTES_MAX = 32 << 20
CHUNK_BYTES = 1 << 16


class SupervisorPipe:
    """The two pipes.

    Args:
        on_topology: told of each topology.
        on_end: told when the input has ended: there is no supervisor any more.
        input_fd: topologies come from here.
        output_fd: facts go there.
    """

    def __init__(
        self,
        on_topology: Callable[[Topology], None],
        on_end: Callable[[], None],
        *,
        input_fd: int = 0,
        output_fd: int = 1,
    ) -> None:
        self._on_topology = on_topology
        self._on_end = on_end
        self._input = input_fd
        self._output = output_fd
        self._line = b""
        #: The rest of a line that the pipe took in part.
        self._rest = b""

    def start(self) -> None:
        """Begins to listen. Raises OSError where the input is no pipe."""
        os.set_blocking(self._input, False)
        os.set_blocking(self._output, False)
        asyncio.get_running_loop().add_reader(self._input, self._read)

    def close(self) -> None:
        """Listens no longer."""
        asyncio.get_running_loop().remove_reader(self._input)

    def tell(self, facts: Mapping[str, object]) -> None:
        """Writes a line, or drops it where the pipe has no room: the next one says more."""
        try:
            if self._rest:
                self._rest = self._rest[os.write(self._output, self._rest) :]
            if not self._rest:
                line = json.dumps(facts, default=str).encode() + b"\n"
                self._rest = line[os.write(self._output, line) :]
        except BlockingIOError:
            return
        except OSError as error:
            _log.debug("nobody reads the facts: %s", error)

    def _read(self) -> None:
        try:
            chunk = os.read(self._input, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            _log.error("the supervisor can't be heard: %s", error)
            chunk = b""
        if not chunk:
            self.close()
            self._on_end()
            return
        *lines, self._line = (self._line + chunk).split(b"\n")
        if len(self._line) > LINE_BYTES_MAX:
            _log.error("a topology of more than %d bytes is ignored", LINE_BYTES_MAX)
            self._line = b""
        # Of several only the newest counts.
        for line in reversed(lines):
            if (topology := _parse(line)) is not None:
                self._on_topology(topology)
                return


def _parse(line: bytes) -> Topology | None:
    if not line.strip():
        return None
    try:
        return Topology.from_wire(json.loads(line))
    except (ValueError, RecursionError, TopologyError) as error:
        _log.error("the supervisor sent a topology that is none: %s", error)
        return None
