import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator import faults, wire
from app.simulator.faults import BAD_JSON, FIELDS, Directives, read, reshape, without_directives
from app.simulator.request import Message, Refused, parse
from app.simulator.script import Call, Reply
from app.simulator.tokens import count
from app.simulator.wire import Act, Frames, Pause, Reset, Send, Stall, Start, complete

FRAMES = Frames("chatcmpl-1", 7, "simulated", include_usage=False)
USER = Message("user", "hi")


def told(model: str = "simulated", header: str = "", *messages: Message) -> Directives:
    return read(model, header, messages or (USER,))


def after(text: str, calls: int) -> list[Message]:
    """A conversation whose last user message is ``text`` and was answered so many times."""
    return [Message("user", text), *[Message("assistant", "x")] * calls]


def test_the_name_the_header_and_the_message_are_three_ways_to_tell() -> None:
    expected = Directives(stall_after=5, tokens_per_second=200.0)
    assert told("simulated?stall_after=5&tokens_per_second=200") == expected
    assert told(header="stall_after=5 tokens_per_second=200") == expected
    assert told("m", "", Message("user", "hi [[stall_after=5 tokens_per_second=200]] there")) == expected
    assert told("m", "", Message("user", "[[stall_after=5]] [[tokens_per_second=200]]")) == expected


def test_a_later_way_overrides_an_earlier_one() -> None:
    assert told("m?tokens=1&reasoning=2", "tokens=3", Message("user", "[[tokens=4]]")) == Directives(
        tokens=4, reasoning=2
    )


def test_a_message_tells_the_first_call_of_its_turn_unless_it_names_another() -> None:
    def tokens(text: str) -> list[int | None]:
        return [told("m", "", *after(text, calls)).tokens for calls in range(3)]

    assert tokens("[[tokens=1]]") == [1, None, None]
    assert tokens("[[call=2 tokens=1]]") == [None, 1, None]
    assert tokens("[[call=all tokens=1]]") == [1, 1, 1]
    assert tokens("[[tokens=1]] [[call=3&tokens=2]]") == [1, None, 2]
    assert told("m", "", Message("user", "[[tokens=1]]"), *after("again", 0)).tokens is None


def test_the_name_tells_every_call_unless_it_names_one() -> None:
    assert told("m?tokens=1", "", *after("x", 2)).tokens == 1
    assert told("m?call=2&error=500", "", *after("x", 1)).status == 500
    assert told("m?call=2&error=500", "", *after("x", 0)).status is None


def test_values_are_percent_encoded() -> None:
    assert told("m?say=one%20two%26%3D%5D").say == "one two&=]"


def test_brackets_that_hold_no_pairs_are_text() -> None:
    for text in ("[[1, 2], [3, 4]]", "see [[Home]]", "[[a b=]c]]"):
        assert told("m", "", Message("user", text)) == Directives()
        assert without_directives(text) == text
    assert without_directives("weather [[tokens=1]] in Oslo") == "weather  in Oslo"


@pytest.mark.parametrize(
    "model",
    [
        "m?nonsense=1",
        "m?tokens=many",
        "m?tokens=-1",
        "m?tokens=",
        "m?tokens",
        "m?burst=yes",
        "m?status=200",
        "m?bad_json=ugly",
        "m?first_token_s=1e9",
        "m?first_token_s=99999",
        "m?call=0&tokens=1",
        "m?call=two&tokens=1",
    ],
)
def test_what_is_not_understood_is_refused_in_words(model: str) -> None:
    with pytest.raises(Refused) as caught:
        told(model)
    assert caught.value.status == 400
    assert len(caught.value.message) > 20


def test_every_field_can_be_told() -> None:
    values = {"bad_json": "empty", "say": "x", "status": "500", "code": "x"}
    for field in FIELDS:
        assert told(f"m?{field}={values.get(field, '1')}") != Directives()


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    for model, message in ((f"m?{text}", ""), ("m", f"[[{text}]]")):
        try:
            told(model, "", Message("user", message))
        except Refused:
            continue


