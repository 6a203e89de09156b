"""A blocking client for a single command: what the command line uses.

A change is sent under an operation id made for it, and sent again under the same id, to the same shard, until it is
settled or the time is over.
"""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType
from typing import Any, Self

from pycounter.client.backoff import Backoff
from pycounter.client.framing import ProtocolViolation, ReplyDecoder, request
from pycounter.errors import (
    DeadlineExceeded,
    Forbidden,
    RpcError,
    Unauthenticated,
    Unavailable,
    UnknownOutcome,
    WrongShard,
    from_wire,
)

__all__ = ["OneShotClient"]

_RECEIVE_BYTES = 1 << 16
_REPLY_BYTES_MAX = 64 << 20
_ID_BYTES = 16
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0


class OneShotClient:
    """One request at a time to one shard, all within one deadline. For one thread.

    Args:
        host: the shard's.
        port: the shard's.
        token: the server's, if it has one.
        timeout_s: for everything that this client does.
    """

    def __init__(self, host: str, port: int, *, token: str | bytes | None = None, timeout_s: float = 10.0) -> None:
        self._address = (host, port)
        self._token = token
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._backoff = Backoff(_BACKOFF_FIRST_S, _BACKOFF_MAX_S)
        self._identity: str | None = None
        self._socket: socket.socket | None = None
        self._decoder = ReplyDecoder(_REPLY_BYTES_MAX)
        self._msgid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, method: str, *params: object, can_repeat: bool = True) -> Any:
        """Calls a method and gives its result.

        Args:
            method: its name.
            params: in order.
            can_repeat: False for what must not be sent a second time after a broken connection.

        Raises:
            RpcError: the server's refusal; Unavailable if nothing was sent; DeadlineExceeded or UnknownOutcome if the
                outcome is unknown.
        """
        return self._until_settled(method, params, is_change=not can_repeat, can_repeat=can_repeat)

    def change(self, method: str, key: str | bytes, *params: object) -> Any:
        """Carries out `incr`, `drain` or `delete` exactly once, under a fresh operation id.

        Raises:
            RpcError: as for `call`.
        """
        options = {"id": os.urandom(_ID_BYTES)}
        return self._until_settled(method, (key, *params, options), is_change=True, can_repeat=True)

    def _until_settled(self, method: str, params: tuple[object, ...], *, is_change: bool, can_repeat: bool) -> Any:
        is_ambiguous = False
        trouble: Exception | None = None
        while True:
            if time.monotonic() >= self._deadline:
                raise self._too_late(method, is_ambiguous, trouble) from trouble
            is_sent = False
            try:
                self._connect()
                is_sent = True
                return self._exchange(method, params)
            except (Unauthenticated, Forbidden, WrongShard) as error:
                if is_ambiguous:
                    raise UnknownOutcome(f"{method} was sent and not answered, then refused: {error}") from error
                raise
            except RpcError as error:
                # A refusal settles an operation only if no earlier attempt is unanswered.
                is_ambiguous = is_ambiguous or (is_sent and is_change and error.effect == "unknown")
                if is_sent and not error.retryable:
                    if is_ambiguous and error.effect == "nothing":
                        raise UnknownOutcome(f"{method} was sent and not answered, then refused: {error}") from error
                    raise
                if is_sent and not can_repeat:
                    raise
                trouble = error
            except OSError as error:
                self.close()
                is_ambiguous = is_ambiguous or (is_sent and is_change)
                trouble = error
                if is_sent and not can_repeat:
                    raise UnknownOutcome(
                        f"{method} was sent and not answered ({error}): its outcome is unknown"
                    ) from error
            time.sleep(max(0.0, min(self._backoff.next_s(), self._deadline - time.monotonic())))

    def _too_late(self, method: str, is_ambiguous: bool, trouble: Exception | None) -> RpcError:
        where = f"the shard at {self._address[0]}:{self._address[1]}"
        why = f" ({trouble})" if trouble is not None else ""
        if is_ambiguous:
            return DeadlineExceeded(
                f"{where} did not settle {method} in {self._timeout_s:g} s{why}: its outcome is unknown"
            )
        return Unavailable(f"{where} did not take {method} in {self._timeout_s:g} s{why}: nothing was applied")

    def _connect(self) -> None:
        if self._socket is not None:
            return
        self._socket = socket.create_connection(self._address, timeout=self._left_s())
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = ReplyDecoder(_REPLY_BYTES_MAX)
        hello: dict[str, object] = {"client": "pycounter command"}
        if self._token is not None:
            hello["token"] = self._token
        said = self._exchange("hello", (hello,))
        identity = said.get("identity") if isinstance(said, dict) else None
        if not isinstance(identity, str):
            self.close()
            raise ProtocolViolation("the server's answer to hello makes no sense")
        if self._identity is not None and identity != self._identity:
            self.close()
            raise WrongShard(f"the shard changed from {self._identity} to {identity} meanwhile; nothing is sent to it")
        self._identity = identity

    def _exchange(self, method: str, params: tuple[object, ...]) -> Any:
        assert self._socket is not None
        self._msgid += 1
        frame = request(self._msgid, method, params)
        self._socket.settimeout(self._left_s())
        self._socket.sendall(frame)
        while True:
            self._socket.settimeout(self._left_s())
            chunk = self._socket.recv(_RECEIVE_BYTES)
            if not chunk:
                raise ConnectionResetError("the server closed the connection")
            for msgid, error, result in self._decoder.feed(chunk):
                if msgid != self._msgid:
                    raise ProtocolViolation(f"the server answered {msgid}, which was not asked")
                if error is not None:
                    raise from_wire(error)
                return result

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left
