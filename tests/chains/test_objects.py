"""The object in a message, of whatever provider and however broken."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage

from chains.objects import Refused, correction, read, settled
from chains.schema import Unfit, of_request
from chains.transcript import transcript

CITY = of_request({"title": "City", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
OSLO = {"name": "Oslo"}


def called(*pieces: str, name: str = "City", call_id: str | None = "c1", **metadata: str) -> AIMessage:
    """A call whose arguments came in these pieces."""
    first: dict[str, Any] = {"name": name, "id": call_id, "args": "", "index": 0}
    rest: list[dict[str, Any]] = [{"name": None, "id": None, "args": piece, "index": 0} for piece in pieces]
    chunks = [AIMessageChunk(content="", id="m1", tool_call_chunks=[piece]) for piece in (first, *rest)]  # type: ignore[list-item]
    return transcript([*chunks, AIMessageChunk(content="", id="m1", response_metadata=metadata)])


def problems(message: AIMessage) -> tuple[str, ...]:
    with pytest.raises(Unfit) as error:
        read(message, CITY)
    return error.value.problems


@pytest.mark.parametrize(
    "message",
    [
        called('{"na', 'me": "Os', 'lo"}'),
        called('{"name": "Oslo",}'),
        called('{"name": "Oslo"]'),
        called('{"name": "Oslo"}', name="CityCity"),
        called('{"name": "Oslo"}', finish_reason="length"),
        AIMessage('{"name": "Oslo"}'),
        AIMessage('```json\n{"name": "Oslo"}\n```'),
        AIMessage("{'name': 'Oslo',}"),
        AIMessage([{"type": "text", "text": '{"name": "Oslo"}'}]),
        AIMessage("", tool_calls=[{"name": "City", "args": OSLO, "id": "c1"}]),
        AIMessage("", invalid_tool_calls=[{"name": "City", "args": '{"name": "Oslo",}', "id": "c1", "error": None}]),
        AIMessage(
            "", tool_calls=[{"name": "City", "args": OSLO, "id": "c1"}, {"name": "other", "args": {}, "id": "c0"}]
        ),
    ],
)
def test_it_is_found_wherever_it_stands_and_mended_where_that_is_certain(message: AIMessage) -> None:
    assert read(message, CITY)[0] == OSLO


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (called('{"name": "Os'), "the arguments: not JSON (EOF while parsing a string at line 1 column 12)"),
        (called('{"name": "Os', finish_reason="length"), "the arguments: cut off at the limit of tokens, be brief"),
        (
            called('{"name": "Oslo",', stop_reason="max_tokens"),
            "the arguments: cut off at the limit of tokens, be brief",
        ),
        (called('[{"name": "Oslo"}]'), "the arguments: an array, not an object"),
        (called('"Oslo"'), "the arguments: a single value, not an object"),
        (
            called('{"name": "Oslo", "name": "Rome"}'),
            "the arguments: a key that comes twice, or a number or character that JSON has not",
        ),
        (called(), '"name" is a required property'),
        (called('{"name": 5}'), 'name: the value is not of type "string"'),
        (AIMessage("I would rather not."), "the answer: not JSON (expected value at line 1 column 1)"),
        (AIMessage(" "), "the answer: empty"),
        (AIMessage("[]"), "the answer: an array, not an object"),
        (
            AIMessage('{"name": "Oslo"', response_metadata={"finish_reason": "MAX_TOKENS"}),
            "the answer: cut off at the limit of tokens, be brief",
        ),
    ],
)
def test_what_is_no_such_object_is_told(message: AIMessage, said: str) -> None:
    assert problems(message) == (said,)


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", additional_kwargs={"refusal": "I cannot\nhelp with that."}),
        AIMessage([{"type": "refusal", "refusal": "I cannot help with that."}]),
        AIMessage("", response_metadata={"stop_reason": "refusal"}),
        AIMessage('{"name": "Os', response_metadata={"finish_reason": "content_filter"}),
    ],
)
def test_a_refusal_is_none_to_be_corrected(message: AIMessage) -> None:
    with pytest.raises(Refused, match=r"the model refused: I cannot help with that\.|the provider withheld the answer"):
        read(message, CITY)


def test_a_call_is_sent_back_with_a_result_that_says_what_is_wrong() -> None:
    said, result = correction(called('{"name": "Os', call_id=None), CITY, ("one", "two"))
    assert isinstance(said, AIMessage)
    assert isinstance(result, ToolMessage)
    assert said.tool_calls == [{"name": "City", "args": {}, "id": "m1-0", "type": "tool_call"}]
    assert (result.tool_call_id, result.status) == ("m1-0", "error")
    assert "- one\n- two" in result.text


def test_of_a_call_that_could_be_read_its_arguments_are_sent_back() -> None:
    said, _ = correction(called('{"name": 5}'), CITY, ("one",))
    assert isinstance(said, AIMessage)
    assert said.tool_calls[0]["args"] == {"name": 5}


def test_a_text_is_sent_back_with_a_word_of_the_user() -> None:
    said, again = correction(AIMessage('{"name": 5}'), CITY, ("one",))
    assert isinstance(again, HumanMessage)
    assert (said.text, "- one" in again.text) == ('{"name": 5}', True)
    assert correction(AIMessage(""), CITY, ("one",))[0].text  # no provider takes an empty one


def test_the_conversation_keeps_the_object_under_the_id_of_its_message() -> None:
    kept = settled(called('{"name": "Oslo",}'), {"name": "Ålesund"})
    assert (kept.id, kept.text, kept.tool_calls) == ("m1", '{"name": "Ålesund"}', [])
