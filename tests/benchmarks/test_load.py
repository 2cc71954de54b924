"""What the load and the readers understand of what a server sends, however it is cut."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from types import ModuleType
from typing import Any, TypeAlias

import pytest

Script: TypeAlias = Callable[[str], ModuleType]

TOKEN = b'id: %d\nevent: token\ndata: {"ts":1,"message_id":"m","text":" word"}\n\n'
FINISHED = b'id: 9\nevent: run.finished\ndata: {"ts":1,"status":"completed"}\n\n'
GAP = b'id: 7\nevent: gap\ndata: {"from":5,"to":7,"dropped":3}\n\n'


@pytest.fixture
def server() -> Iterator[tuple[tuple[str, int], list[bytes]]]:
    """Answers one connection with two tokens and the last chunk, and takes down what it is asked."""
    asked: list[bytes] = []

    def answer() -> None:
        one, _ = listener.accept()
        with one:
            asked.append(one.recv(65536))
            one.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + TOKEN % 1 + TOKEN % 2 + b"\r\n0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname(), asked
        thread.join()


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_every_token_is_counted_once_however_the_stream_is_cut(script: Script, size: int) -> None:
    load = script("load")
    whole = load.Load("127.0.0.1", 1, "/agents/a/runs", 10)
    whole.over = lambda _: None  # the next one is not wanted
    run, data = load.Run(whole), b"".join(TOKEN % number for number in range(50)) + load.LAST_CHUNK
    goes_on = [run.received(data[at : at + size], float(at + 1)) for at in range(0, len(data), size)]
    assert whole.tokens == 50
    assert goes_on == [True] * (len(goes_on) - 1) + [False]


def test_times_between_tokens_are_told_from_when_it_is_steady(script: Script) -> None:
    load = script("load")
    whole = load.Load("127.0.0.1", 1, "/agents/a/runs", 10)
    whole.steady_from = 2.5
    run = load.Run(whole)
    run.began = 0.5
    for now in (1.0, 2.0, 3.0, 3.1):
        run.received(TOKEN % 1, now)
    assert list(whole.between) == pytest.approx([1000, 100])
    assert run.first == 0.5


def test_the_cost_is_the_processor_time_over_the_tokens_of_the_steady_time(script: Script) -> None:
    load = script("load")
    moments = [
        load.Moment(0, 5, 100, False, 9.0, 80.0),
        load.Moment(10, 5, 1000, True, 10.0, 90.0),
        load.Moment(20, 5, 3000, True, 11.0, 85.0),
    ]
    got = load.driven(200.0, moments, {"first": [1, 2, 3], "between": [], "live": 5, "none_yet": 0, "broken": 0})
    assert (got.cpu_us, got.tokens_per_second, got.of_a_core, got.rss) == (500.0, 200.0, 0.1, 90.0)


def test_what_is_sent_over_a_connection_is_handed_to_its_owner(
    script: Script, server: tuple[tuple[str, int], list[bytes]]
) -> None:
    crowd_script, epoll = script("crowd"), script("epoll").Epoll()
    address, asked = server
    reader = crowd_script.Reader(crowd_script.Crowd(), b"GET / HTTP/1.1\r\n\r\n")
    epoll.open(reader, address)
    while len(epoll):
        epoll.turn(5)
    assert asked == [b"GET / HTTP/1.1\r\n\r\n"]
    assert (reader.open, reader.frames, reader.tokens, reader.finished) == (True, 2, 2, False)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_reader_knows_its_tokens_its_gaps_and_its_end(script: Script, size: int) -> None:
    crowd_script = script("crowd")
    crowd = crowd_script.Crowd()
    reader = crowd_script.Reader(crowd, b"")
    data = b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(TOKEN % number for number in range(5)) + GAP + FINISHED
    cuts = [data[at : at + size] for at in range(0, len(data), size)]
    assert [reader.received(cut, 1.0) for cut in cuts] == [True] * (len(cuts) - 1) + [False]
    assert (reader.tokens, reader.gaps, reader.frames, reader.finished) == (5, 1, 7, True)
    assert (crowd.frames, crowd.over) == (7, 1)


@pytest.mark.parametrize("size", [1, 3, 1000, 100_000])
def test_a_listener_reads_frames_of_every_length_and_answers_pings(script: Script, size: int) -> None:
    crowd_script = script("crowd")
    crowd = crowd_script.Crowd()
    listener = crowd_script.Listener(crowd, b"", b'{"type":"attach"}')
    texts = [json.dumps(_event("token", text=" word")), json.dumps(_event("custom", data="x" * 70_000))]
    long = [json.dumps(_event("custom", data="x" * 300)), json.dumps(_event("run.finished"))]
    frames = [*(_frame(text.replace(", ", ",").replace(": ", ":").encode()) for text in [*texts, *long])]
    data = b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + _frame(b"beat", 0x89) + b"".join(frames)
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        listener.socket = ours
        for at in range(0, len(data), size):
            listener.received(data[at : at + size], 1.0)
        sent = theirs.recv(65536)
    assert (listener.tokens, listener.frames, listener.finished) == (1, 4, True)
    assert sorted([_unmasked(sent)[0], _unmasked(_unmasked(sent)[1])[0]]) == [b"beat", b'{"type":"attach"}']


def test_the_cost_of_a_frame_is_told_of_the_time_in_which_all_readers_were_there(script: Script) -> None:
    crowd_script = script("crowd")
    moments = [
        crowd_script.Moment(1, 5, 10, 0, 1.0, 1.0),
        crowd_script.Moment(2, 10, 100, 0, 2.0, 1.0),
        crowd_script.Moment(3, 10, 300, 0, 2.01, 1.0),
        crowd_script.Moment(4, 10, 400, 2, 4.0, 1.0),
    ]
    there = crowd_script.Followed(10, 10, 0, 0, moments).all_open
    assert script("readers").per_frame(there) == pytest.approx(50.0)


def _event(name: str, **data: Any) -> dict[str, Any]:
    return {"stream_id": "s", "id": 1, "event": name, "data": data}


def _frame(payload: bytes, first: int = 0x81) -> bytes:
    """As a server sends it: unmasked."""
    if len(payload) < 126:
        return bytes([first, len(payload)]) + payload
    form, mark = (">H", 126) if len(payload) < 1 << 16 else (">Q", 127)
    return bytes([first, mark]) + struct.pack(form, len(payload)) + payload


def _unmasked(data: bytes) -> tuple[bytes, bytes]:
    """What a short frame of a client's carries, and what is behind it."""
    size = data[1] & 0x7F
    key, payload, rest = data[2:6], data[6 : 6 + size], data[6 + size :]
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(payload)), rest
