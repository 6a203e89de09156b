"""The deadline of a call, and what is certain when it passes."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from pycounter.errors import DeadlineExceeded, Unavailable

__all__ = ["Limit"]


class Limit:
    """A deadline around an operation: says what is certain when it passes."""

    __slots__ = ("_timeout", "is_sent")

    def __init__(self, deadline: float) -> None:
        self._timeout = asyncio.timeout_at(deadline)
        #: May anything have been sent? Set to False for as long as the operation waits for room.
        self.is_sent = True

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as late:
            if not self.is_sent:
                raise Unavailable("the time ran out before there was room to send it: nothing was applied") from late
            raise DeadlineExceeded("the time ran out; what was sent stays in the session: don't repeat it") from late
