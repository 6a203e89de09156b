"""Addresses as texts."""

import hypothesis
import pytest
from hypothesis import strategies as st

from pycounter.topology import format_address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:1", ("localhost", 1)),
        ("10.0.0.7:65535", ("10.0.0.7", 65_535)),
        ("[::1]:7400", ("::1", 7400)),
        ("[fe80::1%eth0]:7400", ("fe80::1%eth0", 7400)),
        ("counters.example.org:7400", ("counters.example.org", 7400)),
    ],
)
def test_an_address_is_read_and_written(text, address):
    assert parse_address(text) == address
    assert parse_address(text, 9) == address
    assert format_address(*address) == text


@pytest.mark.parametrize(("text", "host"), [("localhost", "localhost"), ("[::1]", "::1"), ("10.0.0.7", "10.0.0.7")])
def test_a_port_may_be_left_out_where_there_is_a_default(text, host):
    assert parse_address(text, 7400) == (host, 7400)
    with pytest.raises(ValueError, match="has no port"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":7400", "a b:1", "::1:7400", "[::1:7400", "[]:1", "[x]:1", "a:", "a:x", "a:0", "a:65536", "a:-1"),
        *("a:1:2", "user@host:1", "host/path:1", "a:1\n", "a:123456", "a" * 254 + ":1", "http://host:1", "a:\u0661"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError, match=r"is no address|but a port is"):
        parse_address(text, 7400)


@hypothesis.given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text):
    try:
        host, port = parse_address(text, 7400)
    except ValueError:
        return
    assert parse_address(format_address(host, port)) == (host, port)
