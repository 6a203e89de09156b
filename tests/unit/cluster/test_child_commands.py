"""What children are started with: settings arrive as the operator meant them."""

import tomllib

import hypothesis
import pytest
from hypothesis import strategies as st

from pycounter.cluster.child_commands import ChildCommands, child_environment, to_toml
from pycounter.settings import ClusterSettings, load_coordinator_settings, load_settings

VALUES = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@hypothesis.given(st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES | TEXTS | st.tuples(TEXTS, TEXTS)))
def test_settings_survive_the_file(settings):
    read = tomllib.loads(to_toml(settings))
    assert read == {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def test_what_is_not_set_stays_out_of_the_file():
    assert to_toml({"a": None, "b": 1}) == "b = 1\n"


@pytest.fixture
def commands(tmp_path):
    settings = ClusterSettings(
        data=str(tmp_path),
        shards=2,
        host="0.0.0.0",
        port=7400,
        level="applied",
        token_file="secret",
        insecure=True,
        frame_bytes_max=2 << 20,
        coordinator={"request_timeout_s": 1.5, "frame_bytes_max": "3MiB"},
    )
    return ChildCommands(settings, tmp_path)


def config_of(command):
    return command[command.index("--config") + 1]


def test_a_shard_gets_what_is_the_shards(commands, tmp_path):
    settings = load_settings({}, config=config_of(commands.shard("shard-1", 4001)), environment={})
    assert (settings.data, settings.name) == (str(tmp_path / "shards" / "shard-1"), "shard-1")
    assert (settings.host, settings.port, settings.insecure) == ("127.0.0.1", 4001, False), "not the public address"
    assert (settings.level, settings.frame_bytes_max) == ("applied", 2 << 20)
    assert settings.token_file is not None
    assert settings.token_file.startswith("/"), "wherever a shard runs"


def test_a_coordinator_has_its_table_over_what_it_shares_with_shards(commands, tmp_path):
    command = commands.coordinator("coordinator-0", [5, 6])
    settings = load_coordinator_settings({"listen_fds": [5, 6]}, config=config_of(command))
    assert (settings.data, settings.name) == (str(tmp_path / "coordinators" / "coordinator-0"), "coordinator-0")
    assert (settings.request_timeout_s, settings.frame_bytes_max, settings.level) == (1.5, 3 << 20, "applied")
    assert command[-4:] == ["--listen-fd", "5", "--listen-fd", "6"]


def test_the_environments_settings_are_the_supervisors(monkeypatch):
    monkeypatch.setenv("PYCOUNTER_PORT", "7")
    monkeypatch.setenv("OTHER", "kept")
    environment = child_environment()
    assert environment["OTHER"] == "kept"
    assert [name for name in environment if name.startswith("PYCOUNTER_")] == ["PYCOUNTER_SUPERVISOR"]


def test_a_replica_may_hold_what_its_shard_may(commands):
    words = commands.replica("shard-0-replica-0", "127.0.0.1:4001", 4002)
    shard = load_settings({}, config=commands.shard("shard-0", 4001)[-1], environment={})
    assert words[3:7] == ["pycounter", "replica", "serve", "--json"]
    options = dict(zip(words[7::2], words[8::2], strict=True))
    assert options.pop("--token-file").startswith("/")
    assert options == {
        "--name": "shard-0-replica-0",
        "--primary": "127.0.0.1:4001",
        "--host": "127.0.0.1",
        "--port": "4002",
        "--counters-bytes-max": str(shard.counters_bytes_max),
    }