# -- content ----------------------------------------------------------------------------------------------------------


CALLS = Reply(calls=(Call("a", "f", '{"x":"one","y":2}'), Call("b", "g", '{"z":["q"]}')))


@pytest.mark.parametrize("kind", [kind for kind in BAD_JSON if kind != "wrong_type"])
@pytest.mark.parametrize("arguments", ['{"x":"one","y":2}', "{}", '{"x":1}'])
def test_broken_arguments_are_no_json(kind: str, arguments: str) -> None:
    (call,) = reshape(Reply(calls=(Call("a", "f", arguments),)), Directives(bad_json=kind)).calls
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.arguments)


def test_wrong_types_are_json_with_every_value_of_another_type() -> None:
    calls = reshape(CALLS, Directives(bad_json="wrong_type")).calls
    assert [json.loads(call.arguments) for call in calls] == [
        {"x": {"not": "a text"}, "y": "not a number"},
        {"z": "not a number"},
    ]


def test_calls_can_share_an_id_lack_it_or_name_no_tool() -> None:
    assert [call.id for call in reshape(CALLS, Directives(dup_ids=True)).calls] == ["a", "a"]
    assert [call.id for call in reshape(CALLS, Directives(no_ids=True)).calls] == [None, None]
    assert [call.name for call in reshape(CALLS, Directives(unknown_tool=True)).calls] == ["f", "g", "no_such_tool"]
    assert [call.name for call in reshape(Reply("text"), Directives(unknown_tool=True)).calls] == ["no_such_tool"]


def test_one_call_alone_may_be_broken() -> None:
    calls = reshape(CALLS, Directives(bad_json="empty", bad_call=2)).calls
    assert [call.arguments for call in calls] == [CALLS.calls[0].arguments, ""]
    assert reshape(CALLS, Directives(bad_json="empty", bad_call=3)) == CALLS


def test_names_may_be_said_twice() -> None:
    assert [call.name for call in reshape(CALLS, Directives(twice_named=True)).calls] == ["ff", "gg"]


