"""From a URL and keywords to settings."""

import pytest

from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.errors import SettingsError


def test_everything_that_a_url_can_say():
    settings = ConnectSettings.from_url(
        "pycounter://s%40cret@counters.example:7401,[::1],10.0.0.1:1/?route=coordinator&level=applied"
    )
    assert settings.addresses == (("counters.example", 7401), ("::1", 7400), ("10.0.0.1", 1))
    assert settings.token == "s@cret"
    assert (settings.route, settings.level) == ("coordinator", "applied")
    assert "cret" not in repr(settings)


def test_a_unix_socket():
    settings = ConnectSettings.from_url("pycounter+unix://s%40cret@/run/a%20b/counters.sock?level=applied")
    assert settings.addresses == (("/run/a b/counters.sock", 0),)
    assert (settings.token, settings.level) == ("s@cret", "applied")
    assert ConnectSettings.from_url("pycounter+unix:///a").token is None


def test_keywords_go_before_the_url():
    settings = ConnectSettings.from_url("pycounter://a?level=applied", level="durable", token="t", retries=0)
    assert (settings.level, settings.token, settings.retries) == ("durable", "t", 0)
    assert settings.session().call_timeout_s == settings.increment_timeout_s
    assert settings.pool().connections_max == 100
    assert settings.retry().retries == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pycounter",
        "redis://a",
        "pycounter://",
        "pycounter://@",
        "pycounter://a:b",
        "pycounter://a:70000",
        "pycounter://a:0",
        "pycounter://a,",
        "pycounter://[::1",
        "pycounter://a/b",
        "pycounter+unix://",
        "pycounter+unix:///",
        "pycounter+unix://a/b",
        "pycounter+unix:///a#b",
        "redis+unix:///a",
        "pycounter://a#b",
        "pycounter://a?route=no",
        "pycounter://a?level=no",
        "pycounter://a?retries=3",
        "pycounter://a?token=x",
    ],
)
def test_a_url_that_is_none(url):
    with pytest.raises(SettingsError):
        ConnectSettings.from_url(url)


def test_a_token_never_stands_in_an_error():
    with pytest.raises(SettingsError) as refused:
        ConnectSettings.from_url("pycounter://s3cret@a/b")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "wrong",
    [{"nonsense": 1}, {"request_timeout_s": 0}, {"batch_operations_max": -1}, {"addresses": ()}, {"route": "x"}],
)
def test_a_setting_that_is_wrong(wrong):
    with pytest.raises(SettingsError) as refused:
        ConnectSettings.from_url("pycounter://a", **wrong)
    assert refused.value.setting == next(iter(wrong))
