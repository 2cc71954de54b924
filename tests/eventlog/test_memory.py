"""The log in memory against the plainest model there is: a list of everything that was ever appended."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.eventlog.base import Entry, Lag, LogClosed, LogFull
from app.eventlog.memory import ENTRY_OVERHEAD, TOLD_AT_ONCE, MemoryLog
from app.events import codec
from app.events.event import (
    Error,
    Event,
    MessageFinished,
    NodeFinished,
    RunFinished,
    State,
    Token,
    ToolFinished,
    ToolStarted,
    Totals,
    Usage,
)

END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)
CLOSING: list[Event] = [
    Error(ts=0, code="log_full", message="m", retryable=False),
    Usage(ts=0, input_tokens=1, output_tokens=1, total_tokens=2, cost_usd=None, estimated=True),
    MessageFinished(ts=0, message_id="m", role="assistant"),
    ToolFinished(ts=0, call_id="c", name="f", status="error", output="cut", duration_ms=0),
    NodeFinished(ts=0),
    END,
]


def token(size: int = 1) -> Event:
    return Token(ts=0, text="x" * size, message_id="m")


def firm(size: int = 1) -> Event:
    """An event that may not be dropped, and is no closing one."""
    return State(ts=0, values="x" * size)


def cost(event: Event) -> int:
    return len(codec.encode(event)) + ENTRY_OVERHEAD


def offsets(entries: Sequence[Entry]) -> list[int]:
    return [entry.offset for entry in entries]


def test_offsets_count_from_one_without_a_hole() -> None:
    log = MemoryLog()
    assert log.last == 0
    assert not log.closed
    assert [log.append(token()).offset for _ in range(5)] == [1, 2, 3, 4, 5]
    assert log.last == 5


def test_an_entry_is_the_event_and_its_json_on_one_line() -> None:
    log = MemoryLog()
    event = token()
    entry = log.append(event)
    assert entry == Entry(1, event, codec.encode(event))
    assert log.read(0, 10) == [entry]


@pytest.mark.parametrize(
    ("after", "limit", "expected"),
    [(0, 10, [1, 2, 3]), (0, 2, [1, 2]), (1, 10, [2, 3]), (2, 1, [3]), (3, 10, []), (99, 10, []), (0, 0, [])],
)
def test_a_read_gives_what_lies_over_an_offset(after: int, limit: int, expected: list[int]) -> None:
    log = MemoryLog()
    for _ in range(3):
        log.append(token())
    assert offsets(log.read(after, limit)) == expected


def test_what_was_read_does_not_change_when_more_is_appended() -> None:
    log = MemoryLog()
    log.append(token())
    entries = log.read(0, 10)
    log.append(token())
    assert offsets(entries) == [1]


def test_nothing_follows_the_terminal_event() -> None:
    log = MemoryLog()
    log.append(END)
    assert log.closed
    for event in [token(), *CLOSING]:
        with pytest.raises(LogClosed):
            log.append(event)
    assert log.last == 1


# The bound


def test_at_the_bound_the_oldest_deltas_go_and_a_tenth_is_free_again() -> None:
    log = MemoryLog(100 * cost(token()))
    for _ in range(101):
        log.append(token())
    kept = offsets(log.read(0, 1000))
    assert kept == list(range(102 - len(kept), 102))
    assert 85 <= len(kept) <= 90
    assert log.size == sum(len(entry.data) + ENTRY_OVERHEAD for entry in log.read(0, 1000))


def test_what_may_not_be_dropped_stays_in_its_place_among_what_was() -> None:
    log = MemoryLog(20 * cost(token()))
    for number in range(200):
        log.append(firm(1) if number % 50 == 0 else token())
    kept = log.read(0, 1000)
    assert [entry.offset for entry in kept if not entry.event.droppable] == [1, 51, 101, 151]
    assert offsets(kept) == sorted(offsets(kept))
    assert offsets(log.read(51, 1)) == [101]


def test_what_may_not_be_dropped_and_does_not_fit_is_refused_without_a_trace() -> None:
    log = MemoryLog(4 * cost(firm(100)))
    for _ in range(4):
        log.append(firm(100))
    before = log.read(0, 100)
    for event in (firm(100), firm(1), token(1)):
        with pytest.raises(LogFull):
            log.append(event)
    assert log.read(0, 100) == before
    assert log.last == 4


def test_a_refused_event_costs_no_reader_the_deltas_it_has_not_read() -> None:
    # A reader who is told of an offset must find something there: what it waits for may be long in coming.
    log = MemoryLog(4 * cost(firm(100)) + cost(token()))
    for _ in range(4):
        log.append(firm(100))
    log.append(token())
    with pytest.raises(LogFull):
        log.append(firm(100))
    assert offsets(log.read(4, 10)) == [5]


@pytest.mark.parametrize("event", CLOSING, ids=lambda event: event.type)
def test_a_full_log_can_still_be_brought_to_its_end(event: Event) -> None:
    log = MemoryLog(4 * cost(firm(100)))
    for _ in range(4):
        log.append(firm(100))
    assert log.append(event).offset == 5
    assert offsets(log.read(0, 100)) == [1, 2, 3, 4, 5]


def test_the_end_of_a_full_log_drops_deltas_before_it_exceeds_the_bound() -> None:
    log = MemoryLog(4 * cost(firm(100)) + cost(token()))
    for _ in range(4):
        log.append(firm(100))
    log.append(token())
    log.append(END)
    assert offsets(log.read(0, 100)) == [1, 2, 3, 4, 6]


def test_a_delta_larger_than_the_whole_bound_is_refused() -> None:
    log = MemoryLog(1000)
    with pytest.raises(LogFull):
        log.append(token(2000))
    assert log.append(token()).offset == 1


EVENTS = st.one_of(
    st.integers(0, 300).map(token),
    st.integers(0, 300).map(firm),
    st.just(ToolStarted(ts=0, call_id="c", name="f", args={})),
    st.sampled_from(CLOSING[:-1]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(EVENTS, max_size=60), st.integers(300, 6000), st.booleans())
def test_the_log_is_a_list_that_forgets_only_deltas(events: list[Event], bound: int, ends: bool) -> None:
    log = MemoryLog(bound)
    model: list[Entry] = []
    for event in [*events, END] if ends else events:
        before = log.read(0, 1000)
        try:
            entry = log.append(event)
        except LogFull:
            assert event not in CLOSING
            assert log.read(0, 1000) == before
            continue
        model.append(entry)
        kept = log.read(0, 1000)
        assert entry.offset == len(model) == log.last
        assert kept[-1] == entry
        assert log.size == sum(len(one.data) + ENTRY_OVERHEAD for one in kept)
        assert log.size <= bound or not any(one.event.droppable for one in kept)
        assert all(one is model[one.offset - 1] for one in kept)
        assert [one for one in kept if not one.event.droppable] == [one for one in model if not one.event.droppable]
        for after in range(len(model) + 2):
            expected = [one for one in kept if one.offset > after]
            assert log.read(after, 1000) == expected
            assert log.read(after, 2) == expected[:2]


# What a reader may skip


def mixed(bound: int = 1 << 20) -> MemoryLog:
    """Tokens of one size at all offsets up to 12 but 4, 8 and 12."""
    log = MemoryLog(bound)
    for offset in range(1, 13):
        log.append(firm() if offset % 4 == 0 else token())
    return log


def test_a_lag_is_how_much_lies_over_an_offset() -> None:
    log = mixed()
    for after in range(14):
        rest = log.read(after, 100)
        assert log.lag(after) == (len(rest), sum(len(entry.data) for entry in rest))


@pytest.mark.parametrize(
    ("after", "limit", "cut", "expected"),
    [
        (0, 100, 6, [4, 7, 8, 9, 10, 11, 12]),
        (0, 1, 6, [4]),
        (0, 2, 6, [4, 7]),
        (4, 100, 6, [7, 8, 9, 10, 11, 12]),
        (5, 2, 8, [8, 9]),
        (5, 2, 3, [6, 7]),
        (0, 100, 11, [4, 8, 12]),
        (0, 2, 11, [4, 8]),
        (11, 100, 11, [12]),
    ],
)
def test_up_to_a_cut_only_what_may_not_be_dropped_is_read(
    after: int, limit: int, cut: int, expected: list[int]
) -> None:
    assert offsets(mixed().read(after, limit, cut)) == expected


@pytest.mark.parametrize(
    ("after", "events", "expected"),
    [
        (0, 12, 0),
        (0, 11, 1),
        (0, 9, 3),
        (0, 8, 5),
        (5, 7, 0),
        (5, 6, 6),
        (0, 3, 11),
        (0, 0, 11),
        (8, 1, 11),
        (11, 0, 0),
    ],
)
def test_a_cut_is_the_least_that_brings_the_rest_within_the_bound(after: int, events: int, expected: int) -> None:
    assert mixed().cut(after, Lag(events, 1 << 20)) == expected


def test_a_cut_in_bytes_is_the_least_too() -> None:
    log = mixed()
    whole, size = log.lag(0).bytes, len(codec.encode(token()))
    for excess, expected in ((0, 0), (1, 1), (size, 1), (size + 1, 2), (3 * size + 1, 5), (whole, 11)):
        assert log.cut(0, Lag(100, whole - excess)) == expected


def test_the_newest_entry_is_never_cut_off() -> None:
    log = mixed()
    log.append(token())
    assert log.cut(0, Lag(0, 0)) == 11
    assert offsets(log.read(0, 100, 11)) == [4, 8, 12, 13]


# A log that goes on elsewhere


def test_nothing_follows_once_the_log_is_abandoned_and_what_is_there_stays() -> None:
    log = mixed()
    before = log.read(0, 100)
    for _ in range(2):
        log.abandon()
        for event in (token(), firm(), END):
            with pytest.raises(LogClosed):
                log.append(event)
    assert log.read(0, 100) == before
    assert not log.closed


@pytest.mark.parametrize("bound", [1 << 20, 20 * cost(token())])
def test_a_log_is_the_same_when_it_was_dumped_and_loaded(bound: int) -> None:
    log = MemoryLog(bound)
    for number in range(60):
        log.append(firm() if number % 9 == 0 else Token(ts=number, text="ö\u2028\n x y", message_id="a b"))
    log.abandon()
    again = MemoryLog.load(log.dump(), bound)
    assert again.read(0, 100) == log.read(0, 100)
    assert (again.last, again.size, again.closed, again.lag(7)) == (log.last, log.size, log.closed, log.lag(7))
    assert again.dump() == log.dump()
    log = MemoryLog.load(log.dump(), bound)
    assert [log.append(token()), log.append(END)] == [again.append(token()), again.append(END)]
    assert log.read(0, 100) == again.read(0, 100)


def test_an_empty_log_and_a_finished_one_are_loaded_as_what_they_are() -> None:
    log = MemoryLog.load(MemoryLog().dump())
    assert (log.last, log.size, log.closed, log.read(0, 1)) == (0, 0, False, [])
    log.append(END)
    again = MemoryLog.load(log.dump())
    assert again.closed
    with pytest.raises(LogClosed):
        again.append(token())


def test_a_loaded_log_that_is_larger_than_its_new_bound_shrinks_at_the_next_append() -> None:
    log = MemoryLog()
    for _ in range(50):
        log.append(token())
    again = MemoryLog.load(log.dump(), 10 * cost(token()))
    assert again.last == 50
    again.append(token())
    assert again.size <= 10 * cost(token())


LINE = b"1 token " + codec.encode(token()) + b"\n"


@pytest.mark.parametrize(
    "dump",
    [
        LINE[:-1],
        LINE[:-5] + b"\n",
        b"\n",
        b"x" + LINE,
        b"0" + LINE[1:],
        b"-1" + LINE[1:],
        LINE + LINE,
        LINE.replace(b"token", b"nonsense", 1),
        LINE.replace(b"token", b"\xff", 1),
        LINE.replace(b"token", b"usage", 1),
        b"1 run.finished " + codec.encode(END) + b"\n2" + LINE[1:],
        b"1 token\n",
    ],
)
def test_what_is_no_dump_is_refused(dump: bytes) -> None:
    with pytest.raises(ValueError, match="no log's dump"):
        MemoryLog.load(dump)


# Waiting


async def test_waiting_for_what_is_there_returns_at_once() -> None:
    log = MemoryLog()
    log.append(token())
    with pytest.raises(StopIteration):
        log.wait(0).send(None)


async def test_an_append_wakes_everybody_who_waits_for_it() -> None:
    log = MemoryLog()
    waiting = [asyncio.create_task(log.wait(0)) for _ in range(10)]
    await asyncio.sleep(0)
    log.append(token())
    async with asyncio.timeout(10):
        await asyncio.gather(*waiting)


async def test_who_waits_for_a_later_event_sleeps_on() -> None:
    log = MemoryLog()
    waiting = asyncio.create_task(log.wait(2))
    for _ in range(2):
        log.append(token())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    log.append(token())
    async with asyncio.timeout(10):
        await waiting


async def test_the_end_wakes_who_waits_for_more_than_there_will_be() -> None:
    log = MemoryLog()
    waiting = asyncio.create_task(log.wait(99))
    await asyncio.sleep(0)
    log.append(END)
    async with asyncio.timeout(10):
        await waiting
        await log.wait(99)


async def test_a_waiter_that_is_cancelled_in_the_very_step_of_the_append_disturbs_nobody() -> None:
    log = MemoryLog()
    first, second = (asyncio.create_task(log.wait(0)) for _ in range(2))
    await asyncio.sleep(0)
    log.append(token())
    first.cancel()
    async with asyncio.timeout(10):
        await asyncio.wait([first, second])
    assert first.cancelled()
    assert second.result() is None
    log.append(token())
    assert log.last == 2


# Watching


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_watches_is_told_once_for_all_that_one_turn_appends_and_never_within_it() -> None:
    log, told = MemoryLog(), list[Any]()
    log.watch(lambda: told.append(log.last))
    for _ in range(3):
        log.append(token())
    assert told == []
    await turns()
    assert told == [3]
    log.append(END)
    await turns()
    assert told == [3, 4]


async def test_who_watches_is_told_of_the_abandoning() -> None:
    log, told = MemoryLog(), list[Any]()
    log.append(token())
    log.watch(lambda: told.append(log.abandoned))
    log.abandon()
    await turns()
    assert told == [True]


async def test_who_watches_no_more_is_not_told_not_even_in_a_round_that_has_begun() -> None:
    log, told = MemoryLog(), list[Any]()

    def last() -> None:
        told.append("last")

    def first() -> None:
        told.append("first")
        log.unwatch(last)
        log.unwatch(last)

    log.watch(first)
    log.watch(last)
    log.append(token())
    await turns()
    assert told == ["first"]


async def test_what_is_appended_within_a_round_is_told_to_all_in_another() -> None:
    log, told = MemoryLog(), list[Any]()

    def writes() -> None:
        told.append(("writes", log.last))
        if log.last == 1:
            log.append(token())

    log.watch(lambda: told.append(("before", log.last)))
    log.watch(writes)
    log.append(token())
    await turns(5)
    assert told == [("before", 1), ("writes", 1), ("before", 2), ("writes", 2)]


async def test_more_readers_than_a_portion_are_told_in_turns_each_once_in_their_order() -> None:
    log, told = MemoryLog(), list[Any]()
    for number in range(2 * TOLD_AT_ONCE + 1):
        log.watch(partial(told.append, number))
    log.append(token())
    await asyncio.sleep(0)
    assert len(told) <= TOLD_AT_ONCE
    await turns(5)
    assert told == list(range(2 * TOLD_AT_ONCE + 1))


async def test_one_who_fails_when_told_keeps_nobody_else_from_it() -> None:
    log, told, failures = MemoryLog(), list[str](), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def fails() -> None:
        raise KeyError("mine")

    log.watch(lambda: told.append("before"))
    log.watch(fails)
    log.watch(lambda: told.append("after"))
    for _ in range(2):
        log.append(token())
        await turns(5)
    assert told == ["before", "after"] * 2
    assert [type(one) for one in failures] == [KeyError] * 2


async def test_what_one_makes_of_the_news_is_made_once_for_all_at_its_place_and_then_forgotten() -> None:
    log, made, shared = MemoryLog(), list[list[int]](), list[tuple[int, bytes]]()

    def make(entries: Sequence[Entry]) -> bytes:
        made.append([entry.offset for entry in entries])
        return b"".join(entry.data for entry in entries)

    def read(after: int) -> None:
        entries = log.read(after, 100)
        shared.append((after, log.share(entries, "words", make)))

    for after in (0, 0, 1, 1, 0):
        log.watch(partial(read, after))
    for size in (1, 2, 3):
        log.append(token(size))
    await turns()
    whole = b"".join(entry.data for entry in log.read(0, 3))
    rest = b"".join(entry.data for entry in log.read(1, 3))
    assert shared == [(0, whole), (0, whole), (1, rest), (1, rest), (0, whole)]
    assert made == [[1, 2, 3], [2, 3], [1, 2, 3]]
    assert shared[0][1] is shared[1][1]
    assert log._shared is None


async def test_nothing_that_was_made_before_an_append_is_given_out_after_it() -> None:
    log, shared = MemoryLog(), list[Any]()

    def read() -> None:
        shared.append(log.share(log.read(0, 100), "words", len))
        if log.last == 2:
            log.append(token())

    for _ in range(3):
        log.watch(partial(read))
    log.append(token())
    log.append(token())
    await turns(5)
    assert shared == [2, 3, 3, 3, 3, 3]


async def test_different_words_are_not_confused() -> None:
    log, shared = MemoryLog(), list[Any]()

    def read(words: str, make: Callable[[Sequence[Entry]], object]) -> None:
        shared.append(log.share(log.read(0, 9), words, make))

    for one in (partial(read, "count", len), partial(read, "text", repr), partial(read, "count", len)):
        log.watch(one)
    log.append(token())
    await turns()
    assert shared == [1, repr(log.read(0, 9)), 1]
