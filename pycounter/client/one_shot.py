"""A blocking client for a call or two: what the command line uses.

A change carries an operation id, so that it can be asked for again after a cut connection without counting twice.
"""

import contextlib
import os
import random
import socket
import ssl
import time
from typing import Any, Self

import msgpack

from pycounter.client.backoff import Backoff
from pycounter.errors import (
    DeadlineExceeded,
    PyCounterError,
    RpcError,
    Unavailable,
    UnknownOutcome,
    from_wire,
)

__all__ = ["OneShotClient"]

CHANGING_METHODS = frozenset({"incr", "drain", "delete"})
ID_BYTES = 16
RECEIVE_BYTES = 256 * 1024


class OneShotClient:
    """Calls a shard and waits. For one thread; a context manager.

    Args:
        host: the shard's address.
        port: its port.
        token: if it needs one.
        tls: a context to speak TLS.
        timeout_s: for each call, with all its attempts.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 7400,
        *,
        token: str | bytes | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._host = host
        self._port = port
        self._token = token
        self._tls = tls
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._unpacker: Any = None
        self._msgid = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. The next call makes another one."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def change(
        self, method: str, *params: Any, operation_id: bytes | str | None = None, level: str | None = None
    ) -> Any:
        """Calls `incr`, `drain` or `delete` under an operation id, again if need be. It is done once.

        Args:
            method: which.
            params: key, and for `incr` the delta.
            operation_id: 1 to 64 bytes; None makes one. The same id again gives the same answer for two minutes.
            level: "applied" or "durable"; None: the server's.

        Raises:
            RpcError: the shard's answer; nothing was applied unless its `effect` says otherwise.
            Unavailable: nothing was sent.
            UnknownOutcome: sent, and not answered in time.
        """
        options: dict[str, Any] = {"id": os.urandom(ID_BYTES) if operation_id is None else operation_id}
        if level is not None:
            options["level"] = level
        return self._call(method, [*params, options], may_repeat=True)

    def call(self, method: str, *params: Any) -> Any:
        """Calls a method that changes no counter, or one whose loss on the way the caller can live with.

        Raises:
            RpcError, Unavailable, UnknownOutcome: as `change`.
        """
        return self._call(
            method, list(params), may_repeat=method not in {*CHANGING_METHODS, "incr_many", "apply", "backup"}
        )

    def _call(self, method: str, params: list[Any], *, may_repeat: bool) -> Any:
        deadline = time.monotonic() + self._timeout_s
        backoff = Backoff(0.02, 1.0, random.Random())
        was_sent = False
        while True:
            try:
                self._connect(deadline)
                was_sent = True
                return self._exchange(method, params, deadline)
            except (OSError, EOFError, ssl.SSLError) as error:
                self.close()
                trouble: PyCounterError = self._trouble(method, error, was_sent=was_sent)
                if was_sent and not may_repeat:
                    raise trouble from error
            except RpcError as error:
                # Under the same id a repetition is safe, also after an earlier attempt without answer.
                if not (error.retryable and may_repeat):
                    raise
                trouble = error
            pause_s = backoff.next_s()
            if time.monotonic() + pause_s >= deadline:
                raise trouble
            time.sleep(pause_s)

    def _trouble(self, method: str, error: Exception, *, was_sent: bool) -> PyCounterError:
        where = f"{self._host}:{self._port}"
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        if not was_sent:
            return Unavailable(
                f"can't reach a server at {where} ({reason}): nothing was applied; is `pycounter serve` running?"
            )
        if method in CHANGING_METHODS:
            return UnknownOutcome(
                f"{where} did not answer {method} ({reason}): it may or may not have been applied; "
                "repeat it with the same --id within two minutes, or look at the counter first"
            )
        return DeadlineExceeded(f"{where} did not answer {method} ({reason}): try again")

    def _connect(self, deadline: float) -> None:
        if self._socket is not None:
            return
        plain = socket.create_connection((self._host, self._port), timeout=_left(deadline))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = plain if self._tls is None else self._tls.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise
        self._unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="surrogateescape")
        if self._token is not None:
            self._exchange("hello", [{"token": self._token, "client": "pycounter command line"}], deadline)

    def _exchange(self, method: str, params: list[Any], deadline: float) -> Any:
        connection = self._socket
        assert connection is not None
        self._msgid += 1
        connection.settimeout(_left(deadline))
        connection.sendall(msgpack.packb([0, self._msgid, method, params], unicode_errors="surrogateescape"))
        while True:
            for message in self._unpacker:
                match message:
                    case [1, msgid, error, result] if msgid == self._msgid:
                        if error is None:
                            return result
                        raise from_wire(error.decode("utf-8", "replace") if isinstance(error, bytes) else str(error))
                    case [1 | 2, *_]:
                        continue
                    case _:
                        raise OSError("what answers speaks no MessagePack-RPC")
            connection.settimeout(_left(deadline))
            data = connection.recv(RECEIVE_BYTES)
            if not data:
                raise EOFError("the server closed the connection")
            self._unpacker.feed(data)


def _left(deadline: float) -> float:
    """Seconds until the deadline; a little at least, since 0 would mean not to block."""
    return max(0.001, deadline - time.monotonic())
