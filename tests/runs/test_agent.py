"""What is served: its schemas, its tools' labels, and which inputs it takes."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, field_validator
from scripted import Scripted, words

from app.errors import InvalidInput
from app.runs.agent import MAX_INPUT_DEPTH, ROLES, Agent, read_messages


@tool
def plain(word: str) -> str:
    """Do it."""
    return word


def labelled(label: Any) -> BaseTool:
    @tool
    def named(word: str) -> str:
        """Do it."""
        return word

    named.metadata = {"label": label}
    return named


def graph_of(*tools: BaseTool, schema: Any = MessagesState, checkpointer: Any = None) -> Any:
    graph: Any = StateGraph(schema)
    graph.add_node("tools", ToolNode(list(tools)) if tools else lambda _: {})
    graph.add_edge(START, "tools")
    return graph.compile(checkpointer=checkpointer)


CHATS = graph_of(plain)
TEXTS: Runnable[Any, Any] = RunnableLambda[Any, Any](lambda text: str(text)).with_types(input_type=str)


class Question(BaseModel):
    text: str
    times: int = 1

    @field_validator("text")
    @classmethod
    def never_rude(cls, text: str) -> str:
        if text == "rude":
            raise ValueError("be polite")
        if text == "odd":
            raise RuntimeError("secret")
        return text


ASKS: Runnable[Any, Any] = RunnableLambda[Any, Any](lambda question: question).with_types(input_type=Question)


# What is known of it


def test_it_describes_itself() -> None:
    agent = Agent("a", CHATS, description="d", model="m", configurable=["voice"])
    row = agent.describe()
    assert (row["name"], row["description"], row["model"]) == ("a", "d", "m")
    assert "messages" in row["input_schema"]["properties"]
    assert row["capabilities"] == {
        "text_input": True, "messages": True, "tools": ["plain"], "threads": True, "pause": False,
        "max_tokens": False, "configurable": ["voice"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("runnable", "text", "messages"),
    [
        (CHATS, True, True),
        (TEXTS, True, False),
        (ASKS, False, False),
        (Scripted(turns=[words("a")]), True, False),
        (ChatPromptTemplate.from_template("{x}") | Scripted(turns=[words("a")]) | StrOutputParser(), False, False),
        (RunnableLambda(lambda value: value), True, False),
    ],
    ids=["graph", "texts", "model of fields", "chat model", "chain", "anything"],
)
def test_whether_a_text_may_be_sent_is_known_beforehand(runnable: Any, text: bool, messages: bool) -> None:
    agent = Agent("a", runnable)
    assert (agent.takes_text, agent.takes_messages) == (text, messages)


@pytest.mark.parametrize(
    ("label", "shown"),
    [("Thinking hard…", "Thinking hard…"), (None, "Calling named…"), (7, "Calling named…")],
)
def test_a_tool_is_called_by_its_label_or_by_its_name(label: Any, shown: str) -> None:
    assert Agent("a", graph_of(labelled(label))).labels == {"named": shown}


def test_tools_of_subgraphs_are_known_too() -> None:
    outer: Any = StateGraph(MessagesState)
    outer.add_node("deep", graph_of(plain))
    outer.add_node("tools", ToolNode([labelled("N")]))
    outer.add_edge(START, "deep")
    assert Agent("a", outer.compile()).labels == {"plain": "Calling plain…", "named": "N"}


def test_tools_of_langchains_own_agent_are_known() -> None:
    agent = create_agent(Scripted(turns=[words("a")]), [labelled("N"), plain])
    assert Agent("a", agent).labels == {"named": "N", "plain": "Calling plain…"}


def test_a_graph_with_a_checkpointer_is_served_as_a_copy_without_one() -> None:
    graph = graph_of(plain, checkpointer=InMemorySaver())
    agent = Agent("a", graph)
    assert agent.runnable is not graph
    assert getattr(agent.runnable, "checkpointer", "none") is None
    assert graph.checkpointer is not None


def test_a_state_that_cannot_be_described_is_served_all_the_same() -> None:
    class Odd:
        pass

    class State(MessagesState):
        odd: Odd

    agent = Agent("a", graph_of(plain, schema=State))
    (message,) = agent.prepare("hi")["messages"]
    assert message.text == "hi"


# Inputs


@pytest.mark.parametrize("value", [None, "", "  \n", [], {}])
@pytest.mark.parametrize("runnable", [CHATS, TEXTS, ASKS], ids=["chats", "texts", "asks"])
def test_an_empty_input_is_refused(runnable: Any, value: Any) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        Agent("a", runnable).prepare(value)


def test_a_text_is_a_users_message_to_a_graph_of_messages() -> None:
    assert Agent("a", CHATS).prepare("hi") == {"messages": [HumanMessage("hi")]}


def test_a_text_is_a_text_to_what_takes_texts() -> None:
    assert Agent("a", TEXTS).prepare("hi") == "hi"


def test_a_text_is_refused_by_what_takes_fields() -> None:
    with pytest.raises(InvalidInput, match="GET /agents"):
        Agent("a", ASKS).prepare("hi")


def test_an_object_of_the_schema_passes_as_it_is() -> None:
    value = {"text": "hi", "times": 2}
    assert Agent("a", ASKS).prepare(value) is value


@pytest.mark.parametrize(
    ("value", "field"),
    [({"times": 2}, "input.text"), ({"text": 7}, "input.text"), ({"text": "a", "times": "x"}, "input.times"),
     ({"text": "rude"}, "input.text"), ([1], "input")],
)  # fmt: skip
def test_a_wrong_field_is_named(value: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Agent("a", ASKS).prepare(value)
    assert [one["field"] for one in caught.value.detail] == [field]


def test_a_schema_that_breaks_on_an_input_refuses_it() -> None:
    with pytest.raises(InvalidInput) as caught:
        Agent("a", ASKS).prepare({"text": "odd"})
    assert "secret" not in str(caught.value.body())


@pytest.mark.parametrize(
    "value",
    [
        {"lc": 1, "type": "constructor", "id": ["os"], "kwargs": {}},
        {"messages": [{"role": "user", "content": [{"lc": 1, "type": "secret", "id": ["KEY"]}]}]},
        {"messages": "hi", "extra": ({"lc": 2, "type": "not_implemented"},)},
    ],
)
def test_serialized_objects_are_refused_wherever_they_hide(value: Any) -> None:
    with pytest.raises(InvalidInput, match="'lc'"):
        Agent("a", CHATS).prepare(value)


def test_an_input_deeper_than_its_bound_is_refused() -> None:
    value: Any = "bottom"
    for _ in range(MAX_INPUT_DEPTH + 2):
        value = [value]
    with pytest.raises(InvalidInput, match="deeper"):
        Agent("a", CHATS).prepare({"messages": "hi", "extra": value})


def test_preparing_an_input_leaves_it_as_it_was() -> None:
    value = {"messages": [{"role": "user", "content": "hi"}]}
    Agent("a", CHATS).prepare(value)
    assert value == {"messages": [{"role": "user", "content": "hi"}]}


class Counted(MessagesState):
    count: int


class Strict(BaseModel):
    messages: list[Any]
    count: int


@pytest.mark.parametrize("value", ["hi", {"messages": "hi"}, {"count": 1}, {"messages": "hi", "count": 1}])
def test_a_part_of_a_graphs_state_is_an_input(value: Any) -> None:
    prepared = Agent("a", graph_of(plain, schema=Counted)).prepare(value)
    assert set(prepared) == ({"messages"} if value == "hi" else set(value))


@pytest.mark.parametrize(
    ("schema", "value", "fields"),
    [
        (Counted, {"colour": "red"}, ["input.messages", "input.count"]),
        (Counted, {"messages": "hi", "count": "x"}, ["input.count"]),
        (Strict, "hi", ["input.count"]),
    ],
)
def test_what_a_graph_could_not_begin_with_is_refused(schema: Any, value: Any, fields: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        Agent("a", graph_of(schema=schema)).prepare(value)
    assert [one["field"] for one in caught.value.detail] == fields


# Messages


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("hi", [HumanMessage]),
        ({"role": "user", "content": "hi"}, [HumanMessage]),
        (["user", "hi"], [HumanMessage]),
        (("ai", "hi"), [AIMessage]),
        ([["user", "hi"], ["assistant", "ho"]], [HumanMessage, AIMessage]),
        ([{"type": "human", "content": "hi"}], [HumanMessage]),
        ([{"role": "system", "content": "be kind"}, "hi"], [SystemMessage, HumanMessage]),
        ([{"role": "developer", "content": "be kind"}], [SystemMessage]),
        ([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], [HumanMessage]),
        ([{"role": "assistant", "content": ""}], [AIMessage]),
        ([{"role": "assistant", "content": None}], [AIMessage]),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], [ToolMessage]),
        ([HumanMessage("hi")], [HumanMessage]),
    ],
)
def test_messages_are_read_as_clients_write_them(value: Any, kinds: list[type[BaseMessage]]) -> None:
    assert [type(message) for message in read_messages(value)] == kinds


def test_the_calls_and_the_id_of_an_assistants_message_are_kept() -> None:
    call = {"name": "f", "args": {"x": 1}, "id": "c", "type": "tool_call"}
    (message,) = read_messages([{"role": "assistant", "content": "", "tool_calls": [call], "id": "m"}])
    assert isinstance(message, AIMessage)
    assert (message.id, message.tool_calls) == ("m", [call])


def test_what_the_assistant_said_before_has_an_id_by_which_it_is_known_again() -> None:
    first, second = read_messages([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert first.id
    assert second.id
    assert first.id != second.id


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "input.messages"),
        (7, "input.messages[0]"),
        ([None], "input.messages[0]"),
        ([{"role": "robot", "content": "x"}], "input.messages[0].role"),
        ([{"role": None, "content": "x"}], "input.messages[0].role"),
        ([{"role": [], "content": "x"}], "input.messages[0].role"),
        ([{"role": {"a": 1}, "content": "x"}], "input.messages[0].role"),
        ([{"content": "x"}], "input.messages[0].role"),
        (["hi", {"role": "user", "content": ""}], "input.messages[1].content"),
        ([{"role": "user"}], "input.messages[0].content"),
        ([{"role": "user", "content": 7}], "input.messages[0].content"),
        ([{"role": "user", "content": [7]}], "input.messages[0]"),
        ([{"role": "tool", "content": "x"}], "input.messages[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": "all"}], "input.messages[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": [7]}], "input.messages[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"name": 7}]}], "input.messages[0]"),
        ([{"role": "user", "content": "x", "id": {}}], "input.messages[0]"),
        ([{"role": "user", "content": "x", "name": []}], "input.messages[0]"),
        ([{"role": "user", "content": "x", "additional_kwargs": 7}], "input.messages[0]"),
    ],
)
def test_a_message_that_cannot_be_read_is_named(value: Any, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_messages(value)
    assert [one["field"] for one in caught.value.detail] == [field]


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(sorted(ROLES))
NAMES = st.sampled_from(
    ["role", "type", "content", "name", "id", "tool_calls", "tool_call_id", "additional_kwargs", "args", "text", "lc",
     "artifact", "status", "usage_metadata", "response_metadata", "example", "function", "arguments", "image_url"]
)  # fmt: skip
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=15
)
# Near what clients write.
MESSAGES: st.SearchStrategy[Any] = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(sorted(ROLES)), "content": JSON}, optional={
        "tool_calls": JSON, "tool_call_id": JSON, "id": JSON, "name": JSON, "additional_kwargs": JSON,
        "response_metadata": JSON, "usage_metadata": JSON, "status": JSON, "artifact": JSON,
    }), min_size=1, max_size=2,
)  # fmt: skip


def refusal(call: Callable[[], Any]) -> InvalidInput | None:
    try:
        call()
    except InvalidInput as refused:
        return refused
    return None


@settings(max_examples=300, deadline=None)
@given(JSON | MESSAGES)
def test_any_json_is_messages_or_refused_by_field(value: Any) -> None:
    refused = refusal(lambda: read_messages(value))
    assert refused is None or refused.detail[0]["field"].startswith("input.messages")


@pytest.mark.parametrize("runnable", [CHATS, TEXTS, ASKS], ids=["chats", "texts", "asks"])
def test_any_json_is_an_input_or_refused_by_field(runnable: Any) -> None:
    agent = Agent("a", runnable)

    @settings(max_examples=100, deadline=None)
    @given(JSON | MESSAGES.map(lambda messages: {"messages": messages}))
    def law(value: Any) -> None:
        refused = refusal(lambda: agent.prepare(value))
        assert refused is None or refused.detail[0]["field"].startswith("input")

    law()
