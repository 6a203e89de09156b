"""Tasks that are begun together and waited for together."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["Crowd"]


class Crowd(asyncio.TaskGroup):
    """A task group that raises what its first failed task raised, as it is: its callers know single errors."""

    async def __aexit__(self, *error: Any) -> None:
        """Waits for all tasks; the first that fails ends the others."""
        try:
            await super().__aexit__(*error)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__
