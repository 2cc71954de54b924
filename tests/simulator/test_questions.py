import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.simulator.questions import parts, wanted
from app.simulator.request import Function


def function(name: str, description: str = "", /, required: tuple[str, ...] = (), **properties: Any) -> Function:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return Function(name, description, schema)


TEXT = {"type": "string"}
TOOLS = [
    function("calculator", "Work out arithmetic.", ("expression",), expression=TEXT),
    function("clock", "Tell the time.", zone={"type": "string", "default": "UTC"}),
    function("weather", "Look up the weather.", ("place",), place=TEXT),
    function("search_documents", "Search the documents.", ("query",), query=TEXT, limit={"type": "integer"}),
    function("get_order_status", "Look up where a customer's parcel is.", ("order_id",), order_id=TEXT, fast=TEXT),
    function(
        "convert_currency",
        "Exchange an amount of money.",
        ("amount", "source", "target", "exact"),
        amount={"type": "number"},
        source={"enum": ["EUR", "USD", "JPY"]},
        target={"enum": ["EUR", "USD", "JPY"]},
        exact={"type": "boolean"},
    ),
    function("send_mail", "Post to somebody.", ("recipient", "body"), recipient=TEXT, body=TEXT),
]


def asked(question: str, earlier: str = "") -> list[tuple[str, *tuple[Any, ...]]]:
    return [(call.name, *call.arguments.values()) for call in wanted(question, TOOLS, earlier=earlier)]


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        (
            "What time is it in Tokyo, what is 17*23, and what's the weather in Oslo?",
            [("clock", "Asia/Tokyo"), ("calculator", "17*23"), ("weather", "Oslo")],
        ),
        ("What is the weather in Paris and in Rome?", [("weather", "Paris"), ("weather", "Rome")]),
        ("weather in Paris, Rome and New York", [("weather", "Paris"), ("weather", "Rome"), ("weather", "New York")]),
        ("What's the weather in Paris, France?", [("weather", "Paris, France")]),
        ("is it raining in bergen right now, please?", [("weather", "Bergen")]),
        ("Oslo weather", [("weather", "Oslo")]),
        ("I'm going to Rome. How warm is it there?", [("weather", "Rome")]),
        ("Weather in Lima; what time is it?", [("weather", "Lima"), ("clock", "America/Lima")]),
        ("what time is it", [("clock",)]),
        ("What's the local time in Atlantis?", [("clock", "Atlantis")]),
        ("time in Europe/Berlin", [("clock", "Europe/Berlin")]),
        ("What is 15% of 1,200?", [("calculator", "15 / 100 * 1200")]),
        ("2+2 and 3*3", [("calculator", "2+2"), ("calculator", "3*3")]),
        ("the sum of 3 and 4", [("calculator", "3 + 4")]),
        ("What is sqrt(16) times 2?", [("calculator", "sqrt(16) * 2")]),
        ("write 3-5 paragraphs about 24/7 shops since 2024-05-01", []),
        ("search the docs for streams and cancellation", [("search_documents", "streams and cancellation")]),
        ("What do the docs say about the weather?", [("search_documents", "the weather")]),
        ("How do I cancel a run?", [("search_documents", "cancel a run")]),
        ("Where is order 42?", [("get_order_status", "42")]),
        ("order status for A17 and for B22", [("get_order_status", "A17"), ("get_order_status", "B22")]),
        ("exchange 5.5 USD to JPY", [("convert_currency", 5.5, "USD", "JPY", True)]),
        ('send mail to "bob, or ann"', [("send_mail", "bob, or ann", 'send mail to "bob, or ann"')]),
        ("tell me a joke", []),
        ("", []),
    ],
)
def test_each_part_of_a_question_finds_its_tool(question: str, calls: list[tuple[Any, ...]]) -> None:
    assert asked(question) == calls


def test_a_question_may_repeat_the_one_before_for_another_place() -> None:
    assert asked("and in Rome?", earlier="What's the weather in Paris?") == [("weather", "Rome")]
    assert asked("What about Rome?", earlier="What's the weather in Paris?") == [("weather", "Rome")]
    assert asked("Thanks!", earlier="What's the weather in Paris?") == []


def test_arguments_go_to_the_parameter_the_tool_really_has() -> None:
    tools = [
        function("weather", "", ("city", "days"), days={"type": "integer"}, city=TEXT),
        function("clock", "", ("place",), place=TEXT),
        function("calculator", "", (), precision={"type": "integer"}, formula=TEXT),
    ]
    calls = wanted("weather in Oslo, time in Tokyo, 1+1", tools)
    assert [call.arguments for call in calls] == [{"city": "Oslo", "days": 1}, {"place": "Tokyo"}, {"formula": "1+1"}]


def test_tools_named_in_the_question_are_called_without_a_schema_too() -> None:
    calls = wanted("run slow_a, slow b and then slow_c", [Function("slow_a"), Function("slow_b"), Function("slow_c")])
    assert [call.name for call in calls] == ["slow_a", "slow_b", "slow_c"]


LETTERS = [
    *TOOLS,
    function("send_email", "Send an e-mail.", ("to", "subject", "body"), to=TEXT, subject=TEXT, body=TEXT),
]


@pytest.mark.parametrize(
    ("question", "to", "body"),
    [
        ("Email ada@example.com that the build is green", ["ada@example.com"], ["The build is green."]),
        ("Please e-mail ada@example.com: it rains in Oslo!", ["ada@example.com"], ["It rains in Oslo."]),
        ("Send an email to ada@example.com saying hello", ["ada@example.com"], ["Hello."]),
        (
            "Write to ada@example.com about lunch and mail bob@example.org that she is late",
            ["ada@example.com", "bob@example.org"],
            ["Lunch.", "She is late."],
        ),
        ("What is the address of ada@example.com?", [], []),
        ("Send Ada an e-mail", [], []),
    ],
)
def test_a_letter_is_asked_for_with_whom_and_what(question: str, to: list[str], body: list[str]) -> None:
    calls = [call.arguments for call in wanted(question, LETTERS) if call.name == "send_email"]
    assert ([call["to"] for call in calls], [call["body"] for call in calls]) == (to, body)
    assert [call["subject"] for call in calls] == [text.rstrip(".") for text in body]


def test_the_subject_of_a_long_letter_is_short() -> None:
    (call,) = wanted(f"Email ada@example.com that {'it is a long story ' * 20}", LETTERS)
    assert len(call.arguments["subject"]) < 70
    assert len(call.arguments["body"]) > 300


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=300))
def test_any_text_is_understood_somehow(text: str) -> None:
    wanted(text, TOOLS, earlier=text)


@pytest.mark.parametrize(
    "piece", ["weather in ", "1+", "((", "and ", ", please", "search the docs ", "A a ", "'", '"', "in "]
)
def test_a_long_and_odd_question_is_read_quickly(piece: str) -> None:
    started = time.process_time()
    wanted(piece * 100_000, TOOLS)
    assert time.process_time() - started < 2


def test_a_question_is_planned_as_the_questions_it_consists_of() -> None:
    asked = "What do the docs say about cancel, what is 17*23, and what time is it in Tokyo?"
    assert parts(asked) == ["What do the docs say about cancel?", "What is 17*23?", "What time is it in Tokyo?"]


def test_a_plan_of_one_question_has_a_second_one() -> None:
    assert parts("How do runs end?") == ["How do runs end?", "What do the docs say about How do runs end?"]
