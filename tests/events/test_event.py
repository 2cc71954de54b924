"""The vocabulary is closed, frozen, and says of each event whether a reader may miss it."""

import msgspec
import pytest

from app.events.event import TYPES, Event, Gap, RunFinished, RunStarted, Token, ToolArgs, Totals, Usage

CONTRACT = {
    "run.started", "run.queued", "run.paused", "run.resumed", "run.interrupted", "run.finished",
    "node.started", "node.finished",
    "message.started", "message.finished", "message.discarded",
    "token", "reasoning",
    "tool.pending", "tool.args", "tool.started", "tool.progress", "tool.finished",
    "object.partial", "object.field", "state", "custom", "usage", "gap", "error",
}  # fmt: skip


def test_the_vocabulary_is_exactly_what_the_contract_names() -> None:
    assert set(TYPES) == CONTRACT


def test_only_deltas_and_custom_events_may_be_dropped() -> None:
    droppable = {name for name, cls in TYPES.items() if cls.droppable}
    assert droppable == {"token", "reasoning", "tool.args", "tool.progress", "object.partial", "custom"}


@pytest.mark.parametrize("cls", TYPES.values(), ids=TYPES)
def test_every_event_says_when_it_was_and_cannot_change(cls: type[Event]) -> None:
    names = {field.name for field in msgspec.structs.fields(cls)}
    assert {"ts", "node", "namespace"} <= names
    assert cls.__struct_config__.frozen
    assert (cls.__doc__ or "").strip()


def test_an_event_refuses_a_change() -> None:
    token = Token(ts=1, text="a", message_id="m")
    with pytest.raises(AttributeError):
        token.text = "b"  # type: ignore[misc]


def test_a_field_without_a_default_is_on_the_wire_even_when_it_is_null() -> None:
    started = RunStarted(ts=1, run_id="r", agent="a", thread_id=None, model=None, max_tokens=None)
    assert msgspec.to_builtins(started) == {
        "ts": 1, "run_id": "r", "agent": "a", "thread_id": None, "model": None, "max_tokens": None,
    }  # fmt: skip


def test_a_field_that_holds_its_default_is_left_out() -> None:
    args = ToolArgs(ts=1, call_id="c", delta="{")
    assert msgspec.to_builtins(args) == {"ts": 1, "call_id": "c", "delta": "{"}
    placed = Token(ts=1, node="n", namespace=("outer:1",), text="a", message_id="m")
    assert msgspec.to_builtins(placed)["namespace"] == ("outer:1",)


def test_a_run_that_cost_nothing_still_shows_its_zeros() -> None:
    finished = RunFinished(ts=1, status="completed", reason=None, usage=Totals(), ttft_ms=None, duration_ms=0)
    shown = msgspec.to_builtins(finished)
    assert shown["usage"] == {
        "input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "reasoning_tokens": 0, "cached_tokens": 0,
        "cost_usd": 0.0, "estimated": False, "queue_ms": 0, "tokens_per_s": None, "saved_tokens": 0, "saved_usd": 0.0,
    }  # fmt: skip
    assert shown["ttft_ms"] is None


def test_a_gap_speaks_the_contracts_words() -> None:
    assert msgspec.to_builtins(Gap(ts=1, start=3, to=5, dropped=3)) == {"ts": 1, "from": 3, "to": 5, "dropped": 3}


def test_usage_is_told_with_an_unknown_cost_rather_than_none_at_all() -> None:
    usage = Usage(ts=1, input_tokens=1, output_tokens=2, total_tokens=3, cost_usd=None, estimated=True)
    assert "cost_usd" in msgspec.to_builtins(usage)
