"""The commands of a cluster: those for people, and the hidden ones that a supervisor starts as its processes."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import typer

from pycounter.cli.shard_address import ShardAddress, TimeoutS, Tls, TlsCa, TokenFile
from pycounter.cli.terminal import print_json
from pycounter.errors import PyCounterError

__all__ = ["coordinator", "replica_app", "status"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Cluster = Annotated[str, typer.Option(help="The cluster's folder.", metavar="DIR")]

replica_app = typer.Typer(
    help="Add replicas to a running cluster, or remove them; or run one of a single shard.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

#: Events that the table shows; `--json` has all that are kept.
EVENTS_SHOWN = 12
#: Exit code of `status` when something isn't serving.
NOT_SERVING = 3


def status(
    data: Annotated[
        str | None, typer.Option(help="The cluster's folder: asks its supervisor, which knows most.", metavar="DIR")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Instead of a folder: where a cluster or a shard serves.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Its port.")] = 7400,
    token_file: TokenFile = None,
    tls: Tls = False,
    tls_ca: TlsCa = None,
    timeout_s: TimeoutS = 10.0,
    json_: Json = False,
) -> None:
    """Show every process of a cluster: its state and address, how often it was started again and why.

    \b
    pycounter status --data ./cluster
    pycounter status --host 127.0.0.1 --port 7400

    Asked by address, a server tells what it was told by the supervisor; a shard alone tells of itself.

    Exit code 0 if every process serves, 3 if one doesn't, 1 if nobody answers.
    """  # noqa: D301 - click reads the backspace: lines that aren't to be wrapped
    from pycounter.cli.status_table import is_serving, status_table
    from pycounter.cluster.control import ask_supervisor

    if data is not None and host is not None:
        raise typer.BadParameter("give either --data or --host", param_hint="--data")
    if data is not None:
        answer: dict[str, Any] = ask_supervisor(data, {"do": "status"}, timeout_s=timeout_s)
    else:
        address = ShardAddress(
            host=host or "127.0.0.1", port=port, token_file=token_file, tls=tls, tls_ca=tls_ca, timeout_s=timeout_s
        )
        answer = {"topology": asyncio.run(_ask_topology(address))}
    if json_:
        print_json(answer)
    else:
        sys.stdout.write(status_table(answer, events=EVENTS_SHOWN))
    if not is_serving(answer):
        raise typer.Exit(NOT_SERVING)


async def _ask_topology(address: ShardAddress) -> dict[str, Any]:
    from pycounter.clock import SYSTEM_CLOCK
    from pycounter.coordinator.connect_settings import ConnectSettings
    from pycounter.coordinator.topology_watch import TopologyWatch
    from pycounter.net.security import client_tls, read_token

    settings = ConnectSettings(
        addresses=((address.host, address.port),),
        token=read_token(address.token_file),
        tls=client_tls(address.tls_ca) if address.tls or address.tls_ca else None,
    )
    watch = TopologyWatch(settings, SYSTEM_CLOCK)
    try:
        return (await watch.ask(address.timeout_s)).to_wire()
    finally:
        await watch.close()


@replica_app.command("add")
def add_replica(
    shard: Annotated[str, typer.Argument(help="Whose replica, such as shard-0.")], data: Cluster, json_: Json = False
) -> None:
    """Give a shard of a running cluster one more replica, which copies the shard and then answers reads."""
    from pycounter.cluster.control import ask_supervisor

    name = ask_supervisor(data, {"do": "replica add", "shard": shard})
    if json_:
        print_json({"added": name})
    else:
        sys.stdout.write(f"{name} is being started. How far it is: pycounter status --data {data}\n")


@replica_app.command("remove")
def remove_replica(
    shard: Annotated[str, typer.Argument(help="A replica, such as shard-0-replica-1; or a shard: its newest.")],
    data: Cluster,
    json_: Json = False,
) -> None:
    """Stop a replica of a running cluster, for good. The shard itself is not touched."""
    from pycounter.cluster.control import ask_supervisor

    name = ask_supervisor(data, {"do": "replica remove", "shard": shard}, timeout_s=120.0)
    if json_:
        print_json({"removed": name})
    else:
        sys.stdout.write(f"{name} is stopped, and the cluster has forgotten it.\n")


@replica_app.command("serve")
def serve_replica(
    primary: Annotated[str, typer.Option(help="The shard to follow.", metavar="HOST:PORT")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 lets the system choose.")] = 0,
    name: Annotated[str, typer.Option(help="The replica's name.")] = "replica-0",
    token_file: Annotated[
        str | None, typer.Option(help="The shard's token; clients must send it too.", metavar="FILE")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where others can connect, without a token.")
    ] = False,
    counters_bytes_max: Annotated[
        str | None,
        typer.Option(
            help="Memory of counters, as the shard may have; a quarter of the machine's if not given.", metavar="SIZE"
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Follow a shard and answer reads. A replica holds its copy in memory, and has it from the shard at each start.

    A cluster runs its own replicas (`pycounter serve --replicas`); this is for a shard alone, or by hand.
    """
    from pycounter.cli.serving import outlive_hang_up
    from pycounter.cli.serving import serve_replica as run
    from pycounter.replica import ReplicaSettings
    from pycounter.settings import parse_bytes

    outlive_hang_up()
    try:
        bounds = {} if counters_bytes_max is None else {"counters_bytes_max": parse_bytes(counters_bytes_max)}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--counters-bytes-max") from error
    settings = ReplicaSettings(
        primary=primary,
        host=host,
        port=port,
        name=name,
        token_file=token_file,
        insecure=insecure,
        **bounds,
    )
    run(settings, as_json=json_)


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

    from pycounter.cli.serving import outlive_hang_up
    from pycounter.coordinator.coordinator_server import CoordinatorServer
    from pycounter.settings import load_coordinator_settings

    outlive_hang_up()
    settings = load_coordinator_settings({"listen_fds": listen_fd}, config=config)

    def ready(facts: dict[str, object]) -> None:
        print_json({"event": "ready", **facts})

    async def serve_until_stopped() -> None:
        await CoordinatorServer(settings).run(ready)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_until_stopped())
    except OSError as error:
        raise PyCounterError(str(error)) from error
