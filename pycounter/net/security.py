"""TLS contexts, tokens from files, and the rule about addresses that others can reach."""

from __future__ import annotations

import codecs
import logging
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

from pycounter.errors import SettingsError
from pycounter.settings import is_loopback

__all__ = ["Access", "check_exposure", "client_tls", "read_token", "read_tokens", "server_tls"]

_log = logging.getLogger(__name__)

#: A token shorter than this can be guessed.
TOKEN_BYTES_MIN = 16
TOKEN_BYTES_MAX = 1024


def read_tokens(path: str | None) -> tuple[bytes, ...]:
    """The tokens in a file, one a line, without the white space around them; none where no file is set.

    Raises:
        SettingsError: the file can't be read, or holds no good token.
    """
    if path is None:
        return ()
    file = Path(path)
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
        mode = file.stat().st_mode
    except OSError as error:
        raise SettingsError(f"the token file {path} can't be read: {error.strerror}") from error
    tokens = tuple(line.strip() for line in lines if line.strip()) or (b"",)
    for token in tokens:
        if not TOKEN_BYTES_MIN <= len(token) <= TOKEN_BYTES_MAX:
            raise SettingsError(
                f"the token in {path} has {len(token)} bytes, but must have {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX}: "
                "make one with `openssl rand -hex 32`"
            )
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("the token file %s can be read by others: chmod 600 it", path)
    return tokens


def read_token(path: str | None) -> bytes | None:
    """The token that is sent: the first in a file; None where no file is set. Raises SettingsError as `read_tokens`."""
    return next(iter(read_tokens(path)), None)


class Access:
    """Who is let in: the tokens in a file, and the TLS certificate. Both files may be read again while a server runs.

    Args:
        token_file: with a token a line; None: nobody needs one.
        tls_cert: a certificate chain, PEM; None: no TLS.
        tls_key: its key, PEM.

    Raises (constructor):
        SettingsError: a file can't be read, or what it holds can't be used.
    """

    def __init__(self, token_file: str | None, tls_cert: str | None = None, tls_key: str | None = None) -> None:
        self._token_file = token_file
        self._tls_files = tls_cert, tls_key
        #: Any of them lets a client in; the first is sent to others.
        self.tokens = read_tokens(token_file)
        #: None: no TLS.
        self.tls = server_tls(tls_cert, tls_key)

    @property
    def token(self) -> bytes | None:
        """What is sent to others; None: nothing."""
        return next(iter(self.tokens), None)

    def reload(self) -> bool:
        """Reads the files again. False: one can't be used, which is logged, and everything stays as it was."""
        try:
            tokens, tls = read_tokens(self._token_file), server_tls(*self._tls_files)
        except SettingsError as error:
            _log.error("nothing was reloaded, and the tokens and the certificate of before stay valid: %s", error)
            return False
        self.tokens, self.tls = tokens, tls
        if tokens or tls:
            _log.info(
                "reloaded: %d %s valid%s; whoever is connected stays connected",
                len(tokens),
                "token is" if len(tokens) == 1 else "tokens are",
                ", new clients get the certificate as it is now" if tls else "",
            )
        return True

    def has_other_tokens(self) -> bool:
        """Does the file hold other tokens by now? False where it can't be read."""
        try:
            return read_tokens(self._token_file) != self.tokens
        except SettingsError:
            return False


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


def check_exposure(host: str, tokens: Sequence[bytes], *, insecure: bool) -> None:
    """Refuses to listen where others can connect unless they need a token.

    Raises:
        SettingsError: a token is missing.
    """
    if not tokens and not insecure and not is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other machines, and no token is set: anybody could change counters. "
            "Give --token-file FILE, or --insecure if the network itself is closed"
        )
