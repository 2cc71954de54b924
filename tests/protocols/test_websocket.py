"""The socket's words: strict about what a client says, plain about what is wrong, byte for byte the log's events."""

import json
from typing import Any

import pytest

from app.errors import BadRequest, Unavailable
from app.events import codec
from app.events.event import Token
from app.events.request import RunRequest
from app.protocols import websocket as words
from app.protocols.websocket import Attach, BadFrame, Cancel, Continue, Detach, Pause, Ping, Start

MAX = 64 * 1024


def frame(**fields: Any) -> str:
    return json.dumps(fields)


def refused(message: str | bytes) -> BadFrame:
    with pytest.raises(BadFrame) as caught:
        words.parse(message, MAX)
    return caught.value


def test_each_type_is_read() -> None:
    for kind, expected in (("cancel", Cancel), ("pause", Pause), ("continue", Continue), ("detach", Detach)):
        assert words.parse(frame(type=kind, stream_id="a"), MAX) == expected(stream_id="a")
    assert words.parse(frame(type="ping"), MAX) == Ping()
    assert words.parse(frame(type="ping", stream_id="a"), MAX) == Ping(stream_id="a")
    assert words.parse(frame(type="attach", stream_id="a", run_id="r", after=7), MAX) == Attach(
        stream_id="a", run_id="r", after=7
    )


def test_a_start_is_a_run_request_with_an_agent_and_a_stream() -> None:
    start = words.parse(frame(type="start", stream_id="a", agent="chat", input="hi", timeout_s=5), MAX)
    assert isinstance(start, Start)
    assert (start.stream_id, start.agent) == ("a", "chat")
    assert start.request() == RunRequest(input="hi", timeout_s=5)
    assert type(start.request()) is RunRequest


@pytest.mark.parametrize(
    "message",
    [
        "",
        "hello",
        "{",
        "NaN",
        '{"type": "start", "stream_id": "a", "agent": "chat", "input": NaN}',
        '{"type": "ping"} {}',
        '{"type": "ping", "stream_id": "\\ud800"}',
        "\ud800",
        '{"type": "start", "input": ' + "[" * 20_000,
        "\ufeff{}",
        b'{"type": "ping"}',
        "x" * (MAX + 1),
        "é" * (MAX // 2 + 1),
    ],
)
def test_what_cannot_be_read_is_a_bad_frame_of_no_stream(message: str | bytes) -> None:
    bad = refused(message)
    assert (bad.error.reason, bad.stream_id, bad.opens) == ("bad_frame", None, False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "hello"},
        {"type": None},
        {"type": 7},
        {"type": "Cancel"},
        {"type": "cancel", "reason": "bored"},
        {"type": "detach", "run_id": "r"},
    ],
)
def test_what_is_no_frame_is_told_to_the_stream_it_names(fields: dict[str, Any]) -> None:
    bad = refused(frame(stream_id="a", **fields))
    assert (bad.error.reason, bad.stream_id, bad.opens) == ("bad_frame", "a", False)


@pytest.mark.parametrize("stream_id", [None, "", "x" * 129, 7, ["a"], {}, True])
def test_a_stream_id_is_a_string_of_1_to_128_characters(stream_id: Any) -> None:
    for kind, more in (("cancel", {}), ("start", {"agent": "chat"}), ("attach", {"run_id": "r"})):
        bad = refused(frame(type=kind, stream_id=stream_id, **more))
        assert (bad.error.reason, bad.stream_id, bad.opens) == ("bad_frame", None, False)
    assert words.parse(frame(type="cancel", stream_id="é" * 128), MAX) == Cancel(stream_id="é" * 128)


def test_a_frame_without_a_stream_id_is_refused() -> None:
    for kind in ("start", "attach", "cancel", "pause", "continue", "detach"):
        assert refused(frame(type=kind)).stream_id is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"agent": "chat", "input": "hi", "timeout_s": "5"}, "timeout_s"),
        ({"agent": "chat", "input": "hi", "on_disconect": "cancel"}, "on_disconect"),
        ({"agent": 7, "input": "hi"}, "agent"),
        ({"input": "hi"}, ""),
    ],
)
def test_a_start_with_a_wrong_field_is_refused_as_over_http(fields: dict[str, Any], named: str) -> None:
    bad = refused(frame(type="start", stream_id="a", **fields))
    assert (bad.error.reason, bad.stream_id, bad.opens) == ("invalid_input", "a", True)
    assert bad.error.detail[0]["field"] == named


def test_an_attach_with_a_wrong_field_opens_nothing() -> None:
    bad = refused(frame(type="attach", stream_id="a", run_id=7))
    assert (bad.error.reason, bad.stream_id, bad.opens) == ("bad_frame", "a", True)


@pytest.mark.parametrize("after", ["7", -1, 1.5, True, [], 10**18, 10**30])
def test_an_offset_that_is_none_is_refused(after: Any) -> None:
    attach = words.parse(frame(type="attach", stream_id="a", run_id="r", after=after), MAX)
    assert isinstance(attach, Attach)
    with pytest.raises(BadRequest) as caught:
        attach.offset()
    assert caught.value.reason == "bad_event_id"


@pytest.mark.parametrize(("given", "offset"), [({}, 0), ({"after": None}, 0), ({"after": 0}, 0), ({"after": 12}, 12)])
def test_without_an_offset_all_is_read(given: dict[str, Any], offset: int) -> None:
    attach = words.parse(frame(type="attach", stream_id="a", run_id="r", **given), MAX)
    assert isinstance(attach, Attach)
    assert attach.offset() == offset


def test_what_is_told_of_a_bad_frame_is_bounded() -> None:
    assert len(str(refused(frame(type="x" * 10_000, stream_id="a")).error)) < 400


def test_an_event_carries_the_logs_own_bytes() -> None:
    event = Token(ts=7, text='a "b"\u2028', message_id="m")
    data = codec.encode(event)
    text = words.encode('q"\n', 12, event, data)
    assert data in text
    assert json.loads(text) == {"stream_id": 'q"\n', "id": 12, "event": "token", "data": json.loads(data)}


def test_an_error_is_the_same_object_as_over_http() -> None:
    problem = Unavailable("going away")
    told = json.loads(words.error("a", problem, final=True))
    assert told == {
        "stream_id": "a",
        "event": "error",
        "data": {**problem.body()["error"], "retryable": True},
        "final": True,
    }
    assert "final" not in json.loads(words.error(None, BadRequest("no")))


def test_an_end_is_final_and_a_pong_is_not() -> None:
    assert json.loads(words.end("a", "detached")) == {
        "stream_id": "a", "event": "end", "data": {"reason": "detached"}, "final": True,
    }  # fmt: skip
    assert json.loads(words.pong(None)) == {"stream_id": None, "event": "pong", "data": {}}
