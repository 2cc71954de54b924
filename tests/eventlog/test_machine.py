"""The log and its readers as one machine, driven at random, beside the plainest model there is: lists.

What a reader must still be told is worked out anew before each read, the slow way, from all that the log holds. What
it is told is compared with that entry by entry, so that no loss, repeat, change of order, and no wrong, missing or
second gap can hide.
"""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from msgspec.structs import asdict

from app.eventlog.base import Entry, LogClosed, LogFull
from app.eventlog.memory import ENTRY_OVERHEAD, MemoryLog
from app.eventlog.subscriber import BATCH, BATCH_BYTES, MERGE_OVER, EndOfLog, LogAbandoned, Subscriber
from app.events import codec
from app.events.event import (
    Custom,
    Error,
    Event,
    Gap,
    MessageStarted,
    NodeFinished,
    Reasoning,
    RunFinished,
    State,
    Token,
    ToolArgs,
    ToolProgress,
    Totals,
    Usage,
)

STEPS = 10_000
READERS = 6
ALL = 1 << 30
END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)

TEXTS = st.one_of(st.text(max_size=8), st.integers(9, 900).map(lambda size: "ö" * size))
NAMES = st.sampled_from("ab")
PLACES = st.sampled_from([{}, {"node": "n"}, {"node": "n", "namespace": ("n:1",)}])


def made(kind: type[Event], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Event]:
    return st.builds(lambda ts, place, **values: kind(ts=ts, **place, **values), st.integers(0, 9), PLACES, **fields)


DELTAS = st.one_of(
    made(Token, text=TEXTS, message_id=NAMES),
    made(Reasoning, text=TEXTS, message_id=NAMES),
    made(ToolArgs, call_id=NAMES, delta=TEXTS, args=st.none() | st.just({"a": [1, None]})),
)
OTHERS = st.one_of(
    made(ToolProgress, call_id=NAMES, data=TEXTS),
    made(Custom, name=NAMES, data=TEXTS),
    made(State, values=TEXTS),
    made(MessageStarted, message_id=NAMES, role=st.just("assistant")),
    st.just(NodeFinished(ts=0)),
    st.just(Error(ts=0, code="c", message="m", retryable=False)),
    st.just(Usage(ts=0, input_tokens=1, output_tokens=1, total_tokens=2, cost_usd=None, estimated=True)),
)
WRITTEN = st.one_of(
    st.tuples(st.lists(DELTAS, min_size=1, max_size=1), st.sampled_from([2, 40, 70, 280])),
    st.tuples(st.lists(DELTAS | OTHERS, min_size=1, max_size=6), st.integers(1, 3)),
    st.tuples(st.lists(DELTAS, min_size=1, max_size=3), st.sampled_from([20, 40, 150])),
    st.tuples(st.lists(DELTAS | OTHERS, min_size=2, max_size=4), st.sampled_from([20, 100])),
)
"""Some events, and how often they come."""


class Reader:
    """A subscriber, and what it has been told."""

    def __init__(self, log: MemoryLog, after: int, max_events: int, max_bytes: int) -> None:
        self.subscriber = Subscriber(log, after, max_events=max_events, max_bytes=max_bytes)
        self.after = after
        self.history = log.last
        self.bounds = (max_events, max_bytes)
        self.told: list[Entry] = []
        self.waiting: asyncio.Task[Sequence[Entry]] | None = None

    @property
    def position(self) -> int:
        return self.told[-1].offset if self.told else self.after

    def due(self, pending: Sequence[Entry]) -> Sequence[Entry]:
        """All that it is to be told before anything else happens: its history, else what is within its bound."""
        past = [entry for entry in pending if entry.offset <= self.history]
        return past or skipped(pending, *self.bounds)

    def check(self, batch: Sequence[Entry], log: MemoryLog) -> None:
        """The batch is the next part of what is due, and tells of each hole in it once."""
        pending = log.read(self.position, ALL)
        due = self.due(pending)
        behind = due[0].offset > self.history and len(pending) > MERGE_OVER
        position, seen = self.position, 0
        for entry in batch:
            if isinstance(entry.event, Gap):
                gap = entry.event
                assert entry == Entry(gap.to, gap, codec.encode(gap))
                assert (gap.start, gap.dropped) == (position + 1, gap.to - position)
                assert gap.to == due[seen].offset - 1
            else:
                first = seen
                while due[seen].offset < entry.offset:
                    seen += 1
                seen += 1
                assert due[first].offset == position + 1
                assert entry == due[first] if seen == first + 1 else behind and entry == joined(due[first:seen])
            position = entry.offset
        self.check_size(batch, due[:seen])
        if behind:
            assert not any(mergeable(one.event, two.event) for one, two in pairwise(batch))
        self.told += batch

    def check_size(self, batch: Sequence[Entry], raw: Sequence[Entry]) -> None:
        """It is bounded, and does not end in a gap, which might go on."""
        assert not isinstance(batch[-1].event, Gap)
        assert len(raw) <= BATCH
        assert len(raw) == 1 or sum(len(entry.data) for entry in raw) <= BATCH_BYTES


