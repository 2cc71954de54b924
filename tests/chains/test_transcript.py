"""A model's message from its chunks: the calls stay what was written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_anthropic.chat_models import _format_messages
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call
from scripted import piece, say

from chains.transcript import rewritten, transcript, written


def test_sound_calls_are_calls() -> None:
    message = transcript(
        [
            say("Let me see.", id="m1"),
            say("", piece("weather", "", "c1", 0), piece("clock", None, "c2", 1), id="m1"),
            say("", piece(None, '{"zone":', None, 1), piece(None, '{"place": "Os', None, 0), id="m1"),
            say("", piece(None, 'lo"}', None, 0), piece(None, ' "UTC"}', None, 1), id="m1"),
        ]
    )
    assert type(message) is AIMessage
    assert (message.id, message.text) == ("m1", "Let me see.")
    assert [(call["name"], call["args"], call["id"]) for call in message.tool_calls] == [
        ("weather", {"place": "Oslo"}, "c1"),
        ("clock", {"zone": "UTC"}, "c2"),
    ]
    assert message.invalid_tool_calls == []


def test_a_text_that_was_cut_is_no_call_and_takes_the_others_order_along() -> None:
    message = transcript([say("", piece("weather", '{"place": "Os', "c1", 0), piece("clock", "{}", "c2", 1))])
    assert message.tool_calls == []
    assert [(one.name, one.text, one.id) for one in written(message)] == [
        ("weather", '{"place": "Os', "c1"),
        ("clock", "{}", "c2"),
    ]


def test_no_arguments_at_all_are_none() -> None:
    assert transcript([say("", piece("clock", None, "c1", 0))]).tool_calls[0]["args"] == {}


@pytest.mark.parametrize(
    "pieces",
    [
        [piece("a", "{", "c1"), piece(None, "}"), piece("b", "{", "c2"), piece(None, "}")],
        [piece("a", "{", "c1"), piece(None, "}", "c1"), piece("b", "{", "c2"), piece(None, "}", "c2")],
        [piece("a", "{", "c1", 0), piece("b", "{", "c2", 0), piece(None, "}", "c1"), piece(None, "}", "c2")],
        [piece("a", "{", "c1", 7), piece("b", "{", "c2", 3), piece(None, "}", None, 3), piece(None, "}", None, 7)],
    ],
    ids=["bare", "ids again and again", "one index", "gaps"],
)
def test_pieces_find_their_call(pieces: list[dict[str, object]]) -> None:
    message = transcript([say("", one) for one in pieces])
    assert [(call["name"], call["args"], call["id"]) for call in message.tool_calls] == [
        ("a", {}, "c1"),
        ("b", {}, "c2"),
    ]


def test_calls_without_ids_are_told_apart_by_a_new_name() -> None:
    message = transcript([say("", piece("a", "{}")), say("", piece("b", "{")), say("", piece(None, "}"))])
    assert [(call["name"], call["id"]) for call in message.tool_calls] == [("a", "call-0"), ("b", "call-1")]


@given(st.text(max_size=30), st.data())
def test_any_cut_of_the_arguments_comes_out_the_same(args: str, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.integers(0, len(args)), max_size=5)))
    cuts = [args[start:end] for start, end in zip([0, *ends], [*ends, len(args)], strict=True)]
    pieces = [piece("a", "", "c1", 0), *(piece(None, cut, None, 0) for cut in cuts)]
    whole = transcript([say("", piece("a", args, "c1", 0))])
    assert written(transcript([say("", one) for one in pieces])) == written(whole)


def test_a_character_that_was_cut_in_two_is_one_again_and_a_lone_half_no_sound_call() -> None:
    halves = [piece("a", '{"say": "\ud83c', "c1", 0), piece(None, '\udf3e"}', None, 0)]
    assert transcript([say("", one) for one in halves]).tool_calls[0]["args"] == {"say": "🌾"}
    lone = transcript([say("", piece("a", '{"say": "\ud83c"}', "c1", 0))])
    assert lone.tool_calls == []
    assert lone.invalid_tool_calls[0]["args"] == '{"say": "\\ud83c"}'  # it can be stored


def test_a_message_that_came_whole_is_what_it_is() -> None:
    message = AIMessage("hello", id="m1")
    assert transcript([message]) == message


def test_arguments_that_cannot_be_kept_are_a_text_also_in_a_message_that_came_whole() -> None:
    calls = [{"name": "a", "args": {"number": 10**30}, "id": "c1"}, {"name": "b", "args": {}, "id": None}]
    message = transcript([AIMessage("", id="m1", tool_calls=calls)])
    assert [(one.name, one.id, one.text) for one in written(message)] == [
        ("a", "c1", '{"number": 1000000000000000000000000000000}'),
        ("b", "m1-1", "{}"),
    ]


def test_a_call_is_never_left_without_an_id_since_nothing_could_be_its_result() -> None:
    message = transcript([say("", piece("a", "{}", index=0), piece("b", "{", index=1), id="m1")])
    assert [call["id"] for call in message.invalid_tool_calls] == ["m1-0", "m1-1"]


def test_the_last_call_of_a_message_that_reached_its_limit_may_be_cut() -> None:
    calls = (piece("a", "{}", "c1", 0), piece("b", "{}", "c2", 1))
    for told in ({"finish_reason": "length"}, {"stop_reason": "max_tokens"}, {"finish_reason": "MAX_TOKENS"}):
        message = transcript([say("", *calls, response_metadata=told)])
        assert [one.cut for one in written(message)] == [False, True]
    sound = transcript([say("", *calls, response_metadata={"finish_reason": "tool_calls"})])
    assert not any(one.cut for one in written(sound))


MENDED = tool_call(name="weather", args={"place": "Oslo"}, id="m1-1")
SOUND = tool_call(name="weather", args={"place": "Rome"}, id="c1")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {}, "partial_json": '{"place"', "index": 2},
            {"type": "tool_use", "id": "m1-1", "name": "weather", "input": {"place": "Oslo"}, "index": 2},
        ),
        (
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": '{"place'},
            {
                "type": "function_call",
                "id": "fc_1",
                "call_id": "m1-1",
                "name": "weather",
                "arguments": '{"place": "Oslo"}',
            },
        ),
        (
            {"type": "tool_call_chunk", "id": "c1", "name": "weather", "args": '{"pl', "index": 1},
            {"type": "tool_call", "id": "m1-1", "name": "weather", "args": {"place": "Oslo"}},
        ),
    ],
    ids=["Anthropic", "OpenAI", "LangChain"],
)
def test_content_blocks_tell_of_the_calls_as_they_are_now(before: dict[str, Any], after: dict[str, Any]) -> None:
    text = {"type": "text", "text": "Let me see."}
    first = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"place": "Rome"}}
    message = AIMessage(
        [text, first, before],
        id="m1",
        invalid_tool_calls=[
            invalid_tool_call(name="weather", args='{"place": "Rome"}', id="c1"),
            invalid_tool_call(name="weather", args='{"place"', id="c1"),
        ],
        additional_kwargs={"tool_calls": [{"id": "c1"}], "kept": 1},
    )
    anew = rewritten(message, [SOUND, MENDED])
    assert anew.content == [text, first, after]
    assert anew.tool_calls == [SOUND, MENDED]
    assert anew.invalid_tool_calls == []
    assert anew.additional_kwargs == {"kept": 1}
    assert anew.id == "m1"


def test_blocks_of_which_nobody_knows_what_they_are_now_are_left_out() -> None:
    blocks = [{"type": "text", "text": "Hm."}, {"type": "tool_use", "id": "other", "name": "weather", "input": {}}]
    message = AIMessage(blocks, tool_calls=[tool_call(name="weather", args={}, id="c1")])  # type: ignore[arg-type]
    assert rewritten(message, [SOUND]).content == [{"type": "text", "text": "Hm."}]


def test_anthropic_is_sent_each_call_once_and_as_it_is_now() -> None:
    chunks = [
        say([{"type": "text", "text": "Let me see.", "index": 0}]),
        say(
            [{"type": "tool_use", "id": "c1", "name": "weather", "input": {}, "index": 1}],
            piece("weather", "", "c1", 1),
        ),
        say(
            [{"type": "input_json_delta", "partial_json": '{"place": "Os', "index": 1}],
            piece(None, '{"place": "Os', None, 1),
        ),
    ]
    message = rewritten(transcript(chunks), [tool_call(name="weather", args={}, id="c1")])
    result = ToolMessage("Error: again", tool_call_id="c1")
    _, sent = _format_messages([HumanMessage("hi"), message, result], model=None)
    assert sent[1]["content"] == [
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "weather", "input": {}, "id": "c1"},
    ]
