"""A run's raw events, for protocols that must pass LangChain's own objects on: LangServe's streams.

A reader like any other: bounded, never waited for. It cannot be told of a gap, because such a protocol has no frame
for one; past its bound it is broken off instead (``TapOverflow``), and never thinned.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

MAX_PENDING = 1024
"""Raw events a reader may lag behind; over it, the reader is broken off and what it held is let go."""


class TapOverflow(Exception):
    """The reader fell too far behind."""


class Tap:
    """One reader's queue. Written by the run's task, read by one other; iteration ends with the run."""

    def __init__(self, bound: int = MAX_PENDING) -> None:
        self._bound = bound
        self._pending: deque[Mapping[str, Any]] = deque()
        self._overflowed = False
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, raw: Mapping[str, Any]) -> None:
        """Hand over one event. Never waits."""
        if self._overflowed:
            return
        if len(self._pending) >= self._bound:
            self._overflowed = True
            self._pending.clear()
        else:
            self._pending.append(raw)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> "Tap":
        return self

    async def __anext__(self) -> Mapping[str, Any]:
        while not self._pending:
            if self._overflowed:
                raise TapOverflow("the reader fell too far behind")
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.popleft()
