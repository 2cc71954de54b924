"""A run's log in this process's memory, bounded in bytes; the log of every run unless one machine is too small.

Entries stand in one list, sorted by offset, so a reader's place is found by bisection whatever was dropped.
Dropping goes in strokes: at the bound, the oldest droppable entries go until a tenth of the bound is free again,
so that a long answer pays for it once in a while and not at each token.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Sequence

from app.eventlog.base import Entry, LogClosed, LogFull, RunLog
from app.events import codec
from app.events.event import (
    Error,
    Event,
    MessageFinished,
    NodeFinished,
    RunFinished,
    ToolFinished,
    Usage,
)

ENTRY_OVERHEAD = 200
"""Bytes of Python objects an entry costs beside its JSON (measured, rounded up)."""

_CLOSING = (Error, Usage, MessageFinished, ToolFinished, NodeFinished, RunFinished)


class MemoryLog(RunLog):
    """See ``RunLog``. ``max_bytes`` bounds the JSON and the objects that hold it."""

    def __init__(self, max_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._entries: list[Entry] = []
        self._bytes = 0
        self._firm = 0  # bytes that may not be dropped
        self._last = 0
        self._closed = False
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def last(self) -> int:
        """The newest entry's offset."""
        return self._last

    @property
    def closed(self) -> bool:
        """Whether the terminal event is in."""
        return self._closed

    @property
    def size(self) -> int:
        """Bytes held now."""
        return self._bytes

    def append(self, event: Event) -> Entry:
        """Give the event the next offset; see ``RunLog.append``."""
        if self._closed:
            raise LogClosed(f"{event.type} after the end of the run")
        entry = Entry(self._last + 1, event, codec.encode(event))
        size = len(entry.data) + ENTRY_OVERHEAD
        if self._bytes + size > self._max_bytes:
            # Known before anything goes: what is refused must not cost a reader the entries it was woken for.
            if self._firm + size > self._max_bytes and not isinstance(event, _CLOSING):
                raise LogFull(f"the run's log holds {self._max_bytes} bytes that may not be dropped")
            self._make_room(size)
        self._last = entry.offset
        self._entries.append(entry)
        self._bytes += size
        self._firm += 0 if event.droppable else size
        self._closed = isinstance(event, RunFinished)
        self._wake()
        return entry

    def read(self, after: int, limit: int) -> Sequence[Entry]:
        """The next entries over ``after``."""
        start = self._place(after)
        return self._entries[start : start + limit]

    async def wait(self, after: int) -> None:
        """Return once something is over ``after``, or nothing more will come."""
        while self._last <= after and not self._closed:
            woken = asyncio.get_running_loop().create_future()
            self._waiting.add(woken)
            try:
                await woken
            finally:
                self._waiting.discard(woken)

    def _place(self, after: int) -> int:
        # Without drops the place is known at once; with them it is to the left of that.
        high = min(after, len(self._entries))
        if high == after and (not high or self._entries[high - 1].offset == after):
            return high
        return bisect_right(self._entries, after, key=lambda entry: entry.offset)

    def _wake(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    def _make_room(self, size: int) -> None:
        goal = self._max_bytes * 9 // 10 - size
        kept: list[Entry] = []
        for entry in self._entries:
            if self._bytes > goal and entry.event.droppable:
                self._bytes -= len(entry.data) + ENTRY_OVERHEAD
            else:
                kept.append(entry)
        self._entries = kept
