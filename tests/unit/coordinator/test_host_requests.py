"""What raw clients get from Python at a coordinator: decoded, asked over all shards, encoded."""

import asyncio
import random

import msgpack
import pytest

from pycounter.coordinator import host_requests
from pycounter.coordinator.host_requests import HostRequests
from pycounter.coordinator.listing import Listing
from pycounter.coordinator.removals import Removals, RemovalSettings
from pycounter.coordinator.totals import Totals
from pycounter.errors import BadRequest, StorageError, StorageFailed, Unavailable, UnknownMethod, UnknownOutcome
from pycounter.topology import Topology
from tests.support.scripted_routes import REFUSE, ScriptedCache, ScriptedRoutes

pytestmark = pytest.mark.timeout(30)


class Asked:
    """Answers as the server does, with everything encoded."""

    def __init__(self, shards=3):
        self.routes = ScriptedRoutes(shards)
        self.now_ms = 50_000
        #: Ordered, and what goes wrong at a shard.
        self.backups = []
        self.backup_failures = {}
        self.end_failure = None
        cache = ScriptedCache()
        totals = Totals(self.routes, foreign=self.routes, cache=cache)
        settings = RemovalSettings(backoff_first_s=0.001, backoff_max_s=0.002)
        self.requests = HostRequests(
            self.routes,
            totals=totals,
            removals=Removals(self.routes, totals, bump=cache.bump, on_removal=cache.on_removal, settings=settings),
            listing=Listing(self.routes, totals, foreign=self.routes),
            stats=lambda: {"level": "durable", "figure": 7},
            health=lambda: {"state": "ok"},
            info=lambda sections, keyspace: f"{b' '.join(sections).decode()}|{keyspace}",
            backup=self._backup,
            end_backup=self._end_backup,
            now_ms=lambda: self.now_ms,
            timeout_s=0.2,
        )

    async def _backup(self, shard, folder):
        self.backups.append((shard, folder))
        await asyncio.sleep(0)
        if shard in self.backup_failures:
            raise self.backup_failures[shard]

    def _end_backup(self, folder):
        self.backups.append(folder)
        if self.end_failure is not None:
            raise self.end_failure

    async def rpc(self, method, *params):
        answer = await self.requests.answer(method, msgpack.packb(params), "msgpack-rpc")
        return msgpack.unpackb(answer)

    async def resp(self, command, *params, protocol="resp2"):
        answer = await self.requests.answer(command, msgpack.packb(params), protocol)
        return msgpack.unpackb(answer, raw=True)


@pytest.fixture
def asked():
    return Asked()


KEY = b"\x00key"


async def test_totals(asked):
    asked.routes.shards[0].add(KEY, 2**63 - 1)
    asked.routes.divert(1, KEY, 1)
    assert await asked.rpc("total", KEY) == {
        "total": "9223372036854775808",
        "partials": {"shard-0": 2**63 - 1, "shard-1": 1},
        "missing": [],
        "exact": False,
        "age_ms": 0,
    }
    (total,) = await asked.rpc("total_many", ["\x00key"], {"accuracy": "exact"})
    assert total["exact"] is True
    assert await asked.rpc("get", KEY) == "9223372036854775808"
    assert await asked.rpc("get_many", [KEY, b"\x01x"], {"or_nil": True}) == ["9223372036854775808", None]
    assert await asked.rpc("get", b"\x01x", {"read_from": "any"}) == 0
    with pytest.raises(BadRequest):
        await asked.rpc("get", KEY, {"min_commit": 3})


async def test_a_total_names_what_is_missing_and_a_value_is_unavailable(asked):
    asked.routes.shards[1].always = REFUSE
    assert (await asked.rpc("total", KEY, {"accuracy": "exact"}))["missing"] == ["shard-1"]
    with pytest.raises(Unavailable):
        await asked.rpc("get", b"\x01x")


