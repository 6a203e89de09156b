"""Settings: which layer wins, what is refused, and that a refusal says where the value came from."""

import msgspec
import pytest

from pycounter.errors import SettingsError
from pycounter.settings import (
    ClusterSettings,
    ServerSettings,
    is_loopback,
    load_coordinator_settings,
    load_serve_settings,
    load_settings,
    parse_bytes,
)


@pytest.fixture
def load(tmp_path):
    """Loads from a TOML text, environment variables without their prefix, and options; `data` is given."""

    def load(toml="", environment=(), **options):
        config = tmp_path / "settings.toml"
        config.write_text(toml)
        variables = {f"PYCOUNTER_{name}": value for name, value in dict(environment).items()}
        return load_settings({"data": "folder", **options}, config=config, environment=variables)

    return load


def test_each_layer_overrides_the_one_before(load):
    toml, environment = "port = 1", {"PORT": "2"}
    assert load().port == 7400
    assert load(toml).port == 1
    assert load(toml, environment).port == 2
    assert load(toml, environment, port=3).port == 3
    assert load(toml, environment, port=None).port == 2, "an option that isn't given overrides nothing"
    assert load("insecure = true", {"INSECURE": "false"}).insecure is False, "to set false is to set"


def test_layers_add_up(load):
    settings = load('level = "applied"\nname = "one"', {"NAME": "two", "FLUSH_INTERVAL_S": "0.5"}, port=0)
    assert settings == ServerSettings(data="folder", level="applied", name="two", flush_interval_s=0.5, port=0)


def test_a_table_named_server_is_the_same_as_the_top_level(load):
    assert load("[server]\nport = 1\nsegment_bytes = '1 MiB'") == load("port = 1\nsegment_bytes = 1048576")
    assert load("port = 1\n[server]\nlevel = 'applied'").port == 1


def test_the_file_may_be_named_by_the_environment(tmp_path):
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("data = 'a'")
    given.write_text("data = 'b'")
    environment = {"PYCOUNTER_CONFIG": str(named)}
    assert load_settings({}, environment=environment).data == "a"
    assert load_settings({}, environment=environment, config=given).data == "b"


def test_variables_that_are_no_settings_are_not_looked_at(load):
    assert load("", {"TEST_SEED": "7", "PROT": "x"}) == load()


@pytest.mark.parametrize("name", msgspec.structs.asdict(ServerSettings(data="folder")))
def test_every_setting_can_come_from_every_layer(load, name):
    examples = {
        "level": "applied",
        "flush_interval_s": "0.5",
        "port": "5000",
        "insecure": "yes",
        "input_bytes_max": "16MiB",
        "ring": "shard-0=1,shard-1=0.5",
    }
    text = examples.get(name, "2MiB" if "_bytes" in name else "5000" if name.endswith(("_max", "_s")) else "text")
    pair = {"tls_cert": "tls_key", "tls_key": "tls_cert"}.get(name)
    toml = f"{pair} = 'x'\n" if pair else ""
    from_file = load(f"{toml}{name} = '{text}'", **({"data": None} if name == "data" else {}))
    from_environment = load(toml, {name.upper(): text}, **({"data": None} if name == "data" else {}))
    from_option = load(toml, **{name: text})
    assert from_file == from_environment == from_option
    assert getattr(from_option, name) != getattr(ServerSettings(data="folder"), name)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        ("64 MiB ", 64 << 20),
        ("64M", 64_000_000),
        ("2kB", 2000),
        ("3Ki", 3072),
        ("1.5 GB", 1_500_000_000),
        ("0.5GiB", 1 << 29),
        ("0.3 kB", 300),
        ("9007199254740993", 2**53 + 1),
        (77, 77),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "+1", "1e3", "1,5 GB", "0x10", "1 TiB", "64 MiBs", "1.", ".5"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match=r"is no size such as 1048576 or 64MiB"):
        parse_bytes(text)


VALUES = [
    ("port", "70000", "port is 70000, but must be from 0 to 65535"),
    ("port", "-1", "port is -1, but must be from 0 to 65535"),
    ("port", "http", "port must be an integer, not 'http'"),
    ("port", "", "port must be an integer, not ''"),
    ("level", "safe", "level must be applied or durable, not 'safe'"),
    ("insecure", "maybe", "insecure must be true or false, not 'maybe'"),
    ("host", "", "host is empty"),
    ("name", "n" * 65, "name has 65 characters, but must have 1 to 64"),
    ("idle_timeout_s", "nan", "idle_timeout_s is nan, but must be from 0 to 1000000000.0"),
    ("idle_timeout_s", "soon", "idle_timeout_s must be a number, not 'soon'"),
    ("flush_interval_s", "2", "flush_interval_s is 2.0, but must be from 0.001 to 1.0"),
    ("frame_bytes_max", "1", "frame_bytes_max is 1, but must be from 4096 to 268435456"),
    ("frame_bytes_max", "big", "frame_bytes_max: 'big' is no size such as 1048576 or 64MiB"),
    ("connections_max", "1k", "connections_max must be an integer, not '1k'"),
]


