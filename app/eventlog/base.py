"""What a log promises, whatever keeps it.

Offsets are given by ``append`` alone: 1, 2, 3 … without a hole. An entry never changes. After the terminal event
nothing can be appended. A log is bounded in bytes: beyond the bound its oldest droppable entries go, and a reader
who still needed them finds the hole by the offsets; entries that are not droppable are never dropped. The writer
never waits for a reader, and a reader that is cancelled while it waits has lost nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from app.events.event import Event


class Entry(NamedTuple):
    """An event in its place: ``data`` is its JSON on one line, made once for all readers."""

    offset: int
    event: Event
    data: bytes


class LogClosed(Exception):
    """The terminal event is in: nothing can follow it."""


class LogFull(Exception):
    """What may not be dropped would exceed the log's bound."""


class RunLog(ABC):
    """One run's events: a single writer, any number of readers."""

    @property
    @abstractmethod
    def last(self) -> int:
        """The newest entry's offset; 0 while the log is empty."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether the terminal event is in."""

    @abstractmethod
    def append(self, event: Event) -> Entry:
        """Give the event the next offset, keep it, wake who waits. Never awaits.

        Raises ``LogClosed`` after the terminal event, and ``LogFull`` when what may not be dropped fills the
        bound; ``error``, ``usage`` and the closing events are admitted even then, so that a full log can end.
        """

    @abstractmethod
    def read(self, after: int, limit: int) -> Sequence[Entry]:
        """The entries with an offset over ``after``, in order, ``limit`` at most. Never awaits."""

    @abstractmethod
    async def wait(self, after: int) -> None:
        """Return once there is an entry over ``after``, or the log is closed."""
