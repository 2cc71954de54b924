"""The gate that every model call of the process passes: so many at once, the rest in a line that is fair to users.

What the provider bears decides how many: fewer after a 429, more again with each answer (``throttle``), and none while
its tokens a minute are used up (``bucket``). A call asks with ``enter`` and is given a ``Pass``, granted or not yet; it
is over with ``leave``, called once or more often, granted or not. The one that waits is told by ``Pass.granted``, a
``concurrent.futures.Future``: async calls wrap it, calls on threads wait for it.

May be used from any thread: everything happens under one lock, and nothing waits under it. What wakes the line when
only time has to pass is a timer on the loop that the gate was opened on.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from app.errors import UpstreamBusy
from app.limits.bucket import Bucket
from app.limits.queue import FairQueue, QueueFull
from app.limits.throttle import Throttle

MAX_WAITING = 1024
MAX_WAITING_PER_USER = 64

RETRY_MS = 1000
"""When a client that was refused may try again."""

SPAN_S = 60.0


class Pass:
    """One call at the gate. ``granted`` is done when it may begin, and has ``UpstreamBusy`` when it must not."""

    __slots__ = ("asked_at", "begun_at", "granted", "left", "tokens", "user")

    def __init__(self, user: str, tokens: int, now: float) -> None:
        self.user = user
        self.tokens = tokens
        self.asked_at = now
        self.begun_at: float | None = None
        self.left = False
        self.granted: Future[None] = Future()
        self.granted.set_running_or_notify_cancel()  # whoever waits may be cancelled, this cannot: see `Gate.leave`

    @property
    def waited_s(self) -> float:
        """How long it stood in line."""
        return 0.0 if self.begun_at is None else self.begun_at - self.asked_at


class Gate:
    """At most ``concurrency`` calls at once; ``tokens_per_minute`` 0 is no bound. ``clock`` is monotonic seconds."""

    def __init__(
        self,
        concurrency: int = 64,
        *,
        tokens_per_minute: int = 0,
        max_waiting: int = MAX_WAITING,
        max_waiting_per_user: int = MAX_WAITING_PER_USER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.concurrency = concurrency
        self.under_way = 0
        self._clock = clock
        self._throttle = Throttle(concurrency)
        self._tokens_per_minute = tokens_per_minute
        self._bucket = Bucket(tokens_per_minute / SPAN_S, tokens_per_minute, clock()) if tokens_per_minute else None
        self._line: FairQueue[Pass] = FairQueue(max_waiting, max_waiting_per_user)
        self._lock = threading.RLock()  # a future's callbacks run under it, and may come back
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Have the running loop wake the line when only time has to pass."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Let go of the loop."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = self._timer = None

    @property
    def waiting(self) -> int:
        """Calls in line."""
        return len(self._line)

    @property
    def limit(self) -> int:
        """How many calls at once the provider is believed to bear."""
        return self._throttle.limit

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of a call matter here."""
        return self._bucket is not None

    def check(self, user: str) -> None:
        """Raises ``UpstreamBusy`` when a call of this user's would find no room in the line."""
        with self._lock:
            if self._room() <= self.under_way and not self._line.room_for(user):
                raise _busy("too many calls wait for the model provider")

    def enter(self, user: str, tokens: int = 0, *, waits: bool = True) -> Pass:
        """Ask to make a call that has about so many tokens of input.

        One that cannot wait is let through at once, and counts. Raises ``UpstreamBusy`` when the line is full.
        """
        with self._lock:
            one = Pass(user, tokens, self._clock())
            if not waits or (not self._line and self.under_way < self._room()):
                self._grant(one)
                return one
            try:
                out = self._line.put(user, one)
            except QueueFull:
                raise _busy("too many calls wait for the model provider") from None
            if out is not None:
                out.granted.set_exception(_busy("the line was full, and this user had most calls in it"))
            self._let_in()
        return one

    def leave(self, one: Pass) -> None:
        """The call is over, or is not to be made any more. Twice is once."""
        with self._lock:
            if one.left:
                return
            one.left = True
            if one.begun_at is None:
                self._line.remove(one.user, one)
                if not one.granted.done():  # for a thread that waits
                    one.granted.set_exception(asyncio.CancelledError("the run is over"))
            else:
                self.under_way -= 1
            self._let_in()

    def position(self, one: Pass) -> int:
        """Its place in line, 1 is next; 0 when it stands in it no more."""
        with self._lock:
            waits = one.begun_at is None and not one.left and not one.granted.done()
            return self._line.position(one.user, one) if waits else 0

    def charge(self, tokens: int) -> None:
        """A call had that many tokens more (fewer, if negative) than was said when it asked."""
        if self._bucket is not None:
            with self._lock:
                self._bucket.take(tokens, self._clock())
                self._let_in()

    def answered(self) -> None:
        """The provider has answered a call to its end."""
        with self._lock:
            self._throttle.answered()
            self._let_in()

    def refused(self, one: Pass, retry_after_s: float | None) -> None:
        """The provider has refused a call, as too many (HTTP 429)."""
        with self._lock:
            begun_at = one.asked_at if one.begun_at is None else one.begun_at
            self._throttle.refused(begun_at, self._clock(), retry_after_s)
            self._let_in()

    def _room(self) -> int:
        now = self._clock()
        return 0 if self._bucket is not None and self._bucket.level(now) <= 0 else self._throttle.allowed(now)

    def _grant(self, one: Pass) -> None:
        now = self._clock()
        one.begun_at = now
        self.under_way += 1
        if self._bucket is not None:
            self._bucket.take(one.tokens, now)
        one.granted.set_result(None)

    def _let_in(self) -> None:
        """Let in who may begin now. When only time stands between the line and the provider, a timer looks again."""
        while self._line:
            room = self._room()  # once a look: it grows with time, and between two looks somebody would be forgotten
            if self.under_way < room:
                self._grant(self._line.pop())
                continue
            if not room and self._timer is None and self._loop is not None:
                self._loop.call_soon_threadsafe(self._set_timer)
            return

    def _set_timer(self) -> None:
        with self._lock:
            if self._timer is not None or self._loop is None or not self._line:
                return
            now = self._clock()
            held_s = max(self._throttle.held_until - now, 0.0)
            empty_s = self._bucket.wait_s(now) if self._bucket is not None else 0.0
            self._timer = self._loop.call_later(max(held_s, empty_s), self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._timer = None
            self._let_in()


def _busy(why: str) -> UpstreamBusy:
    return UpstreamBusy(f"The model provider is busy: {why}. Try again in a moment.", retry_after_ms=RETRY_MS)
