"""What a client says to whoever holds it wrongly: nothing is sent, and the error says what to do."""

import asyncio
import inspect
import math
import typing
from dataclasses import fields
from typing import Any

import pytest

import pycounter
from pycounter.coordinator.connect_settings import ConnectOptions, ConnectSettings
from pycounter.durations import FOREVER_S, seconds
from pycounter.errors import BadRequest, SettingsError, WrongLoop
from pycounter.topology import format_address
from tests.support.shard_process import ShardProcess

NO_TIMES: list[Any] = [math.nan, True, "1", b"2", [], 1j]


@pytest.mark.parametrize("given", NO_TIMES)
def test_what_is_no_time(given):
    with pytest.raises(BadRequest, match="a timeout is a number of seconds"):
        seconds(given, 1.0)


@pytest.mark.parametrize(
    ("given", "time_s"),
    [(None, 7.0), (0, 0.0), (-1, 0.0), (-math.inf, 0.0), (2, 2.0), (0.5, 0.5), (math.inf, FOREVER_S)],
)
def test_what_is_a_time(given, time_s):
    assert seconds(given, 7.0) == time_s


@pytest.mark.parametrize("given", NO_TIMES)
async def test_every_call_refuses_what_is_no_time(shared_shard, given):
    async with pycounter.connect(url_of(shared_shard)) as client:
        calls = [
            client.incr("a", timeout_s=given),
            client.incr_many([("a", 1)], timeout_s=given),
            client.get("a", timeout_s=given),
            client.get_many(["a"], timeout_s=given),
            client.total("a", timeout_s=given),
            client.total_many(["a"], timeout_s=given),
            client.drain("a", timeout_s=given),
            client.delete("a", timeout_s=given),
            client.delete_many(["a"], timeout_s=given),
            client.delete_prefix("a", timeout_s=given),
            client.delete_all(timeout_s=given),
            client.set("a", 1, timeout_s=given),
            client.unknown.wait(timeout_s=given),
        ]
        for call in calls:
            with pytest.raises(BadRequest):
                await call
        await client.incr("a", level="applied")
        with pytest.raises(BadRequest):
            await client.flush(timeout_s=given)


@pytest.mark.parametrize("name", [each.name for each in fields(ConnectSettings) if each.type in {"float", "int"}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, True, "1", None])
def test_settings_that_are_no_numbers(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be an? (number|integer)"):
        ConnectSettings(**{name: value})


def test_a_mistyped_setting_gets_a_hint():
    with pytest.raises(SettingsError, match="there is no setting 'levle'; did you mean level"):
        pycounter.connect(levle="applied")  # type: ignore[call-arg]


def test_type_checkers_know_every_setting():
    known = typing.get_type_hints(ConnectSettings)
    del known["addresses"]
    assert typing.get_type_hints(ConnectOptions) == known


async def test_a_forgotten_await(shared_shard):
    connecting: Any = pycounter.connect(url_of(shared_shard))
    with pytest.raises(AttributeError, match=r"write `client = await pycounter.connect"):
        connecting.incr("a")
    with pytest.raises(TypeError, match="use `async with"), connecting:
        pass
    forgotten = [connecting]
    del connecting
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        forgotten.clear()


def test_another_event_loop(shared_shard):
    async def connect() -> pycounter.Client:
        return await pycounter.connect(url_of(shared_shard))

    with asyncio.Runner() as own, asyncio.Runner() as other:
        client = own.run(connect())
        for call in (client.incr("loop"), client.incr_many([("loop", 1)]), client.get("loop"), client.drain("loop")):
            with pytest.raises(WrongLoop, match="this client belongs to the event loop that connected it"):
                other.run(call)
        assert own.run(client.incr("loop")) == 1
        own.run(client.close())


def test_the_blocking_client_has_what_the_other_has():
    def surface(of: type) -> dict[str, Any]:
        return {name: member for name, member in vars(of).items() if not name.startswith("_")}

    blocking, other = surface(pycounter.BlockingClient), surface(pycounter.Client)
    #: Of processes that have a loop: what follows the topology.
    assert other.keys() - blocking.keys() == {"open", "set_topology", "shards"}
    assert not blocking.keys() - other.keys()
    for name, member in blocking.items():
        if inspect.isfunction(member):
            assert inspect.signature(member).parameters == inspect.signature(other[name]).parameters, name


def url_of(shard: ShardProcess) -> str:
    return f"pycounter://{format_address(*shard.address)}"
