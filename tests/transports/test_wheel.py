"""One timer for many members: who is due, in which order, and when it stands still."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from app.transports import wheel
from app.transports.wheel import Wheel

Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_each_member_is_due_again_after_each_period(until: Until) -> None:
    due: list[str] = []
    one = Wheel[str](0.01, lambda member, _: due.append(member))
    for member in "abc":
        one.touch(member)
    await until(lambda: len(due) >= 9)
    assert "".join(due).startswith("abcabcabc")


async def test_who_is_touched_in_time_is_never_due_and_the_others_are(until: Until) -> None:
    due: list[str] = []
    one = Wheel[str](0.5, lambda member, _: due.append(member))
    one.touch("busy")
    one.touch("silent")
    while not due:
        one.touch("busy")
        await asyncio.sleep(0.01)
    assert due == ["silent"]


async def test_who_is_dropped_is_not_due_not_even_by_who_is_due_before_it(until: Until) -> None:
    due: list[str] = []

    def serve(member: str, _: float) -> None:
        due.append(member)
        one.drop("b")

    one = Wheel[str](0.01, serve)
    for member in "abc":
        one.touch(member)
    await until(lambda: due.count("c") > 1)
    assert "b" not in due


async def test_the_timer_stands_still_while_nobody_waits(until: Until) -> None:
    one = Wheel[str](0.01, lambda *_: None)
    one.touch("a")
    one.drop("a")
    one.drop("a")
    await until(lambda: one._loop is None)
    one.touch("b")
    assert one._loop is asyncio.get_running_loop()


async def test_more_than_a_portion_are_served_in_turns_and_all_of_them(until: Until) -> None:
    due: list[int] = []
    turns = [0]
    one = Wheel[int](0.2, lambda member, _: due.append(member))
    for member in range(3 * wheel.AT_ONCE):
        one.touch(member)
    while len(due) < 3 * wheel.AT_ONCE:
        await asyncio.sleep(0)
        turns.append(len(due))
    assert due[: 3 * wheel.AT_ONCE] == list(range(3 * wheel.AT_ONCE))
    assert max(after - before for before, after in pairwise(turns)) <= wheel.AT_ONCE


async def test_a_member_that_fails_stops_neither_the_timer_nor_the_others(until: Until) -> None:
    due: list[str] = []
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def serve(member: str, _: float) -> None:
        due.append(member)
        if member == "a":
            raise KeyError("mine")

    one = Wheel[str](0.01, serve)
    one.touch("a")
    one.touch("b")
    await until(lambda: due.count("b") > 1)
    assert set(told) == {"'mine'"}


@pytest.mark.parametrize("left", [True, False])
def test_a_loop_that_is_over_takes_its_timer_with_it(left: bool) -> None:
    due: list[str] = []
    one = Wheel[str](0.01, lambda member, _: due.append(member))

    async def first() -> None:
        one.touch("a")

    async def second() -> None:
        if left:
            one.drop("a")
        one.touch("b")
        async with asyncio.timeout(10):
            while "b" not in due:
                await asyncio.sleep(0.005)

    asyncio.run(first())
    asyncio.run(second())
    assert ("a" in due) is not left
