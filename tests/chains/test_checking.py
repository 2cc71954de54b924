"""The judging of calls: what is mended, what is refused, and what is told of it."""

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from typing_extensions import override

from chains.checking import InvalidToolArgs, build_check, give_up, gives_up


@tool
def weather(place: str) -> str:
    """Tell the weather."""
    return place


@tool
def clock(zone: str = "UTC") -> str:
    """Tell the time."""
    return zone


class Told(BaseCallbackHandler):
    """The custom events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    @override
    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))


def check(*messages: AnyMessage, attempts: int = 3) -> tuple[list[AnyMessage], list[tuple[str, dict[str, Any]]]]:
    """What the node makes of the last message, and what it tells of it."""
    told = Told()
    node = RunnableLambda(build_check([weather, clock], attempts).invoke)  # in a run, as in a graph
    update: Any = node.invoke({"messages": [*messages]}, {"callbacks": [told]})
    return update["messages"], told.events


def text(args: str, name: str = "weather", call_id: str | None = "c1") -> Any:
    return invalid_tool_call(name=name, args=args, id=call_id)


def call(name: str = "weather", call_id: str | None = "c1", **args: Any) -> Any:
    return tool_call(name=name, args=args, id=call_id)


def said(*calls: Any, **fields: Any) -> AIMessage:
    texts = any(one["type"] == "invalid_tool_call" for one in calls)
    kind = {"invalid_tool_calls": [*calls]} if texts else {"tool_calls": [*calls]}
    return AIMessage("", id="m1", **kind, **fields)


def one_call(messages: list[AnyMessage]) -> Any:
    assert isinstance(messages[0], AIMessage)
    assert not messages[0].invalid_tool_calls
    (only,) = messages[0].tool_calls
    return only


def test_sound_calls_pass_as_they_are() -> None:
    assert check(said(call(place="Oslo"), call("clock", "c2"))) == ([], [])


def test_certain_json_is_mended_and_told() -> None:
    messages, told = check(said(text('{"place": "Oslo",}')))
    assert len(messages) == 1
    assert messages[0].id == "m1"
    assert one_call(messages) == call(place="Oslo")
    assert told == [("tool.repaired", {"call_id": "c1", "name": "weather", "problem": "not_json"})]


def test_a_sound_call_beside_a_broken_one_is_read_and_not_mended() -> None:
    messages, told = check(said(text('{"place": "Rome"}'), text('{"place": "Os', call_id="c2")))
    message, result = messages
    assert isinstance(message, AIMessage)
    assert isinstance(result, ToolMessage)
    assert message.tool_calls == [call(place="Rome"), call(call_id="c2")]
    assert result.tool_call_id == "c2"
    assert [(name, data["call_id"]) for name, data in told] == [("tool.refused", "c2")]


def test_what_is_not_certain_is_refused_and_the_model_is_told_what_to_do() -> None:
    messages, told = check(said(text('{"place": "' + "x" * 1000)))
    result = messages[1]
    assert isinstance(result, ToolMessage)
    assert (result.status, result.name, result.tool_call_id) == ("error", "weather", "c1")
    assert "not valid JSON" in result.text
    assert "Call weather again" in result.text
    assert result.text.count("x") == 300 - len('{"place": "')
    assert one_call(messages) == call()
    assert told == [
        (
            "tool.refused",
            {"call_id": "c1", "name": "weather", "problem": "not_json", "attempt": 1, "attempts": 3},
        )
    ]


@pytest.mark.parametrize("value", [float("nan"), 2**64, "\ud800"])
def test_what_a_lenient_reader_let_pass_is_refused(value: object) -> None:
    messages, told = check(said(call(place=value)))
    assert one_call(messages) == call()
    assert told[0][1]["problem"] == "not_json"


def test_arguments_that_do_not_fit_are_refused_and_stand_as_they_were_written() -> None:
    messages, told = check(said(call(place={"not": "a text"})))
    assert one_call(messages)["args"] == {"place": {"not": "a text"}}
    assert 'place: Input should be a valid string, not {"not": "a text"}' in messages[1].text
    assert told[0][1]["problem"] == "schema"


def test_empty_arguments_are_judged_by_the_schema() -> None:
    messages, told = check(said(call("clock"), call("weather", "c2")))
    assert [one.tool_call_id for one in messages if isinstance(one, ToolMessage)] == ["c2"]
    assert [data["problem"] for _, data in told] == ["schema"]


def test_an_unknown_tool_is_refused_and_those_that_there_are_are_named() -> None:
    messages, told = check(said(text("{", name="wetter in Oslo?\n" + "y" * 99)))
    assert "The tools are: weather, clock." in messages[1].text
    assert told[0][1]["problem"] == "unknown_tool"
    assert one_call(messages)["name"] == ("wetter_in_Oslo_" + "y" * 99)[:64]  # else no provider takes the conversation
    messages, _ = check(said(call("")))
    assert one_call(messages)["name"] == "unknown"


@pytest.mark.parametrize("name", ["weatherweather", " weather\n", "functions.weather", "weatherweatherweather"])
def test_a_name_that_can_only_mean_one_tool_is_mended(name: str) -> None:
    messages, told = check(said(call(name, place="Oslo")))
    assert one_call(messages) == call(place="Oslo")
    assert told == [("tool.repaired", {"call_id": "c1", "name": "weather", "problem": "unknown_tool"})]


def test_ids_that_are_missing_or_repeated_are_made_unique_by_their_place() -> None:
    calls = (call(place="a"), call(place="b"), call(place="c", call_id=None))
    messages, told = check(said(*calls))
    assert isinstance(messages[0], AIMessage)
    assert [one["id"] for one in messages[0].tool_calls] == ["c1", "m1-1", "m1-2"]
    assert [(name, data["problem"]) for name, data in told] == [
        ("tool.repaired", "repeated_id"),
        ("tool.repaired", "no_id"),
    ]


def test_an_id_of_an_earlier_turn_is_a_repeated_one() -> None:
    before = AIMessage("", id="m0", tool_calls=[call(place="a")])
    messages, _ = check(before, ToolMessage("rain", tool_call_id="c1"), said(call(place="b")))
    assert one_call(messages)["id"] == "m1-0"


def test_the_last_call_of_a_message_that_reached_its_limit_is_refused() -> None:
    cut = {"finish_reason": "length"}
    messages, told = check(said(call(place="a"), call(place="b", call_id="c2"), response_metadata=cut))
    assert [one.tool_call_id for one in messages if isinstance(one, ToolMessage)] == ["c2"]
    assert "token limit" in messages[1].text
    assert [data["call_id"] for _, data in told] == ["c2"]


def wrong_turns(count: int) -> list[AnyMessage]:
    """So many turns with a refused call, each as the check leaves it."""
    messages: list[AnyMessage] = [HumanMessage("hi")]
    for number in range(count):
        asked = AIMessage("", id=f"w{number}", tool_calls=[call(call_id=f"w{number}")])
        messages += check(*messages, asked)[0]
    return messages


def test_attempts_are_counted_from_the_messages() -> None:
    _, told = check(*wrong_turns(1), said(call()))
    assert told[0][1]["attempt"] == 2
    assert not gives_up(wrong_turns(3), 3)
    assert gives_up(wrong_turns(4), 3)


def test_a_sound_turn_or_another_question_begins_the_count_anew() -> None:
    sound: list[AnyMessage] = [AIMessage("", tool_calls=[call(place="a", call_id="s")])]
    sound.append(ToolMessage("Error: the tool failed", tool_call_id="s"))
    asked: list[AnyMessage] = [AIMessage("sorry"), HumanMessage("again")]
    for between in (sound, asked):
        _, told = check(*wrong_turns(3), *between, said(call()))
        assert told[0][1]["attempt"] == 1


def test_the_last_refusal_has_its_result_and_is_no_recovery() -> None:
    messages, told = check(*wrong_turns(3), said(call()))
    assert [type(one) for one in messages] == [AIMessage, ToolMessage]
    assert told == []


def test_the_last_refusal_leaves_no_call_open() -> None:
    messages, _ = check(*wrong_turns(3), said(call(place="a"), call(call_id="c2")))
    results = [one for one in messages if isinstance(one, ToolMessage)]
    assert [(one.tool_call_id, one.status) for one in results] == [("c1", "error"), ("c2", "error")]
    assert "not made" in results[0].text


def test_a_tools_own_failure_and_artifact_are_no_refusals() -> None:
    failed = ToolMessage("Error: no", tool_call_id="c0", status="error", artifact={"tool.refused": "by the tool"})
    before: list[AnyMessage] = [AIMessage("", tool_calls=[call(place="a", call_id="c0")]), failed]
    _, told = check(*before, said(call()))
    assert told[0][1]["attempt"] == 1


def test_giving_up_names_the_tool_and_the_problem() -> None:
    with pytest.raises(
        InvalidToolArgs, match=r"weather with arguments that do not fit it, .* 4 times in a row"
    ) as caught:
        give_up(wrong_turns(4))
    assert caught.value.failure_code == "invalid_tool_args"
