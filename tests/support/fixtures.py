"""Fixtures around shard processes, for the folders whose conftest takes them."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster_process import ClusterProcess
from tests.support.faulty_disk import FaultyDisk
from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import RpcSocket
from tests.support.shard_process import ColdLauncher, Launcher, ShardProcess, WarmLauncher

StartShard = Callable[..., ShardProcess]
StartCluster = Callable[..., ClusterProcess]

# Whatever a client sends and however it is killed, a shard never says these.
NEVER = re.compile(r"panicked at|Traceback \(most recent call last\)|was never awaited|AddressSanitizer")


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts shards within a tenth of a second, where the system can watch processes that aren't its children."""
    if not hasattr(os, "pidfd_open"):
        yield ColdLauncher()
        return
    warm = WarmLauncher()
    yield warm
    warm.close()


@contextlib.contextmanager
def starting(folder: Path, launcher: Launcher) -> Iterator[StartShard]:
    """Starts shards below `folder`, and kills them at the end."""
    shards: list[ShardProcess] = []

    def start(
        *,
        settings: dict[str, str | int | float | bool] | None = None,
        arguments: list[str] | None = None,
        name: str = "shard",
        on: FaultyDisk | None = None,
    ) -> ShardProcess:
        theirs = on.launcher if on else launcher
        shard = ShardProcess(folder / name, launcher=theirs, settings=settings, arguments=arguments or [])
        shards.append(shard)
        shard.start()
        return shard

    try:
        yield start
    finally:
        for shard in shards:
            shard.kill()
    for shard in shards:
        assert not NEVER.search(shard.output(10_000)), shard.output(200)


@pytest.fixture
def fault_rounds(pytestconfig: pytest.Config) -> int:
    """How many faults a test may try: `--fault-rounds`."""
    rounds: int = pytestconfig.getoption("fault_rounds")
    return rounds


@pytest.fixture
def connect() -> Iterator[Callable[[ShardProcess], RpcSocket]]:
    """MessagePack-RPC connections: `connect(shard)`, closed after the test."""
    with contextlib.ExitStack() as connections:
        yield lambda shard: connections.enter_context(RpcSocket(shard.address))


@pytest.fixture(scope="session")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    """Built once."""
    with FaultyDisk(tmp_path_factory.mktemp("faulty_disk")) as disk:
        yield disk


@pytest.fixture
def disk(faulty_disk: FaultyDisk, tmp_path: Path) -> Iterator[FaultyDisk]:
    """A disk that can be made to fail, under the folder of this test's shard."""
    faulty_disk.watch(tmp_path / "shard")
    yield faulty_disk
    faulty_disk.lift()


@pytest.fixture
def start_shard(tmp_path: Path, launcher: Launcher) -> Iterator[StartShard]:
    """Starts a shard: `start_shard(settings={...}, arguments=[...], name="shard")`. Killed after the test."""
    with starting(tmp_path, launcher) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_shard(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[StartShard]:
    """The same for a shard that all tests of a module share."""
    with starting(tmp_path_factory.mktemp("shared"), launcher) as start:
        yield start


@pytest.fixture(scope="module")
def shared_shard(start_shared_shard: StartShard) -> ShardProcess:
    """A running shard with default settings, the same one for a whole module."""
    return start_shared_shard()


@pytest.fixture
def emptied_shard(shared_shard: ShardProcess) -> ShardProcess:
    """`shared_shard` without the counters of the tests before; their sessions and ids stay.

    A module whose tests are many and small calls this `shard`.
    """
    with RespSocket(shared_shard.address) as connection:
        connection.call("FLUSHALL")
    return shared_shard


@pytest.fixture
def shard(start_shard: StartShard) -> ShardProcess:
    """A running shard with default settings on a fresh folder."""
    return start_shard()


@pytest.fixture
def rpc(shard: ShardProcess) -> Iterator[RpcSocket]:
    """A MessagePack-RPC connection to `shard`."""
    with RpcSocket(shard.address) as connection:
        yield connection


@pytest.fixture
def resp(shard: ShardProcess) -> Iterator[RespSocket]:
    """A RESP connection to `shard`."""
    with RespSocket(shard.address) as connection:
        yield connection


@contextlib.contextmanager
def starting_clusters(folder: Path, launcher: Launcher) -> Iterator[StartCluster]:
    """Starts clusters below `folder`, and kills them at the end."""
    clusters: list[ClusterProcess] = []

    def start(*, name: str = "cluster", begin_only: bool = False, **options: Any) -> ClusterProcess:
        cluster = ClusterProcess(folder / name, launcher=launcher, **options)
        clusters.append(cluster)
        if begin_only:
            cluster.begin()
        else:
            cluster.start()
        return cluster

    try:
        yield start
    finally:
        for cluster in clusters:
            cluster.kill()
    for cluster in clusters:
        assert not NEVER.search(cluster.output(10_000)), cluster.output(200)


@pytest.fixture
def start_cluster(tmp_path: Path, launcher: Launcher) -> Iterator[StartCluster]:
    """Starts a cluster: `start_cluster(shards=2, replicas=0, coordinators=1, settings={...})`. Killed at the end."""
    with starting_clusters(tmp_path, launcher) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_cluster(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[StartCluster]:
    """The same for a cluster that all tests of a module share."""
    with starting_clusters(tmp_path_factory.mktemp("shared-cluster"), launcher) as start:
        yield start
