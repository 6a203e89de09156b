"""What a service manager hears, on a real datagram socket."""

import asyncio
import logging
import os
import socket

import pytest

from pycounter.net.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager_socket(request, tmp_path):
    """A listening socket, and how the environment names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@pycounter-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(30)
        yield listener, name


def test_it_hears_that_the_server_is_ready_and_that_it_stops(manager_socket):
    listener, name = manager_socket
    environment = {"NOTIFY_SOCKET": name, "PATH": "/bin"}
    manager = ServiceManager.from_environment(environment)
    assert environment == {"PATH": "/bin"}, "children don't talk to it"
    manager.ready()
    manager.stopping()
    assert listener.recv(1000).split(b"\n") == [b"READY=1", b"MAINPID=%d" % os.getpid()]
    assert listener.recv(1000) == b"STOPPING=1"


async def test_it_hears_that_the_loop_is_alive(manager_socket):
    listener, name = manager_socket
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    async with ServiceManager.from_environment(environment).watched():
        for _ in range(3):
            assert await asyncio.to_thread(listener.recv, 1000) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"},
    ],
)
async def test_a_watchdog_that_is_not_meant_hears_nothing(manager_socket, watchdog):
    listener, name = manager_socket
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": name, **watchdog})
    async with manager.watched():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    manager.stopping()
    assert listener.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize("name", ["/nowhere/notify", "/dev/null", "@", "x" * 200, "a\0b"])
def test_a_manager_that_cannot_be_told_is_no_reason_to_fail(name, caplog):
    with caplog.at_level(logging.WARNING):
        ServiceManager(name).ready()
    assert "the service manager can't be told READY=1" in caplog.text


def test_without_a_manager_nothing_is_said(caplog):
    ServiceManager.from_environment({}).ready()
    assert caplog.text == ""
