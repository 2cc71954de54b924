"""One run: what its events say of it, and an end that is written once, whatever was open."""

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableLambda
from scripted import piece, say

from app.errors import BadRequest, RunExpired, RunNotFinished
from app.eventlog.base import LogFull
from app.eventlog.memory import MemoryLog
from app.eventlog.subscriber import EndOfLog, Subscriber
from app.events import codec
from app.events.event import Event, MessageFinished, MessageStarted, RunFinished, State, Status, Token, ToolFinished
from app.events.grammar import Grammar, IllegalOrder
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.failure import Failure
from app.runs.run import Run
from app.runs.scope import Ending, Scope

AGENT = Agent("echo", RunnableLambda(lambda value: value), model="m")


@pytest.fixture(autouse=True)
async def loop() -> None:
    """A run belongs to a loop."""


def new_run(*, room: int = 1 << 20, strict: bool = True, **request: Any) -> Run:
    return Run(
        "r-1",
        agent=AGENT,
        request=RunRequest(**request),
        user="ann",
        idempotency_key=None,
        log=MemoryLog(room),
        scope=Scope("continue", 0),
        grammar=Grammar() if strict else None,
    )


def started(**options: Any) -> Run:
    run = new_run(**options)
    run.start()
    return run


async def told(run: Run, after: int = 0) -> list[Event]:
    return await everything(run.subscribe(after))


async def everything(reader: Subscriber) -> list[Event]:
    events: list[Event] = []
    while True:
        try:
            events += [entry.event for entry in await reader.read()]
        except EndOfLog:
            return events


def raw(event: str, run_id: str = "root", **data: Any) -> dict[str, Any]:
    return {"event": event, "run_id": run_id, "name": "x", "tags": [], "metadata": {}, "parent_ids": [], "data": data}


def streams(run: Run, *chunks: AIMessageChunk) -> None:
    """The run's model sends these chunks."""
    for chunk in chunks:
        run.feed(raw("on_chat_model_stream", chunk=chunk))


def token(message: str = "m") -> Event:
    return Token(ts=1, text="a", message_id=message)


OPENED = MessageStarted(ts=1, message_id="m", role="assistant")


async def test_the_first_event_says_what_was_asked_of_whom() -> None:
    run = started(thread_id="t", max_tokens=9)
    run.finish(Ending("completed"))
    first = (await told(run))[0]
    assert codec.decode("run.started", codec.encode(first)) == first
    shown = json.loads(codec.encode(first))
    del shown["ts"]
    assert shown == {"run_id": "r-1", "agent": "echo", "thread_id": "t", "model": "m", "max_tokens": 9}


async def test_a_row_tells_of_a_run_before_and_after_its_end() -> None:
    run = started(metadata={"a": 1})
    row = run.row()
    assert (row["status"], row["finished_at"], row["ttft_ms"], row["last_event_id"]) == ("running", None, None, 1)
    assert (row["user"], row["agent"], row["metadata"]) == ("ann", "echo", {"a": 1})
    run.finish(Ending("completed"))
    row = run.row()
    assert (row["status"], row["last_event_id"]) == ("completed", 2)
    assert row["finished_at"] >= row["created_at"]
    json.dumps(row, allow_nan=False)


async def test_the_time_to_the_first_token_is_that_of_the_first_token() -> None:
    run = started()
    run.append(OPENED)
    assert run.row()["ttft_ms"] is None
    run.append(token())
    first = run.row()["ttft_ms"]
    assert first is not None
    run.append(token())
    assert run.row()["ttft_ms"] == first
    run.append(MessageFinished(ts=1, message_id="m", role="assistant"))
    run.finish(Ending("completed"))
    last = (await told(run))[-1]
    assert isinstance(last, RunFinished)
    assert last.ttft_ms == first


async def test_a_run_without_a_token_has_no_time_to_the_first() -> None:
    run = started()
    run.finish(Ending("completed"))
    last = (await told(run))[-1]
    assert isinstance(last, RunFinished)
    assert last.ttft_ms is None
    assert last.duration_ms >= 0


# The end


async def test_the_end_is_written_once() -> None:
    run = started()
    run.finish(Ending("cancelled", "requested"))
    run.finish(Ending("failed", "later"), Failure("c", "m", False))
    run.append(token())
    assert [event.type for event in await told(run)] == ["run.started", "run.finished"]
    assert (run.status, run.failure) == ("cancelled", None)
    assert run.done.is_set()


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed", "timed_out", "interrupted"])
async def test_an_end_closes_what_is_open_and_says_why(status: Status) -> None:
    run = started()
    streams(run, say("It ra", piece("f", '{"a": ', "c", 0)))
    run.finish(Ending(status, "why"), Failure("run_timeout", "Too slow.", True) if status == "timed_out" else None)
    events = await told(run)
    rest = [event.type for event in events[events.index(next(e for e in events if e.type == "tool.args")) + 1 :]]
    error = ["error"] if status == "timed_out" else []
    assert rest == ["message.finished", "tool.finished", *error, "run.finished"]
    finished = next(event for event in events if isinstance(event, ToolFinished))
    assert finished.status == "error"
    assert str(finished.output).endswith(".")
    assert run.result()["text"] == "It ra"
    assert run.result()["status"] == status


async def test_an_error_is_told_before_the_end() -> None:
    run = started()
    run.finish(Ending("failed", "provider_rate_limited"), Failure("provider_rate_limited", "Wait.", True, 1500))
    error = json.loads(codec.encode((await told(run))[-2]))
    assert (error["code"], error["retryable"], error["retry_after_ms"]) == ("provider_rate_limited", True, 1500)


