"""When a run ends before its graph does: readers, cancels, and the first ending, which is the one that counts."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from app.runs.scope import Ending, Scope

CANCEL = Ending("cancelled", "requested")
GONE = Ending("cancelled", "disconnected")
LATE = Ending("timed_out", "run_timeout")

LONG = 3600.0
SOON = 0.01

Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def forever() -> None:
    await asyncio.Event().wait()


def bound(scope: Scope) -> "asyncio.Task[None]":
    task = asyncio.create_task(forever())
    scope.bind(task)
    return task


def ending(scope: Scope) -> Ending | None:
    return scope.ending


async def cancelled(task: "asyncio.Task[None]") -> bool:
    async with asyncio.timeout(10):
        await asyncio.wait([task])
    return task.cancelled()


async def test_an_explicit_cancel_is_immediate_whoever_still_reads() -> None:
    scope = Scope("continue", LONG)
    task = bound(scope)
    scope.attach()
    scope.end(CANCEL)
    assert await cancelled(task)
    assert ending(scope) == CANCEL
    scope.close()


async def test_the_first_ending_wins() -> None:
    scope = Scope("cancel", 0)
    task = bound(scope)
    scope.end(LATE)
    scope.end(CANCEL)
    scope.attach().close()
    assert ending(scope) == LATE
    assert await cancelled(task)
    scope.close()


async def test_an_ending_before_there_is_a_task_cancels_it_before_its_first_step() -> None:
    scope = Scope("cancel", 0)
    scope.end(CANCEL)
    steps: list[int] = []

    async def step() -> None:
        steps.append(1)

    task = asyncio.create_task(step())
    scope.bind(task)
    assert await cancelled(task)
    assert steps == []
    scope.close()


async def test_without_a_grace_the_last_reader_takes_the_run_with_it() -> None:
    scope = Scope("cancel", 0)
    task = bound(scope)
    first, second = scope.attach(), scope.attach()
    first.close()
    assert ending(scope) is None
    second.close()
    assert ending(scope) == GONE
    assert await cancelled(task)
    scope.close()


async def test_leaving_twice_is_leaving_once() -> None:
    scope = Scope("cancel", 0)
    first, second = scope.attach(), scope.attach()
    first.close()
    first.close()
    assert (scope.readers, ending(scope)) == (1, None)
    second.close()


async def test_a_reader_leaves_with_its_block_even_when_that_fails() -> None:
    scope = Scope("cancel", 0)
    with pytest.raises(ValueError, match="broken"), scope.attach():
        raise ValueError("broken")
    assert ending(scope) == GONE


async def test_a_run_that_nobody_has_read_yet_waits_for_its_first_reader() -> None:
    scope = Scope("cancel", 0)
    task = bound(scope)
    await asyncio.sleep(0)
    assert not task.done()
    scope.attach().close()
    assert await cancelled(task)
    scope.close()


async def test_a_run_told_to_continue_does_not_care_about_readers() -> None:
    scope = Scope("continue", 0)
    task = bound(scope)
    scope.attach().close()
    await asyncio.sleep(0)
    assert ending(scope) is None
    assert not task.done()
    scope.end(CANCEL)
    assert await cancelled(task)
    scope.close()


async def test_after_the_grace_the_run_ends() -> None:
    scope = Scope("cancel", SOON)
    task = bound(scope)
    scope.attach().close()
    assert ending(scope) is None
    assert await cancelled(task)
    assert ending(scope) == GONE
    scope.close()


async def test_a_reader_that_comes_back_within_the_grace_saves_the_run() -> None:
    scope = Scope("cancel", SOON)
    task = bound(scope)
    scope.attach().close()
    back = scope.attach()
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(5 * SOON, over.set_result, None)
    await over
    assert ending(scope) is None
    assert not task.done()
    back.close()
    assert await cancelled(task)
    scope.close()


async def test_a_reader_known_to_come_back_has_a_grace_of_its_own() -> None:
    scope = Scope("cancel", 0)
    bound(scope)
    scope.attach(min_grace_s=LONG).close()
    assert ending(scope) is None
    scope.attach(min_grace_s=0).close()
    assert ending(scope) == GONE
    scope.close()


async def test_a_cancel_that_was_swallowed_is_repeated(until: Until) -> None:
    heard = 0

    async def stubborn() -> None:
        nonlocal heard
        while heard < 2:
            try:
                await forever()
            except asyncio.CancelledError:
                heard += 1

    scope = Scope("cancel", 0)
    task = asyncio.create_task(stubborn())
    scope.bind(task)
    await asyncio.sleep(0)
    scope.end(CANCEL)
    await until(task.done)
    assert heard == 2
    scope.close()


async def test_a_reader_that_arrives_after_the_cancel_does_not_call_it_off(until: Until) -> None:
    heard = 0

    async def stubborn() -> None:
        nonlocal heard
        while heard < 2:
            try:
                await forever()
            except asyncio.CancelledError:
                heard += 1

    scope = Scope("cancel", 0)
    task = asyncio.create_task(stubborn())
    scope.bind(task)
    await asyncio.sleep(0)
    scope.end(CANCEL)
    await asyncio.sleep(0)
    scope.attach()  # it wants to see the end
    await until(task.done)
    scope.close()


async def test_nothing_ends_a_run_that_is_over() -> None:
    scope = Scope("cancel", 0)
    reader = scope.attach()
    scope.close()
    reader.close()
    scope.attach().close()
    scope.end(CANCEL)
    assert ending(scope) is None


async def test_what_goes_on_after_the_runs_end_is_told_at_its_next_token() -> None:
    scope = Scope("cancel", 0)
    scope.close()
    with pytest.raises(asyncio.CancelledError, match="over"):
        scope.check()


async def test_a_reader_that_leaves_a_finished_run_sets_no_timer() -> None:
    scope = Scope("cancel", LONG)
    reader = scope.attach()
    scope.close()
    reader.close()
    assert scope._timer is None


async def test_a_check_raises_once_an_ending_is_decided() -> None:
    scope = Scope("cancel", 0)
    scope.check()
    scope.end(CANCEL)
    with pytest.raises(asyncio.CancelledError, match="requested"):
        scope.check()