def skipped(entries: Sequence[Entry], max_events: int, max_bytes: int) -> list[Entry]:
    """What is left of them, when the oldest that may go are taken out until the rest is within the bound."""
    events, size = len(entries), sum(len(entry.data) for entry in entries)
    kept: list[Entry] = []
    for entry in entries:
        if entry.event.droppable and entry is not entries[-1] and (events > max_events or size > max_bytes):
            events, size = events - 1, size - len(entry.data)
        else:
            kept.append(entry)
    return kept


def text_field(event: Event) -> str | None:
    return "delta" if isinstance(event, ToolArgs) else "text" if isinstance(event, Token | Reasoning) else None


def mergeable(one: Event, two: Event) -> bool:
    """Deltas of one message or call, from one place in the graph."""
    field = text_field(one)
    if field is None or type(one) is not type(two):
        return False
    return {**asdict(one), field: "", "ts": 0, "args": 0} == {**asdict(two), field: "", "ts": 0, "args": 0}


def joined(entries: Sequence[Entry]) -> Entry:
    """What deltas that stand side by side come to as one."""
    events = [entry.event for entry in entries]
    assert [entry.offset for entry in entries] == list(range(entries[0].offset, entries[-1].offset + 1))
    assert all(mergeable(events[-1], event) for event in events)
    field = text_field(events[-1])
    assert field is not None
    fields = asdict(events[-1])
    fields[field] = "".join(asdict(event)[field] for event in events)
    for event in events:
        if isinstance(event, ToolArgs) and event.args is not None:
            fields["args"] = event.args
    event = type(events[-1])(**fields)
    return Entry(entries[-1].offset, event, codec.encode(event))


def at_once(reader: Reader) -> Sequence[Entry]:
    """What a read gives that has no reason to wait."""
    step = reader.subscriber.read()
    try:
        step.send(None)
    except StopIteration as stop:
        batch: Sequence[Entry] = stop.value
        return batch
    raise AssertionError("it waited")


