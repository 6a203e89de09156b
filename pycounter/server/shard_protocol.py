"""A client's connection to a shard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycounter.net.client_protocol import ClientProtocol

if TYPE_CHECKING:
    from pycounter.server.shard_server import ShardServer

__all__ = ["ShardProtocol"]


class ShardProtocol(ClientProtocol):
    """The event loop's side of one connection."""

    __slots__ = ("_server",)

    def __init__(self, server: ShardServer) -> None:
        super().__init__(server.clients, server.shard.connect)
        self._server = server

    def _take_requests(self) -> None:
        for msgid, method, argument in self._connection.take_requests():
            self._owed += 1
            self._server.answer_later(self, msgid, method, argument)

    def reply(self, msgid: int | None, error: str | None, result: bytes | None) -> None:
        """Answers a request that the engine left to the server; a notification too, which gets no answer."""
        self._owed -= 1
        self._looks = 0
        if msgid is not None and not self._transport.is_closing():
            self._write(self._connection.reply(msgid, error, result))