@pytest.mark.parametrize("method", ["drain", "delete"])
async def test_removals_with_and_without_an_id(asked, method):
    asked.routes.shards[0].add(KEY, 5)
    asked.routes.divert(2, KEY, 6)
    options = {"id": b"raw", "born": 47_000, "level": "applied", "detail": True}
    for number, shard in enumerate(asked.routes.shards):
        shard.commits = 10 * number
    commits = {"shard-0": 1, "shard-1": 11, "shard-2": 21}
    answer = {"value": 11, "exact": True, "level": "applied", "commit": 1, "commits": commits}
    assert await asked.rpc(method, KEY, options) == answer
    again = await asked.rpc(method, KEY, options)
    commits = {"shard-0": 2, "shard-1": 12, "shard-2": 22}
    assert again == {**answer, "commit": 2, "commits": commits}, "the same id gets the same value"
    told = asked.routes.shards[0].requests[0][1][-1]
    assert told == {"id": b"raw", "detail": True, "born": told["born"], "level": "applied"}
    assert 990_000 < told["born"] <= 997_000
    assert await asked.rpc(method, KEY) == 0
    asked.routes.shards[1].is_down = True
    with pytest.raises(Unavailable):
        await asked.rpc(method, KEY)


async def test_a_removal_from_the_future_is_the_shards_to_refuse(asked):
    for born, told in [(53_000, 1_003_000), (2**64 - 1, 2**64 - 1)]:
        await asked.rpc("drain", KEY, {"id": b"%d" % born, "born": born})
        assert told - 2000 < asked.routes.shards[0].requests[-1][1][-1]["born"] <= told


async def test_scan_and_top(asked):
    for number in range(20):
        asked.routes.shards[number % 3].add(bytes([number]), number)
    asked.routes.shards[255 % 3].add(b"\xff", -1)
    found: dict[str | bytes, int] = {}
    cursor = 0
    while True:
        cursor, page = await asked.rpc("scan", cursor, 5)
        found |= dict(page)
        if not cursor:
            break
    expected: dict[str | bytes, int] = {chr(number): number for number in range(20)}
    assert found == expected | {b"\xff": -1}
    assert await asked.rpc("top", 2) == [["\x13", 19], ["\x12", 18]]
    assert await asked.rpc("top", 5, "\x05") == [["\x05", 5]]
    assert len(await asked.rpc("top")) == 10


async def test_what_it_says_of_itself(asked):
    assert await asked.rpc("stats") == {"level": "durable", "figure": 7}
    assert await asked.rpc("health", {"foreign_from": 0}) == {"state": "ok"}
    with pytest.raises(UnknownMethod):
        await asked.rpc("nothing")


async def test_a_backup_is_one_of_each_shard_or_none(asked):
    folders = [f"/backups/monday/shard-{number}" for number in range(3)]
    assert await asked.rpc("backup", "/backups/monday/") == folders
    assert asked.backups == [*enumerate(folders), "/backups/monday/"]
    asked.end_failure = StorageError("the disk is full", "/backups/monday")
    with pytest.raises(StorageFailed, match="no backup together: the disk is full"):
        await asked.rpc("backup", "/backups/monday")
    asked.backup_failures[1] = StorageFailed("the disk is full")
    said = r"shard-0 is whole, shard-1 failed \(the disk is full\), shard-2 is whole; begin again in a new folder"
    with pytest.raises(StorageFailed, match=said):
        await asked.rpc("backup", "/backups/monday")
    asked.backup_failures[2] = UnknownOutcome("the connection ended")
    with pytest.raises(UnknownOutcome, match=r"shard-2 failed \(the connection ended\)"):
        await asked.rpc("backup", "/backups/monday")
    asked.routes.shards[0].is_down = True
    asked.backups.clear()
    with pytest.raises(Unavailable, match="nothing was applied"):
        await asked.rpc("backup", "/backups/monday")
    assert asked.backups == []


async def test_watching_the_topology(asked):
    def topology(version):
        shard = {"name": "shard-0", "address": "127.0.0.1:1", "weight": 1.0, "identity": "", "state": "ok"}
        return Topology.from_wire({"version": version, "cluster": "ab", "shards": [shard]})

    first = asyncio.create_task(asked.rpc("watch_topology"))
    await asyncio.sleep(0)
    asked.requests.set_topology(topology(4))
    assert (await first)["version"] == 4
    assert (await asked.rpc("watch_topology", 3))["version"] == 4
    watchers = [asyncio.create_task(asked.rpc("watch_topology", 4)) for _ in range(3)]
    await asyncio.sleep(0)
    watchers[0].cancel()
    await asyncio.sleep(0)
    assert not any(watcher.done() for watcher in watchers[1:])
    asked.requests.set_topology(topology(5))
    assert [(await watcher)["version"] for watcher in watchers[1:]] == [5, 5]


