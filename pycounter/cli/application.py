"""The commands and their options. What they do is elsewhere, imported only by the command that needs it.

Exit codes: 0 done; 1 it failed, and the message says what was or wasn't applied; 2 wrong words on the command line; 3
from `status`: something isn't serving.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from pycounter._native import VERSION
from pycounter.cli import cluster_commands, folder_commands, server_commands
from pycounter.cli.standard_streams import OutputError, finish_output
from pycounter.errors import PyCounterError

__all__ = ["run"]

app = typer.Typer(
    name="pycounter",
    help="A counter engine: every acknowledged increment is counted exactly once, whatever crashes.",
    epilog="Begin with `pycounter demo`, or `pycounter serve --data DIR` and any Redis client on port 7400.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of sentences.")]


def run() -> None:
    """Runs the application; errors of ours become one sentence on stderr and exit code 1."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        try:
            app()
        finally:
            finish_output()
    except OutputError as error:
        # A reader that closes the pipe early, such as `head`, needs no message.
        if not error.is_pipe:
            typer.echo(f"pycounter: {error}", err=True)
        sys.exit(1)
    except PyCounterError as error:
        typer.echo(f"pycounter: {error}", err=True)
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pycounter {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Count things that must not be counted twice."""


@app.command()
def serve(
    data: Annotated[
        str | None, typer.Option(help="The folder of the shard or the cluster; made if missing.", metavar="DIR")
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            help="Serve a cluster of so many shards, each a process, behind one address. The number stays with the "
            "folder. Without it: one shard alone.",
            metavar="N",
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Of each shard of a cluster, at least; they answer reads.  [default: 0]", metavar="R"),
    ] = None,
    coordinators: Annotated[
        int | None, typer.Option(help="Processes that serve a cluster's address.  [default: 1]", metavar="C")
    ] = None,
    strict: Annotated[
        list[str] | None,
        typer.Option(
            help="In a cluster: counters whose keys begin so are served by their own shard only, whatever happens, as "
            "unique numbers need it. May be given several times.",
            metavar="PREFIX",
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 lets the system choose.  [default: 7400]")] = None,
    unix: Annotated[
        str | None, typer.Option(help="A Unix socket to listen on too; made, and removed at the end.", metavar="PATH")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="When a reply is sent: `durable`, once the change is fsynced; `applied`, once it is in memory "
            "(fsynced within a second).  [default: durable]",
            metavar="durable|applied",
        ),
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(help="Clients must send the token in this file.", metavar="FILE")
    ] = None,
    tls_cert: Annotated[str | None, typer.Option(help="Certificate chain, PEM.", metavar="FILE")] = None,
    tls_key: Annotated[str | None, typer.Option(help="Its private key, PEM.", metavar="FILE")] = None,
    config: Annotated[
        str | None,
        typer.Option(help="Settings as TOML; PYCOUNTER_... variables and options override it.", metavar="FILE"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where others can connect, without a token.")
    ] = False,
    json_: Json = False,
) -> None:
    """Serve one shard, or a cluster of them: MessagePack-RPC and RESP (any Redis client) on one port.

    \b
    pycounter serve --data ./counters
    redis-cli -p 7400 incr visits
    \b
    pycounter serve --shards 4 --replicas 1 --data ./cluster
    pycounter status --data ./cluster
    """  # noqa: D301 - click reads the backspace: lines that aren't to be wrapped
    from pycounter.cli.serving import outlive_hang_up, serve_cluster, serve_shard
    from pycounter.settings import ClusterSettings, load_serve_settings

    outlive_hang_up()
    settings = load_serve_settings(
        {
            "data": data,
            "shards": shards,
            "replicas": replicas,
            "coordinators": coordinators,
            "strict": strict or None,
            "host": host,
            "port": port,
            "unix": unix,
            "level": level,
            "token_file": token_file,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "insecure": insecure or None,
        },
        config=config,
    )
    if isinstance(settings, ClusterSettings):
        serve_cluster(settings, as_json=json_)
    else:
        serve_shard(settings, as_json=json_)


@app.command()
def demo(
    kills: Annotated[
        int, typer.Option(min=0, help="How often a process is killed with -9: shards and the coordinator in turn.")
    ] = 3,
    shards: Annotated[int, typer.Option(min=1, max=64, help="Shards of the cluster.")] = 2,
    clients: Annotated[int, typer.Option(min=1, max=64, help="Client processes.")] = 2,
    level: Annotated[str, typer.Option(help="The cluster's level.", metavar="durable|applied")] = "durable",
    limit_files: Annotated[int | None, typer.Option(min=1, help="Count only so many files.", metavar="N")] = None,
    json_: Json = False,
) -> None:
    """Count every word of Python's standard library over TCP while a cluster is killed bit by bit; check every total.

    Exit code 0 only if all totals are right.
    """
    from pycounter.cli.demo_screen import show_demo

    if level not in {"applied", "durable"}:
        raise typer.BadParameter("durable or applied", param_hint="--level")
    if not show_demo(kills=kills, shards=shards, clients=clients, level=level, limit_files=limit_files, as_json=json_):
        raise typer.Exit(1)


app.command()(folder_commands.check)
app.command()(folder_commands.repair)
app.command()(folder_commands.restore)
app.command()(server_commands.backup)
app.command()(server_commands.dump)
app.command()(server_commands.load)
app.command()(cluster_commands.status)
app.add_typer(cluster_commands.replica_app, name="replica")
app.command(hidden=True)(cluster_commands.coordinator)
