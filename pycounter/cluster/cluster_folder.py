"""The folder of a cluster: one lock, one file that says what the cluster is, and a folder for each process.

    supervisor.lock       locked by the supervisor that runs
    cluster.json          this file: the shards, their ports, their replicas, how often the cluster was started
    control.sock          where `pycounter status` and `pycounter replica` talk to the supervisor
    run/NAME.toml         the settings that a process was started with, written at each start
    shards/shard-0/       a shard's own folder
    coordinators/NAME/    a coordinator's

The file is replaced as a whole, and durable before anything is built upon it.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import secrets
from pathlib import Path
from typing import Annotated

import msgspec

from pycounter.errors import FolderLocked, FormatTooNew, StorageError
from pycounter.storage.cluster_backup import UNFINISHED_NAME
from pycounter.storage.recovery import CLUSTER_FILE_NAME

__all__ = ["ClusterFolder", "ReplicaEntry", "ShardEntry"]

FORMAT = 1
LOCK_NAME = "supervisor.lock"
#: What only a shard's folder or a backup has.
SHARD_MARKS = ("manifest.json", "backup.json", "log", "checkpoint")

_Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
_Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9-]{1,64}\Z")]


class ReplicaEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A replica that is to run."""

    name: _Name
    #: Where it listened last; 0: it never did.
    port: _Port = 0


class ShardEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A shard."""

    name: _Name
    port: _Port = 0
    #: Hexadecimal; empty until it has started once.
    identity: str = ""
    replicas: tuple[ReplicaEntry, ...] = ()


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    """The content of cluster.json."""

    format: int = FORMAT
    #: Hexadecimal: which cluster this is.
    cluster: str
    #: How often it was started: topologies of a later start have higher versions.
    starts: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0
    shards: Annotated[tuple[ShardEntry, ...], msgspec.Meta(min_length=1, max_length=256)]


class ClusterFolder:
    """A cluster's folder, locked until it is closed. One thread uses it.

    Args:
        directory: the folder; made if missing.
        shards: how many shards the cluster has, or is to have.

    Raises:
        FolderLocked: another supervisor runs on it.
        FormatTooNew: a newer version wrote it.
        StorageError: it has another number of shards, is a shard's folder, is damaged, or can't be written.
    """

    def __init__(self, directory: str | os.PathLike[str], shards: int) -> None:
        self._lock = -1
        try:
            self.directory = Path(directory).absolute()
            self._open(shards)
        except OSError as error:
            self.close()
            raise StorageError(
                f"the cluster's folder {directory} can't be used: {_reason(error)}", directory
            ) from error
        except BaseException:
            self.close()
            raise

    def _open(self, shards: int) -> None:
        marks = [mark for mark in SHARD_MARKS if (self.directory / mark).exists()]
        if marks and not self._path.exists():
            what = "a backup" if marks == ["backup.json"] else "the folder of a shard alone"
            raise StorageError(
                f"{self.directory} is {what}, not of a cluster (it has {marks[0]}): serve a shard alone without "
                "--shards, or give a cluster a folder of its own. To move the counters of this one into a cluster: "
                "`pycounter dump` it and `pycounter load` that into the cluster",
                self.directory,
            )
        if (self.directory / UNFINISHED_NAME).exists():
            raise StorageError(
                f"a backup is being restored into {self.directory}, or that was interrupted: nothing was started; "
                "`pycounter restore` into it again begins anew",
                self.directory,
            )
        _make_folder(self.directory)
        self._take_lock()
        if self._path.exists():
            file = self._read()
            if len(file.shards) != shards:
                raise StorageError(
                    f"{self.directory} holds a cluster of {len(file.shards)} shards, and --shards says {shards}. A "
                    f"cluster keeps its number of shards: start it with --shards {len(file.shards)}. For {shards} "
                    "shards start a new cluster in another folder, and fill it by `pycounter dump` from this one and "
                    "`pycounter load` into that",
                    self.directory,
                )
        else:
            file = self._create(shards)
        self._file = file
        self._save(msgspec.structs.replace(file, starts=file.starts + 1))

    def _take_lock(self) -> None:
        self._lock = os.open(self.directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip()
            raise FolderLocked(
                f"the cluster in {self.directory} runs already, under the supervisor with process id {owner}: "
                f"`pycounter status --data {self.directory}` shows it",
                self.directory,
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _create(self, shards: int) -> ClusterFile:
        names = [f"shard-{number}" for number in range(shards)]
        folder = self.directory / "shards"
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        if found and found != sorted(names):
            raise StorageError(
                f"{self._path} is missing, and {folder} has {', '.join(found)}: put the file back, or, if exactly "
                f"these shards are the cluster, start it with --shards {len(found)} to have the file made anew",
                self.directory,
            )
        return ClusterFile(cluster=secrets.token_hex(16), shards=tuple(ShardEntry(name=name) for name in names))

    @property
    def _path(self) -> Path:
        return self.directory / CLUSTER_FILE_NAME

    def _read(self) -> ClusterFile:
        content = self._path.read_bytes()
        try:
            known = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
            version = msgspec.json.decode(known.get("format", msgspec.Raw(b"0")), type=int)
            if version > FORMAT:
                raise FormatTooNew(
                    f"{self._path} has format {version}, newer than {FORMAT}: a newer version wrote it", self._path
                )
            return msgspec.json.decode(content, type=ClusterFile)
        except msgspec.DecodeError as error:
            raise StorageError(
                f"{self._path} is damaged: {error}. Put it back from a copy, or move it away and start with as many "
                f"--shards as {self.directory / 'shards'} has folders, to have it made anew",
                self._path,
            ) from error

    def _save(self, file: ClusterFile) -> None:
        temporary = self._path.with_suffix(".json.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            content = msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"
            while content:
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(self._path)
        _sync_folder(self.directory)
        self._file = file

    # --- what it says ----------------------------------------------------------------------------------------------

    @property
    def cluster(self) -> str:
        """Which cluster this is: 32 hexadecimal digits."""
        return self._file.cluster

    @property
    def starts(self) -> int:
        """How often it was started, this time included."""
        return self._file.starts

    @property
    def shards(self) -> tuple[ShardEntry, ...]:
        """The shards in the order of their numbers."""
        return self._file.shards

    def change(self, shard: ShardEntry) -> None:
        """Replaces the shard of this name, durably. Raises OSError."""
        if shard in self._file.shards:
            return
        shards = tuple(shard if shard.name == old.name else old for old in self._file.shards)
        self._save(msgspec.structs.replace(self._file, shards=shards))

    def close(self) -> None:
        """Unlocks it. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _reason(error: OSError) -> str:
    """The reason in words, and the file that it is about."""
    return f"{error.strerror} ({error.filename})" if error.filename else str(error.strerror or error)


def _make_folder(path: Path) -> None:
    """Makes a folder and those above it, each durable in the one above."""
    missing = list(itertools.takewhile(lambda folder: not folder.is_dir(), [path, *path.parents]))
    for folder in reversed(missing):
        if folder.is_symlink():
            raise NotADirectoryError(errno.ENOTDIR, f"Symbolic link to {folder.readlink()}", str(folder))
        if folder.exists():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
