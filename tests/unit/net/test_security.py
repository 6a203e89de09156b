"""Token files, certificates that aren't any, and addresses that need a token."""

import logging

import pytest

from pycounter.errors import SettingsError
from pycounter.net.security import Access, check_exposure, read_token, read_tokens, server_tls

TOKEN = b"a token of 32 letters, or nearly"


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "token"
    file.write_bytes(TOKEN)
    file.chmod(0o600)
    return file


def test_a_token_comes_without_the_white_space_around_it(token_file, caplog):
    assert read_token(None) is None
    assert read_token(str(token_file)) == TOKEN
    token_file.write_bytes(b"\n " + TOKEN + b"\r\n")
    assert read_token(str(token_file)) == TOKEN
    assert caplog.records == []


@pytest.mark.parametrize("length", [16, 1024])
def test_the_shortest_and_the_longest_token(token_file, length):
    token_file.write_bytes(b"t" * length)
    assert read_token(str(token_file)) == b"t" * length


@pytest.mark.parametrize("length", [0, 15, 1025])
def test_tokens_that_are_refused(token_file, length):
    content = (b"secret!" * 200)[:length]
    token_file.write_bytes(content + b" \n")
    with pytest.raises(SettingsError) as error:
        read_token(str(token_file))
    said = (
        f"the token in {token_file} has {length} bytes, but must have 16 to 1024: make one with `openssl rand -hex 32`"
    )
    assert str(error.value) == said


def test_a_token_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SettingsError, match=r"token can't be read: No such file or directory$"):
        read_token(str(tmp_path / "token"))
    with pytest.raises(SettingsError, match=r"can't be read: Is a directory$"):
        read_token(str(tmp_path))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_can_read_is_warned_about(token_file, caplog, mode, warned):
    token_file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert read_token(str(token_file)) == TOKEN
    expected = [f"the token file {token_file} can be read by others: chmod 600 it"] if warned else []
    assert [record.getMessage() for record in caplog.records] == expected


def test_without_a_token_only_this_machine_may_connect():
    check_exposure("127.0.0.1", (), insecure=False)
    check_exposure("0.0.0.0", [TOKEN], insecure=False)
    check_exposure("0.0.0.0", (), insecure=True)
    for host in ("0.0.0.0", "::", "counters.example"):
        with pytest.raises(SettingsError, match=r"^\S+ can be reached .*: anybody could .*--token-file.*--insecure"):
            check_exposure(host, (), insecure=False)


def test_certificates_that_cannot_be_used(tmp_path):
    assert server_tls(None, None) is None
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    for cert in (rubbish, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=f"^TLS certificate {cert} with key {rubbish} can't be used: "):
            server_tls(str(cert), str(rubbish))


def test_a_file_may_hold_several_tokens_and_the_first_is_sent(token_file):
    assert read_tokens(None) == ()
    token_file.write_bytes(b"\xef\xbb\xbfthe new one of these\r\n\n \t\n" + TOKEN + b" ")
    assert read_tokens(str(token_file)) == (b"the new one of these", TOKEN)
    assert read_token(str(token_file)) == b"the new one of these"
    token_file.write_bytes(TOKEN + b"\nshort\n")
    with pytest.raises(SettingsError, match=r"has 5 bytes, but must have 16 to 1024"):
        read_tokens(str(token_file))


def test_access_is_read_again_as_a_whole_or_not_at_all(token_file, tmp_path, caplog):
    access = Access(str(token_file))
    assert (access.tokens, access.token, access.has_other_tokens()) == ((TOKEN,), TOKEN, False)
    token_file.write_bytes(b"short")
    assert not access.has_other_tokens(), "what can't be used is no other token"
    assert not access.reload()
    assert access.tokens == (TOKEN,)
    assert "nothing was reloaded" in caplog.text
    assert "short" not in caplog.text
    token_file.write_bytes(b"another token of letters\n" + TOKEN)
    assert access.has_other_tokens()
    assert access.reload()
    assert not access.has_other_tokens()
    assert access.token == b"another token of letters"
    assert Access(None).reload()
    assert Access(None).token is None
