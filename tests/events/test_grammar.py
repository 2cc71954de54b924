"""The legal order of a run's events: each rule of the table from both sides."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events.event import (
    TYPES,
    Custom,
    Error,
    Event,
    Gap,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    NodeFinished,
    NodeStarted,
    ObjectField,
    ObjectPartial,
    Reasoning,
    RunFinished,
    RunInterrupted,
    RunPaused,
    RunQueued,
    RunResumed,
    RunStarted,
    State,
    Token,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolProgress,
    ToolStarted,
    Totals,
    Usage,
)
from app.events.grammar import Grammar, IllegalOrder

START = RunStarted(ts=0, run_id="r", agent="a", thread_id=None, model=None, max_tokens=None)
END = RunFinished(ts=0, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)
PAUSE = RunPaused(ts=0, reason="asked", usage=Totals())
RESUME = RunResumed(ts=0, seamless=True)
USAGE = Usage(ts=0, input_tokens=0, output_tokens=0, total_tokens=0, cost_usd=None, estimated=False)
ERROR = Error(ts=0, code="c", message="m", retryable=False)
GAP = Gap(ts=0, start=1, to=2, dropped=2)


def opened(message: str = "m") -> Event:
    return MessageStarted(ts=0, message_id=message, role="assistant")


def closed(message: str = "m") -> Event:
    return MessageFinished(ts=0, message_id=message, role="assistant")


def void(message: str = "m") -> Event:
    return MessageDiscarded(ts=0, message_id=message, role="assistant")


def token(message: str = "m") -> Event:
    return Token(ts=0, text="a", message_id=message)


def thought(message: str = "m") -> Event:
    return Reasoning(ts=0, text="a", message_id=message)


def pending(call: str = "c") -> Event:
    return ToolPending(ts=0, call_id=call, name="f", label="F…")


def args(call: str = "c") -> Event:
    return ToolArgs(ts=0, call_id=call, delta="{")


def begun(call: str = "c") -> Event:
    return ToolStarted(ts=0, call_id=call, name="f", args={})


def progress(call: str = "c") -> Event:
    return ToolProgress(ts=0, call_id=call, data=None)


def done(call: str = "c") -> Event:
    return ToolFinished(ts=0, call_id=call, name="f", status="ok", output=None, duration_ms=0)


def after(*events: Event) -> Grammar:
    grammar = Grammar()
    for event in events:
        grammar.check(event)
    return grammar


LEGAL: dict[str, list[Event]] = {
    "the shortest run": [START, END],
    "a run that waits for the provider": [START, RunQueued(ts=0, position=2), RunQueued(ts=0, position=1), END],
    "a message": [START, opened(), token(), thought(), token(), closed(), END],
    "an empty message": [START, opened(), closed(), END],
    "a message that is generated anew under its id": [START, opened(), token(), void(), opened(), closed(), END],
    "a message that is generated anew under another id": [START, opened(), void(), opened("n"), closed("n"), END],
    "messages side by side": [START, opened("a"), opened("b"), token("b"), token("a"), closed("a"), closed("b"), END],
    "a whole tool call": [START, pending(), args(), args(), begun(), progress(), done(), END],
    "a call without arguments": [START, pending(), begun(), done(), END],
    "a call that never ran": [START, pending(), args(), done(), END],
    "a tool that a node called itself": [START, begun(), done(), END],
    "calls side by side": [
        START, pending("a"), pending("b"), args("b"), args("a"), begun("b"), begun("a"), done("a"), done("b"), END,
    ],
    "nodes, state, custom events, usage, errors": [
        START, NodeStarted(ts=0), USAGE, NodeFinished(ts=0), State(ts=0, values={}), Custom(ts=0, name="x", data=1),
        ERROR, USAGE, END,
    ],
    "an interrupt": [START, RunInterrupted(ts=0, interrupts=[]), END],
    "a pause": [START, opened(), PAUSE, closed(), USAGE, RESUME, opened("n"), closed("n"), END],
    "a pause in a tool": [START, begun(), PAUSE, done(), ERROR, END],
    "a run that ends while it is paused": [START, PAUSE, END],
    "two pauses": [START, PAUSE, RESUME, PAUSE, RESUME, END],
}  # fmt: skip


@pytest.mark.parametrize("events", LEGAL.values(), ids=LEGAL)
def test_the_table_has_a_place_for(events: list[Event]) -> None:
    assert after(*events).state == "finished"


ILLEGAL: dict[str, tuple[list[Event], Event]] = {
    "a second start": ([START], START),
    "a start while paused": ([START, PAUSE], START),
    "going on without a pause": ([START], RESUME),
    "a pause in a pause": ([START, PAUSE], PAUSE),
    "an end before the start": ([], END),
    "a second end": ([START, END], END),
    "a token while paused": ([START, opened(), PAUSE], token()),
    "a message that begins while paused": ([START, PAUSE], opened()),
    "a tool that starts while paused": ([START, pending(), PAUSE], begun()),
    "a token of no message": ([START], token()),
    "a thought of no message": ([START], thought()),
    "a token of another message": ([START, opened("a")], token("b")),
    "a token after the message's end": ([START, opened(), closed()], token()),
    "a token of a discarded message": ([START, opened(), void()], token()),
    "a message that is already open": ([START, opened()], opened()),
    "a message that was finished already": ([START, opened(), closed()], opened()),
    "the end of no message": ([START], closed()),
    "a second end of a message": ([START, opened(), closed()], closed()),
    "the end of a discarded message": ([START, opened(), void()], closed()),
    "discarding no message": ([START], void()),
    "arguments of no call": ([START], args()),
    "arguments of a call that runs": ([START, pending(), begun()], args()),
    "announcing a call twice": ([START, pending()], pending()),
    "announcing a call that runs": ([START, begun()], pending()),
    "starting a call twice": ([START, begun()], begun()),
    "progress of a call that does not run": ([START, pending()], progress()),
    "progress of a finished call": ([START, begun(), done()], progress()),
    "the result of no call": ([START], done()),
    "a second result": ([START, begun(), done()], done()),
    "a call's id that was used already": ([START, begun(), done()], begun()),
    "an end with a message open": ([START, opened()], END),
    "an end with a call announced": ([START, pending()], END),
    "an end with a call running": ([START, begun()], END),
    "an end while paused with a message open": ([START, opened(), PAUSE], END),
    "a gap in the log": ([START], GAP),
}


@pytest.mark.parametrize(("before", "event"), ILLEGAL.values(), ids=ILLEGAL)
def test_the_table_has_no_place_for(before: list[Event], event: Event) -> None:
    grammar = after(*before)
    with pytest.raises(IllegalOrder, match=event.type.replace(".", r"\.")):
        grammar.check(event)


def test_a_refused_event_changes_nothing() -> None:
    grammar = after(START, opened())
    with pytest.raises(IllegalOrder):
        grammar.check(END)
    grammar.check(closed())
    grammar.check(END)


EXAMPLES: dict[str, Event] = {
    event.type: event
    for event in (
        START, END, PAUSE, RESUME, USAGE, ERROR, GAP, opened(), closed(), void(), token(), thought(), pending(), args(),
        begun(), progress(), done(), NodeStarted(ts=0), NodeFinished(ts=0), RunQueued(ts=0, position=1),
        RunInterrupted(ts=0, interrupts=[]), State(ts=0, values=1), Custom(ts=0, name="x", data=1),
        ObjectPartial(ts=0, value=1, message_id="m"), ObjectField(ts=0, path=["a"], value=1, message_id="m"),
    )
}  # fmt: skip


def test_every_event_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(TYPES)


@pytest.mark.parametrize("event", [one for one in EXAMPLES.values() if one is not START], ids=lambda one: one.type)
def test_nothing_comes_before_the_start(event: Event) -> None:
    with pytest.raises(IllegalOrder):
        Grammar().check(event)


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES)
def test_nothing_comes_after_the_end(event: Event) -> None:
    with pytest.raises(IllegalOrder):
        after(START, END).check(event)


@pytest.mark.parametrize("event", EXAMPLES.values(), ids=EXAMPLES)
def test_while_paused_only_endings_accounts_and_errors_come(event: Event) -> None:
    grammar = after(START, opened(), begun(), PAUSE)
    allowed = {"run.resumed", "usage", "error", "message.finished", "tool.finished"}
    if event.type in allowed:
        grammar.check(event)
    else:
        with pytest.raises(IllegalOrder):
            grammar.check(event)


def finishing(events: list[Event]) -> list[Event]:
    """What closes everything that these left open, as a reader without the grammar would work it out."""
    ends: dict[str, Event | None] = {}
    for event in events:
        match event:
            case MessageStarted(message_id=name):
                ends["message " + name] = closed(name)
            case MessageFinished(message_id=name) | MessageDiscarded(message_id=name):
                ends["message " + name] = None
            case ToolPending(call_id=name) | ToolStarted(call_id=name):
                ends["call " + name] = done(name)
            case ToolFinished(call_id=name):
                ends["call " + name] = None
    return [end for end in ends.values() if end is not None]


MAKERS: list[Any] = [opened, closed, void, token, thought, pending, args, begun, progress, done]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MAKERS), st.sampled_from("abc")), max_size=30))
def test_whatever_was_admitted_can_be_brought_to_an_end(steps: list[tuple[Any, str]]) -> None:
    grammar, admitted = after(START), []
    for make, name in steps:
        event = make(name)
        try:
            grammar.check(event)
        except IllegalOrder:
            continue
        admitted.append(event)
    for event in finishing(admitted):
        grammar.check(event)
    grammar.check(END)
    assert grammar.state == "finished"
