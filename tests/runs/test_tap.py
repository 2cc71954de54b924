"""A reader of raw events: bounded, never waited for, broken off rather than thinned."""

import asyncio
from typing import Any

import pytest

from app.runs.tap import MAX_PENDING, Tap, TapOverflow


def raw(number: int) -> dict[str, Any]:
    return {"event": "on_chain_stream", "number": number}


async def numbers(tap: Tap) -> list[int]:
    async with asyncio.timeout(10):
        return [one["number"] async for one in tap]


async def test_a_reader_gets_every_event_in_order_and_ends_with_the_run() -> None:
    tap = Tap()
    for number in range(5):
        tap.put(raw(number))
    tap.close()
    assert await numbers(tap) == [0, 1, 2, 3, 4]
    assert await numbers(tap) == []


async def test_the_very_same_objects_come_out() -> None:
    tap, one = Tap(), raw(1)
    tap.put(one)
    assert await anext(tap) is one


async def test_a_reader_that_keeps_up_may_read_any_number() -> None:
    tap = Tap(bound=2)
    reading = asyncio.create_task(numbers(tap))
    for number in range(50):
        tap.put(raw(number))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    tap.close()
    assert await reading == list(range(50))


async def test_a_run_that_ends_without_an_event_ends_its_reader() -> None:
    tap = Tap()
    reading = asyncio.create_task(numbers(tap))
    await asyncio.sleep(0)
    tap.close()
    assert await reading == []


async def test_a_reader_cancelled_while_it_waits_has_lost_nothing() -> None:
    tap = Tap()
    waiting = asyncio.ensure_future(tap.__anext__())
    await asyncio.sleep(0)
    tap.put(raw(1))
    waiting.cancel()  # in the very step in which it would have been handed the event
    await asyncio.gather(waiting, return_exceptions=True)
    tap.put(raw(2))
    tap.close()
    assert await numbers(tap) == [1, 2]


async def test_up_to_the_bound_nothing_is_lost() -> None:
    tap = Tap()
    for number in range(MAX_PENDING):
        tap.put(raw(number))
    tap.close()
    assert await numbers(tap) == list(range(MAX_PENDING))


@pytest.mark.parametrize("closed", [False, True])
async def test_past_the_bound_the_reader_is_broken_off_and_shown_no_part(closed: bool) -> None:
    tap = Tap(bound=3)
    for number in range(4):
        tap.put(raw(number))
    tap.put(raw(9))  # too late: it would be a part of the stream with a hole before it
    if closed:
        tap.close()
    for _ in range(2):
        with pytest.raises(TapOverflow):
            await numbers(tap)


async def test_what_a_broken_reader_held_is_let_go() -> None:
    tap = Tap(bound=3)
    for number in range(10):
        tap.put(raw(number))
    assert not tap._pending
