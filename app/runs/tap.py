"""A run's raw events, for protocols that must pass LangChain's own objects on: LangServe's streams.

A reader like any other: bounded, never waited for. It cannot be told of a gap, because such a protocol has no frame
for one; past its bound all that it held is let go, it has left (``on_overflow``), and once it reads again it is told
that it was too slow: it is never thinned.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

from langchain_core.tracers.log_stream import RunLogPatch
from pydantic import BaseModel

from app.errors import RunFailed

MAX_PENDING = 1024
"""Items a reader may lag behind."""

MAX_PENDING_BYTES = 8 * 1024 * 1024
"""The same in bytes, about: a graph's events may each carry its whole state. One item may always wait."""

NODE_BYTES = 64
"""What a value weighs beside its text."""


class TapOverflow(RunFailed):
    """The reader fell too far behind."""

    code = "reader_too_slow"


class Tap:
    """One reader's queue. Written on the loop of the one task that reads it; iteration ends with the run.

    Only what is ``wanted`` is kept; with ``events`` it is asked about the run's own events too, each after the raw
    event that it comes from. ``on_overflow`` is called once, at the bound: the reader may be held up in a send for
    long, and looks here again only after it.
    """

    def __init__(
        self,
        *,
        bound: int = MAX_PENDING,
        max_bytes: int = MAX_PENDING_BYTES,
        wanted: Callable[[Any], bool] = lambda _: True,
        on_overflow: Callable[[], None] = lambda: None,
        events: bool = False,
    ) -> None:
        self.events = events
        self._bound = bound
        self._max_bytes = max_bytes
        self._wanted = wanted
        self._on_overflow = on_overflow
        self._pending: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._overflowed = False
        self._closed = False
        self._changed = asyncio.Event()

    def put(self, item: Any) -> None:
        """Hand over one item. Never waits."""
        if self._overflowed or not self._wanted(item):
            return
        self._changed.set()
        # A reader that keeps up finds nothing waiting before its item: only for those behind is anything weighed.
        weight = weigh(item, self._max_bytes) if self._pending else 0
        self._bytes += weight
        if len(self._pending) < self._bound and self._bytes <= self._max_bytes:
            self._pending.append((item, weight))
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
                raise TapOverflow("the stream was read more slowly than its run wrote it, so the rest was let go")
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item, weight = self._pending.popleft()
        self._bytes -= weight
        return item


def weigh(item: Any, most: int) -> int:
    """About how many bytes ``item`` is, texts above all; when it is over ``most``, how much over is not looked into."""
    total, rest = 0, [item]
    while rest and total <= most:
        one = rest.pop()
        total += NODE_BYTES
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping):
            rest.extend(one.values())
        elif isinstance(one, list | tuple | set):
            rest.extend(one)
        elif isinstance(one, BaseModel | RunLogPatch) or is_dataclass(one):
            rest.extend(getattr(one, "__dict__", {}).values())
    return total
