"""A token bucket that may be overdrawn: what a call costs is known only when it is over.

It fills at a steady rate up to its size. A call may begin while there is something in it, and what the call has used is
taken out afterwards; so it may be in debt for a while, and then nobody begins.
"""


class Bucket:
    """``rate`` a second, at most ``size``; full at first. Times are seconds of any clock; one put back adds nothing."""

    __slots__ = ("_at", "_level", "_rate", "_size")

    def __init__(self, rate: float, size: float, now: float) -> None:
        self._rate = rate
        self._size = size
        self._level = size
        self._at = now

    def level(self, now: float) -> float:
        """What is in it; below zero, a debt."""
        self._level = min(self._size, self._level + self._rate * max(now - self._at, 0.0))
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take out, or with less than nothing put back."""
        self._level = min(self._size, self.level(now) - amount)

    def wait_s(self, now: float) -> float:
        """Until there is something in it."""
        level = self.level(now)
        return 0.0 if level > 0 else max(-level / self._rate, 1e-3)
