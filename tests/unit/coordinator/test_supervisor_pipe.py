"""The lines between supervisor and coordinator: whole, the newest, and never waited for."""

import asyncio
import json
import os

import pytest

from pycounter.coordinator.supervisor_pipe import SupervisorPipe

pytestmark = pytest.mark.timeout(30)


def line(version):
    shard = {"name": "shard-0", "address": "127.0.0.1:1", "weight": 1.0, "identity": "", "state": "ok"}
    return json.dumps({"version": version, "cluster": "ab", "shards": [shard]}).encode() + b"\n"


class Pipes:
    def __init__(self):
        ours, self.to_us = os.pipe()
        self.from_us, theirs = os.pipe()
        self.descriptors = [ours, self.to_us, self.from_us, theirs]
        self.versions: list[int] = []
        self.ended = asyncio.Event()
        self.pipe = SupervisorPipe(
            lambda topology: self.versions.append(topology.version),
            self.ended.set,
            input_fd=ours,
            output_fd=theirs,
        )
        self.pipe.start()

    async def until(self, *versions):
        while self.versions != list(versions):
            await asyncio.sleep(0.001)


@pytest.fixture
async def pipes():
    pipes = Pipes()
    yield pipes
    pipes.pipe.close()
    for descriptor in pipes.descriptors:
        os.close(descriptor)


async def test_topologies_come_in_pieces_and_of_several_the_newest_counts(pipes):
    whole = line(1)
    os.write(pipes.to_us, whole[:30])
    await asyncio.sleep(0.01)
    os.write(pipes.to_us, whole[30:])
    await pipes.until(1)
    os.write(pipes.to_us, line(2) + line(3) + line(4)[:20])
    await pipes.until(1, 3)


async def test_nonsense_is_ignored(pipes):
    os.write(pipes.to_us, b"nonsense\n[]\n\n" + b'{"version": "x"}\n')
    os.write(pipes.to_us, line(7))
    await pipes.until(7)


async def test_the_end_of_the_input_is_told_once(pipes):
    os.write(pipes.to_us, line(1))
    os.close(pipes.to_us)
    pipes.descriptors.remove(pipes.to_us)
    await pipes.ended.wait()
    assert pipes.versions == [1]


async def test_what_does_not_fit_is_dropped_and_lines_stay_whole(pipes):
    for number in range(1000):
        pipes.pipe.tell({"number": number, "filling": "x" * 5000})
    received = b""
    os.set_blocking(pipes.from_us, False)
    while True:
        try:
            received += os.read(pipes.from_us, 1 << 16)
        except BlockingIOError:
            if b'"number": 5000' in received and received.endswith(b"\n"):
                break
            pipes.pipe.tell({"number": 5000})
    numbers = [json.loads(one)["number"] for one in received.splitlines()]
    assert numbers == sorted(numbers)
    assert 1 < len(numbers) < 200
    assert numbers[-1] == 5000


async def test_a_supervisor_that_has_gone_is_no_reason_to_fail(pipes):
    os.close(pipes.from_us)
    pipes.descriptors.remove(pipes.from_us)
    pipes.pipe.tell({"number": 1})
