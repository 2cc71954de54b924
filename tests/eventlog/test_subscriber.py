"""A reader: nothing lost, nothing twice, told of what it missed, and at the end told so."""

import asyncio
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.eventlog.base import Entry, LogFull
from app.eventlog.memory import ENTRY_OVERHEAD, MemoryLog
from app.eventlog.subscriber import BATCH, EndOfLog, Subscriber
from app.events import codec
from app.events.event import Event, Gap, RunFinished, State, Token, Totals

END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)

T = TypeVar("T")


def token(size: int = 1) -> Event:
    return Token(ts=0, text="x" * size, message_id="m")


def firm(size: int = 1) -> Event:
    return State(ts=0, values="x" * size)


def cost(event: Event) -> int:
    return len(codec.encode(event)) + ENTRY_OVERHEAD


def ended(*events: Event, bound: int = 1 << 20) -> MemoryLog:
    log = MemoryLog(bound)
    for event in (*events, END):
        log.append(event)
    return log


async def rest(reader: Subscriber) -> list[Entry]:
    """All that the reader is still told."""
    told: list[Entry] = []
    while True:
        try:
            told += await reader.read()
        except EndOfLog:
            return told


def at_once(step: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has no reason to wait."""
    try:
        step.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    step.close()
    raise AssertionError("it waited")


async def test_a_reader_gets_everything_in_order_and_then_the_end() -> None:
    log = ended(*[token() for _ in range(3)])
    reader = Subscriber(log)
    assert [entry.offset for entry in await reader.read()] == [1, 2, 3, 4]
    assert reader.position == 4
    for _ in range(2):
        with pytest.raises(EndOfLog):
            await reader.read()


async def test_a_late_reader_a_second_one_and_one_that_comes_back_read_the_same() -> None:
    log = ended(*[token(n) for n in range(9)])
    everything = await rest(Subscriber(log))
    for after in range(11):
        assert await rest(Subscriber(log, after)) == everything[after:]


async def test_readers_share_the_entries_themselves() -> None:
    log = ended(token())
    one, two = await rest(Subscriber(log)), await rest(Subscriber(log))
    assert all(a is b for a, b in zip(one, two, strict=True))


async def test_a_long_replay_comes_in_batches() -> None:
    log = ended(*[token() for _ in range(2 * BATCH)])
    reader = Subscriber(log)
    sizes = [len(await reader.read()) for _ in range(3)]
    assert sizes == [BATCH, BATCH, 1]


async def test_a_reader_that_keeps_up_gets_each_event_as_it_comes() -> None:
    log = MemoryLog()
    reader = Subscriber(log)
    for number in range(1, 50):
        reading = asyncio.create_task(reader.read())
        await asyncio.sleep(0)
        log.append(token())
        async with asyncio.timeout(10):
            assert [entry.offset for entry in await reading] == [number]


async def test_the_terminal_event_reaches_who_waits_before_the_end_does() -> None:
    log = MemoryLog()
    reading = asyncio.create_task(rest(Subscriber(log)))
    await asyncio.sleep(0)
    log.append(END)
    async with asyncio.timeout(10):
        assert [entry.event for entry in await reading] == [END]


async def test_a_reader_cancelled_while_it_waits_has_lost_nothing() -> None:
    log = MemoryLog()
    reader = Subscriber(log)
    waiting = asyncio.create_task(reader.read())
    await asyncio.sleep(0)
    log.append(token())
    waiting.cancel()  # in the very step in which it would have been handed the event
    await asyncio.gather(waiting, return_exceptions=True)
    log.append(END)
    assert [entry.offset for entry in await rest(reader)] == [1, 2]


async def test_a_reader_past_the_last_event_of_a_finished_run_is_at_the_end() -> None:
    with pytest.raises(EndOfLog):
        await Subscriber(ended(token()), after=2).read()


# Gaps


async def test_a_reader_is_told_once_of_an_unbroken_stretch_it_missed() -> None:
    log = ended(firm(), *[token() for _ in range(300)], bound=100 * cost(token()))
    told = await rest(Subscriber(log))
    gaps = [entry for entry in told if isinstance(entry.event, Gap)]
    assert len(gaps) == 1
    gap = gaps[0].event
    assert isinstance(gap, Gap)
    assert gap.start == 2
    assert gap.dropped == gap.to - gap.start + 1
    assert gaps[0].offset == gap.to == told[2].offset - 1
    assert codec.decode("gap", gaps[0].data) == gap


async def test_each_stretch_between_what_may_not_be_dropped_is_a_gap_of_its_own() -> None:
    events = [token(), token(), firm(), token(), firm(), token(), token()]
    log = ended(*events, *[token(100) for _ in range(20)], bound=10 * cost(token(100)))
    told = await rest(Subscriber(log))
    shown = [(one.event.start, one.event.to) if isinstance(one.event, Gap) else one.offset for one in told[:5]]
    assert shown[:4] == [(1, 2), 3, (4, 4), 5]


async def test_a_reader_that_had_read_what_was_dropped_later_is_told_of_no_gap() -> None:
    log = MemoryLog(20 * cost(token()))
    reader = Subscriber(log)
    told: list[Entry] = []
    for _ in range(100):
        log.append(token())
        told += await reader.read()
    assert [entry.offset for entry in told] == list(range(1, 101))


async def test_who_comes_back_after_a_gap_is_not_told_of_it_again() -> None:
    log = ended(firm(), *[token() for _ in range(100)], bound=20 * cost(token()))
    told = await rest(Subscriber(log))
    gap = next(entry for entry in told if isinstance(entry.event, Gap))
    assert await rest(Subscriber(log, gap.offset)) == told[2:]


async def test_who_comes_back_from_the_middle_of_a_gap_is_told_of_its_rest() -> None:
    log = ended(firm(), *[token() for _ in range(100)], bound=20 * cost(token()))
    gap = next(entry.event for entry in await rest(Subscriber(log)) if isinstance(entry.event, Gap))
    first = (await Subscriber(log, gap.start + 3).read())[0].event
    assert isinstance(first, Gap)
    assert (first.start, first.to) == (gap.start + 4, gap.to)


async def test_a_reader_of_a_full_log_waits_for_its_end() -> None:
    # The writer was refused and has yet to write the end; a reader that comes in between must not take it for one.
    log = MemoryLog(4 * cost(firm(100)) + cost(token()))
    for _ in range(4):
        log.append(firm(100))
    log.append(token())
    with pytest.raises(LogFull):
        log.append(firm(100))
    reading = asyncio.create_task(rest(Subscriber(log, 4)))
    await asyncio.sleep(0)
    assert not reading.done()
    log.append(END)
    async with asyncio.timeout(10):
        assert (await reading)[-1].event == END


Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("token"), st.integers(0, 200)),
        st.tuples(st.just("firm"), st.integers(0, 50)),
        st.tuples(st.just("read"), st.integers(0, 2)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1500, 6000))
def test_what_a_reader_is_told_and_its_gaps_are_the_whole_log(steps: list[Step], bound: int) -> None:
    log = MemoryLog(bound)
    written: list[Event] = []
    readers = [Subscriber(log) for _ in range(3)]
    told: list[list[Entry]] = [[] for _ in readers]

    def read(number: int) -> None:
        while log.last > readers[number].position:
            told[number] += at_once(readers[number].read())

    for kind, size in steps:
        if kind == "read":
            read(size)
            continue
        event = token(size) if kind == "token" else firm(size)
        try:
            log.append(event)
        except LogFull:
            continue
        written.append(event)
    log.append(END)
    written.append(END)
    for number, entries in enumerate(told):
        read(number)
        assert covered(entries) == list(range(1, len(written) + 1))
        assert all(entry.event == written[entry.offset - 1] for entry in entries if not isinstance(entry.event, Gap))
        assert all(written[missed - 1].droppable for missed in missing(entries))
        assert not any(isinstance(a.event, Gap) and isinstance(b.event, Gap) for a, b in pairwise(entries))


def missing(entries: Sequence[Entry]) -> list[int]:
    gaps = [entry.event for entry in entries if isinstance(entry.event, Gap)]
    return [offset for gap in gaps for offset in range(gap.start, gap.to + 1)]


def covered(entries: Sequence[Entry]) -> list[int]:
    """Every offset the reader knows of, in the order in which it learnt of it."""
    found: list[int] = []
    for entry in entries:
        found += range(entry.event.start, entry.event.to + 1) if isinstance(entry.event, Gap) else [entry.offset]
    return found
