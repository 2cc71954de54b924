"""How many calls at once the provider bears: less after each refusal, a little more after each answer.

Additive increase, multiplicative decrease, as TCP finds its share of a line (Chiu and Jain, 1989). A refusal (HTTP 429)
halves what is allowed, once for all the calls that were under way together, and nobody begins until the provider's own
``Retry-After``; each answer then adds its share, so that a full round of them adds one.
"""

DEFAULT_HOLD_S = 1.0
"""How long nobody begins after a refusal that does not say how long."""

MAX_HOLD_S = 60.0


class Throttle:
    """``most`` calls at once at the most, one at the least. Times are seconds of one clock."""

    __slots__ = ("_allowed", "_cut_at", "_most", "held_until")

    def __init__(self, most: int) -> None:
        self.held_until = 0.0
        self._most = most
        self._allowed = float(most)
        self._cut_at = float("-inf")

    def allowed(self, now: float) -> int:
        """How many may be under way now."""
        return 0 if now < self.held_until else int(self._allowed)

    @property
    def limit(self) -> int:
        """The same, but for the pause after a refusal."""
        return int(self._allowed)

    def refused(self, begun: float, now: float, retry_after_s: float | None) -> None:
        """The provider has refused a call that began then, and asked for that pause."""
        if begun > self._cut_at:  # else it belongs to a round that has been paid for
            self._allowed = max(self._allowed / 2, 1.0)
            self._cut_at = now
        hold_s = DEFAULT_HOLD_S if retry_after_s is None else min(retry_after_s, MAX_HOLD_S)
        self.held_until = max(min(self.held_until, now + MAX_HOLD_S), now + hold_s)

    def answered(self) -> None:
        """The provider has answered a call."""
        self._allowed = min(self._allowed + 1 / self._allowed, float(self._most))
