"""The door that every start passes: runs at once, requests a minute, tokens and cost a day, readers; each by user.

Checked in that order, and a refusal consumes nothing. A run's place among its user's runs is a ``Slot``: a context
manager that gives it back once, however the run ends. A paused run gives its place back and takes one anew; a run that
waits for its thread's turn has none, and waits in line for one when its turn has come. So whoever is in that line is
served before a new start, which is refused and not queued.

Belongs to one event loop. Users that have nothing open and nothing to count are forgotten.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from app.errors import BudgetExhausted, RateLimited, TooManyReaders, TooManyStreams
from app.limits.budget import Budget, until_midnight_s
from app.limits.policy import Limits, Policy
from app.limits.window import SPAN_S, Window

TRY_AGAIN_MS = 1000
"""When a place may have become free; nobody knows when a run ends."""


class _User:
    """What one user has open, and what counts."""

    __slots__ = ("line", "readers", "streams", "window")

    def __init__(self) -> None:
        self.streams = 0
        self.readers = 0
        self.line: deque[asyncio.Future[None]] = deque()
        self.window = Window()

    def idle(self, now: float) -> bool:
        return not (self.streams or self.readers or self.line or self.window.used(now))


class Slot:
    """A run's place among its user's. Taken by the door, given back once; a run may have it more than once in turn."""

    def __init__(self, door: "Door", user: str) -> None:
        self.held = False
        self.user = user
        self._door = door

    async def wait(self) -> None:
        """Have the place, in line behind those that wait already."""
        if not self.held:
            await self._door._wait(self)  # noqa: SLF001 - one thing in two halves

    def release(self) -> None:
        """Give it back, to whoever is next in line."""
        if self.held:
            self.held = False
            self._door._leave(self.user)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Seat:
    """A reader's place among its user's. Closing it twice is closing it once."""

    __slots__ = ("_user",)

    def __init__(self, user: _User) -> None:
        self._user: _User | None = user
        user.readers += 1

    def close(self) -> None:
        """Give it back."""
        if self._user is not None:
            self._user.readers -= 1
            self._user = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Door:
    """Lets runs and readers in. ``clock`` is monotonic seconds, ``today`` the time of day in UTC."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.policy = policy
        self.budget = Budget()
        self._clock = clock
        self._today = today
        self._users: dict[str, _User] = {}  # the one looked at longest ago first

    def admit(self, user: str, *, requests: int = 1, waits: bool = False) -> Slot:
        """Let so many requests in, in one slot; one that ``waits`` for something else first has no place yet.

        Raises ``TooManyStreams``, ``RateLimited``, ``BudgetExhausted``.
        """
        limits, known, now = self.policy.of(user), self._user(user), self._clock()
        slot = Slot(self, user)
        if not waits:
            self._check_streams(known, limits)
        if limits.requests_per_minute:
            wait_s = known.window.wait_s(limits.requests_per_minute, now, requests)
            if wait_s > 0:
                raise _rate_limited(limits.requests_per_minute, requests, wait_s)
        self._check_budget(user, limits)
        if limits.requests_per_minute:
            known.window.take(now, requests)
        if not waits:
            self._take(slot, known)
        return slot

    def slot(self, user: str) -> Slot:
        """A slot for a request that was let in with others: it waits in line for its place."""
        return Slot(self, user)

    def readmit(self, slot: Slot) -> None:
        """Let a run go on that gave its place back. It is no new request. Raises as ``admit`` does."""
        if not slot.held:
            limits, known = self.policy.of(slot.user), self._user(slot.user)
            self._check_streams(known, limits)
            self._check_budget(slot.user, limits)
            self._take(slot, known)

    def reading(self, user: str) -> "Seat":
        """Be one of the user's readers, until it is closed. Raises ``TooManyReaders``."""
        self.check_reader(user)
        return Seat(self._user(user))

    def check_reader(self, user: str) -> None:
        """Raises ``TooManyReaders`` when the user has as many as may be."""
        most = self.policy.of(user).max_readers
        if most and self._user(user).readers >= most:
            raise TooManyReaders(
                f"You have {most} open streams, which is as many as you may. Close one and try again.",
                retry_after_ms=TRY_AGAIN_MS,
            )

    def spend(self, user: str, tokens: int, cost_usd: float) -> None:
        """A model call of the user's is over."""
        self.budget.spend(user, tokens, cost_usd, self._today().date())

    def allowance(self, user: str) -> dict[str, str]:
        """What is left to the user, as headers of the IETF's draft (draft-ietf-httpapi-ratelimit-headers-10).

        Cost is counted in millionths of a dollar, as the draft knows integers only.
        """
        limits, known, now = self.policy.of(user), self._user(user), self._clock()
        spent, midnight = self.budget.spent(user, self._today().date()), math.ceil(until_midnight_s(self._today()))
        policies, left = [], []
        if limits.max_streams:
            policies.append(f'"streams";q={limits.max_streams};qu="concurrent-requests"')
            left.append(f'"streams";r={max(limits.max_streams - known.streams, 0)}')
        if limits.requests_per_minute:
            policies.append(f'"requests";q={limits.requests_per_minute};w={SPAN_S:.0f}')
            rest, reset_s = limits.requests_per_minute - known.window.used(now), known.window.reset_s(now)
            left.append(f'"requests";r={max(rest, 0)}' + (f";t={math.ceil(reset_s)}" if reset_s else ""))
        if limits.tokens_per_day:
            policies.append(f'"tokens";q={limits.tokens_per_day};w=86400;qu="tokens"')
            left.append(f'"tokens";r={max(limits.tokens_per_day - spent.tokens, 0)};t={midnight}')
        if limits.cost_per_day_usd:
            policies.append(f'"cost";q={_micro(limits.cost_per_day_usd)};w=86400;qu="micro-usd"')
            left.append(f'"cost";r={max(_micro(limits.cost_per_day_usd - spent.cost_usd), 0)};t={midnight}')
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)} if policies else {}

    @property
    def streams(self) -> int:
        """Places taken, by all users."""
        return sum(one.streams for one in self._users.values())

    @property
    def readers(self) -> int:
        """Readers, of all users."""
        return sum(one.readers for one in self._users.values())

    @property
    def known(self) -> int:
        """Users that are remembered."""
        return len(self._users)

    def _user(self, user: str) -> _User:
        known = self._users.pop(user, None) or _User()
        self._users[user] = known
        for oldest in [one for one, _ in zip(self._users, range(2), strict=False) if one != user]:
            other = self._users.pop(oldest)
            if not other.idle(self._clock()):
                self._users[oldest] = other  # behind the others, so that it hides none of them
        return known

    @staticmethod
    def _check_streams(known: _User, limits: Limits) -> None:
        if limits.max_streams and known.streams >= limits.max_streams:
            raise TooManyStreams(retry_after_ms=TRY_AGAIN_MS)

    def _check_budget(self, user: str, limits: Limits) -> None:
        now = self._today()
        spent = self.budget.spent(user, now.date())
        over_tokens = limits.tokens_per_day and spent.tokens >= limits.tokens_per_day
        if over_tokens or (limits.cost_per_day_usd and spent.cost_usd >= limits.cost_per_day_usd):
            what = f"{limits.tokens_per_day} tokens" if over_tokens else f"{limits.cost_per_day_usd:g} US dollars"
            raise BudgetExhausted(
                f"Your budget of {what} a day is used up. It is renewed at midnight UTC.",
                retry_after_ms=math.ceil(until_midnight_s(now) * 1000),
            )

    @staticmethod
    def _take(slot: Slot, known: _User) -> None:
        known.streams += 1
        slot.held = True

    async def _wait(self, slot: Slot) -> None:
        most, known = self.policy.of(slot.user).max_streams, self._user(slot.user)
        if not most or known.streams < most:  # while anybody is in line, all places are taken
            self._take(slot, known)
            return
        turn = asyncio.get_running_loop().create_future()
        known.line.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it was handed the place, and is gone
                self._leave(slot.user)
            elif turn in known.line:
                known.line.remove(turn)
            raise
        slot.held = True

    def _leave(self, user: str) -> None:
        known = self._users[user]
        while known.line:
            turn = known.line.popleft()
            if not turn.done():
                turn.set_result(None)  # the place changes hands without having been free
                return
        known.streams -= 1


def _micro(dollars: float) -> int:
    return round(dollars * 1_000_000)


def _rate_limited(limit: int, requests: int, wait_s: float) -> RateLimited:
    if math.isinf(wait_s):
        return RateLimited(
            f"A batch of {requests} is more than the {limit} requests you may make in a minute: send fewer at a time.",
            retry_after_ms=round(SPAN_S * 1000),
        )
    return RateLimited(
        f"You have made {limit} requests within a minute, which is as many as you may. "
        f"Try again in {math.ceil(wait_s)} s.",
        retry_after_ms=math.ceil(wait_s * 1000),
    )
