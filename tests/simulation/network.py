"""A network in memory: connections as asyncio transports, with everything that befalls TCP.

A connection is two pipes. What a side writes is cut into pieces that arrive in order, each after the latency of its
moment; pieces of different connections overtake each other. What can go wrong, and what stays true:

- a *cut*: after so many more bytes in one direction the connection is reset, and each side learns that at its own time,
  or one side doesn't until it writes;
- a *betrayal*: one side hears that the connection was reset, and what it sent arrives all the same, late;
- a *stall*: a connection doesn't move in one direction while others do; the bytes come late, if at all;
- a *hold*: between two hosts nothing moves, and nobody is told. When it ends, everything goes on where it was;
- a process that dies: its kernel still sends what it had taken from it, or resets the connection;
- a side that aborts: the same. So a request may arrive long after its sender has given the connection up.

Bytes are never reordered, doubled or changed within a connection.
"""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tests.simulation.virtual_loop import VirtualLoop

#: A connection attempt that nobody answers ends after this, as the kernel has it.
ATTEMPT_S = 120.0
#: A piece that is read at once is not longer than this, as with a socket.
PIECE_MAX = 256 * 1024

#: The host on whose behalf a task runs.
CALLER: ContextVar[str] = ContextVar("caller", default="nobody")


@contextlib.contextmanager
def calls_from(host: str) -> Iterator[None]:
    """Tasks that are made inside, and theirs, connect from this host."""
    token = CALLER.set(host)
    try:
        yield
    finally:
        CALLER.reset(token)


@dataclass
class Weather:
    """How the network is: seconds, and a chance for each piece."""

    latency_s: float = 0.0005
    jitter_s: float = 0.0005
    #: A piece arrives in two.
    split: float = 0.1
    #: A piece takes so much longer, as after a lost packet.
    loss: float = 0.01
    loss_s: float = 0.2
    #: Bytes on their way in one direction, from which on the writer is asked to pause.
    window: int = 64 * 1024


