"""A run's raw events, for protocols that must pass LangChain's own objects on: LangServe's streams.

A reader like any other: bounded, never waited for. It cannot be told of a gap, because such a protocol has no frame
for one; past its bound it is broken off instead (``on_overflow``), and never thinned.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_PENDING = 1024
"""Items a reader may lag behind; over it, the reader is broken off and what it held is let go."""


class TapOverflow(Exception):
    """The reader fell too far behind."""


class Tap:
    """One reader's queue. Written on the loop of the one task that reads it; iteration ends with the run.

    Only what is ``wanted`` is kept. ``on_overflow`` is called once, at the bound: the reader may be stuck in a send
    that never ends, and would not look here again.
    """

    def __init__(
        self,
        *,
        bound: int = MAX_PENDING,
        wanted: Callable[[Any], bool] = lambda _: True,
        on_overflow: Callable[[], None] = lambda: None,
    ) -> None:
        self._bound = bound
        self._wanted = wanted
        self._on_overflow = on_overflow
        self._pending: deque[Any] = deque()
        self._overflowed = False
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, item: Any) -> None:
        """Hand over one item. Never waits."""
        if self._overflowed or not self._wanted(item):
            return
        self._changed.set()
        if len(self._pending) < self._bound:
            self._pending.append(item)
            return
        self._overflowed = True
        self._pending.clear()
        self._on_overflow()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._changed.set()

    def __aiter__(self) -> "Tap":
        return self

    async def __anext__(self) -> Any:
        while not self._pending:
            if self._overflowed:
                raise TapOverflow("the reader fell too far behind")
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._pending.popleft()
