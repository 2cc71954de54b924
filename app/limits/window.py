"""A sliding window: at most so many requests in any span of time, exact at its edge.

A counter that is set back at every full minute lets twice the limit pass around that minute. This one remembers when
each request was let in, so the one past the limit is refused until the first of them is exactly as old as the span.
"""

import math
from collections import deque
from itertools import repeat

SPAN_S = 60.0


class Window:
    """One user's requests. Times are seconds of any clock; one that goes back stands still here meanwhile."""

    __slots__ = ("_span_s", "_times")

    def __init__(self, span_s: float = SPAN_S) -> None:
        self._span_s = span_s
        self._times: deque[float] = deque()

    def wait_s(self, limit: int, now: float, count: int = 1) -> float:
        """How long ``count`` requests must wait until all of them are let in: 0 now, ``inf`` never."""
        self._forget(now)
        if count > limit:
            return math.inf
        over = len(self._times) + count - limit
        return self._times[over - 1] + self._span_s - now if over > 0 else 0.0

    def take(self, now: float, count: int = 1) -> None:
        """Let them in, which ``wait_s`` has allowed."""
        latest = self._times[-1] if self._times else now
        self._times.extend(repeat(max(now, latest), count))

    def used(self, now: float) -> int:
        """Requests that count now."""
        self._forget(now)
        return len(self._times)

    def reset_s(self, now: float) -> float:
        """Until the oldest of them counts no more; 0 when there is none."""
        self._forget(now)
        return self._times[0] + self._span_s - now if self._times else 0.0

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] + self._span_s <= now:
            self._times.popleft()
