"""The supervisor of a cluster: owns the public sockets, keeps every process running, says what there is.

One event loop, no other threads. It counts nothing and no request passes through it: while it is stopped, the cluster
goes on. Its children end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pycounter.cluster.child_commands import LOOPBACK, ChildCommands
from pycounter.cluster.cluster_folder import ClusterFolder, ReplicaEntry, ShardEntry
from pycounter.cluster.cluster_view import ClusterView
from pycounter.cluster.control import ControlServer
from pycounter.cluster.member import TICK_S, Member
from pycounter.cluster.process_state import ProcessRecord
from pycounter.coordinator.settings import TuningSettings
from pycounter.errors import PyCounterError
from pycounter.net.listening import bind, listen
from pycounter.net.security import Access, check_exposure
from pycounter.net.unix_socket import UnixSocket
from pycounter.settings import ClusterSettings
from pycounter.storage.recovery import CLUSTER_FILE_NAME
from pycounter.topology import format_address, parse_address

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

#: Coordinators wait so long for shards that load their folders; then they serve without them.
SHARDS_FIRST_S = 10.0
#: The line that says "ready" waits so long for replicas.
REPLICAS_S = 10.0
#: Processes of the last run that was killed may hold their folders for so long: a slow disk keeps them from ending.
LAST_RUN_S = 5.0
#: Who waits longer is told for whom.
TELL_S = 5.0
#: Beyond what a child allows itself for an orderly stop: its last checkpoint.
STOP_EXTRA_S = 30.0
REPLICAS_MAX = 16


class Supervisor:
    """A cluster on one machine. `run` serves until a signal comes.

    Raises (constructor):
        SettingsError: token or TLS files are wrong, or the address is exposed without a token.
        StorageError: the folder is another's, or can't be used.
        PyCounterError: the public address can't be listened on.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        # Its certificate is the coordinators' affair; here it is only to be told of a bad one at once.
        self._access = Access(settings.token_file, settings.tls_cert, settings.tls_key)
        check_exposure(settings.host, self._access.tokens, insecure=settings.insecure)
        TuningSettings.from_table(settings.coordinator.get("tuning", {}))
        self._settings = settings
        self._unix: UnixSocket | None = None
        # A new folder is made once the addresses are bound. One that is there is locked first: then only what is left
        # of the last run can hold the port, for a moment.
        is_there = (Path(settings.data) / CLUSTER_FILE_NAME).exists()
        with contextlib.ExitStack() as undo:
            if not is_there:
                self._listen(undo, wait=False)
            self._folder = ClusterFolder(settings.data, settings.shards)
            undo.callback(self._folder.close)
            if is_there:
                self._listen(undo, wait=True)
            undo.pop_all()
        self.address = format_address(*self._sockets[0].getsockname()[:2])
        self._commands = ChildCommands(settings, self._folder.directory)
        self._view = ClusterView(self._folder.cluster, self._folder.starts, settings.strict)
        self._members: dict[str, Member] = {}
        self._control = ControlServer(self._folder.directory, self._answer)
        self._stop = asyncio.Event()
        self._is_update_due = False
        #: Reloads so far, and how many there had been when each process last read the files.
        self._reloads = 0
        self._read_at: dict[str, int] = {}

    def _listen(self, undo: contextlib.ExitStack, *, wait: bool) -> None:
        if self._settings.unix is not None:
            self._unix = UnixSocket(self._settings.unix)
            undo.callback(self._unix.close)
        self._sockets = bind(self._settings.host, self._settings.port, wait=wait)
        for listener in self._sockets:
            undo.callback(listener.close)
        listen(self._sockets)

    async def run(self, on_ready: Callable[[dict[str, object]], None], on_stopping: Callable[[], None]) -> None:
        """Starts everything and keeps it running until a signal comes.

        `on_ready` is told once clients are served, `on_stopping` when an orderly stop begins.

        Raises:
            PyCounterError: nothing can be served, and why.
        """
        self._catch_signals()
        housekeeping = asyncio.create_task(self._keep_looking())
        try:
            await self._control.start()
            if not await self._start():
                return
            on_ready(self._ready_line())
            await self._stop.wait()
        finally:
            housekeeping.cancel()
            on_stopping()
            await self._shut_down()

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _log.error("stopped by a second signal: every process is killed")
            for member in self._members.values():
                member.child.kill()
            os._exit(1)
        self._note("stopping: coordinators, then replicas, then shards")
        self._stop.set()

    def reload(self) -> None:
        """Reads token file and certificate again, and has every process do so. Bad ones change nothing."""
        if not self._access.reload():
            self._note("nothing was reloaded: the token file or the certificate can't be used")
            return
        self._reloads += 1
        self._note("reloaded the token file and the certificate")
        # Coordinators last: they send the first token to the others.
        for kind in ("shard", "replica", "coordinator"):
            for member in self._of_kind(kind):
                self._have_reloaded(member)

    def _have_reloaded(self, member: Member) -> None:
        """Has a process read the files again that may have read them before the last reload."""
        # Before it is ready the signal would end it; it is sent then.
        if member.record.ready_at is not None and self._read_at[member.record.name] < self._reloads:
            self._read_at[member.record.name] = self._reloads
            member.child.send_signal(signal.SIGHUP)

    # --- starting --------------------------------------------------------------------------------------------------

    async def _start(self) -> bool:
        """Starts everything. False: it was stopped meanwhile."""
        for entry in self._folder.shards:
            self._start_shard(entry)
        await self._settle("shard", SHARDS_FIRST_S)
        await self._refuse_without("shard")
        for entry in self._folder.shards:
            for _ in range(self._settings.replicas - len(entry.replicas)):
                self._remember_replica(entry.name)
            for replica in self._entry(entry.name).replicas:
                # One that was ordered meanwhile runs already.
                if replica.name not in self._members:
                    self._start_replica(entry.name, replica.name)
        for number in range(self._settings.coordinators):
            self._start_coordinator(f"coordinator-{number}")
        await self._settle("coordinator", None)
        await self._refuse_without("coordinator")
        await self._settle("replica", REPLICAS_S)
        return not self._stop.is_set()

    async def _settle(self, kind: str, timeout_s: float | None) -> None:
        """Waits until each of a kind is ready or has failed once."""
        loop = asyncio.get_running_loop()
        began = told = loop.time()
        while not self._stop.is_set() and (timeout_s is None or loop.time() - began < timeout_s):
            waited_for = [member.record.name for member in self._of_kind(kind) if not member.record.is_settled]
            if not waited_for:
                return
            if loop.time() - told >= TELL_S:
                told = loop.time()
                self._note(f"waiting since {told - began:.0f} s for {', '.join(waited_for)} to be ready")
            await asyncio.sleep(0.01)

    async def _refuse_without(self, kind: str) -> None:
        """Raises PyCounterError if not one of a kind can start: then nothing can be served."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (LAST_RUN_S if self._folder.starts > 1 else 0.0)
        members = self._of_kind(kind)
        while all(member.record.can_not_start for member in members) and not self._stop.is_set():
            if loop.time() >= deadline:
                reasons = "; ".join(f"{member.record.name} {member.record.reason}" for member in members[:3])
                raise PyCounterError(f"no {kind} of the cluster in {self._folder.directory} can start: {reasons}")
            await asyncio.sleep(0.05)

    def _ready_line(self) -> dict[str, object]:
        records = [member.record for member in self._members.values()]
        kinds = ("shard", "replica", "coordinator")
        return {
            "address": self.address,
            "pid": os.getpid(),
            "cluster": self._folder.cluster,
            "level": self._settings.level,
            "starts": self._folder.starts,
            **{f"{kind}s": [record.name for record in records if record.kind == kind] for kind in kinds},
            "not_ready": {record.name: record.reason or record.state for record in records if record.ready_at is None},
        }

    def _add(
        self,
        record: ProcessRecord,
        command: Callable[[], tuple[Sequence[str], Sequence[int]]],
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        def start() -> tuple[Sequence[str], Sequence[int]]:
            # It will go by the file as it is now, and the others have to as well.
            if self._access.has_other_tokens():
                self.reload()
            self._read_at[record.name] = self._reloads
            return command()

        def ready(said: dict[str, Any]) -> None:
            on_ready(said)
            self._have_reloaded(self._members[record.name])

        self._members[record.name] = Member(
            record,
            start,
            token=lambda: self._access.token,
            stall_timeout_s=self._settings.stall_timeout_s,
            on_change=self._changed,
            on_ready=ready,
            on_event=self._note,
        )

    def _start_shard(self, entry: ShardEntry) -> None:
        name = entry.name

        def command() -> tuple[Sequence[str], Sequence[int]]:
            known = self._entry(name)
            directory = self._commands.directory("shard", name)
            if known.identity and not (directory / "manifest.json").exists():
                raise PyCounterError(
                    f"{directory} is empty, and it held a shard: put the folder back, or restore a backup into it with "
                    f"`pycounter restore`. To go on without its counters, make an empty shard there: `pycounter serve "
                    f"--data {directory} --port 0` with PYCOUNTER_NAME={name}, once"
                )
            return self._commands.shard(name, _free_or_any(known.port)), ()

        def ready(said: dict[str, Any]) -> None:
            known = self._entry(name)
            record = self._members[name].record
            if known.identity not in {"", record.identity}:
                self._note(f"{name} is another shard than before: its folder was restored, repaired or replaced")
            port = parse_address(record.address)[1]
            if known.port not in {0, port}:
                self._note(f"{name} has another port than before, {port}: the old one was taken")
                self._restart_replicas(known)
            self._remember(msgspec.structs.replace(known, port=port, identity=record.identity))

        self._add(ProcessRecord(name, "shard", identity=entry.identity), command, ready)

    def _start_coordinator(self, name: str) -> None:
        unix = [] if self._unix is None else [self._unix.listener]
        descriptors = [listener.fileno() for listener in (*self._sockets, *unix)]

        def command() -> tuple[Sequence[str], Sequence[int]]:
            return self._commands.coordinator(name, descriptors), descriptors

        self._add(ProcessRecord(name, "coordinator"), command, lambda said: None)
        self._tell_coordinators()

    # --- replicas --------------------------------------------------------------------------------------------------

    def _remember_replica(self, shard: str) -> str:
        """Gives a shard one more replica in the cluster's file, and that replica's name."""
        entry = self._entry(shard)
        taken = {replica.name for replica in entry.replicas}
        name = next(name for number in range(REPLICAS_MAX + 1) if (name := f"{shard}-replica-{number}") not in taken)
        self._folder.change(msgspec.structs.replace(entry, replicas=(*entry.replicas, ReplicaEntry(name=name))))
        return name

    def _start_replica(self, shard: str, name: str) -> None:
        def command() -> tuple[Sequence[str], Sequence[int]]:
            entry = self._entry(shard)
            if not entry.port:
                raise PyCounterError(f"{shard}, which it is to copy, has never been ready")
            port = next((replica.port for replica in entry.replicas if replica.name == name), 0)
            return self._commands.replica(name, format_address(LOOPBACK, entry.port), _free_or_any(port)), ()

        def ready(said: dict[str, Any]) -> None:
            entry = self._entry(shard)
            port = parse_address(self._members[name].record.address)[1]
            replicas = tuple(
                msgspec.structs.replace(replica, port=port) if replica.name == name else replica
                for replica in entry.replicas
            )
            self._remember(msgspec.structs.replace(entry, replicas=replicas))

        self._add(ProcessRecord(name, "replica"), command, ready)

    def _restart_replicas(self, entry: ShardEntry) -> None:
        """Has a shard's replicas end, which are started again with its new address."""
        for replica in entry.replicas:
            if (member := self._members.get(replica.name)) is not None:
                member.child.send_signal(signal.SIGTERM)

    def _add_replica(self, shard: str) -> str:
        if len(self._entry(shard).replicas) >= REPLICAS_MAX:
            raise PyCounterError(f"{shard} has {REPLICAS_MAX} replicas, and no more are possible")
        name = self._remember_replica(shard)
        self._note(f"{name} is added")
        self._start_replica(shard, name)
        self._changed()
        return name

    async def _remove_replica(self, shard: str) -> str:
        """Removes the newest replica of a shard, or the one of this name."""
        names = {replica.name for entry in self._folder.shards for replica in entry.replicas}
        name = shard
        if shard not in names:
            replicas = self._entry(shard).replicas
            if not replicas:
                raise PyCounterError(f"{shard} has no replica")
            name = replicas[-1].name
        entry = next(entry for entry in self._folder.shards if name in {replica.name for replica in entry.replicas})
        kept = tuple(replica for replica in entry.replicas if replica.name != name)
        self._folder.change(msgspec.structs.replace(entry, replicas=kept))
        self._note(f"{name} is removed")
        # Out of the topology first, so that nobody asks it any more.
        member = self._members.pop(name, None)
        self._changed()
        if member is not None:
            await member.child.stop(self._settings.stop_timeout_s)
        return name

    # --- watching and telling --------------------------------------------------------------------------------------

    def _entry(self, shard: str) -> ShardEntry:
        for entry in self._folder.shards:
            if entry.name == shard:
                return entry
        names = ", ".join(entry.name for entry in self._folder.shards)
        raise PyCounterError(f"there is no shard {shard!r}; there are {names}")

    def _remember(self, entry: ShardEntry) -> None:
        try:
            self._folder.change(entry)
        except OSError as error:
            # It serves all the same; the next start finds another port.
            self._note(f"{entry.name}'s port can't be remembered: {error.strerror}")

    def _of_kind(self, kind: str) -> list[Member]:
        return [member for member in self._members.values() if member.record.kind == kind]

    def _note(self, event: str) -> None:
        _log.info("%s", event)
        self._view.note(event)

    async def _keep_looking(self) -> None:
        while True:
            for member in list(self._members.values()):
                member.look()
            await asyncio.sleep(TICK_S)

    def _changed(self) -> None:
        """Something has changed: publishes it once, at the end of this turn of the loop."""
        if not self._is_update_due:
            self._is_update_due = True
            asyncio.get_running_loop().call_soon(self._update)

    def _update(self) -> None:
        self._is_update_due = False
        if self._view.update(self._folder.shards, self._records(), self.address):
            self._tell_coordinators()

    def _records(self) -> dict[str, ProcessRecord]:
        return {name: member.record for name, member in self._members.items()}

    def _tell_coordinators(self) -> None:
        if self._view.topology is None:
            return
        line = json.dumps(self._view.topology.to_wire()).encode() + b"\n"
        for coordinator in self._of_kind("coordinator"):
            coordinator.child.tell(line)

    async def _answer(self, request: dict[str, Any]) -> Any:
        """Answers a request on the control socket."""
        match request:
            case {"do": "status"}:
                self._update()
                return {**self._view.status(self._records()), "address": self.address, "pid": os.getpid()}
            case {"do": "replica add", "shard": str(shard)}:
                self._refuse_while_stopping()
                return self._add_replica(shard)
            case {"do": "replica remove", "shard": str(shard)}:
                self._refuse_while_stopping()
                return await self._remove_replica(shard)
        raise PyCounterError(f"the supervisor doesn't know {request.get('do')!r}: is the command of another version?")

    def _refuse_while_stopping(self) -> None:
        if self._stop.is_set():
            raise PyCounterError("the cluster is being stopped")

    # --- stopping --------------------------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        """Coordinators first, which answer what is in; then nobody asks the others any more."""
        self._stop.set()
        for listener in self._sockets:
            listener.close()
        if self._unix is not None:
            self._unix.close()
        timeout_s = self._settings.stop_timeout_s + STOP_EXTRA_S
        for kind in ("coordinator", "replica", "shard"):
            members = self._of_kind(kind)
            await asyncio.gather(*(member.child.stop(timeout_s) for member in members))
        await self._control.close()
        self._folder.close()


def _free_or_any(port: int) -> int:
    """The port, if it can be listened on; else 0, which lets the system choose."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return 0
    return port
