"""Token files, certificates that aren't any, and addresses that need a token."""

import logging

import pytest

from pycounter.errors import SettingsError
from pycounter.net.security import check_exposure, read_token, server_tls

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
    check_exposure("127.0.0.1", None, insecure=False)
    check_exposure("0.0.0.0", TOKEN, insecure=False)
    check_exposure("0.0.0.0", None, insecure=True)
    for host in ("0.0.0.0", "::", "counters.example"):
        with pytest.raises(SettingsError, match=r"^\S+ can be reached .*: anybody could .*--token-file.*--insecure"):
            check_exposure(host, None, insecure=False)


def test_certificates_that_cannot_be_used(tmp_path):
    assert server_tls(None, None) is None
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate")
    for cert in (rubbish, tmp_path / "missing.pem"):
        with pytest.raises(SettingsError, match=f"^TLS certificate {cert} with key {rubbish} can't be used: "):
            server_tls(str(cert), str(rubbish))
