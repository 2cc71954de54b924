"""When a run ends before its graph does: the one place where resume and cost are weighed against each other.

A run must outlive its connection (so that a reader can come back) and must die with it (so that nobody pays for
tokens without a reader). Readers come and go here; the run's own policy decides:

* an explicit cancel is immediate, whoever still reads, and so is the deadline;
* ``on_disconnect="cancel"``: when the last reader has been gone for ``grace_s``, the run is cancelled;
* ``on_disconnect="continue"``: readers do not matter.

A run that nobody has ever read waits for its first reader: the policy arms when one attaches. The first ending
wins; those that follow change nothing.

A pause ends the task as a cancel does, and not the run: its clock stands still, and a paused run costs nothing, so
readers may leave it. After a pause the policy waits for a reader again.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from app.events.event import Status
from app.events.request import OnDisconnect

RECANCEL_S = 1.0
"""How soon a cancel is repeated that has not ended the task."""


class Ending(NamedTuple):
    """How a run ended; ``reason`` says why where the status alone does not."""

    status: Status
    reason: str | None = None


class Attachment:
    """A reader's presence. Closing it is leaving, which ``left`` is told of; closing twice is leaving once."""

    def __init__(self, scope: "Scope", min_grace_s: float, left: Callable[[], object] | None = None) -> None:
        self._scope: Scope | None = scope
        self._min_grace_s = min_grace_s
        self._left = left

    def close(self) -> None:
        """Leave."""
        scope, self._scope = self._scope, None
        if scope is not None:
            if self._left is not None:
                self._left()
            scope.leave(self._min_grace_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Scope:
    """Owns the decision to end one run. ``bind`` gives it the task; until then an ending is only noted."""

    def __init__(self, on_disconnect: OnDisconnect, grace_s: float, timeout_s: float | None = None) -> None:
        self.on_disconnect = on_disconnect
        self.grace_s = grace_s
        self.ending: Ending | None = None
        self.pausing: str | None = None
        self.changed = asyncio.Event()
        self.readers = 0
        self.left_s = timeout_s
        self.cancel_s: float | None = None
        self._ended_at: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._due = 0.0  # kept apart, as a handle of uvloop's for a time that has come cannot tell it
        self._closed = False

    def bind(self, task: "asyncio.Task[Any]") -> None:
        """From here on an ending or a pause cancels this task."""
        self._task = task
        if self.ending is not None or self.pausing is not None:
            self._cancel()

    def unbind(self) -> None:
        """The task is over, its run is not: stop the clock. What an ending took to stop it is ``cancel_s``."""
        self._task = None
        if self._ended_at is not None:
            self.cancel_s = time.monotonic() - self._ended_at
        self._disarm()
        self.stop_clock()

    def start_clock(self) -> None:
        """From here on the run's time counts: after ``left_s`` it has an ending at the latest."""
        if self.left_s is not None and self.ending is None:
            loop = asyncio.get_running_loop()
            self._due = loop.time() + self.left_s
            self._deadline = loop.call_at(self._due, self.end, Ending("timed_out", "run_timeout"))

    def stop_clock(self) -> None:
        """What is left of the run's time is kept."""
        if self._deadline is not None:
            self.left_s = max(self._due - asyncio.get_running_loop().time(), 0.001)
            self._deadline.cancel()
            self._deadline = None

    def pause(self, reason: str) -> None:
        """Stop the task now, and keep the run. Pausing what ends or is paused changes nothing."""
        if self.pausing is None and self.ending is None and not self._closed:
            self.pausing = reason
            self._disarm()
            self._cancel()

    def resume(self) -> None:
        """Let a paused run go on."""
        self.pausing = None
        self.changed.set()

    def end(self, ending: Ending) -> None:
        """End the run now. The first call counts."""
        if self.ending is not None or self._closed:
            return
        self.ending = ending
        self._ended_at = time.monotonic()
        self.changed.set()
        self._disarm()
        self._cancel()

    def attach(self, min_grace_s: float = 0, left: Callable[[], object] | None = None) -> Attachment:
        """A reader arrives. One that is known to come back (an EventSource) has a grace of its own at least."""
        self.readers += 1
        if not self.over:  # else the timer is the one that repeats the cancel
            self._disarm()
        return Attachment(self, min_grace_s, left)

    def leave(self, min_grace_s: float) -> None:
        """A reader is gone; if it was the last one, the grace begins."""
        self.readers -= 1
        if self.readers or self.on_disconnect == "continue" or self.over:
            return
        grace_s = max(self.grace_s, min_grace_s)
        if grace_s <= 0:
            self.end(Ending("cancelled", "disconnected"))
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(grace_s, self.end, Ending("cancelled", "disconnected"))

    def _cancel(self) -> None:
        # Repeated for code that swallows a cancel. It has a while: what cleans up after itself must not be disturbed.
        if self._task is None or self._task.done():
            return
        self._task.cancel()
        self._timer = self._task.get_loop().call_later(RECANCEL_S, self._cancel)

    def check(self) -> None:
        """Raise ``CancelledError`` once the run has an ending; the model callbacks ask at every token.

        Before Python 3.12 ``asyncio.wait_for`` loses a cancel that meets the result it waits for (CPython issue
        86296), and ChatOpenAI waits so for each chunk: the chunk that swallowed the cancel is the one that asks.
        """
        if self.over:
            reason = self.ending.reason if self.ending is not None else self.pausing
            raise asyncio.CancelledError(reason or "the run is over")

    @property
    def over(self) -> bool:
        """Whether nothing of the run may go on now: it ends, is paused, or has ended."""
        return self.ending is not None or self.pausing is not None or self._closed

    def close(self) -> None:
        """The run is over: nothing can end it any more."""
        self._closed = True
        self._disarm()
        self.stop_clock()
        self._task = None

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
