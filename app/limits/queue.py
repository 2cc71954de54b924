"""A queue that is fair between users: they take turns, however many entries each of them has.

Round robin over the users with something waiting, first in first out within each: the oldest scheme of fair queueing
(Nagle, RFC 970), enough here since every entry asks for the same, one call. A user with fifty entries and one with a
single entry are served in turn, so the single one waits for one call, not for fifty.

Bounded twice. A user over the own bound is refused. When the whole is full, the newest entry of the user with the most
waiting gives way; the one that comes counts too, and is the newest of its user's.
"""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """There is no room for the entry that came."""


class FairQueue(Generic[T]):
    """Entries by user. Entries are told apart by identity or equality; none may wait twice."""

    def __init__(self, limit: int, limit_per_user: int) -> None:
        self._limit = limit
        self._limit_per_user = limit_per_user
        self._waiting: dict[str, deque[T]] = {}  # in the order in which the users are served
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def room_for(self, user: str) -> bool:
        """Whether ``put`` would take an entry of this user's."""
        own = len(self._waiting.get(user, ()))
        return own < self._limit_per_user and (self._size < self._limit or own + 1 < self._most()[1])

    def put(self, user: str, entry: T) -> T | None:
        """Take in an entry; the one that had to give way, if one had. Raises ``QueueFull``."""
        if not self.room_for(user):
            raise QueueFull
        out: T | None = None
        if self._size >= self._limit:
            fullest = self._most()[0]
            out = self._waiting[fullest].pop()  # which leaves it at least one, as it has most
            self._size -= 1
        self._waiting.setdefault(user, deque()).append(entry)
        self._size += 1
        return out

    def pop(self) -> T:
        """The entry whose turn it is. Raises ``IndexError`` when none waits."""
        user = next(iter(self._waiting), None)
        if user is None:
            raise IndexError("nothing waits")
        entries = self._waiting.pop(user)
        entry = entries.popleft()
        self._size -= 1
        if entries:
            self._waiting[user] = entries  # behind all others
        return entry

    def remove(self, user: str, entry: T) -> bool:
        """Take out an entry that waits no more; whether it was there."""
        entries = self._waiting.get(user, deque())
        if entry not in entries:
            return False
        entries.remove(entry)
        self._size -= 1
        if not entries:
            del self._waiting[user]
        return True

    def position(self, user: str, entry: T) -> int:
        """How many ``pop`` it takes until this entry comes, if nothing else does meanwhile; 1 is next."""
        before = self._waiting[user].index(entry)
        turns, ahead = before + 1, True
        for other, entries in self._waiting.items():
            if other == user:
                ahead = False
            else:
                turns += min(len(entries), before + ahead)
        return turns

    def _most(self) -> tuple[str, int]:
        user = max(self._waiting, key=lambda one: len(self._waiting[one]))
        return user, len(self._waiting[user])
