"""A reader: nothing lost, nothing twice, told of what it missed, and at the end told so."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from app.eventlog.base import Entry, LogFull
from app.eventlog.memory import ENTRY_OVERHEAD, MemoryLog
from app.eventlog.subscriber import BATCH, BATCH_BYTES, MERGE_OVER, EndOfLog, LogAbandoned, Subscriber
from app.events import codec
from app.events.event import Event, Gap, Reasoning, RunFinished, State, Token, ToolArgs, ToolProgress, Totals

END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)


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


# Readers that are behind


def grown(
    events: Iterable[Event], bound: int = 1 << 24, before: int = 0, **bounds: Any
) -> tuple[MemoryLog, Subscriber]:
    """A log to which all but the first ``before`` events came after the reader, who has read none of these."""
    log = MemoryLog(bound)
    reader = None
    for number, event in enumerate(events):
        if number == before:
            reader = Subscriber(log, before, **bounds)
        log.append(event)
    assert reader is not None
    return log, reader


def arguments(delta: str, args: Any = None, call_id: str = "c") -> Event:
    return ToolArgs(ts=0, call_id=call_id, delta=delta, args=args)


async def test_a_reader_that_lags_a_little_gets_each_event_on_its_own() -> None:
    log, reader = grown([token()] * MERGE_OVER)
    assert await reader.read() == log.read(0, MERGE_OVER)


async def test_deltas_of_one_message_come_as_one_to_a_reader_that_is_behind() -> None:
    events = [Token(ts=n, text=f"{n} ", message_id="m") for n in range(MERGE_OVER + 1)]
    _, reader = grown(events)
    (told,) = await reader.read()
    text = "".join(f"{n} " for n in range(MERGE_OVER + 1))
    assert told.event == Token(ts=MERGE_OVER, text=text, message_id="m")
    assert told.offset == reader.position == MERGE_OVER + 1
    assert codec.decode("token", told.data) == told.event


@pytest.mark.parametrize(
    "other",
    [
        Token(ts=0, text="x", message_id="other"),
        Token(ts=0, text="x", message_id="m", node="n"),
        Token(ts=0, text="x", message_id="m", namespace=("n:1",)),
        Reasoning(ts=0, text="x", message_id="m"),
        ToolProgress(ts=0, call_id="m", data="x"),
        State(ts=0, values=None),
    ],
)
async def test_what_is_not_of_one_message_and_place_never_merges(other: Event) -> None:
    log, reader = grown([token(), other] * 40)
    assert await reader.read() == log.read(0, 80)


async def test_pieces_of_arguments_come_as_one_with_the_newest_parse() -> None:
    pieces = [arguments("{", {}), arguments('"a', {"a": 1}), arguments('": ')]
    _, reader = grown([*pieces, arguments("", call_id="d"), *[token()] * MERGE_OVER])
    first, second, _ = await reader.read()
    assert first.event == arguments('{"a": ', {"a": 1})
    assert (first.offset, second.offset) == (3, 4)
    assert second.event == arguments("", call_id="d")


async def test_what_was_there_when_the_reader_came_is_told_whole_and_unmerged_however_much_it_is() -> None:
    log = ended(*[Token(ts=0, text=f"{n} ", message_id="m") for n in range(2000)])
    whole = await rest(Subscriber(log))
    assert [entry.offset for entry in whole] == list(range(1, 2002))
    for after in (0, 667, 1999):
        assert await rest(Subscriber(log, after, max_events=10, max_bytes=10)) == whole[after:]


async def test_what_came_after_the_reader_counts_as_lag_while_it_still_reads_its_history() -> None:
    log, reader = grown([token()] * 700, before=300, max_events=100)
    reader.position = 0
    told = [*await reader.read(), *await reader.read()]
    assert told == log.read(0, 300)
    assert [(one.offset, one.event.type) for one in await reader.read()] == [(600, "gap"), (700, "token")]


async def test_past_its_bound_in_events_a_reader_misses_the_oldest_and_no_more_than_that() -> None:
    log, reader = grown([token()] * 50, max_events=50)
    assert await reader.read() == log.read(0, 50)
    log, reader = grown([token()] * 51, max_events=50)
    gap, *told = await reader.read()
    assert gap.event == Gap(ts=gap.event.ts, start=1, to=1, dropped=1)
    assert told == log.read(1, 50)


async def test_past_its_bound_in_bytes_a_reader_misses_the_oldest_and_no_more_than_that() -> None:
    size = len(codec.encode(token(1000)))
    log, reader = grown([token(1000)] * 5, max_bytes=5 * size)
    assert await reader.read() == log.read(0, 5)
    log, reader = grown([token(1000)] * 5, max_bytes=5 * size - 1)
    gap, *told = await reader.read()
    assert (gap.offset, told) == (1, log.read(1, 5))


async def test_what_may_not_be_dropped_always_arrives_and_counts() -> None:
    _, reader = grown([firm(), token(), token(), firm(), token(), token(), firm(), token()], max_events=5)
    told = await reader.read()
    assert [(one.offset, one.event.type) for one in told] == [
        (1, "state"), (3, "gap"), (4, "state"), (5, "gap"), (6, "token"), (7, "state"), (8, "token"),
    ]  # fmt: skip


async def test_what_may_not_be_dropped_arrives_even_where_it_alone_exceeds_the_bound() -> None:
    log, reader = grown([token(), *[firm(100)] * 600], max_events=3, max_bytes=1000)
    told = [one for _ in range(3) for one in await reader.read()]
    assert told[0].event.type == "gap"
    assert told[1:] == log.read(1, 600)


async def test_the_newest_event_is_never_dropped_even_where_it_alone_exceeds_the_bound() -> None:
    log, reader = grown([token(100)] * 3, max_events=1, max_bytes=1)
    gap, newest = await reader.read()
    assert (gap.offset, newest) == (2, log.read(2, 1)[0])
    log.append(token(100))
    assert await reader.read() == log.read(3, 1)


async def test_a_stretch_in_which_a_batch_ends_is_one_gap_also_when_it_grows_before_the_next() -> None:
    # 300 to be told on the way to the end of the first read, then a stretch that is not over yet.
    log, reader = grown([*[firm(), token()] * BATCH, *[token()] * 100], max_events=BATCH)
    told = list(await reader.read())
    assert told[-1].offset == 2 * BATCH - 1
    for _ in range(3):
        for _ in range(700):
            log.append(token())
        told += await reader.read()
    log.append(END)
    told += await rest(reader)
    gaps = [entry.event for entry in told if isinstance(entry.event, Gap)]
    assert all(not isinstance(a.event, Gap) or not isinstance(b.event, Gap) for a, b in pairwise(told))
    assert [(gap.start, gap.to) for gap in gaps[: BATCH - 1]] == [(2 * n, 2 * n) for n in range(1, BATCH)]
    assert [gap.dropped for gap in gaps] == [gap.to - gap.start + 1 for gap in gaps]
    assert gaps[BATCH - 1].start == 2 * BATCH
    assert told[-1].event == END


async def test_what_the_log_dropped_and_what_the_reader_skips_is_one_gap() -> None:
    log, reader = grown([firm(), *[token()] * 600], bound=100 * cost(token()), max_events=10)
    first = log.read(1, 1)[0].offset
    assert 400 < first < 580
    state, gap, last = await reader.read()
    assert state.offset == 1
    assert gap.event == Gap(ts=gap.event.ts, start=2, to=592, dropped=591)
    assert last.offset == 601


async def test_a_batch_is_bounded_in_bytes_and_a_large_event_comes_alone() -> None:
    large = firm(2 * BATCH_BYTES)
    events = [*[firm(BATCH_BYTES // 4)] * 5, large, firm(), firm()]
    log = ended(*events)
    reader = Subscriber(log)
    assert [len(await reader.read()) for _ in range(4)] == [3, 2, 1, 3]
    _, reader = grown(events)
    assert [len(await reader.read()) for _ in range(4)] == [3, 2, 1, 2]


async def test_each_reader_lags_by_itself() -> None:
    log = MemoryLog()
    quick, slow = Subscriber(log, max_events=10), Subscriber(log, max_events=10)
    told: list[Entry] = []
    for _ in range(500):
        log.append(token())
        told += await quick.read()
    assert told == log.read(0, 500)
    assert [entry.offset for entry in await slow.read()] == [490, 500]


# A log that is abandoned


async def test_a_reader_of_an_abandoned_log_gets_what_is_there_and_then_is_told() -> None:
    log = MemoryLog()
    log.append(token())
    reader = Subscriber(log)
    log.abandon()
    assert [entry.offset for entry in await reader.read()] == [1]
    for _ in range(2):
        with pytest.raises(LogAbandoned):
            await reader.read()


async def test_a_reader_that_waits_when_the_log_is_abandoned_is_told() -> None:
    log = MemoryLog()
    waiting = [asyncio.create_task(rest(Subscriber(log))) for _ in range(3)]
    await asyncio.sleep(0)
    log.abandon()
    async with asyncio.timeout(10):
        done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in done] == [LogAbandoned] * 3


async def test_an_event_and_the_abandoning_in_one_step_come_one_after_the_other() -> None:
    log = MemoryLog()
    reader = Subscriber(log)
    waiting = asyncio.create_task(_read(reader))
    await asyncio.sleep(0)
    log.append(token())
    log.abandon()
    async with asyncio.timeout(10):
        assert [entry.offset for entry in await waiting] == [1]
    with pytest.raises(LogAbandoned):
        await reader.read()


async def test_a_finished_log_cannot_be_abandoned() -> None:
    log = ended(token())
    log.abandon()
    reader = Subscriber(log)
    assert len(await rest(reader)) == 2


async def _read(reader: Subscriber) -> Sequence[Entry]:
    return await reader.read()


# Without waiting


async def test_taking_is_reading_without_the_wait() -> None:
    log = MemoryLog()
    reader = Subscriber(log)
    told: list[int] = []

    def take() -> None:
        told.extend(entry.offset for entry in reader.take())

    reader.watch(take)
    assert reader.take() == ()
    for _ in range(3):
        log.append(token())
        log.append(token())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert told == [1, 2, 3, 4, 5, 6]
    reader.unwatch(take)
    log.append(END)
    await asyncio.sleep(0)
    assert [entry.offset for entry in reader.take()] == [7]
    for _ in range(2):
        with pytest.raises(EndOfLog):
            reader.take()


async def test_taking_from_an_abandoned_log_gives_what_is_there_and_then_says_so() -> None:
    log = MemoryLog()
    log.append(token())
    reader = Subscriber(log)
    log.abandon()
    assert [entry.offset for entry in reader.take()] == [1]
    for _ in range(2):
        with pytest.raises(LogAbandoned):
            reader.take()
