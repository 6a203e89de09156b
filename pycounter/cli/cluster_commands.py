"""The commands of a cluster: those for people, and the hidden ones that a supervisor starts as its processes."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from pycounter.cli.terminal import print_json

__all__ = ["coordinator"]


def coordinator(
    config: Annotated[str, typer.Option(help="Settings as TOML.", metavar="FILE")],
    listen_fd: Annotated[list[int], typer.Option(help="An inherited listening socket; may be given several times.")],
    json_: Annotated[bool, typer.Option("--json", help="Lines of JSON: this command has no others.")] = True,
) -> None:
    """One coordinator of a cluster; its supervisor starts it.

    On its standard input come topologies, each a line of JSON, the newest last; the end of the input is the
    supervisor's. On its standard output it writes lines of JSON: {"event": "ready", ...} once it serves, then
    {"event": "facts", ...} at least every second, which say what `pycounter status` shows of it. A supervisor that is
    stopped reads nothing: what doesn't fit into the pipe is to be dropped, not waited for.
    """
    import uvloop

    from pycounter.coordinator.coordinator_server import CoordinatorServer  # type: ignore[import-not-found]
    from pycounter.settings import load_coordinator_settings

    settings = load_coordinator_settings({"listen_fds": listen_fd}, config=config)

    def ready(facts: dict[str, object]) -> None:
        print_json({"event": "ready", **facts})

    async def serve_until_stopped() -> None:
        await CoordinatorServer(settings).run(ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_until_stopped())
