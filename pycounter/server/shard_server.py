"""A shard behind an event loop: opening, serving, stopping.

Threads: the loop's, which owns the shard; the engine's commit thread; the checkpoint thread; one that reads for
replicas; and for the length of a backup one more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from pycounter._native import VERSION, HashRing, Shard
from pycounter.errors import RpcError, SettingsError, StorageError
from pycounter.net.clients import Clients
from pycounter.net.listening import bind, listen
from pycounter.net.security import Access, check_exposure
from pycounter.net.server_process import BACKLOG, hand_over_quickly
from pycounter.net.tls_listener import TlsListener
from pycounter.net.unix_socket import UnixSocket
from pycounter.server.shard_protocol import ShardProtocol
from pycounter.server.tail_service import TailService
from pycounter.settings import ServerSettings, parse_ring
from pycounter.storage.backup import write_backup
from pycounter.storage.checkpointer import Checkpointer
from pycounter.storage.recovery import open_folder
from pycounter.storage.reserve import Reserve
from pycounter.topology import WATCH_S, format_address

__all__ = ["ShardServer"]

_log = logging.getLogger(__name__)

TICK_S = 0.1
#: glibc's name for it in malloc.h.
M_MMAP_THRESHOLD = -3
POLL_S = 0.002
#: The name of a new folder's shard, if none is given.
NAME = "shard-0"
#: Blocks of memory from this size on go back to the system when they are freed.
LARGE_BLOCK_BYTES = 512 * 1024
#: How many requests of a method may be under way. Of backups one is made at a time.
CROWD_MAX = {"backup": 8, "watch_topology": 10_000, "tail": 64}


class ShardServer:
    """One shard on one port, for MessagePack-RPC and RESP.

    `run` serves until `stop` is called or a signal comes.

    Raises (constructor):
        SettingsError: token or TLS files are wrong, or the address is exposed without a token.
        StorageError: the folder is locked, damaged, or of a newer format.
    """

    def __init__(self, settings: ServerSettings) -> None:
        access = self._access = Access(settings.token_file, settings.tls_cert, settings.tls_key)
        check_exposure(settings.host, access.tokens, insecure=settings.insecure)
        self._tls: TlsListener | None = None
        if access.tls is not None:
            self._tls = TlsListener(
                access.tls,
                lambda: ShardProtocol(self),
                self._has_room,
                handshake_timeout_s=settings.handshake_timeout_s,
            )
        self.settings = settings
        self.clients = Clients(connections_max=settings.connections_max, held_bytes_max=settings.held_bytes_max)
        self._crowds: dict[str, set[asyncio.Task[None]]] = {method: set() for method in CROWD_MAX}
        self._unix: UnixSocket | None = None
        self._servers: list[asyncio.Server] = []
        self._stop = asyncio.Event()
        #: Why the disk refused when that was last looked at.
        self._disk_failure: str | None = None
        with contextlib.ExitStack() as undo:
            # First, so that a start whose address is taken makes no folder.
            self._sockets = bind(settings.host, settings.port)
            for listener in self._sockets:
                undo.callback(listener.close)
            if settings.unix is not None:
                self._unix = UnixSocket(settings.unix)
                undo.callback(self._unix.close)
            self.shard, store = open_folder(settings.data, lambda: self._open_shard(access.tokens))
            undo.pop_all()
        self._checkpointer = Checkpointer(
            self.shard,
            store,
            log_bytes=settings.checkpoint_log_bytes,
            interval_s=settings.checkpoint_interval_s,
            reserve=Reserve(settings.data, settings.reserve_bytes),
        )
        self._store = store

    def _open_shard(self, tokens: Sequence[bytes]) -> Shard:
        settings = self.settings
        ring = parse_ring(settings.ring)
        shard = Shard(
            settings.data,
            name=settings.name or NAME,
            level=settings.level,
            server_version=VERSION,
            tokens=tokens,
            segment_bytes=settings.segment_bytes,
            frame_bytes_max=settings.frame_bytes_max,
            input_bytes_max=settings.input_bytes_max,
            connections_max=settings.connections_max,
            reply_bytes_max=settings.reply_bytes_max,
            held_bytes_max=settings.held_bytes_max,
            counters_bytes_max=settings.counters_bytes_max,
            dirty_counters_max=settings.dirty_counters_max,
            sessions_max=settings.sessions_max,
            results_per_session_max=settings.results_per_session_max,
            session_bytes_max=settings.session_bytes_max,
            ids_bytes_max=settings.ids_bytes_max,
            session_window_s=settings.session_window_s,
            id_window_s=settings.id_window_s,
            flush_interval_s=settings.flush_interval_s,
            ring=HashRing(ring) if ring else None,
        )
        if ring and shard.name not in ring:
            shard.close_folder()
            raise SettingsError(
                f"ring has no shard {shard.name!r}, the one in {settings.data}; it has {', '.join(ring)}"
            )
        if settings.name not in {None, shard.name}:
            shard.close_folder()
            raise SettingsError(
                f"name is {settings.name!r}, but the shard in {settings.data} keeps the name that its folder was made "
                f"with, {shard.name!r}: leave the setting out, or give the folder that is meant"
            )
        return shard

    async def run(self, on_ready: Callable[[dict[str, object]], None], on_stopping: Callable[[], None]) -> None:
        """Serves until stopped. `on_ready` gets address, pid, shard, identity, epoch, once clients can connect.

        `on_stopping` is called when an orderly stop begins.

        Raises:
            StorageError: recovery found damage, and nothing was changed; or the disk refused what was left at the end.
            PyCounterError: the address can't be listened on.
        """
        loop = asyncio.get_running_loop()
        hand_over_quickly()
        _give_back_large_blocks()
        wake_fd: int | None = None
        try:
            replayed = self.shard.start(loop.call_soon)
            wake_fd = self.shard.wake_fd
            if self.shard.torn_bytes:
                _log.warning(
                    "cut %d bytes off the log's end: a commit that was being written when the server was killed or the "
                    "power went. Nobody was told that it is durable, unless the disk broke its word about fsync",
                    self.shard.torn_bytes,
                )
            await asyncio.to_thread(self._checkpointer.make_room)
            self._tails = TailService(self.shard, self._store)
            loop.add_reader(wake_fd, self._release)
            address = format_address(*self._sockets[0].getsockname()[:2])
            if self._unix is not None:
                await loop.create_unix_server(lambda: ShardProtocol(self), sock=self._unix.listener, backlog=BACKLOG)
            await self._listen()
        except BaseException:
            self._close_sockets()
            if wake_fd is not None:
                loop.remove_reader(wake_fd)
            self._checkpointer.stop(checkpoint=False)
            self.shard.stop()
            raise
        self.shard.set_topology(address)
        self._checkpointer.start()
        idle = self.clients.close_idle(self.settings.idle_timeout_s)
        housekeeping = [loop.create_task(self._tick()), loop.create_task(idle)]
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        on_ready(
            {
                "address": address,
                "pid": os.getpid(),
                "shard": self.shard.name,
                "identity": self.shard.identity,
                "epoch": self.shard.epoch,
                "level": self.settings.level,
                "commits_replayed": replayed,
            }
        )
        try:
            await self._stop.wait()
        finally:
            on_stopping()
            self.clients.stopping = True
            self._close_sockets()
            await self._drain()
            for task in housekeeping:
                task.cancel()
            loop.remove_reader(wake_fd)
            await self._tails.close()
            lost = self._loss()
            await asyncio.to_thread(self._close_storage)
        if lost is not None:
            raise StorageError(lost, self.settings.data)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        listen(self._sockets)
        if self._tls is not None:
            self._tls.adopt(self._sockets)
            return
        for bound in self._sockets:
            self._servers.append(await loop.create_server(lambda: ShardProtocol(self), sock=bound, backlog=BACKLOG))

    def _close_sockets(self) -> None:
        """Accepts nobody any more."""
        if self._tls is not None:
            self._tls.close()
        for server in self._servers:
            server.close()
        for bound in self._sockets:
            bound.close()
        if self._unix is not None:
            self._unix.close()

    def stop(self) -> None:
        """Orders an orderly stop: accept nothing, answer what is in, commit, checkpoint."""
        self._stop.set()

    def reload(self) -> None:
        """Reads token file and certificate again, for those who connect from now on. Bad ones change nothing."""
        if self._access.reload():
            self.shard.set_tokens(self._access.tokens)
            if self._tls is not None and self._access.tls is not None:
                self._tls.context = self._access.tls

    def _has_room(self) -> bool:
        """May one more TLS client be accepted?"""
        return self.clients.has_room(handshakes=0 if self._tls is None else self._tls.handshakes)

    def answer_later(self, connection: ShardProtocol, msgid: int | None, method: str, argument: Any) -> None:
        """Answers a request that takes long, or waits for something."""
        crowd = self._crowds[method]
        if len(crowd) >= CROWD_MAX[method]:
            connection.reply(msgid, f"overloaded: {CROWD_MAX[method]} requests of {method} are under way", None)
            return
        answers: dict[str, Callable[[Any], Awaitable[bytes]]] = {
            "backup": self._backup,
            "watch_topology": self._watch_topology,
            "tail": self._tails.answer,
        }
        task = asyncio.get_running_loop().create_task(self._answer(connection, msgid, answers[method](argument)))
        crowd.add(task)
        task.add_done_callback(crowd.discard)

    async def _answer(self, connection: ShardProtocol, msgid: int | None, answer: Awaitable[bytes]) -> None:
        try:
            result = await answer
        except RpcError as error:
            connection.reply(msgid, error.wire_text, None)
        except StorageError as error:
            connection.reply(msgid, f"storage: {error}", None)
        else:
            connection.reply(msgid, None, result)

    async def _backup(self, directory: str) -> bytes:
        target = await asyncio.to_thread(write_backup, self.shard, self._checkpointer, directory)
        return msgspec.msgpack.encode(str(target))

    async def _watch_topology(self, _known: int) -> bytes:
        # A shard's own topology never changes: whoever has it gets it again after a while.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), WATCH_S)
        return self.shard.topology()

    def _release(self) -> None:
        for connection, replies in self.shard.release():
            connection.write(replies)
        self._tails.on_durable()

    def _note_disk(self) -> None:
        """Logs once that the disk refuses, and once that it doesn't any more."""
        failure = self.shard.failure
        if failure is not None and self._disk_failure is None:
            _log.error("read only: the disk refuses changes; they are tried again until it takes them: %s", failure)
        elif failure is None and self._disk_failure is not None:
            _log.warning("the disk works again: changes are accepted, and those that waited are on disk")
        self._disk_failure = failure

    def _loss(self) -> str | None:
        """What is wrong if the shard ends now; None if all is on disk."""
        counters, failure = self.shard.unwritten_counters, self.shard.failure
        if not counters:
            return None if failure is None else f"stopped while the shard was read only: {failure}"
        return (
            f"stopped with changes of {counters} counters that the disk didn't take ({failure}): they may be lost. "
            "Operations at `applied` were answered; operations at `durable` were answered `unknown_outcome` or not at "
            "all"
        )

    async def _tick(self) -> None:
        while True:
            self._note_disk()
            self._report()
            self.shard.tick()
            self._tails.tick()
            await asyncio.sleep(TICK_S)

    def _report(self) -> None:
        """Tells the engine, which answers `stats`, what only the server counts."""
        checkpointer = self._checkpointer
        self.shard.report(
            checkpoints=checkpointer.checkpoints,
            checkpoints_failed=checkpointer.failures,
            checkpoint_failure=checkpointer.last_failure,
            log_bytes=checkpointer.log_bytes,
            connections_refused=self.clients.refused,
        )

    async def _drain(self) -> None:
        """Lets everything that was received become durable and its replies leave, within the time for it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.stop_timeout_s
        self.clients.stop()
        self._tails.stop()
        tasks = set().union(*self._crowds.values())
        if tasks:
            await asyncio.wait(tasks, timeout=self.settings.stop_timeout_s)
        # Commits end on another thread, and the loop has to release their replies: look again, briefly.
        while not self.shard.is_settled() and loop.time() < deadline:
            self.shard.commit()
            await asyncio.sleep(POLL_S)
        await self.clients.close(deadline)

    def _close_storage(self) -> None:
        try:
            self._checkpointer.stop()
        except StorageError as error:
            _log.error("no last checkpoint was made; the next start replays what is in the log: %s", error)
        finally:
            self.shard.stop()

    def _on_signal(self) -> None:
        if self._stop.is_set():
            _log.error("stopped by a second signal: what was not committed is not answered")
            os._exit(1)
        self.stop()


def _give_back_large_blocks() -> None:
    """Has the C library keep none of a checkpoint's memory for later, as far as it can be told."""
    with contextlib.suppress(AttributeError):  # musl has no such call, and always gives them back
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
