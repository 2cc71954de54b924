"""What calls of a model usually come to: how long its answers get, and how far our count of its input is off.

Both are estimates, for calls that were cut and never got the provider's own numbers. Bounded: the pairs not heard of
for longest are forgotten.
"""

from collections import deque
from statistics import median

LAST = 50
"""Calls that are remembered, of an agent and a model."""

MAX_KNOWN = 1000

FARTHEST = 4.0
"""A count that is off by more than this has another cause, such as pictures."""


class _Known:
    __slots__ = ("answers", "ratios")

    def __init__(self) -> None:
        self.answers: deque[int] = deque(maxlen=LAST)
        self.ratios: deque[float] = deque(maxlen=LAST)


class Experience:
    """The last calls of each agent and model that came to their end, of at most ``max_known`` pairs. In tokens."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        self._max_known = max_known
        self._known: dict[tuple[str, str], _Known] = {}

    def learn(self, agent: str, model: str, *, counted: int, input_tokens: int, output_tokens: int) -> None:
        """A call is over: we had ``counted`` that input, and the provider says how much it was."""
        known = self._known.pop((agent, model), None) or _Known()
        self._known[agent, model] = known  # behind those that were heard of before
        if len(self._known) > self._max_known:
            del self._known[next(iter(self._known))]
        known.answers.append(output_tokens)
        if counted > 0 and input_tokens > 0:
            known.ratios.append(min(max(input_tokens / counted, 1 / FARTHEST), FARTHEST))

    def input_tokens(self, agent: str, model: str, counted: int) -> int:
        """What the provider would have said of an input that we ``counted``."""
        known = self._known.get((agent, model))
        return round(counted * median(known.ratios)) if known is not None and known.ratios else counted

    def rest(self, agent: str, model: str, output_tokens: int) -> int:
        """How much of an answer that came so far would have followed: the median of those that went farther."""
        known = self._known.get((agent, model))
        longer = [one - output_tokens for one in known.answers if one > output_tokens] if known is not None else []
        return round(median(longer)) if longer else 0
