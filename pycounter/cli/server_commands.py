"""The commands that talk to a running server, and `dump`, which reads a folder as well."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from pycounter.cli.folder_commands import Json
from pycounter.cli.shard_address import Host, Port, ShardAddress, TimeoutS, Tls, TlsCa, TokenFile
from pycounter.cli.terminal import print_json, progress_bar
from pycounter.errors import PyCounterError, UnknownOutcome

__all__ = ["backup", "dump", "load"]

T = TypeVar("T")


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def backup(
    target: Annotated[str, typer.Argument(help="A new or empty folder on the server's machine: a full path.")],
    host: Host = "127.0.0.1",
    port: Port = 7400,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    timeout_s: TimeoutS = 3600.0,
    json_: Json = False,
) -> None:
    """Have a running server write a backup of everything that is durable, while it goes on counting.

    The server writes it, on its own machine and as its own user. At a cluster's address each shard writes its own, into
    a folder of its name.
    """
    address = ShardAddress(host=host, port=port, token_file=token_file, tls=tls, tls_ca=tls_ca, timeout_s=timeout_s)

    async def order() -> tuple[str | list[str], str | None]:
        pool = address.pool()
        try:
            deadline = asyncio.get_running_loop().time() + timeout_s
            return await pool.request("backup", target, deadline=deadline), pool.identity
        except OSError as error:
            raise UnknownOutcome("the connection ended before the backup was made: look into its folder") from error
        finally:
            await pool.close()

    path, identity = _run(order())
    if json_:
        print_json({"path": path, "identity": identity, "host": host, "port": port})
    else:
        where = path if isinstance(path, str) else target
        sys.stdout.write(
            f"The backup is in {where} on the machine of {host}:{port}. "
            f"Look at it there with: pycounter check {where}\n"
        )


def dump(
    directory: Annotated[
        str | None, typer.Argument(help="A shard's folder that no server has open, or a backup.", metavar="DIR")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Instead of a folder: a running server.")] = None,
    port: Port = 7400,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    timeout_s: TimeoutS = 60.0,
    output: Annotated[str | None, typer.Option(help="Write to this file once all is there.", metavar="FILE")] = None,
) -> None:
    """Write all counters as lines of JSON, of a folder or of a running server (`--host`).

    A folder is dumped as of its last commit. A server that counts meanwhile gives each counter as of some moment of the
    dump.
    """
    from pycounter.cli.dumping import dump_folder, dump_server, output_file

    if (directory is None) == (host is None):
        raise typer.BadParameter("give either a folder or --host", param_hint="DIR")
    with progress_bar(enabled=output is not None) as on_progress, output_file(output) as lines:
        if directory is not None:
            dump_folder(directory, lines, on_progress)
        elif host is not None:
            address = ShardAddress(
                host=host, port=port, token_file=token_file, tls=tls, tls_ca=tls_ca, timeout_s=timeout_s
            )
            _run(dump_server(address.client(), lines, on_progress))


def load(
    file: Annotated[str, typer.Argument(help="What `dump` wrote; - is the standard input.", metavar="FILE")] = "-",
    host: Host = "127.0.0.1",
    port: Port = 7400,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    timeout_s: TimeoutS = 60.0,
    from_line: Annotated[int, typer.Option(min=2, help="Begin with this line: to go on after an error.")] = 2,
    json_: Json = False,
) -> None:
    """Add the counters of a dump to those of a running server, each line exactly once.

    Values are added, not set: into an empty shard that gives the same counters. A file is checked whole before anything
    is sent. The server may be killed and started meanwhile.
    """
    from pycounter.cli.loading import Loading

    address = ShardAddress(host=host, port=port, token_file=token_file, tls=tls, tls_ca=tls_ca, timeout_s=timeout_s)
    with progress_bar(enabled=not json_) as on_progress:
        loading = Loading(None if file == "-" else Path(file), from_line, on_progress)
        try:
            _run(loading.run(address.client()))
        except KeyboardInterrupt:
            raise PyCounterError(f"interrupted: {loading.state()}") from None
    if json_:
        print_json(asdict(loading.result()))
    else:
        sys.stdout.write(f"{loading.applied:,} counters were added to, all durable.\n")
