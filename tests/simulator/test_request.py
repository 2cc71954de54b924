import json
from typing import Any

import pytest

from app.simulator.request import ChatRequest, Refused, parse

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "weather"}}


def call(*ids: str) -> dict[str, Any]:
    calls = [{"id": one, "type": "function", "function": {"name": "f", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call_id: str | None) -> dict[str, Any]:
    return {"role": "tool", "content": "42", **({"tool_call_id": call_id} if call_id else {})}


def parsed(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"model": "simulated", "messages": [USER], **fields}).encode())


def refused(**fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        parsed(**fields)
    assert caught.value.status == 400
    assert caught.value.body()["error"].keys() == {"message", "type", "param", "code"}
    assert caught.value.body()["error"]["type"] == "invalid_request_error"
    return caught.value


def test_all_roles_and_both_shapes_of_content_are_read() -> None:
    request = parsed(
        messages=[
            {"role": "system", "content": "a"},
            {"role": "developer", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]},
            {"role": "assistant", "content": "d"},
        ]
    )
    assert [message.text for message in request.messages] == ["a", "b\nc", "", "d"]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, call("a"), result("a")],
        [USER, call("a", "b"), result("b"), result("a"), USER],
        [USER, call("a"), result("a"), call("b"), result("b"), {"role": "assistant", "content": "done"}],
        [USER, call("a", "a"), result("a"), result("a")],
    ],
)
def test_a_conversation_whose_calls_are_all_answered_is_accepted(messages: list[dict[str, Any]]) -> None:
    assert len(parsed(messages=messages).messages) == len(messages)


@pytest.mark.parametrize(
    "messages",
    [
        [USER, result("a")],
        [result("a")],
        [USER, call("a"), result("b")],
        [USER, call("a"), result(None)],
        [USER, call("a"), result("a"), result("a")],
        [USER, call("a"), result("a"), USER, result("a")],
        [USER, call("a")],
        [USER, call("a"), USER],
        [USER, call("a", "b"), result("a")],
        [USER, call("a", "b"), result("a"), {"role": "assistant", "content": "done"}],
        [USER, call("a", "a"), result("a")],
        [USER, {**call("a"), "role": "user"}, result("a")],
    ],
)
def test_an_illegal_order_of_messages_is_refused(messages: list[dict[str, Any]]) -> None:
    assert refused(messages=messages).param == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [USER, {**call(), "content": "x"}]}, "messages[1].tool_calls"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [{**TOOL, "type": "custom"}]}, "tools[0].type"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_the_provider_would_refuse_is_refused_with_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"model": 1},
        {"messages": "hi"},
        {"messages": [1]},
        {"messages": [{"content": "no role"}]},
        {"messages": [{"role": "user", "content": 1}]},
        {"stream": "yes"},
        {"tools": {}},
        {"max_tokens": "many"},
        {"temperature": "hot"},
    ],
)
def test_wrong_types_are_refused_with_their_place(fields: dict[str, Any]) -> None:
    assert "$" in str(refused(**fields))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'{"model": "x"}',
        b'{"model": "\xff", "messages": []}',
        b'{"model": "x", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "x", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        parse(body)
    assert caught.value.status == 400
