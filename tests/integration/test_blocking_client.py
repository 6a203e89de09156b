"""`pycounter.connect_blocking` from many threads, through forks, Ctrl-C and the interpreter's end."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import pycounter
from pycounter.coordinator import blocking_client
from pycounter.errors import AfterFork, Unavailable
from pycounter.topology import format_address
from tests.support.shard_process import ROOT


def url_of(shard):
    return f"pycounter://{format_address(*shard.address)}"


def run_program(program, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_kind(request, monkeypatch):
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    return request.param


def test_every_method(shard, loop_kind):
    with pycounter.connect_blocking(url_of(shard)) as client:
        assert client.incr("a") == 1
        assert client.incr("a", 4, detail=True).value == 5
        assert client.incr_many([("b", 1), (b"b", 2)]) == [1, 3]
        assert client.get("a") == client.get("a", accuracy="cached") == 5
        assert client.get_many(["a", "b"]) == [5, 3]
        assert client.total("a").total == 5
        assert [total.total for total in client.total_many(["a", "b"])] == [5, 3]
        assert dict(client.scan()) == {"a": 5, "b": 3}
        assert client.top(1) == [("a", 5)]
        assert client.set("b", 10) == 3
        assert client.drain("b") == 10
        assert client.delete("a") == 5
        client.incr_many([("c", 1), ("d", 2), ("e-1", 3), ("e-2", 4)])
        assert client.delete_many(iter(("c", "never", b"d"))) == [1, 0, 2]
        told: list[int] = []
        assert client.delete_prefix("e-", on_progress=told.append) == 2
        assert told == [2]
        assert client.delete_all() == 1
        client.flush()
        assert client.unknown.list() == client.unknown.wait() == []
        assert client.statistics["succeeded"] == 8
        assert client.status()["route"] == "direct"
        assert client.topology.shards[0].name == "shard-0"
    with pytest.raises(Unavailable):
        client.incr("a")
    client.close()


def test_a_scan_of_more_than_a_page(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        client.incr_many([(f"key-{number}", number + 1) for number in range(2500)])
        assert sum(value for _, value in client.scan()) == 2500 * 2501 // 2
        first, *_ = client.scan()
        assert str(first[0]).startswith("key-")


def test_generators_may_call_the_client(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        client.incr_many({"a": 1, "b": 2})
        assert client.incr_many((key, client.get(key)) for key in ("a", "b")) == [2, 4]
        assert client.get_many(keys=(key for key, _ in client.scan())) in ([2, 4], [4, 2])
        assert client.delete_many(key for key, _ in client.top(2)) == [4, 2]


def test_many_threads_at_once(shard, loop_kind):
    with pycounter.connect_blocking(url_of(shard)) as client:

        def count(number):
            for _ in range(50):
                client.incr(f"key-{number % 3}")

        threads = [threading.Thread(target=count, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get_many(["key-0", "key-1", "key-2"]) == [200, 200, 200]


def test_a_callback_that_would_wait_for_itself(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        failures = []

        async def misuse():
            try:
                client.incr("a")
            except RuntimeError as error:
                failures.append(error)

        client._thread.call(misuse)
        assert len(failures) == 1


def test_a_forked_child_is_told_to_connect_for_itself(shard):
    with pycounter.connect_blocking(url_of(shard)) as client:
        assert client.incr("a") == 1
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            said = b"nothing was raised"
            try:
                client.incr("a")
            except AfterFork:
                client.close()
                blocking_client._close_open_clients()
                said = b"after fork"
            finally:
                os.write(write, said)
                os._exit(0)
        os.close(write)
        assert os.read(read, 100) == b"after fork"
        os.close(read)
        os.waitpid(child, 0)
        assert client.incr("a") == 2


def test_the_interpreter_ends_with_an_open_client(shard):
    program = "import sys, pycounter; client = pycounter.connect_blocking(sys.argv[1]); print(client.incr('a'))"
    process = run_program(program, url_of(shard))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "1\n", "")


CTRL_C = """
import sys, threading, time, pycounter
client = pycounter.connect_blocking(sys.argv[1])
print(client.incr("a"), flush=True)
sys.stdin.readline()

def tell_when_sent():
    while not client.statistics["pending"]:
        time.sleep(0.01)
    print("sent", flush=True)

threading.Thread(target=tell_when_sent).start()
try:
    client.incr("a", timeout_s=60)
except KeyboardInterrupt:
    print("interrupted", len(client.unknown), flush=True)
    sys.stdin.readline()
    print(client.unknown.wait(timeout_s=30), client.get("a"))
    client.close()
"""


def test_ctrl_c_ends_the_waiting_and_not_the_counting(shard):
    process = run_program(CTRL_C, url_of(shard), stdin=subprocess.PIPE)
    assert process.stdout.readline() == "1\n"
    shard.send_signal(signal.SIGSTOP)
    try:
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "sent\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted 1\n"
    finally:
        shard.send_signal(signal.SIGCONT)
    output, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, output, errors) == (0, "[] 2\n", "")
