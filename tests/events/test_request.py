"""A run request is checked once, when it is read, and says which field is wrong."""

from typing import Any

import msgspec
import pytest

from app.events.request import RunRequest


def read(**body: Any) -> RunRequest:
    return msgspec.convert(body, RunRequest)


def test_an_empty_body_is_a_request_with_the_contracts_defaults() -> None:
    request = read()
    assert request == RunRequest(
        input=None,
        thread_id=None,
        resume=None,
        on_disconnect=None,
        disconnect_grace_s=None,
        pause_after=None,
        max_tokens=None,
        timeout_s=None,
        multitask_strategy="reject",
        metadata={},
    )


@pytest.mark.parametrize("value", ["hi", {"messages": []}, {"x": 1}, [1], 0, None])
def test_any_json_may_be_the_input(value: Any) -> None:
    assert read(input=value).input == value


@pytest.mark.parametrize(
    "body",
    [
        {"on_disconnect": "cancel", "disconnect_grace_s": 0},
        {"on_disconnect": "continue", "disconnect_grace_s": 86_400},
        {"thread_id": "t" * 255},
        {"max_tokens": 1, "timeout_s": 0.001, "pause_after": "paragraph"},
        {"multitask_strategy": "enqueue"},
        {"multitask_strategy": "interrupt", "metadata": {"a": [1]}},
    ],
)
def test_what_the_contract_allows_is_taken(body: dict[str, Any]) -> None:
    request = read(**body)
    assert {name: getattr(request, name) for name in body} == body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("on_disconnect", "pause"),
        ("on_disconnect", 1),
        ("disconnect_grace_s", -1),
        ("disconnect_grace_s", 86_401),
        ("disconnect_grace_s", "1"),
        ("disconnect_grace_s", float("nan")),
        ("disconnect_grace_s", float("inf")),
        ("thread_id", ""),
        ("thread_id", "t" * 256),
        ("thread_id", 7),
        ("max_tokens", 0),
        ("max_tokens", 10**40),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("pause_after", "word"),
        ("multitask_strategy", None),
        ("metadata", []),
        ("metadata", None),
        ("inputs", "misspelt"),
        ("callbacks", []),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        read(**{field: value})


def test_two_requests_share_no_metadata() -> None:
    read().metadata["a"] = 1
    assert read().metadata == {}
