"""A raw client's connection to a coordinator."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pycounter.coordinator.passage import WAITING_BYTES_MAX, Passage
from pycounter.net.client_protocol import ClientProtocol

if TYPE_CHECKING:
    from pycounter.coordinator.coordinator_server import CoordinatorServer

__all__ = ["CoordinatorProtocol"]


#: So long a client whose passage has ended may take to read the last answers and close.
LINGER_S = 1.0


class CoordinatorProtocol(ClientProtocol):
    """The event loop's side of one connection."""

    __slots__ = ("_client_has_ended", "_is_lingering", "_passage", "_server")

    def __init__(self, server: CoordinatorServer) -> None:
        super().__init__(server.clients, server.router.connect)
        self._server = server
        self._passage: Passage | None = None
        self._is_lingering = False
        self._client_has_ended = False

    def _take_requests(self) -> None:
        for token, method, params, protocol in self._connection.take_requests():
            self._server.answer_later(self, token, method, params, protocol)

    def answer(self, token: int, error: str | None, result: bytes) -> None:
        """Answers a request that the router left to the server, unless the client has gone."""
        self._looks = 0
        replies = self._connection.answer(token, error, result)
        if replies is not None and not self._transport.is_closing():
            self.write(replies)

    # --- a passage ---------------------------------------------------------------------------------------------------

    def begin_passage(self, passage: Passage) -> bool:
        """From now on the client talks to a shard. False: it doesn't wait for that any more."""
        handed_over = self._connection.hand_over()
        if handed_over is None:
            return False
        data, has_finished = handed_over
        self._connection = self._passage = passage
        self._feed = passage.feed
        self._transport.set_write_buffer_limits(WAITING_BYTES_MAX)
        passage.begin()
        passage.feed(data)
        if has_finished or self._clients.stopping:
            passage.finish()
        if self._writing_paused:
            passage.wait_for_client(True)
        self._adjust_reading()
        return True

    def pass_on(self, data: bytes) -> None:
        """Sends what came from the shard."""
        self._looks = 0
        if not self._transport.is_closing():
            self.write(data)

    def attend(self) -> None:
        """The passage or the engine needs more than its replies written."""
        if self._passage is None or not self._passage.closing or self._client_has_ended:
            super().attend()
        elif not self._is_lingering and not self._transport.is_closing():
            self._linger()

    def eof_received(self) -> bool:
        """The client sends nothing more. True: it may still receive."""
        self._client_has_ended = True
        return super().eof_received()

    def _linger(self) -> None:
        """Lets the client read the last answers: a socket closed with unread input drops what it still has to send."""
        if self._transport.get_extra_info("sslcontext") is not None:
            self._transport.close()
            return
        self._is_lingering = True
        self._transport.write_eof()
        self._transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _adjust_reading(self) -> None:
        if not self._is_lingering:
            super()._adjust_reading()

    def pause_writing(self) -> None:
        """The client reads slower than replies come."""
        super().pause_writing()
        if self._passage is not None:
            self._passage.wait_for_client(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        if self._passage is not None:
            self._passage.wait_for_client(False)

    def stop_reading(self) -> None:
        """For an orderly stop: nothing more is accepted, replies still leave."""
        super().stop_reading()
        if self._passage is not None:
            self._passage.finish()