class Endpoint(asyncio.Transport):
    """One side of a connection."""

    def __init__(self, network: "Network", host: str, peer_host: str, number: int) -> None:
        super().__init__()
        self._network = network
        self._loop = network.loop
        self.host, self.peer_host, self.number = host, peer_host, number
        self.peer: Endpoint
        #: Did this side connect?
        self.calls = False
        self.protocol: Any = None
        #: Written here and not yet read there.
        self._out: deque[bytes] = deque()
        self.out_bytes = 0
        self._closing = False
        self._eof_written = False
        #: Nothing is read or written any more, and the protocol knows or is gone.
        self.dead = False
        self._reading = True
        self._paused_writing = False
        self._arriving = False
        self._not_before = 0.0
        #: The other side is to be told of an end, after what is in `_out`; an exception says that it is a reset.
        self._end: BaseException | str | None = None
        self._end_told = False
        #: It ended before there was a protocol.
        self._lost_early: BaseException | None = None
        #: After so many more bytes the connection is reset.
        self.cut_after: int | None = None
        self.cut_is_half_open = False
        #: With the next write this side hears of a reset, and for so many seconds what it wrote is still on its way.
        self.betrayed_s: float | None = None
        #: Until then nothing moves in this direction, as when packets are lost again and again.
        self._stalled_until = 0.0

    # --- asyncio.Transport -----------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            return (self.peer_host, 1)
        if name == "sockname":
            return (self.host, 1)
        return default

    def is_closing(self) -> bool:
        return self._closing

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.peer._move()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The weather decides."""

    def get_write_buffer_size(self) -> int:
        return self.out_bytes

    def write(self, data: Any) -> None:
        if self._closing or self.dead or self._eof_written or not data:
            return
        self._out.append(bytes(data))
        self.out_bytes += len(data)
        if not self._paused_writing and self.out_bytes > self._network.weather.window:
            self._paused_writing = True
            self.protocol.pause_writing()
        if self.betrayed_s is not None:
            self.stall(self.betrayed_s)
            self._loop.call_later(self._network.latency_s(), self._betray)
        self._move()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_written and not self._closing:
            self._eof_written = True
            self._end = self._end or "eof"
            self._move()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._end = "end"
        if not self.out_bytes:
            self._loop.call_soon(self._lose, None)
        self._move()

    def abort(self) -> None:
        if self.dead:
            return
        self._closing = True
        self._leave()
        self._loop.call_soon(self._lose, None)

    # --- what the simulation does ----------------------------------------------------------------------------------

    def vanish(self) -> None:
        """The process is gone: its protocol hears nothing more, and its kernel ends the connection."""
        if self.dead:
            return
        self._closing = self.dead = True
        self.protocol = None
        self._leave()

    def go_silent(self) -> None:
        """The machine is gone: nobody is told."""
        self._closing = self.dead = True
        self.protocol = None
        self._out.clear()
        self.out_bytes = 0

    def _leave(self) -> None:
        """What the kernel makes of an abort: what it has may still arrive, then an end or a reset."""
        if self._end_told:
            return
        chance = self._network.chance
        if chance.random() < 0.3:
            # A reset: some of it is lost.
            keep = chance.randrange(self.out_bytes + 1)
            self._keep(keep)
            self._end = ConnectionResetError("reset by peer")
        else:
            self._end = "end"
        self._move()

    def _keep(self, count: int) -> None:
        whole = b"".join(self._out)[:count]
        self._out.clear()
        if whole:
            self._out.append(whole)
        self.out_bytes = len(whole)

    def _lose(self, reason: BaseException | None) -> None:
        """The connection is over for this side."""
        if self.dead:
            return
        if self.protocol is None:
            self._lost_early = reason
            return
        self._closing = self.dead = True
        protocol, self.protocol = self.protocol, None
        self._network.log("%s: connection %d to %s is over: %s", self.host, self.number, self.peer_host, reason)
        protocol.connection_lost(reason)

    def reset(self, reason: str) -> None:
        """The connection breaks here: this side learns it now."""
        self._out.clear()
        self.out_bytes = 0
        self._lose(ConnectionResetError(reason))

    def _move(self) -> None:
        """Has the next piece arrive, if one may."""
        if self._arriving or self._end_told or (not self._out and self._end is None):
            return
        peer = self.peer
        if not self._can_move() or (not peer.dead and (peer.protocol is None or (not peer._reading and self._out))):
            return
        self._arriving = True
        network, now = self._network, self._loop.time()
        weather, chance = network.weather, network.chance
        delay = weather.latency_s + weather.jitter_s * chance.random()
        if chance.random() < weather.loss:
            delay += weather.loss_s * chance.random()
        # Pieces that were written together travel together.
        self._loop.call_at(max(now + delay, self._not_before), self._arrive)

    def _arrive(self) -> None:
        self._arriving = False
        network, peer = self._network, self.peer
        if self._end_told or not self._can_move():
            # After a cut, what was written since then never left.
            return
        self._not_before = self._loop.time()
        if not self._out:
            self._tell_end()
            return
        if peer.dead or peer._closing:
            # Nobody reads it: a reset comes back.
            self._out.clear()
            self.out_bytes = 0
            if self._end is not None:
                self._end_told = True
            if not self.dead:
                self._loop.call_later(network.latency_s(), self._lose, ConnectionResetError("reset by peer"))
            return
        if not peer._reading:
            return
        data = self._take_piece()
        if self._paused_writing and self.out_bytes <= network.weather.window // 4:
            self._paused_writing = False
            if self.protocol is not None:
                self._loop.call_soon(self._resume_writing)
        if data:
            network.log("%s: %d bytes from %s on connection %d", peer.host, len(data), self.host, self.number)
            peer.protocol.data_received(data)
        if self.cut_after == 0:
            self._cut()
            return
        if self._closing and not self.out_bytes and not self.dead:
            self._loop.call_soon(self._lose, None)
        self._move()

    def _take_piece(self) -> bytes:
        chance = self._network.chance
        whole = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        size = min(len(whole), PIECE_MAX)
        if size > 1 and chance.random() < self._network.weather.split:
            size = chance.randrange(1, size)
        if self.cut_after is not None:
            size = min(size, self.cut_after)
            self.cut_after -= size
        self._out.clear()
        if size < len(whole):
            self._out.append(whole[size:])
        self.out_bytes = len(whole) - size
        return whole[:size]

    def _cut(self) -> None:
        """The connection breaks in the middle of what was sent."""
        network, peer = self._network, self.peer
        network.log("cut: connection %d between %s and %s", self.number, self.host, self.peer_host)
        network.cuts += 1
        self._end_told = peer._end_told = True
        sides = [self, peer]
        network.chance.shuffle(sides)
        first, second = sides
        first._out.clear()
        second._out.clear()
        first.out_bytes = second.out_bytes = 0
        self._loop.call_later(network.latency_s(), first.reset, "cut")
        later = network.latency_s() if not self.cut_is_half_open else network.chance.uniform(5.0, 60.0)
        self._loop.call_later(later, second.reset, "cut, and noticed late")

    def _betray(self) -> None:
        if not self.dead:
            self._end = self._end or "end"
            self._lose(ConnectionResetError("reset by somebody between"))

    def _resume_writing(self) -> None:
        if self.protocol is not None:
            self.protocol.resume_writing()

    def _tell_end(self) -> None:
        """What was written has arrived: now the other side hears how it ends."""
        end, self._end_told = self._end, True
        peer = self.peer
        if peer.dead:
            return
        if isinstance(end, BaseException):
            peer.reset(str(end))
        elif not peer._closing and not peer.protocol.eof_received():
            # Who keeps it open learns that nobody reads any more when it writes.
            peer.close()

    def stall(self, seconds: float) -> None:
        """Nothing moves for so long."""
        self._stalled_until = self._loop.time() + seconds
        self._loop.call_at(self._stalled_until, self.nudge)

    def _can_move(self) -> bool:
        network = self._network
        if self._loop.time() < self._stalled_until:
            return False
        return not network.is_held(self.host, self.peer_host) and self.peer_host not in network.silent

    def made(self, protocol: Any) -> None:
        """It is connected, for this side."""
        self.protocol = protocol
        protocol.connection_made(self)
        if self._lost_early is not None:
            self._loop.call_soon(self._lose, self._lost_early)
        self.peer._move()

    def nudge(self) -> None:
        """A hold or a stall is over."""
        self._move()


class Network:
    """Who can reach whom, and how well."""

    def __init__(self, loop: VirtualLoop, chance: random.Random, weather: Weather, log: Callable[..., None]) -> None:
        self.loop = loop
        self.chance = chance
        self.weather = weather
        self.log = log
        self.cuts = 0
        #: Machines that answer nothing, not even with a reset.
        self.silent: set[str] = set()
        #: Hosts whose process is gone: what is left of it in this one reaches nobody.
        self.gone: set[str] = set()
        self._listeners: dict[tuple[str, int], tuple[str, Callable[[], Any]]] = {}
        self._endpoints: list[Endpoint] = []
        self._holds: dict[tuple[str, str], int] = {}
        self._number = 0
        loop.connector = self._connect

    def latency_s(self) -> float:
        """Of something small."""
        return self.weather.latency_s + self.weather.jitter_s * self.chance.random()

    # --- listening and connecting ----------------------------------------------------------------------------------

    def listen(self, host: str, port: int, factory: Callable[[], Any]) -> None:
        """From now on connections to this address come to be; `factory` makes the protocol."""
        self._listeners[host, port] = (host, factory)

    def stop_listening(self, host: str, port: int) -> None:
        """Connections are refused from now on."""
        self._listeners.pop((host, port), None)

    async def _connect(self, factory: Callable[[], Any], host: str, port: int, options: dict[str, Any]) -> Any:
        caller = CALLER.get()
        loop, began = self.loop, self.loop.time()
        while True:
            await asyncio.sleep(self.latency_s())
            if caller in self.gone:
                raise ConnectionRefusedError(f"{caller} is gone")
            if not self.is_held(caller, host) and not self.is_held(host, caller) and host not in self.silent:
                break
            if loop.time() - began > ATTEMPT_S:
                raise TimeoutError(f"connecting to {host}:{port}: nobody answered")
            await asyncio.sleep(1.0 * self.chance.random())
        listener = self._listeners.get((host, port))
        if listener is None:
            await asyncio.sleep(self.latency_s())
            raise ConnectionRefusedError(f"connecting to {host}:{port}: refused")
        self._number += 1
        near = Endpoint(self, caller, host, self._number)
        far = Endpoint(self, host, caller, self._number)
        near.peer, far.peer, near.calls = far, near, True
        self._endpoints = [end for end in self._endpoints if not end.dead or not end.peer.dead]
        self._endpoints += [near, far]
        self.log("%s: connection %d from %s", host, self._number, caller)
        far.made(listener[1]())
        try:
            # The server may talk, and die, before the client knows that it is connected.
            await asyncio.sleep(self.latency_s())
        except BaseException:
            near.vanish()
            raise
        if near.dead:
            raise ConnectionResetError(f"connecting to {host}:{port}: its own host is gone")
        protocol = factory()
        near.made(protocol)
        return near, protocol

    # --- trouble ---------------------------------------------------------------------------------------------------

    def endpoints(self, host: str | None = None) -> list[Endpoint]:
        """The open sides of connections, at one host or all, oldest first."""
        return [end for end in self._endpoints if not end.dead and host in {None, end.host}]

    def is_held(self, one: str, other: str) -> bool:
        """Does nothing move from one to the other?"""
        return (one, other) in self._holds or (one, "*") in self._holds or ("*", other) in self._holds

    def hold(self, one: str, other: str) -> None:
        """From now on nothing moves in this direction; `*` is everybody."""
        self._holds[one, other] = self._holds.get((one, other), 0) + 1

    def release(self, one: str, other: str) -> None:
        """Ends one such hold."""
        count = self._holds.pop((one, other), 0) - 1
        if count > 0:
            self._holds[one, other] = count
        self._nudge()

    def revive(self, host: str) -> None:
        """The machine answers again."""
        self.silent.discard(host)
        self._nudge()

    def heal(self) -> None:
        """Ends all trouble."""
        self._holds.clear()
        for endpoint in self._endpoints:
            endpoint.cut_after = endpoint.betrayed_s = None
            endpoint.stall(0.0)
        self._nudge()

    def _nudge(self) -> None:
        # What a side that is no more had sent still arrives.
        for endpoint in list(self._endpoints):
            endpoint.nudge()
