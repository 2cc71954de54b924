"""A run's log in this process's memory, bounded in bytes; the log of every run unless one machine is too small.

What may not be dropped stands on one shelf, what may on another, each sorted by offset, and a read takes from both.
So dropping is letting go of the beginning of the second, and a reader far behind is taken over a long stretch by the
first alone, without a look at what it skips. Beside the entries run the sums of their sizes: how far a reader lags,
and what it has to skip, is a subtraction and a bisection, however long the log is.

Who watches is told in rounds: one for all that a turn of the loop appended, some readers at a turn. Within a round
most stand at the same place; so what is read there, and what the first of them makes of it, is kept for the others,
until the round is over.

Dropping goes in strokes: at the bound, the oldest droppable entries go until a tenth of the bound is free again,
so that a long answer pays for it once in a while and not at each token.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import msgspec

from app.eventlog.base import Entry, Lag, LogClosed, LogFull, RunLog, T
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

ENTRY_OVERHEAD = 400
"""Bytes of Python objects that an entry costs beside its JSON (measured on tokens, rounded up)."""

TOLD_AT_ONCE = 256
"""So many readers (about 10 µs each) are told before others have their turn on the loop."""

_CLOSING = (Error, Usage, MessageFinished, ToolFinished, NodeFinished, RunFinished)


class MemoryLog(RunLog):
    """See ``RunLog``. ``max_bytes`` bounds the JSON and the objects that hold it."""

    def __init__(self, max_bytes: int = 8 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._firm = _Shelf()
        self._loose = _Shelf()
        self._bytes = 0
        self._last = 0
        self._newest: list[Entry] = []  # nothing, or the one entry that each reader who keeps up asks for
        self._closed = False
        self._abandoned = False
        self._watching: dict[Callable[[], object], None] = {}  # in the order in which they came
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = False
        self._telling = False
        self._shared: dict[Hashable, Any] | None = None  # while a round is on, and for more readers than one

    @classmethod
    def load(cls, dump: bytes, max_bytes: int = 8 * 1024 * 1024) -> "MemoryLog":
        """The log that ``dump`` was taken of, holes and all, not abandoned. Raises ``ValueError`` for what is none."""
        log = cls(max_bytes)
        *lines, rest = dump.split(b"\n")
        if rest:
            raise ValueError("this is no log's dump: it is cut off")
        for line in lines:
            log._put(_entry(line, after=log._last, closed=log._closed))
        return log

    def dump(self) -> bytes:
        """All that is held, a line an entry: its offset, its event's type, its JSON."""
        return b"".join(
            b"%d %b %b\n" % (one.offset, one.event.type.encode(), one.data) for one in self.read(0, self._last)
        )

    @property
    def last(self) -> int:
        """The newest entry's offset."""
        return self._last

    @property
    def closed(self) -> bool:
        """Whether the terminal event is in."""
        return self._closed

    @property
    def abandoned(self) -> bool:
        """Whether nothing more will come, though the terminal event is not in."""
        return self._abandoned

    @property
    def size(self) -> int:
        """Bytes held now."""
        return self._bytes

    def append(self, event: Event) -> Entry:
        """Give the event the next offset; see ``RunLog.append``."""
        if self._closed or self._abandoned:
            raise LogClosed(f"{event.type} after the {'end' if self._closed else 'abandoning'} of the run's log")
        entry = Entry(self._last + 1, event, codec.encode(event))
        size = len(entry.data) + ENTRY_OVERHEAD
        if self._bytes + size > self._max_bytes:
            # Known before anything goes: what is refused must not cost a reader the entries it was woken for.
            if self._firm.size + size > self._max_bytes and not isinstance(event, _CLOSING):
                raise LogFull(f"the run's log holds {self._max_bytes} bytes that may not be dropped")
            self._bytes -= self._loose.drop(self._bytes + size - self._max_bytes * 9 // 10)
        self._put(entry)
        self._tell_soon()
        return entry

    def abandon(self) -> None:
        """Let go of a run that is not over; see ``RunLog.abandon``."""
        self._abandoned = not self._closed
        self._tell_soon()

    def read(self, after: int, limit: int, cut: int = 0) -> Sequence[Entry]:
        """The next entries over ``after``. Who asks the same within a round gets the same object."""
        if after == self._last - 1:
            return self._newest if limit else ()
        if self._shared is None:
            return self._read(after, limit, cut)
        asked = (after, limit, cut)
        if asked not in self._shared:
            self._shared[asked] = self._read(after, limit, cut)
        entries: Sequence[Entry] = self._shared[asked]
        return entries

    def share(self, entries: Sequence[Entry], words: Hashable, make: Callable[[Sequence[Entry]], T]) -> T:
        """``make(entries)``, once for all at the same place; see ``RunLog.share``."""
        if self._shared is None:
            return make(entries)
        of, made = self._shared.get(words, (None, None))
        if of is not entries:
            made = make(entries)
            self._shared[words] = entries, made
        shared: T = made
        return shared

    def _read(self, after: int, limit: int, cut: int) -> Sequence[Entry]:
        firm, loose = self._firm.entries, self._loose.entries
        start = self._place(self._firm, after)
        firm = firm[start : start + limit]
        start = self._place(self._loose, max(after, cut))
        loose = loose[start : start + limit]
        return sorted([*firm, *loose], key=_offset)[:limit] if firm and loose else firm or loose

    def lag(self, after: int) -> Lag:
        """How much there is over ``after``."""
        firm = self._firm.over(self._place(self._firm, after))
        loose = self._loose.over(self._place(self._loose, after))
        return Lag(firm.events + loose.events, firm.bytes + loose.bytes)

    def cut(self, after: int, bound: Lag) -> int:
        """The least cut by which what is left over ``after`` is within the bound; see ``RunLog.cut``."""
        lag, start = self.lag(after), self._place(self._loose, after)
        stop = self._loose.stop(start, Lag(lag.events - bound.events, lag.bytes - bound.bytes))
        stop = min(stop, self._place(self._loose, self._last - 1))
        return self._loose.entries[stop - 1].offset if stop > start else 0

    async def wait(self, after: int) -> None:
        """Return once something is over ``after``, or nothing more will come."""
        while self._last <= after and not self._closed and not self._abandoned:
            woken = asyncio.get_running_loop().create_future()
            wake = partial(_wake, woken)
            self.watch(wake)
            try:
                await woken
            finally:
                self.unwatch(wake)

    def watch(self, woken: Callable[[], object]) -> None:
        """Have ``woken`` called when there is something new; see ``RunLog.watch``."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._telling = loop, False
        self._watching[woken] = None

    def unwatch(self, woken: Callable[[], object]) -> None:
        """``woken`` is called no more."""
        self._watching.pop(woken, None)

    def _put(self, entry: Entry) -> None:
        self._last = entry.offset
        self._newest = [entry]
        if self._shared:
            self._shared.clear()
        self._bytes += len(entry.data) + ENTRY_OVERHEAD
        if entry.event.droppable:
            self._loose.put(entry)
        else:
            self._firm.put(entry)
            self._closed = isinstance(entry.event, RunFinished)

    def _place(self, shelf: "_Shelf", after: int) -> int:
        """How many of the shelf's entries have an offset up to ``after``."""
        # As many as there are offsets over it may be over it: for who keeps up, nothing is left to look for.
        low = max(0, len(shelf.entries) - max(0, self._last - after))
        return bisect_right(shelf.entries, after, low, key=_offset)

    def _tell_soon(self) -> None:
        self._news = True
        if self._watching and not self._telling:
            assert self._loop is not None
            self._telling = True
            self._loop.call_soon(self._tell, self._loop, [])

    def _tell(self, loop: asyncio.AbstractEventLoop, untold: list[Callable[[], object]]) -> None:
        """Go on with the round. What comes meanwhile, some have not heard of: they do in the next one."""
        if not untold:
            self._news = False
            untold = [*reversed(self._watching)]
            self._shared = {} if len(untold) > 1 else None
        try:
            for _ in range(min(TOLD_AT_ONCE, len(untold))):
                woken = untold.pop()
                if woken in self._watching:
                    woken()
        finally:  # whatever befell one of them, the others are told
            self._telling = bool(untold) or self._news
            if self._telling:
                loop.call_soon(self._tell, loop, untold)
            else:
                self._shared = None


class _Shelf:
    """Entries by offset. ``_ends[i + 1] - _ends[i]`` is the size of entry ``i``."""

    __slots__ = ("_ends", "entries")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._ends = [0]

    @property
    def size(self) -> int:
        return self._ends[-1] - self._ends[0] + len(self.entries) * ENTRY_OVERHEAD

    def put(self, entry: Entry) -> None:
        self.entries.append(entry)
        self._ends.append(self._ends[-1] + len(entry.data))

    def over(self, start: int) -> Lag:
        """How much there is from this place on."""
        return Lag(len(self.entries) - start, self._ends[-1] - self._ends[start])

    def stop(self, start: int, excess: Lag) -> int:
        """The place before which, counted from ``start``, there is at least that much; it may lie beyond the end."""
        return max(start + excess.events, bisect_left(self._ends, self._ends[start] + excess.bytes, start))

    def drop(self, excess: int) -> int:
        """Let as many of the oldest go as make up that much of ``size``, or all; how much that was."""
        size = self.size
        first = self._ends[0]
        places = range(len(self.entries))
        stop = bisect_left(places, excess, key=lambda place: self._ends[place] - first + place * ENTRY_OVERHEAD)
        del self.entries[:stop], self._ends[:stop]
        return size - self.size


_offset = attrgetter("offset")


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


def _entry(line: bytes, *, after: int, closed: bool) -> Entry:
    """An entry from its line in a dump. Raises ``ValueError``."""
    try:
        offset, type_, data = line.split(b" ", 2)
        entry = Entry(int(offset), codec.decode(type_.decode(), data), data)
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"this is no log's dump: {error}") from None
    if entry.offset <= after or closed:
        raise ValueError(f"this is no log's dump: entry {entry.offset} is out of place")
    return entry
