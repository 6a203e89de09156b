"""A raw client's connection to a coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pycounter.net.client_protocol import ClientProtocol

if TYPE_CHECKING:
    from pycounter.coordinator.coordinator_server import CoordinatorServer

__all__ = ["CoordinatorProtocol"]


class CoordinatorProtocol(ClientProtocol):
    """The event loop's side of one connection."""

    __slots__ = ("_server",)

    def __init__(self, server: CoordinatorServer) -> None:
        super().__init__(server.clients, server.router.connect)
        self._server = server

    def _take_requests(self) -> None:
        for token, method, params, protocol in self._connection.take_requests():
            self._server.answer_later(self, token, method, params, protocol)

    def answer(self, token: int, error: str | None, result: bytes) -> None:
        """Answers a request that the router left to the server, unless the client has gone."""
        self._looks = 0
        replies = self._connection.answer(token, error, result)
        if replies is not None and not self._transport.is_closing():
            self.write(replies)
