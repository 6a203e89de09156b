"""`pycounter.connect`: from a URL to a client."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, NoReturn, Unpack

from pycounter.client import LostTail
from pycounter.clock import SYSTEM_CLOCK, Clock
from pycounter.coordinator.client import Client
from pycounter.coordinator.connect_settings import ConnectOptions, ConnectSettings

__all__ = ["Connecting", "connect"]


class Connecting:
    """What `connect` gives: `await` it for a client, or use it as `async with`, which closes the client."""

    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._client: Client | None = None
        self._is_used = False

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"connect(...) has no {name!r} before it is awaited: write `client = await pycounter.connect(...)`, "
            "`async with pycounter.connect(...) as client`, or use pycounter.connect_blocking"
        )

    def __enter__(self) -> NoReturn:
        raise TypeError("use `async with pycounter.connect(...)`, or `with pycounter.connect_blocking(...)`")

    def __exit__(self, *_: object) -> None:
        """Never reached; with it, `with` calls `__enter__`."""

    def __del__(self) -> None:
        if not self.__dict__.get("_is_used", True):
            warnings.warn("pycounter.connect(...) was never awaited", RuntimeWarning, source=self, stacklevel=2)

    def __await__(self) -> Generator[Any, None, Client]:
        self._is_used = True
        opening: Awaitable[Client] = self._make().open()
        return opening.__await__()

    async def __aenter__(self) -> Client:
        self._is_used = True
        self._client = await self._make().open()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.__aexit__(kind, error, traceback)


def connect(
    url: str = "pycounter://127.0.0.1:7400",
    *,
    on_lost_tail: Callable[[LostTail], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Unpack[ConnectOptions],
) -> Connecting:
    """Connects to a counter service.

        async with pycounter.connect("pycounter://127.0.0.1:7400") as client:
            await client.incr("visits")

    Args:
        url: `pycounter://[token@]host[:port][,host[:port]...][?route=auto|direct|coordinator]`.
        on_lost_tail: told of increments that were acknowledged at `applied` and lost in a crash; logged otherwise.
        clock: time and random numbers.
        settings: fields of `ConnectSettings`, such as `token`, `tls`, `level` and `request_timeout_s`.

    Raises:
        SettingsError: the URL or a setting is wrong. Awaiting it raises what `Client.open` does.
    """
    checked = ConnectSettings.from_url(url, **settings)
    return Connecting(lambda: Client(checked, on_lost_tail=on_lost_tail, clock=clock))
