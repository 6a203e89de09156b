"""TLS contexts, tokens from files, and the rule about addresses that others can reach."""

from __future__ import annotations

import codecs
import logging
import ssl
import stat
from pathlib import Path

from pycounter.errors import SettingsError
from pycounter.settings import is_loopback

__all__ = ["check_exposure", "client_tls", "read_token", "server_tls"]

_log = logging.getLogger(__name__)

#: A token shorter than this can be guessed.
TOKEN_BYTES_MIN = 16
TOKEN_BYTES_MAX = 1024


def read_token(path: str | None) -> bytes | None:
    """The token in a file, without the white space around it; None where no file is set.

    Raises:
        SettingsError: the file can't be read, or holds no good token.
    """
    if path is None:
        return None
    file = Path(path)
    try:
        token = file.read_bytes().removeprefix(codecs.BOM_UTF8).strip()
        mode = file.stat().st_mode
    except OSError as error:
        raise SettingsError(f"the token file {path} can't be read: {error.strerror}") from error
    if not TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX:
        raise SettingsError(
            f"the token in {path} has {len(token)} bytes, but must have {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX}: "
            "make one with `openssl rand -hex 32`"
        )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("the token file %s can be read by others: chmod 600 it", path)
    return token


def server_tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """A context for TLS 1.2 or newer; None where no certificate is set.

    Raises:
        SettingsError: certificate or key can't be read, or don't belong together.
    """
    if cert is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"TLS certificate {cert} with key {key} can't be used: {error}") from error
    return context


def client_tls(ca: str | None) -> ssl.SSLContext:
    """A context that verifies a server, by the certificates in the file `ca` or by the system's.

    Raises:
        SettingsError: the file can't be read, or holds none.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"the certificates in {ca} can't be used: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def check_exposure(host: str, token: bytes | None, *, insecure: bool) -> None:
    """Refuses to listen where others can connect unless they need a token.

    Raises:
        SettingsError: a token is missing.
    """
    if token is None and not insecure and not is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other machines, and no token is set: anybody could change counters. "
            "Give --token-file FILE, or --insecure if the network itself is closed"
        )
