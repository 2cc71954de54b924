"""The door that every start passes: what it refuses, in which order, and that a refusal consumes nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from app.errors import BudgetExhausted, RateLimited, TooManyReaders, TooManyRequests, TooManyStreams
from app.limits.door import Door, Slot
from app.limits.policy import Limits, Policy

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.day = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def forward(self, seconds: float) -> None:
        self.now += seconds
        self.day += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def door(clock: Clock, **limits: float) -> Door:
    known = Limits(**{"max_streams": 0, **limits})  # type: ignore[arg-type]
    return Door(Policy(known, {"rich": Limits(max_streams=9)}), clock=lambda: clock.now, today=lambda: clock.day)


def test_a_user_has_so_many_runs_at_once_and_others_are_not_touched(clock: Clock) -> None:
    here = door(clock, max_streams=3)
    slots = [here.admit("a") for _ in range(3)]
    with pytest.raises(TooManyStreams) as refused:
        here.admit("a")
    assert str(refused.value) == (
        "Maximum concurrent streams reached. Please wait for an existing response to complete."
    )
    assert refused.value.retry_after_ms == 1000
    assert here.admit("b").held
    slots[1].release()
    assert here.admit("a").held
    assert [here.admit("rich").held for _ in range(9)] == [True] * 9


def test_a_slot_is_given_back_once(clock: Clock) -> None:
    here = door(clock, max_streams=2)
    first, second = here.admit("a"), here.admit("a")
    first.release()
    first.release()
    with first:
        pass
    assert here.streams == 1
    here.admit("a")
    with pytest.raises(TooManyStreams):
        here.admit("a")
    with second:
        pass
    assert here.streams == 1


def test_twenty_requests_a_minute_are_twenty_in_any_sixty_seconds(clock: Clock) -> None:
    here, accepted, waits = door(clock, requests_per_minute=20), list[float](), list[int]()
    for _ in range(1800):  # three minutes, ten times a second
        try:
            here.admit("a").release()
        except RateLimited as refused:
            waits.append(refused.retry_after_ms or 0)
        else:
            accepted.append(clock.now)
        clock.forward(0.1)
    assert 0 < min(waits) <= max(waits) <= 60_000
    assert len(accepted) == 60
    assert all(later - first >= 60 for first, later in zip(accepted, accepted[20:], strict=False))
    assert all(earlier <= later for earlier, later in pairwise(accepted))


def test_what_is_refused_consumes_nothing_and_says_what_stands_first_in_the_way(clock: Clock) -> None:
    here = door(clock, max_streams=1, requests_per_minute=2, tokens_per_day=10)
    slot = here.admit("a")
    for _ in range(5):
        with pytest.raises(TooManyStreams):
            here.admit("a")
    slot.release()
    slot = here.admit("a")
    slot.release()
    with pytest.raises(RateLimited) as refused:
        here.admit("a")
    assert refused.value.retry_after_ms == 60_000
    here.spend("a", 10, 0)
    with pytest.raises(RateLimited):
        here.admit("a")
    clock.forward(60)
    for _ in range(5):
        with pytest.raises(BudgetExhausted):
            here.admit("a")
    clock.forward(24 * 3600)
    assert here.admit("a").held


@pytest.mark.parametrize("limit", [{"tokens_per_day": 100}, {"cost_per_day_usd": 0.5}])
def test_a_days_budget_is_renewed_at_midnight(clock: Clock, limit: dict[str, float]) -> None:
    here = door(clock, **limit)
    here.spend("a", 99, 0.49)
    here.admit("a")
    here.spend("a", 2, 0.02)
    with pytest.raises(BudgetExhausted) as refused:
        here.admit("a")
    assert refused.value.retry_after_ms == 12 * 3600 * 1000
    assert here.admit("b").held
    clock.forward(12 * 3600)
    assert here.admit("a").held


def test_a_batch_is_as_many_requests_in_one_slot(clock: Clock) -> None:
    here = door(clock, max_streams=2, requests_per_minute=5)
    here.admit("a", requests=4)
    with pytest.raises(RateLimited):
        here.admit("a", requests=2)
    here.admit("a")
    with pytest.raises(RateLimited, match="A batch of 6 is more than the 5"):
        door(clock, requests_per_minute=5).admit("a", requests=6)


async def test_who_stands_in_line_has_the_next_place_before_any_new_start(clock: Clock, until: Until) -> None:
    here = door(clock, max_streams=1)
    first = here.admit("a")
    waiting = [here.admit("a", waits=True) for _ in range(3)]
    order: list[int] = []

    async def wait(number: int, slot: Slot) -> None:
        await slot.wait()
        order.append(number)

    tasks = [asyncio.create_task(wait(number, slot)) for number, slot in enumerate(waiting)]
    await asyncio.sleep(0)
    first.release()
    with pytest.raises(TooManyStreams):  # the place has changed hands, though nobody has run since
        here.admit("a")
    await until(lambda: order == [0])
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    waiting[0].release()
    await until(lambda: order == [0, 2])
    waiting[2].release()
    assert here.streams == 0


async def test_a_place_that_is_handed_to_somebody_who_has_just_left_goes_on_to_the_next(clock: Clock) -> None:
    here = door(clock, max_streams=1)
    first = here.admit("a")
    waiting = [here.admit("a", waits=True) for _ in range(2)]
    tasks = [asyncio.create_task(slot.wait()) for slot in waiting]
    await asyncio.sleep(0)
    first.release()
    tasks[0].cancel()  # between the handing over and the waking up
    await asyncio.gather(*tasks, return_exceptions=True)
    assert [slot.held for slot in waiting] == [False, True]
    waiting[1].release()
    assert here.streams == 0


def test_a_paused_run_gives_its_place_back_and_is_let_in_anew_without_being_a_new_request(clock: Clock) -> None:
    here = door(clock, max_streams=1, requests_per_minute=2)
    paused = here.admit("a")
    paused.release()
    other = here.admit("a")
    with pytest.raises(TooManyStreams):
        here.readmit(paused)
    other.release()
    here.readmit(paused)
    here.readmit(paused)
    assert here.streams == 1


def test_readers_are_counted_over_all_runs_of_a_user(clock: Clock) -> None:
    here = door(clock, max_readers=2)
    with ExitStack() as reading:
        for _ in range(2):
            reading.enter_context(here.reading("a"))
        with pytest.raises(TooManyReaders), here.reading("a"):
            pass
        with here.reading("b"):
            assert here.readers == 3
    assert here.readers == 0


def test_users_that_are_not_heard_of_any_more_are_forgotten(clock: Clock) -> None:
    here = door(clock, max_streams=2, requests_per_minute=2)
    stays = here.admit("stays")
    for number in range(1000):
        here.admit(f"user {number}").release()
        clock.forward(1)
    assert here.known < 130
    clock.forward(60)
    for number in range(100):
        here.allowance(f"user {number}")
    assert here.known <= 5
    stays.release()
    assert here.streams == 0


def test_the_allowance_is_told_in_the_drafts_words(clock: Clock) -> None:
    here = door(clock, max_streams=3, requests_per_minute=20, tokens_per_day=1000, cost_per_day_usd=2.5)
    assert door(clock).allowance("a") == {}
    here.admit("a")
    here.spend("a", 250, 1.0)
    clock.forward(10.5)
    assert here.allowance("a") == {
        "RateLimit-Policy": '"streams";q=3;qu="concurrent-requests", "requests";q=20;w=60, '
        '"tokens";q=1000;w=86400;qu="tokens", "cost";q=2500000;w=86400;qu="micro-usd"',
        "RateLimit": '"streams";r=2, "requests";r=19;t=50, "tokens";r=750;t=43190, "cost";r=1500000;t=43190',
    }


def test_every_refusal_may_be_tried_again_and_says_when(clock: Clock) -> None:
    here = door(clock, max_streams=1, requests_per_minute=1, max_readers=1)
    here.admit("a").release()
    with pytest.raises(TooManyRequests) as refused:
        here.admit("a")
    assert (refused.value.status, refused.value.retryable, refused.value.reason) == (429, True, "rate_limited")
