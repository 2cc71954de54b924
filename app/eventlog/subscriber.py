"""A reader of a run: a cursor on its log, nothing more.

A first reader, a late one, a second one and one that comes back are the same thing with another starting place.
The reader holds no events of its own, so a slow one costs the run nothing. Where entries it had not yet read were
dropped, it is told by one ``gap`` for each unbroken stretch, whose offset is the last one missed.
"""

import time
from collections.abc import Sequence

from app.eventlog.base import Entry, RunLog
from app.events import codec
from app.events.event import Gap

BATCH = 256
"""Entries handed over at once at the most: a late reader's replay must not hold the loop."""


class EndOfLog(Exception):
    """The terminal event has been read: nothing more will ever come."""


class Subscriber:
    """Reads one log from ``after`` on. One task at a time; being cancelled while it waits loses nothing."""

    def __init__(self, log: RunLog, after: int = 0) -> None:
        self._log = log
        self.position = after

    async def read(self) -> Sequence[Entry]:
        """The next entries, at least one, in order, without loss or repeat; waits for them.

        Raises ``EndOfLog`` once the terminal event has been handed out.
        """
        if self._log.last <= self.position:
            await self._log.wait(self.position)
        entries = self._log.read(self.position, BATCH)
        if not entries:
            raise EndOfLog
        told = self._with_gaps(entries)
        self.position = entries[-1].offset
        return told

    def _with_gaps(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if entries[-1].offset - self.position == len(entries):
            return entries
        told: list[Entry] = []
        expected = self.position + 1
        for entry in entries:
            if entry.offset != expected:
                told.append(_gap(expected, entry.offset - 1))
            told.append(entry)
            expected = entry.offset + 1
        return told


def _gap(start: int, to: int) -> Entry:
    event = Gap(ts=int(time.time() * 1000), start=start, to=to, dropped=to - start + 1)
    return Entry(to, event, codec.encode(event))
