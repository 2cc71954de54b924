"""A reader of a run: a cursor on its log, nothing more.

A first reader, a late one, a second one and one that comes back are the same thing with another starting place.
The reader holds no events between two reads, so a slow one costs the run nothing. What it is told depends on how far
it lags when it reads:

* It keeps up: each event on its own, as the log has it.
* It is behind: neighbouring deltas of one message or call come as one, under the id of the last.
* It is past its bound: the oldest droppable entries are skipped until the rest is within the bound.

Only what was appended since the reader came counts as lag: what was there before is history, told whole and unmerged.
For each unbroken stretch that was skipped, or that the log itself no longer had, there is one ``gap`` whose offset is
the last one missed. It is told together with the entry after it, so no gap ever follows upon another.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import accumulate, groupby

from msgspec.structs import replace

from app.eventlog.base import Entry, Lag, RunLog, T
from app.events import codec
from app.events.event import Gap, Reasoning, Token, ToolArgs

BATCH = 256
"""Entries handed over at once at the most: a late reader's replay must not hold the loop."""

BATCH_BYTES = 64 * 1024
"""The same in bytes of JSON, a larger single entry excepted: what is handed over is no longer the log's, but memory
that this one reader costs, until its socket has taken it. It also bounds what is merged into one frame."""

MERGE_OVER = 64
"""Entries a reader may lag and still get each of them on its own; some a reader finds whenever the loop was busy."""


class EndOfLog(Exception):
    """The terminal event has been read: nothing more will ever come."""


class LogAbandoned(Exception):
    """All that is there has been read, and this process will write no more, though the run is not over."""


class Subscriber:
    """Reads one log from ``after`` on, by ``read``, which waits, or by ``take``, when ``watch`` has told of something.

    One task at a time; being cancelled while it waits loses nothing.

    ``max_events`` and ``max_bytes`` (of JSON) bound how far it may lag without missing anything. What may not be
    dropped always arrives, even where it alone exceeds the bound. ``missed`` is told of each gap how wide it is.
    """

    __slots__ = ("_bound", "_history", "_log", "_missed", "position")

    def __init__(
        self,
        log: RunLog,
        after: int = 0,
        *,
        max_events: int = 1024,
        max_bytes: int = 1 << 20,
        missed: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.position = after
        self._log = log
        self._history = log.last
        self._bound = Lag(max_events, max_bytes)
        self._missed = missed

    async def wait(self) -> None:
        """Return once ``read`` has an answer at once: for a reader whose socket must have its turn first."""
        if self._log.last <= self.position:
            await self._log.wait(self.position)

    async def read(self) -> Sequence[Entry]:
        """The next entries, at least one, in order, without loss or repeat; waits for them.

        Raises ``EndOfLog`` once the terminal event has been handed out, ``LogAbandoned`` when it will never come.
        """
        await self.wait()
        return self.take()

    def watch(self, woken: Callable[[], object]) -> None:
        """Have ``woken`` called when there may be something new to ``take``; see ``RunLog.watch``."""
        self._log.watch(woken)

    def unwatch(self, woken: Callable[[], object]) -> None:
        """``woken`` is called no more."""
        self._log.unwatch(woken)

    def take(self) -> Sequence[Entry]:
        """What ``read`` gives, without waiting: nothing while there is nothing new."""
        fresh = self._log.last - self.position
        if fresh <= 0:
            if self._log.closed:
                raise EndOfLog
            if self._log.abandoned:
                raise LogAbandoned
            return ()
        # The usual case: it keeps up, and there is one new event, which is never cut off nor part of a gap.
        entries = self._log.read(self.position, 1) if fresh == 1 else self._past() or self._live()
        self.position = entries[-1].offset
        return entries

    def share(self, entries: Sequence[Entry], words: Hashable, make: Callable[[Sequence[Entry]], T]) -> T:
        """``make`` of what ``take`` gave, once for all readers that stand here; see ``RunLog.share``."""
        return self._log.share(entries, words, make)

    def _past(self) -> Sequence[Entry]:
        """What is next of the history; nothing when the reader is through with it, or the rest of it is gone."""
        if self.position >= self._history:
            return ()
        entries = self._log.read(self.position, BATCH)
        return self._with_gaps(_portion(entries[: bisect_right(entries, self._history, key=_offset)]))

    def _live(self) -> Sequence[Entry]:
        """What is next of that which came after the reader."""
        lag = self._log.lag(self.position)
        within = lag.events <= self._bound.events and lag.bytes <= self._bound.bytes
        cut = 0 if within else self._log.cut(self.position, self._bound)
        entries = self._with_gaps(_portion(self._log.read(self.position, BATCH, cut)))
        return entries if lag.events <= MERGE_OVER else list(_merged(entries))

    def _with_gaps(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if not entries or entries[-1].offset - self.position == len(entries):
            return entries
        told: list[Entry] = []
        expected = self.position + 1
        for entry in entries:
            if entry.offset != expected:
                told.append(_gap(expected, entry.offset - 1))
                self._missed(entry.offset - expected)
            told.append(entry)
            expected = entry.offset + 1
        return told


def _offset(entry: Entry) -> int:
    return entry.offset


def _portion(entries: Sequence[Entry]) -> Sequence[Entry]:
    """As many of the first as have room in ``BATCH_BYTES``; one always has."""
    if len(entries) < 2:
        return entries
    ends = list(accumulate(len(entry.data) for entry in entries))
    return entries if ends[-1] <= BATCH_BYTES else entries[: max(1, bisect_right(ends, BATCH_BYTES))]


def _gap(start: int, to: int) -> Entry:
    event = Gap(ts=int(time.time() * 1000), start=start, to=to, dropped=to - start + 1)
    return Entry(to, event, codec.encode(event))


def _merged(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Neighbouring deltas as one. Between two gaps offsets are without a hole, so neighbours here are neighbours."""
    for _, same in groupby(entries, key=_stream):
        first, *more = same
        yield _joined([first, *more]) if more else first


def _stream(entry: Entry) -> object:
    """What entries share that may merge; for one that may not, its own offset."""
    match entry.event:
        case Token(message_id=target) | Reasoning(message_id=target) | ToolArgs(call_id=target):
            return type(entry.event), target, entry.event.node, entry.event.namespace
    return entry.offset


def _joined(entries: Sequence[Entry]) -> Entry:
    """All that the deltas say, in the place and at the time of the last."""
    offset, event = entries[-1].offset, entries[-1].event
    if isinstance(event, ToolArgs):
        pieces = [one.event for one in entries if isinstance(one.event, ToolArgs)]
        args = next((piece.args for piece in reversed(pieces) if piece.args is not None), None)
        event = replace(event, delta="".join(piece.delta for piece in pieces), args=args)
    else:
        texts = (one.event.text for one in entries if isinstance(one.event, Token | Reasoning))
        event = replace(event, text="".join(texts))
    return Entry(offset, event, codec.encode(event))
