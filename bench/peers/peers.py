"""The servers that are compared: how each is started, and from which Debian package it comes."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

#: Where Debian keeps PostgreSQL's server programs.
POSTGRESQL_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One kind of server."""

    name: str
    #: In tables.
    title: str
    program: str
    #: Debian's; None: there is none to be installed.
    package: str | None = None
    command: Callable[[int, Path], list[str]]
    #: Makes the folder ready, before the start.
    prepare: Callable[[Path], None] | None = None
    #: Whether it answers on this port.
    is_ready: Callable[[int], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    #: What the load generator speaks with it.
    protocol: str = "resp"
    #: For servers that refuse to be root's.
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM

    def missing(self) -> str | None:
        """What to say where it can't be started."""
        if shutil.which(self.program) is not None:
            return None
        if self.package is None:
            return f"{self.name}: {self.program} is missing"
        return f"{self.name}: {self.program} is missing: apt-get install {self.package}, or --install"


def accepts(port: int) -> bool:
    """Whether something listens."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def answers_ping(port: int) -> bool:
    """Whether a server of RESP has loaded what it had to load."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"*1\r\n$4\r\nPING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _redis(name: str, title: str, *options: str, program: str = "redis-server", package: str = "redis-server") -> Peer:
    def command(port: int, folder: Path) -> list[str]:
        return [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]

    return Peer(name=name, title=title, program=program, package=package, command=command, is_ready=answers_ping)


REDIS = _redis("redis", "Redis, no log", "--appendonly", "no")
REDIS_FSYNC = _redis("redis-fsync", "Redis, `appendfsync always`", "--appendonly", "yes", "--appendfsync", "always")
VALKEY = _redis("valkey", "Valkey, no log", "--appendonly", "no", program="valkey-server", package="valkey-server")


def cluster_bus(port: int) -> int:
    """Where a node of a Redis Cluster talks with the others."""
    return port - 10_000 if port > 55_535 else port + 10_000


def _redis_node(port: int, folder: Path) -> list[str]:
    return [*REDIS.command(port, folder), "--cluster-enabled", "yes", "--cluster-port", str(cluster_bus(port))]


#: One of several; `bench.peers.redis_cluster` puts them together.
REDIS_NODE = replace(REDIS, name="redis-node", title="Redis Cluster", command=_redis_node)


def saving(redis: Peer) -> Peer:
    """Redis that writes an RDB when it stops, and loads it when it starts."""

    def command(port: int, folder: Path) -> list[str]:
        # Save points make a SIGTERM save; this one is never reached by itself.
        return [*redis.command(port, folder), "--save", "1000000000 1"]

    return replace(redis, name="redis-rdb", title="Redis, RDB", command=command)


def _memcached(port: int, _folder: Path) -> list[str]:
    who = ["-u", "root"] if os.geteuid() == 0 else []
    return ["memcached", *who, "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-t", "1", "-m", "1024"]


MEMCACHED = Peer(
    name="memcached",
    title="memcached, 1 thread",
    program="memcached",
    package="memcached",
    command=_memcached,
    is_ready=accepts,
    protocol="memcached",
)


def _initdb(folder: Path) -> None:
    if POSTGRESQL.user is not None:
        shutil.chown(folder, POSTGRESQL.user)
    subprocess.run(
        [_postgresql("initdb"), "--pgdata", str(folder), "--username", "bench", "--auth", "trust", "--no-sync"],
        user=POSTGRESQL.user,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _postgresql(program: str) -> str:
    return str(POSTGRESQL_FOLDERS[-1] / program) if POSTGRESQL_FOLDERS else program


def _postgres(port: int, folder: Path) -> list[str]:
    options = ("listen_addresses=127.0.0.1", "unix_socket_directories=")
    return [_postgresql("postgres"), "-D", str(folder), "-p", str(port), *(f"-c{option}" for option in options)]


def _postgresql_is_ready(port: int) -> bool:
    command = [_postgresql("pg_isready"), "--quiet", "--host", "127.0.0.1", "--port", str(port)]
    return subprocess.run(command, check=False).returncode == 0


def _postgresql_user() -> str | None:
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


POSTGRESQL = Peer(
    name="postgresql",
    title="PostgreSQL, `UPDATE`",
    program=_postgresql("postgres"),
    package="postgresql",
    command=_postgres,
    prepare=_initdb,
    is_ready=_postgresql_is_ready,
    user=_postgresql_user(),
    # A fast stop: it doesn't wait for clients.
    stop_signal=signal.SIGINT,
)


def shard(level: str, **settings: str | float) -> Peer:
    """PyCounter's own server at a level, with other settings than its defaults."""

    def command(port: int, folder: Path) -> list[str]:
        arguments = ["--data", str(folder), "--port", str(port), "--level", level]
        return [sys.executable, "-m", "pycounter", "serve", *arguments]

    suffix = " (fsynced)" if level == "durable" else ""
    return Peer(
        name=level,
        title=f"PyCounter, `{level}`{suffix}",
        program=sys.executable,
        command=command,
        is_ready=answers_ping,
        environment={f"PYCOUNTER_{name.upper()}": str(value) for name, value in settings.items()},
    )


def cluster(shards: int, level: str) -> Peer:
    """PyCounter's own cluster: a coordinator and so many shards."""

    def command(port: int, folder: Path) -> list[str]:
        arguments = ["--shards", str(shards), "--data", str(folder), "--port", str(port), "--level", level]
        return [sys.executable, "-m", "pycounter", "serve", *arguments]

    return Peer(
        name=f"cluster-{shards}-{level}",
        title=f"PyCounter, coordinator and {shards} shards, `{level}`",
        program=sys.executable,
        command=command,
        is_ready=answers_ping,
    )


def _constant(name: str, title: str, *options: str) -> Peer:
    def command(port: int, _folder: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.constant_server", str(port), *options]

    return Peer(name=name, title=title, program=sys.executable, command=command, is_ready=accepts)


APPLIED = shard("applied")
DURABLE = shard("durable")
FLOOR = _constant("floor", "floor: parse, constant reply, uvloop")
CEILING = _constant("ceiling", "ceiling: parse, constant reply, no Python", "--bare")

#: What other people made, and where it comes from.
OTHERS = (REDIS, VALKEY, MEMCACHED, POSTGRESQL)