@pytest.mark.parametrize(("name", "value", "said"), VALUES)
def test_a_refusal_says_where_the_value_came_from(load, tmp_path, name, value, said):
    with pytest.raises(SettingsError) as error:
        load(f"{name} = '{value}'")
    assert str(error.value) == f"{tmp_path / 'settings.toml'}: {said}"
    with pytest.raises(SettingsError) as error:
        load("", {name.upper(): value})
    assert str(error.value) == f"PYCOUNTER_{name.upper()}: {said}"
    with pytest.raises(SettingsError) as error:
        load(**{name: value})
    assert str(error.value) == f"--{name.replace('_', '-')}: {said}"


def test_a_longest_request_has_to_fit_in_beside_others(load):
    assert load(input_bytes_max="8MiB").input_bytes_max == 8 << 20
    for values in ({"input_bytes_max": "7MiB"}, {"input_bytes_max": "256MiB", "frame_bytes_max": "33MiB"}):
        with pytest.raises(
            SettingsError, match=r"input_bytes_max is \d+, but must be at least 8 times frame_bytes_max"
        ):
            load(**values)


def test_a_wrong_value_is_refused_though_another_layer_overrides_it(load):
    with pytest.raises(SettingsError, match=r"^PYCOUNTER_PORT: port is 70000"):
        load("", {"PORT": "70000"}, port=1)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("prot = 1", ": there is no setting 'prot'; did you mean port?"),
        ("zebra = 1", ": there is no setting 'zebra'; docs/operations.md lists all settings"),
        ("[server]\nprot = 1", ": there is no setting 'prot'; "),
        ("[serve]\nport = 1", ": there is no setting 'serve'; "),
        ("server = 1", ": server must be a table"),
        ("[[server]]\nport = 1", ": server must be a table"),
        ("port = 1\n[server]\nport = 1", ": port stands both at the top level and in [server]"),
        ("port = true", ": port must be an integer, not True"),
        ("port = 1.0", ": port must be an integer, not 1.0"),
        ("insecure = 1", ": insecure must be true or false, not 1"),
        ("data = 5", ": data must be a text, not 5"),
        ("frame_bytes_max = [4096]", ": frame_bytes_max must be an integer, not [4096]"),
        ("port = ", " is no TOML: "),
    ],
)
def test_wrong_files(load, tmp_path, toml, said):
    with pytest.raises(SettingsError) as error:
        load(toml)
    assert f"{tmp_path / 'settings.toml'}{said}" in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    missing = tmp_path / "missing.toml"
    with pytest.raises(SettingsError, match=f"^the config file {missing} can't be read: No such file or directory$"):
        load_settings({"data": "folder"}, config=missing, environment={})
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.toml is no TOML"):
        load_settings({"data": "folder"}, environment={"PYCOUNTER_CONFIG": str(binary)})


def test_what_is_missing():
    with pytest.raises(SettingsError, match=r"^no data folder: give --data DIR, PYCOUNTER_DATA, or data in the config"):
        load_settings({}, environment={})
    with pytest.raises(SettingsError, match=r"^tls_cert is set and tls_key is not: they go together$"):
        load_settings({"data": "folder", "tls_cert": "x"}, environment={})
    with pytest.raises(SettingsError, match=r"^tls_key is set and tls_cert is not: they go together$"):
        load_settings({"data": "folder"}, environment={"PYCOUNTER_TLS_KEY": "x"})


def test_settings_made_in_python_are_checked_too():
    with pytest.raises(ValueError, match=r"^port is 70000"):
        ServerSettings(data="folder", port=70_000)
    with pytest.raises(TypeError):
        ServerSettings(data="folder", prot=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "127.1", "::1", "::ffff:127.0.0.1", "localhost"])
def test_addresses_of_this_machine_only(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "::", "::ffff:192.0.2.1", "192.0.2.1", "10.1", "2001:db8::1", "localhost.example", ""]
)
def test_addresses_that_others_can_reach(host):
    assert not is_loopback(host)


def test_a_host_may_stand_in_brackets(load):
    assert load("", host="[::1]").host == "::1"


# --- clusters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def load_serve(tmp_path):
    """As `load`, for what may be a shard or a cluster."""

    def load(toml="", environment=(), **options):
        config = tmp_path / "settings.toml"
        config.write_text(toml)
        variables = {f"PYCOUNTER_{name}": value for name, value in dict(environment).items()}
        return load_serve_settings({"data": "folder", **options}, config=config, environment=variables)

    return load


def test_it_is_a_cluster_where_any_source_says_how_many_shards(load_serve):
    assert load_serve("port = 1") == ServerSettings(data="folder", port=1)
    for settings in (load_serve("shards = 4"), load_serve("", {"SHARDS": "4"}), load_serve(shards=4)):
        assert settings == ClusterSettings(data="folder", shards=4)


