"""One timer for all that comes round after the same time: looks at connections, heartbeats of streams.

As all wait equally long, the order in which they were last touched is the order in which they are due: nothing is
sorted, and to be touched at every event costs little. Those who are due at about the same time are served in one turn,
but never more than a portion at once. The timer stands still while nobody waits. A wheel belongs to the event loop in
which it is touched; one that is over is forgotten.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

AT_ONCE, REST_S = 256, 0.01
"""So many members (a few µs each) are served before others have their turn, for so long."""

LATE = 20
"""A turn may be late by this part of the period, so that it is one for many."""


class Wheel(Generic[T]):
    """Calls ``due(member, now)`` when a member was not touched for ``period_s``, and again after each further period.

    ``now`` is the loop's time.
    """

    def __init__(self, period_s: float, due: Callable[[T, float], object]) -> None:
        self._period_s = period_s
        self._call = due
        self._due: OrderedDict[T, float] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None

    def touch(self, member: T) -> None:
        """Count its time from now on; of a new one too."""
        loop = asyncio.get_running_loop()
        self._due[member] = due = loop.time() + self._period_s
        self._due.move_to_end(member)
        if self._loop is not loop:  # no timer runs: nobody waited, or an earlier loop has ended
            self._loop = loop
            loop.call_at(due, self._turn, loop)

    def drop(self, member: T) -> None:
        """Count no more. Twice is once."""
        self._due.pop(member, None)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        try:
            for member in list(islice(self._due, AT_ONCE)):
                due = self._due.get(member)
                if due is not None and due <= now:
                    self._due[member] = now + self._period_s
                    self._due.move_to_end(member)
                    self._call(member, now)
        finally:
            if self._loop is loop:
                self._loop = None
                for due in islice(self._due.values(), 1):
                    self._loop = loop
                    rest_s = self._period_s / LATE if due > now else min(REST_S, self._period_s / 4)
                    loop.call_at(max(due, now + rest_s), self._turn, loop)
