"""How commands are told where a running server is: one place for host, port, token, TLS and patience."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ssl import SSLContext

    from pycounter.client import SessionClient
    from pycounter.client.pool import Pool

__all__ = ["Host", "Port", "ShardAddress", "TimeoutS", "Tls", "TlsCa", "TokenFile"]

Host = Annotated[str, typer.Option(help="The server's address.")]
Port = Annotated[int, typer.Option(min=1, max=65_535, help="The server's port.")]
TokenFile = Annotated[str | None, typer.Option(help="The token in this file is sent.", metavar="FILE")]
Tls = Annotated[bool, typer.Option("--tls", help="The server speaks TLS; verify it by the system's certificates.")]
TlsCa = Annotated[str | None, typer.Option(help="The same, verified by these, PEM.", metavar="FILE")]


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"{seconds} is not a number of seconds")
    return seconds


TimeoutS = Annotated[
    float,
    typer.Option(min=0.1, callback=_finite, help="Seconds to wait for the server, restarts of it included."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAddress:
    """Where a server is and how to be let in."""

    host: str
    port: int
    token_file: str | None
    tls: bool
    tls_ca: str | None
    timeout_s: float

    def pool(self) -> Pool:
        """Connections to it for single requests, without a session: a coordinator has none.

        Raises:
            SettingsError: the token or a certificate can't be read.
        """
        from pycounter.client.pool import Pool
        from pycounter.client.settings import PoolSettings

        token, tls = self._access()
        settings = PoolSettings(connect_timeout_s=min(5.0, self.timeout_s))
        return Pool((self.host, self.port), token=token, tls=tls, settings=settings)

    def client(self) -> SessionClient:
        """A client for it, not connected yet.

        Raises:
            SettingsError: the token or a certificate can't be read.
        """
        from pycounter.client import ClientSettings, SessionClient

        token, tls = self._access()
        settings = ClientSettings(
            call_timeout_s=self.timeout_s,
            connect_timeout_s=min(5.0, self.timeout_s),
            silence_timeout_s=self.timeout_s,
        )
        return SessionClient(self.host, self.port, token=token, tls=tls, settings=settings)

    def _access(self) -> tuple[bytes | None, SSLContext | None]:
        from pycounter.net.security import client_tls, read_token

        return read_token(self.token_file), client_tls(self.tls_ca) if self.tls or self.tls_ca else None
