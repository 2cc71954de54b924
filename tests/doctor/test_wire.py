"""Server-sent events as they come in, in whatever pieces."""

import pytest

from app.doctor.measurement import Event
from app.doctor.wire import Reader

WHOLE = (
    b"retry: 1000\n"
    b'id: 1\nevent: run.started\ndata: {"ts":1000,"run_id":"r7"}\n\n'
    b": hb\n"
    b'id: 2\nevent: token\ndata: {"ts":1500,"text":"\xc3\xa4"}\n\n'
    b'id: 3\nevent: run.finished\ndata: {"ts":2000}\n\n'
)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_every_event_is_read_with_its_times_however_it_is_cut(size: int) -> None:
    reader = Reader()
    for at in range(0, len(WHOLE), size):
        reader.feed(WHOLE[at : at + size], 7.0)
    assert reader.events == [Event(1, 1.0, 7.0), Event(2, 1.5, 7.0), Event(3, 2.0, 7.0)]
    assert (reader.run_id, reader.heartbeats, reader.tokens, reader.complete) == ("r7", 1, 1, True)


def test_an_event_counts_once_its_blank_line_is_there() -> None:
    reader = Reader()
    reader.feed(WHOLE[:-1], 1.0)
    assert (len(reader.events), reader.complete) == (2, False)
    reader.feed(WHOLE[-1:], 2.0)
    assert reader.events[-1].at == 2.0


@pytest.mark.parametrize(
    "strange",
    [b"data: {}\n\n", b"id: 1\ndata: no\n\n", b"id: x\ndata: {}\n\n", b"id: 1\ndata: [1]\n\n", b"<html>\n\n\n"],
)
def test_what_is_no_event_of_ours_is_passed_over(strange: bytes) -> None:
    reader = Reader()
    reader.feed(strange, 1.0)
    assert reader.events == []


def test_what_a_run_fails_with_is_kept() -> None:
    reader = Reader()
    reader.feed(b'id: 2\nevent: error\ndata: {"ts":1,"message":"no provider"}\n\n', 1.0)
    assert reader.error == "no provider"
