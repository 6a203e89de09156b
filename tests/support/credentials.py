"""A token, certificates, and clients that show them."""

import ssl
import subprocess
from pathlib import Path
from typing import TypeVar

from tests.support.resp_socket import RespSocket
from tests.support.rpc_socket import RpcSocket

TOKEN = "b1946ac92492d2347c6235b4d2611184"

Socket = TypeVar("Socket", RespSocket, RpcSocket)


def write_token(folder: Path) -> str:
    """A file with `TOKEN` in it; gives its path."""
    file = folder / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return str(file)


def make_certificate(folder: Path, name: str) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that is its own authority, and its key. Needs openssl."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return str(cert), str(key)


def over_tls(connection: Socket, context: ssl.SSLContext) -> Socket:
    """The same connection, from here on over TLS."""
    connection.socket = context.wrap_socket(connection.socket, server_hostname="127.0.0.1")
    return connection


def signed_in(rpc: RpcSocket) -> RpcSocket:
    """The same connection, once it has sent the token."""
    rpc.call("hello", {"token": TOKEN})
    return rpc
