"""The thread behind a blocking client: nobody waits for it in vain."""

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from pycounter.coordinator.blocking_client import _LoopThread, connect_blocking
from pycounter.errors import PyCounterError, Unavailable, UnknownOutcome

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(params=["uvloop", "asyncio"])
def loop_thread(request, monkeypatch):
    if request.param == "asyncio":
        monkeypatch.setitem(sys.modules, "uvloop", None)
    thread = _LoopThread()
    yield thread
    thread.stop()


def test_whoever_still_waits_when_the_thread_ends_is_told(loop_thread):
    begun, outcomes = threading.Event(), []

    async def for_ever():
        begun.set()
        await asyncio.Event().wait()

    def wait():
        try:
            loop_thread.call(for_ever)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            outcomes.append(type(error))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    begun.wait()
    loop_thread.stop()
    waiting.join(10.0)
    assert outcomes == [UnknownOutcome]
    with pytest.raises(Unavailable):
        loop_thread.call(for_ever)


@pytest.mark.usefixtures("loop_thread")
def test_of_many_that_call_as_the_thread_ends_each_has_an_answer():
    async def answer():
        await asyncio.sleep(0)
        return "answered"

    def ask(loop_thread, outcomes):
        try:
            while True:
                outcomes.append(loop_thread.call(answer))
        except (Unavailable, UnknownOutcome) as error:
            outcomes.append(type(error))

    for _ in range(50):
        loop_thread = _LoopThread()
        outcomes: list[Any] = []
        asking = [threading.Thread(target=ask, args=(loop_thread, outcomes), daemon=True) for _ in range(6)]
        for thread in asking:
            thread.start()
        while outcomes.count("answered") < 10:
            time.sleep(0.0001)
        loop_thread.stop()
        for thread in asking:
            thread.join(10.0)
        assert len([outcome for outcome in outcomes if outcome != "answered"]) == len(asking)


@pytest.mark.parametrize(("patched", "refused"), [(True, True), (False, False)])
def test_greenlets_in_place_of_threads_are_refused_at_once(monkeypatch, patched, refused):
    class Monkey:
        @staticmethod
        def is_module_patched(name):
            return patched and name == "threading"

    monkeypatch.setitem(sys.modules, "gevent.monkey", Monkey)
    # Nobody listens there: who gets that far is told so.
    with pytest.raises(PyCounterError) as error:
        connect_blocking("pycounter://127.0.0.1:1", connect_timeout_s=0.2)
    assert ("gevent" in str(error.value)) == refused
