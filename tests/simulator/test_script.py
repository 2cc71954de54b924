import json
from typing import Any

import msgspec
import pytest

from app.simulator import tokens
from app.simulator.request import ChatRequest, parse
from app.simulator.script import Reply, call_number, digest, interrupted, prefilled, reply, resumed


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}


TEXT = {"type": "string"}
TOOLS = [tool("calculator", expression=TEXT), tool("clock", zone=TEXT), tool("weather", place=TEXT)]
THREE = "What time is it in Tokyo, what is 17*23, and what's the weather in Oslo?"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def request(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    return parse(json.dumps({"model": "simulated", "messages": messages, **fields}).encode())


def said(*messages: dict[str, Any], **fields: Any) -> str:
    answer = reply(request(*messages, **fields))
    assert not answer.calls
    return answer.text


def asked(answer: Reply) -> dict[str, Any]:
    return {call.name: json.loads(call.arguments) for call in answer.calls}


def turn(answer: Reply, *results: str) -> list[dict[str, Any]]:
    """The answer as the client sends it back, and the results of its calls."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.calls
    ]
    answers = [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(answer.calls, results, strict=True)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *answers]


def test_three_parts_are_three_calls_with_ids_of_their_own() -> None:
    answer = reply(request(user(THREE), tools=TOOLS))
    assert asked(answer) == {
        "clock": {"zone": "Asia/Tokyo"},
        "calculator": {"expression": "17*23"},
        "weather": {"place": "Oslo"},
    }
    assert len({call.id for call in answer.calls}) == 3
    assert all(call.id is not None and call.id.startswith("call_") for call in answer.calls)


def test_the_same_request_gets_the_same_reply() -> None:
    assert reply(request(user(THREE), tools=TOOLS)) == reply(request(user(THREE), tools=TOOLS))


def test_results_are_answered_in_the_order_of_the_calls_and_nothing_is_asked_again() -> None:
    first = reply(request(user(THREE), tools=TOOLS))
    back = turn(first, "Thursday, 14:05 in Asia/Tokyo", "391", "Error: the weather service cannot be reached.")
    back[1:] = reversed(back[1:])  # results may come back in any order
    assert said(user(THREE), *back, tools=TOOLS).splitlines()[2:] == [
        "- Clock (Asia/Tokyo): Thursday, 14:05 in Asia/Tokyo.",
        "- 17*23 = 391.",
        "- The weather tool failed: the weather service cannot be reached.",
    ]


AGAIN = "Error: these arguments do not fit the tool.\nCall it again with arguments that do."


def test_what_an_error_asks_to_make_again_is_made_again_and_nothing_else() -> None:
    first = reply(request(user(THREE), tools=TOOLS))
    back = turn(first, "noon", AGAIN, "Error: the weather service cannot be reached.")
    second = reply(request(user(THREE), *back, tools=TOOLS))
    assert asked(second) == {"calculator": {"expression": "17*23"}}
    assert {call.id for call in second.calls}.isdisjoint({call.id for call in first.calls})
    third = reply(request(user(THREE), *back, *turn(second, AGAIN), tools=TOOLS))
    assert asked(third) == asked(second)
    assert said(user(THREE), *back, *turn(second, AGAIN), *turn(third, "391"), tools=TOOLS).splitlines()[2:] == [
        "- Clock (Asia/Tokyo): noon.",
        "- The weather tool failed: the weather service cannot be reached.",
        "- 17*23 = 391.",
    ]


def test_of_two_calls_of_one_tool_the_one_that_failed_is_made_again() -> None:
    question = user("What is 6*7 and what is 3+4?")
    first = reply(request(question, tools=TOOLS))
    again = [reply(request(question, *turn(first, *results), tools=TOOLS)) for results in ((AGAIN, "7"), ("42", AGAIN))]
    assert [asked(one) for one in again] == [
        {"calculator": {"expression": "6*7"}},
        {"calculator": {"expression": "3+4"}},
    ]


def test_one_call_at_a_time_is_made_again_before_the_next() -> None:
    options: dict[str, Any] = {"tools": TOOLS, "parallel_tool_calls": False}
    first = reply(request(user(THREE), **options))
    second = reply(request(user(THREE), *turn(first, AGAIN), **options))
    third = reply(request(user(THREE), *turn(first, AGAIN), *turn(second, "noon"), **options))
    assert [list(asked(one)) for one in (first, second, third)] == [["clock"], ["clock"], ["calculator"]]


def test_one_result_is_one_sentence() -> None:
    first = reply(request(user("2+2?"), tools=TOOLS))
    assert said(user("2+2?"), *turn(first, "4"), tools=TOOLS) == "2+2 = 4."


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("It is sunny, 21 °C.", "It is sunny, 21 °C."),
        ("", "The weather tool had nothing to say."),
        ('{"sky": "clear", "wind": {"speed": 3}}', "Weather (Oslo): sky: clear, wind: speed: 3."),
        ('{"error": "no such place"}', "The weather tool failed: no such place"),
        ("[1, 2]", "Weather (Oslo): 1; 2."),
        ("[broken", "Weather (Oslo): [broken."),
        ("Traceback (most recent call last)", "The weather tool failed: Traceback (most recent call last)"),
        ("ValueError: bad", "The weather tool failed: ValueError: bad"),
        ("No test failed.", "No test failed."),
    ],
)
def test_a_result_is_told_as_it_is(result: str, expected: str) -> None:
    first = reply(request(user("weather in Oslo"), tools=TOOLS))
    assert said(user("weather in Oslo"), *turn(first, result), tools=TOOLS) == expected


def test_a_result_of_ten_megabytes_is_cut() -> None:
    first = reply(request(user("weather in Oslo"), tools=TOOLS))
    answer = said(user("weather in Oslo"), *turn(first, "rain and " * 1_200_000), tools=TOOLS)
    assert len(answer) < 600
    assert "cut" in answer


def test_a_new_question_is_asked_again_with_other_ids() -> None:
    question = user("weather in Oslo")
    first = reply(request(question, tools=TOOLS))
    second = reply(request(question, *turn(first, "Rain."), assistant("Rain."), question, tools=TOOLS))
    assert asked(second) == asked(first)
    assert {call.id for call in second.calls}.isdisjoint({call.id for call in first.calls})


def test_one_call_at_a_time_when_the_client_wants_no_parallel_ones() -> None:
    messages, seen = [user(THREE)], []
    while calls := (answer := reply(request(*messages, tools=TOOLS, parallel_tool_calls=False))).calls:
        assert len(calls) == 1
        seen.append(calls[0].name)
        messages += turn(answer, "something")
    assert seen == ["clock", "calculator", "weather"]
    assert answer.text.count("\n- ") == 3


def test_tool_choice_is_obeyed() -> None:
    assert not reply(request(user(THREE), tools=TOOLS, tool_choice="none")).calls
    assert len(reply(request(user("hello"), tools=TOOLS, tool_choice="required")).calls) == 1
    named = {"type": "function", "function": {"name": "weather"}}
    assert asked(reply(request(user("2+2, weather in Oslo"), tools=TOOLS, tool_choice=named))) == {
        "weather": {"place": "Oslo"}
    }


def test_required_goes_on_to_the_tool_that_was_not_called_yet() -> None:
    tools = [*TOOLS, tool("Report", title=TEXT, score={"type": "integer"})]
    question = user("2+2, time in Tokyo, weather in Oslo")
    first = reply(request(question, tools=tools, tool_choice="required"))
    assert [call.name for call in first.calls] == ["calculator", "clock", "weather"]
    second = reply(request(question, *turn(first, "4", "noon", "rain"), tools=tools, tool_choice="required"))
    assert [call.name for call in second.calls] == ["Report"]


def test_a_document_is_valid_json_for_the_schema() -> None:
    schema = {"type": "object", "properties": {"city": TEXT, "size": {"type": "integer"}}, "required": ["city", "size"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "City", "schema": schema}}
    assert json.loads(said(user("Tell me about Oslo, 700000 people"), response_format=format_)) == {
        "city": "Oslo",
        "size": 700000,
    }
    assert isinstance(json.loads(said(user("x"), response_format={"type": "json_object"})), dict)


def test_tools_come_before_the_document() -> None:
    format_ = {"type": "json_schema", "json_schema": {"name": "A", "schema": {"properties": {"a": {"type": "number"}}}}}
    first = reply(request(user("2+2?"), tools=TOOLS, response_format=format_))
    assert asked(first) == {"calculator": {"expression": "2+2"}}
    assert json.loads(said(user("2+2?"), *turn(first, "4"), tools=TOOLS, response_format=format_)) == {"a": 4}


@pytest.mark.parametrize(
    ("told", "question", "answer"),
    [
        ("My name is Ada.", "What is my name?", "Your name is Ada; you told me so."),
        ("call me Grace Hopper", "who am I?", "Your name is Grace Hopper; you told me so."),
        ("my favourite colour is blue and I like it", "what's my favourite colour?", "Your favourite colour is blue;"),
        ("hello", "what is my name?", "You have not told me your name yet."),
        ("The sky is green", "What did I just say?", "You said: “The sky is green”"),
    ],
)
def test_it_knows_what_the_conversation_says(told: str, question: str, answer: str) -> None:
    assert said(user(told), assistant("Fine."), user(question)).startswith(answer)


def test_the_latest_word_counts() -> None:
    history = [user("my name is Ada"), assistant("ok"), user("no, my name is Bo"), assistant("ok")]
    assert said(*history, user("what is my name?")) == "Your name is Bo; you told me so."


def test_texts_of_the_length_asked_for() -> None:
    assert said(user("count to 200")) == ", ".join(map(str, range(1, 201))) + "."
    assert said(user("please count from 5 to 3")) == "5, 4, 3."
    assert len(said(user("write 500 words about mills")).split()) == 500
    assert tokens.count(said(user("give me 1,234 tokens"))) == 1234
    assert said(user("write three paragraphs")).count("\n\n") == 2
    assert said(user("write 7 paragraphs")).count("\n\n") == 6
    assert tokens.count(said(user("tell me a long story"))) > 500
    assert "```python\n" in said(user("show me some python code"))


def test_it_says_plainly_that_it_is_simulated() -> None:
    for question in ("hello", "", "what is the meaning of life?"):
        assert "simulated" in said(user(question))
    assert "meaning of life" in said(user("what is the meaning of life?"))
    assert "calculator, clock, weather" in said(user("what can you do?"), tools=TOOLS)
    assert "simulated" in said({"role": "system", "content": "be kind"})


def test_continue_gives_the_rest_of_the_answer_that_was_cut() -> None:
    whole = said(user("count to 9"))
    assert said(user("count to 9"), assistant(whole[:10]), user("continue")) == whole[10:]
    assert "simulated" in said(user("count to 9"), assistant("something else"), user("continue"))


def test_the_assistants_words_at_the_end_are_the_beginning_of_the_answer() -> None:
    asked = request(user("count to 9"))
    assert prefilled(request(user("count to 9"), assistant("1, 2"))) == (asked, "1, 2")
    assert prefilled(asked) == (asked, "")
    first = reply(request(user("2+2?"), tools=TOOLS))
    assert prefilled(request(user("2+2?"), *turn(first, "4")))[1] == ""
    assert prefilled(request(user("2+2?"), *turn(first, "4"), assistant("2+2")))[1] == "2+2"
    assert prefilled(request(assistant("Once"))) == (msgspec.structs.replace(asked, messages=[]), "Once")


def test_an_answer_is_resumed_where_it_was() -> None:
    whole = Reply("1, 2, 3, 4.")
    for cut in range(len(whole.text) + 1):
        assert resumed(whole, whole.text[:cut], 0).text == whole.text[cut:]
    assert resumed(whole, "Once", 0) == whole
    assert resumed(whole, "1, 2", 2).text == ", 2, 3, 4."
    assert resumed(whole, "1, 2", 100) == whole
    calls = reply(request(user("2+2?"), tools=TOOLS))
    assert resumed(calls, "Let me see", 3) == calls


def test_continue_names_the_answer_that_it_goes_on_with() -> None:
    assert interrupted(request(user("a"), assistant("half"), user("Please continue."))) == "half"
    assert interrupted(request(user("a"), assistant("half"), user("and b?"))) == ""
    assert interrupted(request(user("continue"))) == ""


def test_model_calls_of_a_turn_are_numbered() -> None:
    first = reply(request(user("2+2?"), tools=TOOLS))
    assert call_number(request(user("2+2?")).messages) == 1
    assert call_number(request(user("2+2?"), *turn(first, "4")).messages) == 2
    assert call_number(request(user("2+2?"), *turn(first, "4"), assistant("4"), user("3?")).messages) == 1


def test_a_conversation_has_one_digest() -> None:
    assert digest(request(user("a"))) == digest(request(user("a"), stream=True))
    assert digest(request(user("a"))) != digest(request(user("b")))


def test_in_json_mode_the_schema_is_read_from_the_instructions() -> None:
    schema = {"type": "object", "properties": {"city": TEXT, "size": {"type": "integer"}}}
    told = {"role": "system", "content": f"Be brief. {{not this}} The schema: {json.dumps(schema)} That is all."}
    format_ = {"type": "json_object"}
    assert json.loads(said(told, user("Oslo has 700000 people"), response_format=format_)) == {
        "city": "Oslo",
        "size": 700000,
    }
    other = {"role": "system", "content": 'As {"a": 1}.'}
    assert "answer" in json.loads(said(other, user("Oslo"), response_format=format_))


def test_an_answer_that_is_sent_back_belongs_to_the_same_turn() -> None:
    schema = {"type": "object", "properties": {"city": TEXT}}
    format_ = {"type": "json_schema", "json_schema": {"name": "City", "schema": schema}}
    conversation = [user("Oslo"), assistant("{"), user("Your answer is not valid:\n- Rome: not JSON")]
    assert json.loads(said(*conversation, response_format=format_)) == {"city": "Oslo"}
    assert call_number(request(*conversation).messages) == 2


def test_a_form_that_is_sent_back_is_filled_from_the_text_again() -> None:
    form = tool("City", city=TEXT, size={"type": "integer"})
    choice = {"type": "function", "function": {"name": "City"}}
    first = reply(request(user("Oslo, 5"), tools=[form], tool_choice=choice))
    messages = [user("Oslo, 5"), *turn(first, "Error: not valid:\n- Rome: 7 is too much\nCall City once more.")]
    assert asked(reply(request(*messages, tools=[form], tool_choice=choice))) == {"City": {"city": "Oslo", "size": 5}}


def test_a_plan_has_the_questions_that_were_asked() -> None:
    schema = {
        "type": "object",
        "properties": {"questions": {"type": "array", "items": {"type": "string"}, "maxItems": 2}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
    assert json.loads(said(user(THREE), response_format=wanted)) == {
        "questions": ["What time is it in Tokyo?", "What is 17*23?"]
    }


def test_findings_become_one_answer() -> None:
    found = "## 1. What is 17*23?\n\n17*23 = 391.\n\n## 2. And the time?\n\nTen o'clock."
    assert said(user(THREE), user(found)) == (
        "Here is what was found:\n\n- **What is 17*23?** 17*23 = 391.\n- **And the time?** Ten o'clock."
    )