def test_the_answer_can_be_dictated() -> None:
    assert reshape(CALLS, Directives(say="Just this.")) == Reply("Just this.")
    request = parse(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    for number in (0, 1, 7, 1000):
        assert complete(reshape(Reply("x"), Directives(tokens=number)), request).tokens == number


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 60, 200, 1000])
@pytest.mark.parametrize("paragraphs", [0, 1, 2, 3, 7])
def test_it_can_be_of_so_many_tokens_in_so_many_paragraphs(number: int, paragraphs: int) -> None:
    text = reshape(Reply("x"), Directives(tokens=number, paragraphs=paragraphs)).text
    assert count(text) == number
    parts = text.split("\n\n")
    assert len(parts) == max(min(paragraphs, (number + 1) // 2), 1)
    assert all(parts) or not number


def test_it_can_be_of_so_many_whole_paragraphs() -> None:
    parts = reshape(CALLS, Directives(paragraphs=3)).text.split("\n\n")
    assert [part.count(".") for part in parts] == [4, 4, 4]


# -- the wire ---------------------------------------------------------------------------------------------------------


def acts(text: str = "one two three four", *, stream: bool = True) -> list[Act]:
    completion = complete(Reply(text), parse(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'))
    return list(wire.streamed(completion, FRAMES, None) if stream else wire.whole(completion, FRAMES, None))


def disturbed(told: Directives, text: str = "one two three four", *, stream: bool = True) -> list[Act]:
    assert told.cuts
    return list(faults.disturb(acts(text, stream=stream), told, FRAMES))


def body(played: list[Act]) -> bytes:
    return b"".join(act.data for act in played if isinstance(act, Send))


def tokens(played: list[Act]) -> int:
    return sum(act.tokens for act in played if isinstance(act, Send))


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_breaks_off_after_so_many_tokens(number: int, stream: bool) -> None:
    stalled = disturbed(Directives(stall_after=number), stream=stream)
    assert (stalled[-1], tokens(stalled)) == (Stall(), number)
    dropped = disturbed(Directives(drop_after=number), stream=stream)
    assert (dropped[-1], tokens(dropped)) == (Reset(), number)
    failed = disturbed(Directives(error_after=number), stream=stream)
    assert tokens(failed) == number
    assert body(failed).endswith(b'"type":"server_error","param":null,"code":"server_error"}}' + b"\n\n" * stream)
    closed = disturbed(Directives(close_after=number), stream=stream)
    assert tokens(closed) == number
    assert b"[DONE]" not in body(closed)


def test_a_fault_past_the_end_never_comes() -> None:
    assert disturbed(Directives(stall_after=5)) == acts()


def test_an_error_before_an_answer_in_one_piece_is_an_http_error() -> None:
    start = next(act for act in disturbed(Directives(error_after=2), stream=False) if isinstance(act, Start))
    assert start.status == 500


def test_the_earliest_fault_wins() -> None:
    assert disturbed(Directives(stall_after=3, drop_after=2))[-1] == Reset()


@pytest.mark.parametrize("cut", [Directives(cut_utf8=0), Directives(split_lines=True), Directives(byte_by_byte=True)])
def test_strange_cuts_change_no_byte(cut: Directives) -> None:
    played = disturbed(cut, "one zwölf 🌾 four")
    assert body(played) == body(acts("one zwölf 🌾 four"))
    assert tokens(played) == tokens(acts("one zwölf 🌾 four"))


def test_a_character_is_cut_in_two_with_a_pause_between() -> None:
    played = disturbed(Directives(cut_utf8=2), "zwölf zwei 🌾 four")
    at = next(at for at, act in enumerate(played) if isinstance(act, Pause) and act.seconds)
    before, _, behind = played[at - 1 : at + 2]
    assert isinstance(before, Send)
    assert isinstance(behind, Send)
    with pytest.raises(UnicodeDecodeError):
        before.data.decode()
    assert "🌾" in (before.data + behind.data).decode()


def test_empty_chunks_say_nothing_and_come_before_the_first_token() -> None:
    extra = len(disturbed(Directives(empty_chunks=7))) - len(acts())
    assert extra == 7
    chunks = [json.loads(line[6:]) for line in body(disturbed(Directives(empty_chunks=3))).decode().split("\n\n")[:5]]
    assert [chunk["choices"] and chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {},
        {"content": ""},
        [],
        {"content": "one"},
    ]


def test_wrong_usage_cannot_be_true() -> None:
    usage: dict[str, Any] = faults.wrong({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7})
    assert usage["prompt_tokens"] + usage["completion_tokens"] != usage["total_tokens"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("trailing_comma", '{"a":"b",}'),
        ("mismatched", '{"a":"b"]'),
        ("cut_string", '{"a":"'),
        ("wrong_type", '{"a":{"not":"a text"}}'),
        ("empty", ""),
    ],
)
def test_documents_are_broken_as_arguments_are_and_other_texts_are_not(kind: str, text: str) -> None:
    assert reshape(Reply('{"a":"b"}', document=True), Directives(bad_json=kind)).text == text
    assert reshape(Reply('{"a":"b"}'), Directives(bad_json=kind)).text == '{"a":"b"}'


def test_an_answer_that_is_sent_back_is_the_next_call_of_its_turn() -> None:
    again = [Message("assistant", "{"), Message("user", "Your answer is not valid:\n- not JSON")]
    assert told("m", "", Message("user", "[[bad_json=empty]] Oslo"), *again).bad_json is None
    assert told("m", "", Message("user", "[[bad_json=empty&call=all]] Oslo"), *again).bad_json == "empty"
