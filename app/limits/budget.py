"""What users have spent on a day, against what they may: tokens, and money.

A day is a UTC date, so that a clock that is put back finds the day as it was left. What is spent is known when a model
call is over: a run that has begun is let finish, and the next one is refused.
"""

from collections.abc import Hashable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

KEPT_DAYS = 2


class Spent(NamedTuple):
    """Tokens of any kind, and US dollars as far as prices are known."""

    tokens: int = 0
    cost_usd: float = 0.0


class Budget:
    """What has been spent, by user and day. Days long past are let go of."""

    def __init__(self) -> None:
        self._spent: dict[date, dict[Hashable, Spent]] = {}

    def spend(self, user: str, tokens: int, cost_usd: float, day: date) -> None:
        """Add to what the user has spent on that day."""
        if day not in self._spent:
            self._spent[day] = {}
            for old in sorted(self._spent)[:-KEPT_DAYS]:
                del self._spent[old]
        users = self._spent.get(day)
        if users is None:  # a clock that was put back by days
            return
        before = users.get(user, Spent())
        users[user] = Spent(before.tokens + tokens, before.cost_usd + cost_usd)

    def spent(self, user: str, day: date) -> Spent:
        """What the user has spent on that day."""
        return self._spent.get(day, {}).get(user, Spent())


def until_midnight_s(now: datetime) -> float:
    """Seconds to the next day. ``now`` is in UTC."""
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
    return (tomorrow - now).total_seconds()
