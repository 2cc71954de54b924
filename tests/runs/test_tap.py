"""A reader of raw events: bounded, never waited for, ended rather than thinned."""

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.tracers.log_stream import RunLogPatch

from app.runs.tap import MAX_PENDING, Tap, TapOverflow, weigh


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
async def test_past_the_bound_the_reader_is_told_so_and_shown_no_part(closed: bool) -> None:
    tap = Tap(bound=3)
    for number in range(4):
        tap.put(raw(number))
    tap.put(raw(9))  # too late: it would be a part of the stream with a hole before it
    if closed:
        tap.close()
    for _ in range(2):
        with pytest.raises(TapOverflow) as told:
            await numbers(tap)
        assert told.value.reason == "reader_too_slow"


async def test_what_a_reader_past_its_bound_held_is_let_go() -> None:
    tap = Tap(bound=3)
    for number in range(10):
        tap.put(raw(number))
    assert not tap._pending


def big(number: int, size: int) -> dict[str, Any]:
    return {"event": "on_tool_end", "number": number, "data": {"output": {"messages": [AIMessage("x" * size)]}}}


async def test_a_reader_is_past_its_bound_in_bytes_too_and_leaves_once() -> None:
    left: list[int] = []
    tap = Tap(max_bytes=100_000, on_overflow=lambda: left.append(1))
    for number in range(20):
        tap.put(big(number, 10_000))
    assert left == [1]
    assert not tap._pending
    with pytest.raises(TapOverflow):
        await numbers(tap)


async def test_a_reader_that_keeps_up_may_be_given_anything() -> None:
    tap = Tap(max_bytes=100_000)
    for number in range(20):
        tap.put(big(number, 1_000_000))
        assert (await anext(tap))["number"] == number
        tap.put(big(-1, 40_000))
        tap.put(big(-2, 40_000))
        assert [(await anext(tap))["number"] for _ in range(2)] == [-1, -2]
    assert tap._bytes == 0


@pytest.mark.parametrize(
    "item",
    [
        "x" * 5000,
        b"x" * 5000,
        {"data": {"chunk": ["x" * 5000]}},
        AIMessage([{"type": "text", "text": "x" * 5000}]),
        AIMessage("", tool_calls=[{"name": "t", "args": {"deep": {"er": ("x" * 5000,)}}, "id": "1"}]),
        RunLogPatch({"op": "add", "path": "/", "value": "x" * 5000}),
    ],
)
def test_texts_are_found_wherever_they_are(item: Any) -> None:
    assert 5000 < weigh(item, 10**9) < 9000


def test_what_contains_itself_has_a_weight_all_the_same() -> None:
    item: dict[str, Any] = {"text": "x"}
    item["self"] = [item]
    assert weigh(item, 10_000) > 10_000
