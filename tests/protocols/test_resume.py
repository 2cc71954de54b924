"""The law of resumption, over recorded runs and for each protocol: encode all and cut at n = encode n and resume there.

For a reader that keeps up, and for one that comes back, byte for byte. For one that is behind, its deltas having been
merged, in the text of each message between any two other events, and in those events.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from httpx_sse import EventSource

from app.eventlog.base import Entry
from app.eventlog.memory import MemoryLog
from app.eventlog.subscriber import EndOfLog, Subscriber
from app.events import codec
from app.events.event import Event, Reasoning, Token, ToolArgs
from app.events.grammar import Grammar
from app.protocols import native, websocket
from app.transports.sse import render

TRACES = sorted((Path(__file__).parent / "traces").glob("*.jsonl"))

Encode = Callable[[int, Event, bytes], bytes]


class Line(msgspec.Struct):
    """A trace's line; the data is kept byte for byte."""

    id: int
    event: str
    data: msgspec.Raw


def over_sse(offset: int, event: Event, data: bytes) -> bytes:
    return b"".join(map(render, native.encode(offset, event, data)))


def over_websocket(offset: int, event: Event, data: bytes) -> bytes:
    return websocket.encode("s", offset, event, data) + b"\n"


@pytest.fixture(params=[over_sse, over_websocket], ids=["sse", "websocket"])
def encode(request: pytest.FixtureRequest) -> Encode:
    chosen: Encode = request.param
    return chosen


@pytest.fixture(params=TRACES, ids=lambda path: path.stem)
def trace(request: pytest.FixtureRequest) -> list[Line]:
    path: Path = request.param
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


def events_of(trace: Iterable[Line]) -> list[Event]:
    return [codec.decode(line.event, bytes(line.data)) for line in trace]


def log_of(events: Iterable[Event]) -> MemoryLog:
    log = MemoryLog()
    for event in events:
        log.append(event)
    return log


def rest(reader: Subscriber) -> list[Entry]:
    """All that a reader of a finished run is still told."""
    told: list[Entry] = []
    while True:
        try:
            reader.read().send(None)
        except StopIteration as stop:
            told += stop.value
        except EndOfLog:
            return told


def encoded(entries: Iterable[Entry], encode: Encode) -> bytes:
    return b"".join(encode(one.offset, one.event, one.data) for one in entries)


def story(entries: Iterable[Entry]) -> list[Any]:
    """What was told, however its deltas were cut: between two other events, what each message and call grew by."""
    told: list[Any] = []
    grown: dict[object, str] = {}
    for event in (one.event for one in entries):
        match event:
            case Token(message_id=target, text=text) | Reasoning(message_id=target, text=text):
                key: object = (event.type, target, event.node, event.namespace)
            case ToolArgs(call_id=target, delta=text):
                key = (event.type, target, event.node, event.namespace)
            case _:
                told += [grown, event]
                grown = {}
                continue
        grown[key] = grown.get(key, "") + text
    return [*told, grown]


def behind(events: Sequence[Event], n: int) -> list[Entry]:
    """What a reader with the first ``n`` events is told when it slept through all the others."""
    log = log_of(events[:n])
    reader = Subscriber(log, n)
    for event in events[n:]:
        log.append(event)
    return rest(reader)


def test_a_trace_is_a_legal_run_that_the_codec_gives_back_byte_for_byte(trace: list[Line]) -> None:
    grammar, log = Grammar(), MemoryLog()
    for line, event in zip(trace, events_of(trace), strict=True):
        grammar.check(event)
        assert log.append(event) == Entry(line.id, event, bytes(line.data))
    assert log.closed


def test_cut_at_n_is_resume_at_n(trace: list[Line], encode: Encode) -> None:
    log = log_of(events_of(trace))
    entries = rest(Subscriber(log))
    whole = encoded(entries, encode)
    for n in range(len(entries) + 1):
        assert encoded(entries[:n], encode) + encoded(rest(Subscriber(log, n)), encode) == whole


def test_so_it_is_when_the_reader_comes_back_while_the_run_is_going_on(trace: list[Line], encode: Encode) -> None:
    events = events_of(trace)
    whole = encoded(rest(Subscriber(log_of(events))), encode)
    for n in range(len(events) + 1):
        log = log_of(events[: (n + len(events)) // 2])
        reader = Subscriber(log, n)
        told = [*log.read(0, n)]
        for event in events[log.last :]:
            log.append(event)
            with pytest.raises(StopIteration) as read:
                reader.read().send(None)
            told += read.value.value
        assert encoded([*told, *rest(reader)], encode) == whole


def test_for_a_reader_that_is_behind_the_text_and_all_other_events_are_the_same(trace: list[Line]) -> None:
    events = events_of(trace)
    log = log_of(events)
    whole = story(rest(Subscriber(log)))
    for n in range(len(events) + 1):
        merged = behind(events, n)
        assert story([*log.read(0, n), *merged]) == whole
        assert all(codec.decode(one.event.type, one.data) == one.event for one in merged)


@pytest.mark.parametrize(
    "trace", [path for path in TRACES if path.stem == "text"], indirect=True, ids=lambda path: path.stem
)
def test_a_long_text_comes_in_few_frames_to_a_reader_that_is_behind(trace: list[Line]) -> None:
    events = events_of(trace)
    others = sum(not isinstance(event, Token) for event in events)
    assert len(behind(events, 0)) == others + 1


def test_what_was_merged_can_be_cut_and_resumed_after_each_frame(trace: list[Line]) -> None:
    events = events_of(trace)
    log = log_of(events)
    merged = behind(events, 0)
    whole = story(log.read(0, len(events)))
    for n, last in enumerate(merged, 1):
        assert story([*merged[:n], *rest(Subscriber(log, last.offset))]) == whole


def parsed(body: bytes) -> list[tuple[int, str, str]]:
    """The events that a client's parser makes of a stream; of one that was cut off, the whole ones."""
    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=body)
    return [(int(event.id), event.event, event.data) for event in EventSource(response).iter_sse()]


def test_a_client_parses_the_events_as_they_are_in_the_log(trace: list[Line]) -> None:
    entries = rest(Subscriber(log_of(events_of(trace))))
    expected = [(line.id, line.event, bytes(line.data).decode()) for line in trace]
    assert parsed(encoded(entries, over_sse)) == expected


@pytest.mark.parametrize(
    "trace", [path for path in TRACES if path.stat().st_size < 6000], indirect=True, ids=lambda path: path.stem
)
def test_a_stream_that_breaks_anywhere_is_made_whole_from_the_last_id_that_the_client_has(trace: list[Line]) -> None:
    log = log_of(events_of(trace))
    body = encoded(rest(Subscriber(log)), over_sse)
    whole = parsed(body)
    for n in range(0, len(body), 3):
        seen = parsed(body[:n])
        last = seen[-1][0] if seen else 0
        assert seen + parsed(encoded(rest(Subscriber(log, last)), over_sse)) == whole
