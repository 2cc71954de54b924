"""What a log promises, whatever keeps it.

Offsets are given by ``append`` alone: 1, 2, 3 … without a hole. An entry never changes. After the terminal event
nothing can be appended. A log is bounded in bytes: beyond the bound its oldest droppable entries go, and a reader
who still needed them finds the hole by the offsets; the newest entry is always there, and entries that are not
droppable are never dropped. The writer never waits for a reader, and a reader that is cancelled while it waits has
lost nothing.

Readers are told that there is something new; they read it themselves. What one of them makes of it, those at the same
place may share.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from app.events.event import Event

T = TypeVar("T")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An event in its place: ``data`` is its JSON on one line, made once for all readers.

    The collector passes it over, as no circle can go through it: a run has one for each token, for long.
    """

    offset: int
    event: Event
    data: bytes


class Lag(NamedTuple):
    """How much lies over a reader's place: entries, and the bytes of their JSON."""

    events: int
    bytes: int


class LogClosed(Exception):
    """The terminal event is in, or the log was abandoned: nothing can follow."""


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

    @property
    @abstractmethod
    def abandoned(self) -> bool:
        """Whether nothing more will come, though the terminal event is not in."""

    @abstractmethod
    def append(self, event: Event) -> Entry:
        """Give the event the next offset, keep it, have told who watches. Never awaits.

        Raises ``LogClosed`` after the terminal event and after ``abandon``, and ``LogFull`` when what may not be
        dropped fills the bound; ``error``, ``usage`` and the closing events are admitted even then, so that a full
        log can end.
        """

    @abstractmethod
    def abandon(self) -> None:
        """This process lets go of a run that is not over: what is there can still be read, nothing follows.

        Who watches is told. Twice is once; after the terminal event it means nothing.
        """

    @abstractmethod
    def read(self, after: int, limit: int, cut: int = 0) -> Sequence[Entry]:
        """The entries with an offset over ``after``, in order, ``limit`` at most. Never awaits.

        Up to ``cut`` only those that may not be dropped.
        """

    @abstractmethod
    def lag(self, after: int) -> Lag:
        """How much there is over ``after``. Cheap, however long the log is."""

    @abstractmethod
    def cut(self, after: int, bound: Lag) -> int:
        """The least offset such that ``read`` with it as ``cut`` gives no more over ``after`` than ``bound``.

        The newest entry is never cut off: a gap is told together with what follows it. So where the newest alone,
        or what may not be dropped, exceeds the bound, the cut is just below the newest. Cheap as ``lag``.
        """

    @abstractmethod
    def watch(self, woken: Callable[[], object]) -> None:
        """Have ``woken`` called when something was appended or nothing more will come, until ``unwatch``.

        It is called by the event loop, never within ``append``, and once for all that one turn of the loop appends.
        """

    @abstractmethod
    def unwatch(self, woken: Callable[[], object]) -> None:
        """``woken`` is called no more. Twice is once."""

    @abstractmethod
    def share(self, entries: Sequence[Entry], words: Hashable, make: Callable[[Sequence[Entry]], T]) -> T:
        """``make(entries)``, made once for all who are told of the same news, stand at the same place and want the
        same ``words``. Nothing of it is kept when all have been told.
        """

    @abstractmethod
    async def wait(self, after: int) -> None:
        """Return once there is an entry over ``after``, or nothing more will come."""