class LogAndReaders(RuleBasedStateMachine):
    """Appends, reads, comings and goings in any order; one run after another."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.readers: list[Reader] = []
        self.since = 0  # steps since the run or the process began

    @initialize(bound=st.sampled_from([3_000_000, 300_000, 40_000, 3_000]))
    def create(self, bound: int) -> None:
        self.bound = bound
        self.log = MemoryLog(bound)
        self.written: list[Event] = []
        self.readers = []

    def teardown(self) -> None:
        self.hang_up(*self.readers)
        for reader in self.readers:
            self.read_all(reader)
        self.loop.close()

    # The writer

    @rule(written=WRITTEN, leaves=st.sampled_from([False, False, True]))
    def append(self, written: tuple[list[Event], int], leaves: bool) -> None:
        """What is refused leaves no trace; who waits gets it, or leaves in the very step in which it would have."""
        self.count()
        pattern, times = written
        last = self.log.last
        for event in pattern * times:
            before = self.log.read(0, ALL) if times == 1 else ()
            try:
                entry = self.log.append(event)
            except LogFull:
                assert times > 1 or self.log.read(0, ALL) == before
                firm = [codec.encode(one) for one in [*self.written, event] if one is event or not one.droppable]
                assert sum(map(len, firm)) + len(firm) * ENTRY_OVERHEAD > self.bound
                break
            self.written.append(event)
            assert (entry.offset, entry.event) == (len(self.written), event)
        self.check_log()
        if self.log.last > last:
            for reader in self.readers:
                if reader.waiting is not None and leaves:
                    reader.waiting.cancel()
            self.settle()

    @precondition(lambda self: self.since >= 20)
    @rule(bound=st.sampled_from([3_000_000, 300_000, 40_000]))
    def finish(self, bound: int) -> None:
        """Everybody gets to the end, and another run begins."""
        self.count(anew=True)
        self.log.append(END)
        self.written.append(END)
        self.check_log()
        self.settle()
        for reader in self.readers:
            self.read_all(reader)
            assert reader.told[-1:] in ([Entry(len(self.written), END, codec.encode(END))], [])
            with pytest.raises(EndOfLog):
                at_once(reader)
        self.log.abandon()  # means nothing any more
        self.refuses()
        assert MemoryLog.load(self.log.dump()).closed
        self.create(bound)

    @precondition(lambda self: self.since >= 14)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """This process lets go of the log, another has it, and the readers come back with the last id they have."""
        self.count(anew=True)
        self.log.abandon()
        self.settle(LogAbandoned)
        self.refuses()
        if self.readers:
            reader = self.pick(data)
            self.read_all(reader)
            with pytest.raises(LogAbandoned):
                at_once(reader)
        old, self.log = self.log, MemoryLog.load(self.log.dump(), self.bound)
        assert self.log.read(0, ALL) == old.read(0, ALL)
        assert (self.log.last, self.log.size, self.log.closed) == (old.last, old.size, old.closed)
        self.readers = [Reader(self.log, reader.position, *reader.bounds) for reader in self.readers]

    # The readers

    @precondition(lambda self: len(self.readers) < READERS)
    @rule(
        data=st.data(),
        live=st.booleans(),
        max_events=st.sampled_from([1024, 1024, 300, 80, 10, 1]),
        max_bytes=st.sampled_from([1 << 20, 1 << 20, 30_000, 3_000, 1]),
    )
    def attach(self, data: st.DataObject, live: bool, max_events: int, max_bytes: int) -> None:
        self.count()
        after = self.log.last if live else data.draw(st.just(0) | st.integers(0, self.log.last))
        self.readers.append(Reader(self.log, after, max_events, max_bytes))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), times=st.integers(1, 4))
    def read(self, data: st.DataObject, times: int) -> None:
        self.count()
        reader = max(self.pick(data), self.pick(data), key=lambda one: self.log.last - one.position)
        for _ in range(times):
            if self.pending(reader):
                reader.check(at_once(reader), self.log)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def read_all_and_wait(self, data: st.DataObject) -> None:
        self.count()
        reader = self.pick(data)
        self.read_all(reader)
        if reader.waiting is None:
            reader.waiting = self.loop.create_task(_read(reader.subscriber))
            self.loop.run_until_complete(asyncio.sleep(0))
            assert not reader.waiting.done()

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), returns=st.booleans())
    def leave(self, data: st.DataObject, returns: bool) -> None:
        """A reader that comes back has an id it was given, not always the last: what was on its way was lost."""
        self.count()
        reader = self.pick(data)
        self.hang_up(reader)
        self.readers.remove(reader)
        if returns:
            ids = [reader.after, *(entry.offset for entry in reader.told)]
            after = data.draw(st.sampled_from([*ids, ids[-1]]))
            self.readers.append(Reader(self.log, after, *reader.bounds))

    # What the rules are made of

    def count(self, *, anew: bool = False) -> None:
        LogAndReaders.steps += 1
        self.since = 0 if anew else self.since + 1

    def pick(self, data: st.DataObject) -> Reader:
        return data.draw(st.sampled_from(self.readers))

    def pending(self, reader: Reader) -> bool:
        return self.log.last > reader.position

    def read_all(self, reader: Reader) -> None:
        while self.pending(reader):
            reader.check(at_once(reader), self.log)

    def refuses(self) -> None:
        for event in (Token(ts=0, text="", message_id="m"), State(ts=0, values=None), END):
            with pytest.raises(LogClosed):
                self.log.append(event)
        assert self.log.last == len(self.written)

    def settle(self, error: type[Exception] | None = None) -> None:
        """Those who wait get what came, or the ``error``."""
        for reader in [one for one in self.readers if one.waiting is not None]:
            task = self.stops_waiting(reader)
            if task.cancelled():
                continue
            if error is None:
                reader.check(task.result(), self.log)
            else:
                assert isinstance(task.exception(), error)
                assert reader.position == self.log.last

    def hang_up(self, *readers: Reader) -> None:
        for reader in readers:
            if reader.waiting is not None:
                reader.waiting.cancel()
                assert self.stops_waiting(reader).cancelled()

    def stops_waiting(self, reader: Reader) -> asyncio.Task[Sequence[Entry]]:
        task, reader.waiting = reader.waiting, None
        assert task is not None
        self.loop.run_until_complete(asyncio.wait([task], timeout=10))
        assert task.done()
        return task

    def check_log(self) -> None:
        """It holds what was written but for deltas, and the newest in any case; and no more than it may."""
        held = self.log.read(0, ALL)
        assert self.log.last == len(self.written)
        assert all(entry.event == self.written[entry.offset - 1] for entry in held)
        assert all(entry.data == codec.encode(entry.event) for entry in held[-3:])
        assert not self.written or held[-1].offset == self.log.last
        firm = [offset for offset, event in enumerate(self.written, 1) if not event.droppable]
        assert [entry.offset for entry in held if not entry.event.droppable] == firm
        assert self.log.size == sum(len(entry.data) + ENTRY_OVERHEAD for entry in held)
        assert self.log.size <= self.bound or not any(entry.event.droppable for entry in held[:-1])


async def _read(subscriber: Subscriber) -> Sequence[Entry]:
    return await subscriber.read()


def test_whatever_is_appended_dropped_left_and_resumed_nothing_is_lost_repeated_or_out_of_order() -> None:
    LogAndReaders.steps = 0
    run_state_machine_as_test(
        LogAndReaders,
        settings=settings(
            max_examples=230, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert LogAndReaders.steps >= STEPS
