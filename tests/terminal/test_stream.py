"""Bringing a run's events: the frames, and coming back when the line breaks."""

import queue
from collections.abc import Iterator

import httpx
import pytest
from proxy import proxying
from serving import Served

from app.terminal.stream import Back, Ended, Frame, Lost, News, Reader, Start, frames

STREAM = (
    b"retry: 1000\n"
    b'id: 1\nevent: run.started\ndata: {"run_id":"r"}\n\n'
    b": hb\n: hb\n"
    b'id: 2\nevent: token\ndata: {"text":"a\xe2\x80\xa8\xc3\xa9: b\\n"}\n\n'
    b"id: 3\nevent: to"
)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_the_same_however_the_bytes_are_cut_and_one_that_is_not_whole_is_none(size: int) -> None:
    chunks = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert list(frames(chunks)) == [
        Frame(1, "run.started", {"run_id": "r"}),
        Frame(2, "token", {"text": "a\N{REPLACEMENT CHARACTER}é: b\n"}),
    ]


def test_no_text_of_an_event_can_drive_a_terminal() -> None:
    data = rb'{"text":"\u001b[2J\u009b1A\u202e\r\n\t!","args":{"\u0007k":["\u0000",1,null]}}'
    (frame,) = frames([b"id: 1\nevent: token\ndata: " + data + b"\n\n"])
    sign = "\N{REPLACEMENT CHARACTER}"
    assert frame.data == {"text": f"{sign}[2J{sign}1A{sign}\n\t!", "args": {f"{sign}k": [sign, 1, None]}}


@pytest.mark.parametrize(("data", "why"), [(b"{", "truncated"), (b"7", "no object"), (b'{"a":nil}', "malformed")])
def test_what_no_millrace_would_say_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        list(frames([b"id: 1\nevent: token\ndata: " + data + b"\n\n"]))


@pytest.fixture
def reading() -> Iterator[list[Reader]]:
    readers: list[Reader] = []
    yield readers
    for one in readers:
        one.close()


def news_of(reader: Reader) -> list[News]:
    found: list[News] = []
    while not found or not isinstance(found[-1], Ended):
        came = list(reader.take(10))
        if not came:
            raise queue.Empty(found)
        found += came
    return found


def ask(text: str) -> Start:
    return Start("chat", {"input": text})


def test_a_run_is_read_to_its_end(served: Served, reading: list[Reader]) -> None:
    with httpx.Client(base_url=served.url) as server:
        reading.append(reader := Reader(server, ask("[[tokens=20]] go")))
        news = news_of(reader)
    told = [one for one in news if isinstance(one, Frame)]
    assert [one.id for one in told] == list(range(1, len(told) + 1))
    assert (told[-1].event, news[-1]) == ("run.finished", Ended())
    assert reader.run_id == told[0].data["run_id"]


@pytest.mark.parametrize("behind", [rb"id: 7\nevent: tok", rb"id: 7\n.*\n.*\n\n"])
def test_a_line_that_breaks_is_found_again_and_each_event_comes_once(
    served: Served, reading: list[Reader], behind: bytes
) -> None:
    with proxying(served.url) as proxy, httpx.Client(base_url=proxy.url) as server:
        proxy.cut_after(behind)
        proxy.cut_after(rb"id: 12\n", "close")
        reading.append(reader := Reader(server, ask("[[tokens=30]] go")))
        news = news_of(reader)
        assert proxy.cuts == 2
    told = [one for one in news if isinstance(one, Frame)]
    assert [one.id for one in told] == list(range(1, len(told) + 1))
    assert told[-1].data["status"] == "completed"
    assert [type(one) for one in news if not isinstance(one, Frame)] == [Lost, Back, Lost, Back, Ended]


def test_a_start_whose_answer_was_lost_is_said_again_and_is_one_run(served: Served, reading: list[Reader]) -> None:
    with proxying(served.url) as proxy, httpx.Client(base_url=proxy.url) as server:
        before = len(served.runner._runs)
        proxy.cut_after(rb"HTTP/1.1 200")
        reading.append(reader := Reader(server, ask("[[tokens=5]] go")))
        news = news_of(reader)
        assert proxy.cuts == 1
    assert news[-1] == Ended()
    assert len(served.runner._runs) == before + 1


def test_a_server_that_does_not_come_back_is_given_up(served: Served, reading: list[Reader]) -> None:
    with httpx.Client() as server:
        with proxying(served.url) as proxy:
            server.base_url = httpx.URL(proxy.url)
            reading.append(reader := Reader(server, ask("[[stall_after=3]] go"), give_up_s=0.3))
            while not any(isinstance(one, Frame) and one.event == "token" for one in reader.take(10)):
                pass
        news = news_of(reader)
    assert Lost() in news
    assert news[-1] == Ended("the server has not been reached for 0.3 s")


def test_what_is_refused_is_told_in_the_servers_words(served: Served, reading: list[Reader]) -> None:
    with httpx.Client(base_url=served.url) as server:
        reading.append(reader := Reader(server, Start("nobody", {"input": "x"})))
        (ended,) = news_of(reader)
    assert isinstance(ended, Ended)
    assert "nobody" in (ended.problem or "")


def test_a_cancel_ends_the_run(served: Served, reading: list[Reader]) -> None:
    with httpx.Client(base_url=served.url) as server:
        reading.append(reader := Reader(server, ask("[[stall_after=3]] go")))
        reader.cancel().join(10)
        news = news_of(reader)
    assert isinstance(end := news[-2], Frame)
    assert (end.data["status"], end.data["reason"]) == ("cancelled", "requested")
