"""The deadline of a call, and what is certain when it passes."""

from __future__ import annotations

import asyncio
from types import TracebackType

from pycounter.errors import DeadlineExceeded

__all__ = ["Limit"]


class Limit:
    """A deadline around an operation: says what is certain when it passes."""

    __slots__ = ("_timeout",)

    def __init__(self, deadline: float) -> None:
        self._timeout = asyncio.timeout_at(deadline)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            raise DeadlineExceeded("the time ran out; what was sent stays in the session: don't repeat it") from late
