"""The gate before the provider: how many calls at once, whose turn it is, and what a refusal of the provider's does."""

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import UpstreamBusy
from app.limits.gate import Gate, Pass

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def begun(one: Pass) -> bool:
    return one.begun_at is not None


def test_so_many_at_once_and_the_rest_take_turns_by_user() -> None:
    gate = Gate(2)
    inside = [gate.enter("a") for _ in range(2)]
    many = [gate.enter("a") for _ in range(3)]
    one = gate.enter("b")
    assert [gate.position(each) for each in (*many, one)] == [1, 3, 4, 2]
    gate.leave(inside[0])
    assert begun(many[0])
    gate.leave(inside[1])
    assert (begun(one), begun(many[1])) == (True, False)
    assert (gate.under_way, gate.waiting) == (2, 2)


def test_whoever_leaves_while_waiting_leaves_the_line_and_whoever_leaves_twice_leaves_once() -> None:
    gate = Gate(1)
    first, second, third = (gate.enter("a") for _ in range(3))
    gate.leave(second)
    with pytest.raises(asyncio.CancelledError):
        second.granted.result()
    assert gate.position(third) == 1
    gate.leave(first)
    gate.leave(first)
    assert (gate.under_way, begun(third)) == (1, True)
    gate.leave(third)
    assert (gate.under_way, gate.waiting) == (0, 0)


def test_a_line_that_is_full_refuses_or_sends_away_the_newest_of_whoever_has_most() -> None:
    gate = Gate(1, max_waiting=3, max_waiting_per_user=3)
    gate.enter("a")
    waiting = [gate.enter("a") for _ in range(3)]
    with pytest.raises(UpstreamBusy):
        gate.check("a")
    with pytest.raises(UpstreamBusy) as refused:
        gate.enter("a")
    assert (refused.value.status, refused.value.reason, refused.value.retry_after_ms) == (503, "upstream_busy", 1000)
    gate.check("b")
    gate.enter("b")
    with pytest.raises(UpstreamBusy):
        waiting[2].granted.result(0)
    assert gate.waiting == 3
    gate.leave(waiting[2])
    assert gate.waiting == 3


def test_a_call_that_cannot_wait_is_let_through_and_counts() -> None:
    gate = Gate(1)
    first, rude = gate.enter("a"), gate.enter("b", waits=False)
    assert gate.under_way == 2
    waiting = gate.enter("c")
    gate.leave(first)
    assert not begun(waiting)
    gate.leave(rude)
    assert begun(waiting)


def test_after_a_refusal_nobody_begins_for_as_long_as_the_provider_says_and_then_half_as_many() -> None:
    now = [100.0]
    gate = Gate(4, clock=lambda: now[0])
    inside = [gate.enter("a") for _ in range(4)]
    for one in inside:
        gate.refused(one, 5.0)
        gate.leave(one)
    assert gate.limit == 2
    waiting = [gate.enter("a") for _ in range(4)]
    assert not any(map(begun, waiting))
    now[0] = 105.0
    gate.answered()
    assert [begun(one) for one in waiting] == [True, True, False, False]
    gate.answered()
    assert gate.limit == 2
    gate.answered()
    assert (gate.limit, gate.under_way) == (3, 3)


def test_tokens_a_minute_are_taken_out_as_calls_begin_and_as_they_turn_out() -> None:
    now = [0.0]
    gate = Gate(8, tokens_per_minute=600, clock=lambda: now[0])
    first = gate.enter("a", 100)
    gate.charge(650 - first.tokens)
    gate.leave(first)
    second = gate.enter("a", 10)
    assert not begun(second)
    now[0] = 5.1
    gate.answered()
    assert begun(second)


async def test_a_timer_wakes_the_line_when_only_time_has_to_pass(until: Until) -> None:
    gate = Gate(2, tokens_per_minute=60_000)
    gate.open()
    first = gate.enter("a", 60_000)
    gate.charge(60_020 - first.tokens)
    waiting = gate.enter("a")
    await until(lambda: begun(waiting))
    gate.refused(first, 0.05)
    later = gate.enter("a")
    assert not begun(later)
    gate.leave(first)
    gate.leave(waiting)
    await until(lambda: begun(later))
    gate.close()


@pytest.mark.parametrize("pause", range(10, 20))
async def test_nobody_is_forgotten_when_the_pause_ends_between_two_looks_at_the_clock(pause: int, until: Until) -> None:
    looks = itertools.count()
    gate = Gate(4, clock=lambda: next(looks) / 1000)  # each look takes a millisecond
    gate.open()
    gate.refused(gate.enter("a"), pause / 1000)
    waiting = gate.enter("b")
    await until(lambda: begun(waiting))
    gate.close()


def test_calls_from_many_threads_are_never_too_many_and_leave_nothing_behind() -> None:
    gate, most, lock = Gate(3), [0, 0], threading.Lock()

    def call(number: int) -> None:
        one = gate.enter(f"user {number % 5}")
        if random.random() < 0.2:
            gate.leave(one)
            return
        try:
            one.granted.result(10)
        except asyncio.CancelledError:
            return
        with lock:
            most[0] += 1
            most[1] = max(most)
        with lock:
            most[0] -= 1
        gate.leave(one)

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(call, number) for number in range(600)]:
            done.result(20)
    assert most[1] <= 3
    assert (gate.under_way, gate.waiting) == (0, 0)