async def test_a_run_that_waits_for_a_person_is_not_completed() -> None:
    run = started()
    run.feed(raw("on_chain_start", input="hi"))
    run.feed(raw("on_chain_stream", chunk={"__interrupt__": ()}))
    run.finish(Ending("completed"))
    assert run.status == "interrupted"
    assert [event.type for event in await told(run)] == ["run.started", "run.interrupted", "run.finished"]


async def test_a_run_that_was_cancelled_while_it_waited_for_a_person_is_cancelled() -> None:
    run = started()
    run.feed(raw("on_chain_start", input="hi"))
    run.feed(raw("on_chain_stream", chunk={"__interrupt__": ()}))
    run.finish(Ending("cancelled", "requested"))
    assert run.status == "cancelled"


def firm(size: int) -> State:
    return State(ts=1, values="x" * size)


def talks(run: Run) -> None:
    for number in range(100):
        streams(run, say("a", piece("f", "", f"c{number}", number)))
        run.append(firm(number * 100))


@pytest.mark.parametrize("room", range(700, 2400, 50))
async def test_a_full_log_is_brought_to_a_legal_end_wherever_it_filled(room: int) -> None:
    run = started(room=room)
    with pytest.raises(LogFull):
        talks(run)
    run.finish(Ending("failed", "log_full"), Failure("log_full", "Too much.", False))
    grammar = Grammar()
    for entry in run.subscribe(0)._log.read(0, 1000):
        if not entry.event.droppable:
            grammar.check(entry.event)
    assert grammar.state == "finished"


async def test_an_illegal_order_is_caught_in_strict_runs_alone() -> None:
    with pytest.raises(IllegalOrder):
        started().append(token())
    started(strict=False).append(token())


# Results


class Rude:
    @property
    def messages(self) -> Any:
        raise RuntimeError("secret")


class RudeMessage(AIMessage):
    @property
    def text(self) -> Any:
        raise RuntimeError("secret")


def cyclic() -> Any:
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    return value


SAID = AIMessage("It rains", id="m")

OUTPUTS: list[tuple[Any, str, bool, Any]] = [
    ("It rains", "It rains", False, None),
    (SAID, "It rains", True, None),
    ({"messages": [HumanMessage("hi"), SAID]}, "It rains", True, None),
    ({"messages": [HumanMessage("hi"), SAID], "more": 1}, "It rains", True, None),
    ("a\ud83d", "a\ufffd", False, None),
    (AIMessage("a\ud83d"), "a\ufffd", True, None),
    (AIMessage([{"type": "text", "text": "It "}, {"type": "text", "text": "rains"}]), "It rains", True, None),
    ({"a": 1}, "", False, {"a": 1}),
    ([1, b"x"], "", False, [1, {"media_type": "application/octet-stream", "base64": "eA=="}]),
    (None, "", False, None),
    (7, "", False, 7),
    (cyclic(), "", False, {"a": 1, "self": {"type": "…"}}),
    (10**5000, "", False, {"type": "int"}),
    ({"messages": []}, "", False, {"messages": []}),
    ({"messages": "none"}, "", False, {"messages": "none"}),
    (Rude(), "", False, {"type": "Rude"}),
]


@pytest.mark.parametrize(("output", "text", "message", "other"), OUTPUTS, ids=lambda value: type(value).__name__)
async def test_a_result_is_a_text_a_message_or_an_object(output: Any, text: str, message: bool, other: Any) -> None:
    run = started(strict=False)
    run.feed(raw("on_parser_end", output=output))
    run.finish(Ending("completed"))
    result = run.result()
    assert (result["text"], result["object"]) == (text, other)
    assert (result["message"] is not None) == message
    json.dumps(result, allow_nan=False).encode()
    assert run.output() == output


async def test_a_state_that_ends_with_another_message_is_an_object_and_what_was_said_its_text() -> None:
    run = started()
    streams(run, say("Let me see"))
    output = {"messages": [SAID, ToolMessage("42", tool_call_id="c")]}
    run.feed(raw("on_parser_end", output=output))
    run.finish(Ending("completed"))
    result = run.result()
    assert result["text"] == "Let me see"
    assert result["object"]["messages"][1]["content"] == "42"


async def test_an_output_that_breaks_when_it_is_looked_at_does_not_keep_the_run_from_ending() -> None:
    run = started(strict=False)
    run.feed(raw("on_parser_end", output=RudeMessage(content="x")))
    run.finish(Ending("completed"))
    assert run.done.is_set()
    assert "secret" not in json.dumps(run.result())


async def test_there_is_no_result_before_the_end() -> None:
    with pytest.raises(RunNotFinished):
        started().result()


# Readers and the time after the end


async def test_an_id_that_lies_in_the_future_is_refused() -> None:
    run = started()
    run.subscribe(1)
    with pytest.raises(BadRequest) as caught:
        run.subscribe(2)
    assert caught.value.reason == "bad_event_id"


async def test_an_expired_run_has_a_row_and_nothing_else() -> None:
    run = started()
    run.finish(Ending("completed"))
    row = run.row()
    run.expire()
    run.expire()
    assert run.row() == row
    with pytest.raises(RunExpired):
        run.subscribe(0)
    with pytest.raises(RunExpired):
        run.result()
    run.append(token())  # a thread that was left behind


async def test_who_reads_while_a_run_expires_reads_to_its_end() -> None:
    run = started()
    reader = run.subscribe(0)
    run.finish(Ending("completed"))
    run.expire()
    assert [event.type for event in await everything(reader)] == ["run.started", "run.finished"]