def test_settings_of_a_cluster_alone_are_refused_for_a_shard_alone(load_serve):
    for name, value in {"replicas": 1, "coordinators": 2, "strict": ["a"], "stall_timeout_s": 9.0}.items():
        with pytest.raises(SettingsError, match=f"^{name} is set and shards is not"):
            load_serve(**{name: value})
    with pytest.raises(SettingsError, match=r"^coordinator is set and shards is not"):
        load_serve("[coordinator]\nrequest_timeout_s = 1.0")
    with pytest.raises(SettingsError, match="there is no setting 'shards'"):
        load_settings({"data": "folder", "shards": 4}, environment={})


@pytest.mark.parametrize(("name", "wrong"), [("shards", [0, 257]), ("replicas", [-1, 17]), ("coordinators", [0, 65])])
def test_how_many_there_may_be(load_serve, name, wrong):
    for value in wrong:
        with pytest.raises(SettingsError, match=f"^--{name}: {name} is {value}, but must be from "):
            load_serve(**{"shards": 2, name: value})


def test_strict_prefixes_come_as_a_list_or_with_commas(load_serve):
    prefixes = ("order:", "7")
    assert load_serve("shards = 1\nstrict = ['order:', '7']").strict == prefixes
    assert load_serve("shards = 1", {"STRICT": "order:,7"}).strict == prefixes
    assert load_serve("shards = 1", strict=["order:", "7"]).strict == prefixes
    with pytest.raises(SettingsError, match=r"strict must be a list of texts, not \[1\]"):
        load_serve("shards = 1\nstrict = [1]")


def test_the_shards_of_a_cluster_name_themselves(load_serve):
    with pytest.raises(SettingsError, match=r"^name is set, but the shards of a cluster"):
        load_serve(shards=2, name="blue")
    with pytest.raises(SettingsError, match=r"^ring is set, but a cluster's ring"):
        load_serve(shards=2, ring=["shard-0=1", "shard-1=1"])


def test_coordinators_have_a_table_of_their_own(load_serve):
    settings = load_serve("shards = 1\n[coordinator]\nframe_bytes_max = '2 MiB'\nrequest_timeout_s = 1.5")
    assert settings.coordinator == {"frame_bytes_max": "2 MiB", "request_timeout_s": 1.5}
    for wrong, said in {
        "prot = 1": "has no setting 'prot'",
        "data = 'x'": "has no setting 'data'",
        "listen_fds = [1]": "has no setting 'listen_fds'",
        "level = 'safe'": "level must be applied or durable",
        "request_timeout_s = 0.0": "request_timeout_s is 0.0, but must be from",
    }.items():
        with pytest.raises(SettingsError, match=rf"\[coordinator\] {said}"):
            load_serve(f"shards = 1\n[coordinator]\n{wrong}")


def test_a_coordinator_has_the_file_and_its_sockets_and_no_environment(tmp_path, monkeypatch):
    config = tmp_path / "coordinator.toml"
    config.write_text("data = 'folder'\nname = 'coordinator-1'")
    monkeypatch.setenv("PYCOUNTER_NAME", "other")
    settings = load_coordinator_settings({"listen_fds": [5, 6]}, config=config)
    assert (settings.name, settings.data, settings.listen_fds) == ("coordinator-1", "folder", (5, 6))
    with pytest.raises(SettingsError, match="listen_fds"):
        load_coordinator_settings({}, config=config)


MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "cluster", "counters", "others"),
    [
        (16 * GIB, None, 8 * GIB, 256 * MIB),
        (1 * GIB, None, 512 * MIB, 64 * MIB),
        (64 * MIB, None, 32 * MIB, 8 * MIB),
        (1 * MIB, None, 16 * MIB, 8 * MIB),
        (20 * GIB, {"shards": 4}, 2 * GIB, 256 * MIB),
        (18 * GIB, {"shards": 4, "replicas": 1}, 1 * GIB, 128 * MIB),
        (18 * GIB, {"shards": 1, "replicas": 15, "coordinators": 2}, 512 * MIB, 64 * MIB),
    ],
)
def test_bounds_of_memory_follow_the_memory_and_the_number_of_processes(monkeypatch, memory, cluster, counters, others):
    monkeypatch.setattr("pycounter.settings.memory_bytes", lambda: memory)
    settings = load_serve_settings({"data": "folder", **(cluster or {})}, environment={})
    assert settings.counters_bytes_max == counters
    names = ("input_bytes_max", "held_bytes_max", "session_bytes_max", "ids_bytes_max")
    assert {getattr(settings, name) for name in names} == {others}


def test_bounds_that_are_set_stay(monkeypatch, load):
    monkeypatch.setattr("pycounter.settings.memory_bytes", lambda: 1 * GIB)
    settings = load("counters_bytes_max = '12GiB'\nids_bytes_max = '1GiB'")
    assert (settings.counters_bytes_max, settings.ids_bytes_max) == (12 * GIB, GIB)
    assert settings.session_bytes_max == 64 * MIB
    with pytest.raises(SettingsError, match="counters_bytes_max is 0, but must be from"):
        load("counters_bytes_max = 0")


def test_a_longest_request_fits_in_however_little_memory_there_is(monkeypatch, load):
    monkeypatch.setattr("pycounter.settings.memory_bytes", lambda: 1 * GIB)
    assert load("frame_bytes_max = '64MiB'").input_bytes_max == 512 * MIB
