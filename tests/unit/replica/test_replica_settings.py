"""What may be set on a replica."""

import pytest

from pycounter.errors import SettingsError
from pycounter.replica import ReplicaSettings


@pytest.mark.parametrize(
    "wrong",
    [{"primary": "nowhere"}, {"primary": "host:0"}, {"primary": "a:1", "name": ""}, {"primary": "a:1", "port": 65_536}],
)
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SettingsError):
        ReplicaSettings(**wrong)


def test_the_primary_is_an_address():
    assert ReplicaSettings(primary="[::1]:7400").primary_address == ("::1", 7400)