async def test_a_topology_that_stays_the_same_is_told_all_the_same_after_a_while(asked, monkeypatch):
    monkeypatch.setattr(host_requests, "WATCH_S", 0.01)
    with pytest.raises(Unavailable):
        await asked.rpc("watch_topology")
    shard = {"name": "shard-0", "address": "127.0.0.1:1", "weight": 1.0, "identity": "", "state": "ok"}
    asked.requests.set_topology(Topology.from_wire({"version": 4, "shards": [shard]}))
    assert (await asked.rpc("watch_topology", 4))["version"] == 4
    # A client that has left can't be waited with for ever.
    assert not asked.requests._watchers


# --- RESP ------------------------------------------------------------------------------------------------------------


async def test_values_and_nil(asked):
    asked.routes.shards[0].add(KEY, 5)
    asked.routes.divert(1, KEY, -5)
    assert await asked.resp("get", KEY) == 0
    assert await asked.resp("mget", KEY, b"\x01no", KEY) == [0, None, 0]
    assert await asked.resp("exists", KEY, b"\x01no", KEY) == 2
    assert await asked.resp("type", KEY) is True
    assert await asked.resp("type", b"\x01no") is False


async def test_scan_by_patterns(asked):
    for word in (b"one", b"only", b"two", b"o*e"):
        asked.routes.shards[asked.routes.home(word)].add(word, 1)

    async def keys(pattern, other_type=False):
        found, cursor = [], 0
        while True:
            cursor, page = await asked.resp("scan", cursor, 2, pattern, other_type)
            found += page
            if not cursor:
                return sorted(found)

    assert await keys(None) == [b"o*e", b"one", b"only", b"two"]
    assert await keys(b"on*") == [b"one", b"only"]
    assert await keys(b"?[mn]*") == [b"one", b"only"]
    assert await keys(b"o\\*e") == [b"o*e"]
    assert await keys(b"two") == [b"two"]
    assert await keys(b"tw") == []
    assert await keys(None, True) == []


async def test_info_has_what_shards_hold_and_names_those_that_do_not_say(asked):
    assert await asked.resp("info") == b"|"
    for number in range(30):
        asked.routes.shards[number % 3].add(b"%d" % number, 1)
    assert await asked.resp("info", b"server", b"keyspace") == b"server keyspace|db0:keys=30,expires=0,avg_ttl=0\r\n"
    asked.routes.shards[1].always = REFUSE
    asked.routes.shards[2].is_down = True
    said = b"|db0:keys=10,expires=0,avg_ttl=0\r\nmissing_shards:shard-1,shard-2\r\n"
    assert await asked.resp("info") == said
    assert asked.routes.shards[2].count("stats") == 2, "who is known to be down is not waited for"


async def test_dbsize_and_flushall(asked):
    chance = random.Random(1)
    for number in range(300):
        asked.routes.shards[number % 3].add(b"%d" % number, chance.randrange(5))
    assert await asked.resp("dbsize") == 300
    asked.routes.divert(1, b"0", 1)
    asked.routes.divert(2, b"0", 1)
    assert await asked.resp("dbsize") == 300
    assert await asked.resp("flushall") is None
    assert not any(shard.counters for shard in asked.routes.shards)
    asked.routes.shards[1].add(b"x", 1)
    asked.routes.shards[1].always = REFUSE
    with pytest.raises(UnknownOutcome, match=r"shard-0 deleted 0 counters.*not settled at shard-1.*FLUSHALL again"):
        await asked.resp("flushall")
    assert asked.routes.requests("delete_all") > 3
    assert not asked.routes.requests("delete", "scan")
    asked.routes.shards[1].always = None
    detail = await asked.rpc("delete_all", {"id": b"raw", "detail": True})
    assert detail == {**detail, "value": 1, "exact": True, "level": "durable", "commit": None}
    assert detail["commits"] == {shard.name: shard.commits for shard in asked.routes.shards}
    asked.routes.shards[2].add(b"y", 1)
    assert await asked.rpc("delete_all", {"id": b"raw"}) == 1, "the same id gets the same answer"
    assert asked.routes.total(b"y") == 1
    asked.routes.shards[1].is_down = True
    with pytest.raises(Unavailable):
        await asked.resp("flushall")
