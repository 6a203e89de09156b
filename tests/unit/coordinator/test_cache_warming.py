"""Warming: what the file holds, and that nothing about it can hurt."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycounter._native import ReadCache
from pycounter.coordinator.cache_warming import FILE_BYTES_MAX, CacheWarming, read_hottest, write_hottest
from pycounter.errors import Unavailable


def cache_of(reads: dict[str | bytes, int]) -> ReadCache:
    cache = ReadCache()
    for key, times in reads.items():
        cache.fill(key, 1, cache.begin(key))
        for _ in range(times):
            cache.get(key)
    return cache


async def run_of(cache: ReadCache, path: Path, loaded: list[list[bytes]], *, batch: int = 2, keys_max: int = 5) -> None:
    """Starts, waits until nothing is left to warm, and ends."""

    async def load(keys: list[bytes]) -> None:
        await asyncio.sleep(0)
        loaded.append(keys)

    warming = CacheWarming(cache, path, load, batch=batch, keys_max=keys_max)
    warming.start()
    expected = len(read_hottest(path)[:keys_max])
    async with asyncio.timeout(20):
        while warming.status()["warmed"] < expected:
            await asyncio.sleep(0.001)
    assert warming.status() == {"found": expected, "warmed": expected, "failed": ""}
    await warming.close()


async def test_the_hottest_keys_of_the_last_run_are_read_again_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "hottest"
    loaded: list[list[bytes]] = []
    reads: dict[str | bytes, int] = {f"key-{number}": number for number in range(8)}
    await run_of(cache_of({**reads, b"\xff": 100}), path, loaded)
    assert loaded == []
    await run_of(ReadCache(), path, loaded)
    assert loaded == [[b"\xff", b"key-7"], [b"key-6", b"key-5"], [b"key-4"]]
    # A run that read nothing through its cache leaves the file as it was.
    assert len(read_hottest(path)) == 5
    await run_of(cache_of({"other": 1}), path, loaded)
    assert read_hottest(path) == [b"other"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["hottest"]


async def test_the_start_waits_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "hottest"
    write_hottest(path, [b"a"])
    stuck = asyncio.Event()

    async def load(keys: list[bytes]) -> None:
        await stuck.wait()

    warming = CacheWarming(ReadCache(), path, load)
    warming.start()
    while not warming.status()["found"]:
        await asyncio.sleep(0.001)
    await warming.close()
    assert warming.status()["warmed"] == 0


async def test_a_shard_that_is_not_there_ends_the_warming_only(tmp_path: Path) -> None:
    path = tmp_path / "hottest"
    write_hottest(path, [b"a", b"b"])

    async def load(keys: list[bytes]) -> None:
        raise Unavailable("shard-0 is down")

    warming = CacheWarming(ReadCache(), path, load, batch=1, save_s=0.001)
    warming.start()
    async with asyncio.timeout(20):
        while not warming.status()["failed"]:
            await asyncio.sleep(0.001)
    assert warming.status() == {"found": 2, "warmed": 0, "failed": "shard-0 is down"}
    await warming.close()


async def test_hot_keys_are_remembered_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "hottest"

    async def load(keys: list[bytes]) -> None: ...

    warming = CacheWarming(cache_of({"a": 3}), path, load, save_s=0.001)
    warming.start()
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.001)
    assert read_hottest(path) == [b"a"]
    await warming.close()


async def test_a_folder_that_is_gone_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def load(keys: list[bytes]) -> None: ...

    warming = CacheWarming(cache_of({"a": 3}), tmp_path / "gone" / "hottest", load)
    warming.start()
    await warming.close()
    assert "aren't remembered" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"version": 2, "keys": []}),
        msgspec.msgpack.encode({"version": 1, "keys": [1]}),
        msgspec.msgpack.encode({"version": 1, "keys": [b"a"]})[:-1],
        bytes(FILE_BYTES_MAX + 1),
    ],
    ids=["empty", "no msgpack", "newer", "no keys", "cut off", "too large"],
)
def test_a_bad_file_is_a_cold_cache(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "hottest"
    path.write_bytes(content)
    assert read_hottest(path) == []
    assert "stays cold" in caplog.text


def test_no_file_is_a_cold_cache_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_hottest(tmp_path / "hottest") == []
    assert not caplog.text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=1100)))
def test_keys_come_back_as_they_were_and_what_is_no_key_does_not(tmp_path: Path, keys: list[bytes]) -> None:
    path = tmp_path / "hottest"
    write_hottest(path, keys)
    assert read_hottest(path) == [key for key in keys if 1 <= len(key) <= 1024]
