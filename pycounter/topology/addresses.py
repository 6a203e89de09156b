"""Addresses as texts: `host:port`, with an IPv6 host in brackets."""

from __future__ import annotations

import re

__all__ = ["Address", "format_address", "is_path", "parse_address"]

#: Host and port, as the socket module takes them; or the path of a Unix socket, and 0.
Address = tuple[str, int]

#: A host's name has at most 253 characters, an IPv6 address with its zone fewer.
HOST_CHARACTERS_MAX = 253
PORT_MAX = 65_535

_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[^\s\[\]:/@?#]+))(?::(?P<port>[0-9]{1,5}))?"
)


def parse_address(text: str, default_port: int | None = None) -> Address:
    """Host and port of `host:port`, `1.2.3.4:port` or `[ipv6]:port`.

    Args:
        text: the address; `default_port` stands for a port that it leaves out.
        default_port: None: the port must be there.

    Raises:
        ValueError: it is no address; the message says what one looks like.
    """
    match = _ADDRESS.fullmatch(text)
    host = "" if match is None else match["v6"] or match["host"]
    if match is None or len(host) > HOST_CHARACTERS_MAX:
        raise ValueError(f"{text[:300]!r} is no address such as counters.example:7400 or [::1]:7400")
    if match["port"] is None:
        if default_port is None:
            raise ValueError(f"{text!r} has no port: an address is host:port, such as {text}:7400")
        return host, default_port
    port = int(match["port"])
    if not 1 <= port <= PORT_MAX:
        raise ValueError(f"{text!r} has port {port}, but a port is from 1 to {PORT_MAX}")
    return host, port


def is_path(address: Address) -> bool:
    """Is it a Unix socket's?"""
    return address[0].startswith("/")


def format_address(host: str, port: int) -> str:
    """The text of an address; brackets around IPv6."""
    if is_path((host, port)):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
