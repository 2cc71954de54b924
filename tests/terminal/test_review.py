"""What a person is asked, and what becomes of the answer."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from app.terminal.review import decision, review
from app.terminal.screen import Pipe

REQUEST = {"name": "send", "args": {"to": "ada", "copies": 2}, "description": "…", "call_id": "c1"}


def question(*requests: dict[str, Any], allowed: tuple[str, ...] = ("approve", "edit", "reject")) -> dict[str, Any]:
    configs = [{"action_name": one["name"], "allowed_decisions": [*allowed]} for one in requests]
    return {"action_requests": [*requests], "review_configs": configs}


def typing(*lines: str) -> Callable[[str, str], str]:
    """Someone who takes what is there already for an empty line."""
    left = list(lines)
    return lambda prompt, prefilled: left.pop(0) or prefilled


def answer_to(value: Any, *lines: str) -> Any:
    return review([{"id": "i1", "value": value}], typing(*lines), Pipe(StringIO(), Console(file=StringIO())))


def test_each_request_has_its_decision() -> None:
    assert answer_to(question(REQUEST, REQUEST), "a", "reject", "no need") == {
        "decisions": [{"type": "approve"}, {"type": "reject", "message": "no need"}]
    }


def test_an_edit_begins_with_what_is_there_and_keeps_the_kind_of_each_value() -> None:
    (edited,) = answer_to(question(REQUEST), "e", "bob", "no number", "3")["decisions"]
    assert edited == {"type": "edit", "edited_action": {"name": "send", "args": {"to": "bob", "copies": 3}}}
    (kept,) = answer_to(question(REQUEST), "e", "", "")["decisions"]
    assert kept["edited_action"]["args"] == REQUEST["args"]


def test_what_is_no_decision_is_asked_again() -> None:
    assert answer_to(question(REQUEST), "", "maybe", "APP")["decisions"] == [{"type": "approve"}]


@pytest.mark.parametrize("said", ["", "  ", "x", "edit"])
def test_only_what_is_allowed_can_be_decided(said: str) -> None:
    assert decision(said, ["approve", "reject"]) is None


def test_a_question_of_a_graphs_own_is_answered_with_a_text_or_json() -> None:
    assert answer_to("Which one?", "the first") == "the first"
    assert answer_to({"pick": [1, 2]}, "[2]") == [2]


def test_several_questions_are_answered_by_their_ids() -> None:
    screen = Pipe(StringIO(), Console(file=StringIO()))
    asked = [{"id": "i1", "value": "One?"}, {"id": "i2", "value": "Two?"}]
    assert review(asked, typing("1", "b"), screen) == {"i1": 1, "i2": "b"}
