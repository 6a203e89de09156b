"""One rule for the numbers in settings, whatever the settings are of."""

import dataclasses
import math
from decimal import Decimal
from typing import Any

import pytest
from typer.testing import CliRunner

import pycounter
from pycounter.cli.application import app
from pycounter.client import ClientSettings
from pycounter.client.retry import RetryPolicy
from pycounter.client.settings import PoolSettings
from pycounter.coordinator.connect_settings import ConnectSettings
from pycounter.coordinator.settings import TuningSettings
from pycounter.errors import SettingsError
from pycounter.replica import ReplicaSettings

SETTINGS: list[tuple[Any, dict[str, str]]] = [
    (ClientSettings, {}),
    (PoolSettings, {}),
    (RetryPolicy, {}),
    (ConnectSettings, {}),
    (TuningSettings, {}),
    (ReplicaSettings, {"primary": "localhost:7400"}),
]
NO_NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, -1, -0.5, True, False, "1", b"1", None, Decimal(1), 1j]


@pytest.mark.parametrize(("kind", "given"), SETTINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_number_of_every_setting_is_checked(kind, given):
    numbers = [field for field in dataclasses.fields(kind) if field.type in {"int", "float"}]
    assert numbers
    for field in numbers:
        for value in [*NO_NUMBERS, *([1.0] if field.type == "int" else [])]:
            with pytest.raises(SettingsError, match=rf"^{field.name} must be an? (number|integer)") as caught:
                kind(**given, **{field.name: value})
            assert caught.value.setting == field.name


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, 1.5], ids=repr)
def test_the_interval_of_a_map_on_disk(tmp_path, value):
    with pytest.raises(ValueError, match="flush_interval_s must be a number above 0 and at most 1"):
        pycounter.open(tmp_path / "counters", flush_interval_s=value)
    assert not (tmp_path / "counters").exists()


@pytest.mark.parametrize("value", [math.nan, -1, True, 1.5, b"1", "-1"], ids=repr)
def test_the_memory_of_a_map_on_disk(tmp_path, value):
    with pytest.raises(ValueError, match="is no size such as"):
        pycounter.open(tmp_path / "counters", memory_max=value)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "0", "soon"])
@pytest.mark.parametrize("command", [["status"], ["dump"], ["backup", "/nowhere"]], ids=" ".join)
def test_the_time_of_a_command(command, value):
    done = CliRunner().invoke(app, [*command, "--timeout-s", value])
    assert done.exit_code == 2
    assert "--timeout-s" in done.output


def test_a_mistyped_setting_of_a_coordinator_gets_a_hint():
    with pytest.raises(SettingsError, match="did you mean cache_l1_ttl_s"):
        TuningSettings.from_table({"cache_l1_tls_s": 1.0})
