"""The extraction's graph on its own: no server, a real provider's wire."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, get_args

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from openai import DefaultAsyncHttpxClient
from orders import ORDER, SCHEMA, TEXT
from pydantic import ValidationError
from scripted import Scripted, Turn

from app.simulator.server import Simulator
from chains.extract import REFUSED_EVENT, InvalidObject, Method, UnsupportedMethod, build_extract
from chains.facts import Facts
from chains.models import build_model
from chains.schema import BadSchema

METHODS: tuple[Method, ...] = get_args(Method)
CITY = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

Graph = CompiledStateGraph[Any, Any, Any, Any]


@pytest.fixture
def graph(model: BaseChatModel) -> Graph:
    return build_extract(model)


def asked(text: str, **more: Any) -> Any:
    return {"messages": [HumanMessage(text)], **more}


class Told:
    """What a run of the graph tells while it goes: refusals, nodes, and the object it ends with."""

    def __init__(self) -> None:
        self.refused: list[dict[str, Any]] = []
        self.nodes: list[str] = []
        self.output: dict[str, Any] = {}
        self.error: Exception | None = None

    async def of(self, graph: Graph, value: dict[str, Any]) -> "Told":
        try:
            async for event in graph.astream_events(value, version="v2"):
                self._hear(event)
        except Exception as error:
            self.error = error
        return self

    def _hear(self, event: Any) -> None:
        if event["event"] == "on_custom_event" and event["name"] == REFUSED_EVENT:
            self.refused.append(event["data"])
        if event["event"] == "on_chain_start" and event["name"] == event["metadata"].get("langgraph_node"):
            self.nodes.append(event["name"])
        if event["event"] == "on_chain_end" and not event["parent_ids"]:
            self.output = event["data"]["output"]


@pytest.mark.parametrize("method", METHODS)
async def test_an_object_of_thirty_fields_is_found_whichever_way_the_model_is_asked(
    graph: Graph, method: Method
) -> None:
    found = await graph.ainvoke(asked(TEXT, schema=SCHEMA, method=method))
    assert found["structured_response"] == ORDER
    assert found.keys() == {"messages", "structured_response"}
    said = found["messages"][-1]
    assert isinstance(said, AIMessage)
    assert said.tool_calls == []
    assert said.usage_metadata is not None


@pytest.mark.parametrize("method", METHODS)
async def test_without_a_schema_the_facts_of_the_text_are_found(graph: Graph, method: Method) -> None:
    text = "Ada Lovelace met Charles Babbage in London. [[tokens_per_second=0]]"
    found = Facts.model_validate((await graph.ainvoke(asked(text, method=method)))["structured_response"])
    assert [person.name for person in found.people] == ["Ada Lovelace", "Charles Babbage"]
    assert "[[" not in found.model_dump_json()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["trailing_comma", "mismatched"])
async def test_what_can_be_mended_for_certain_is_and_the_model_is_not_asked_again(
    graph: Graph, method: Method, kind: str
) -> None:
    told = await Told().of(graph, asked(f"[[bad_json={kind}&call=all]] {TEXT}", schema=SCHEMA, method=method))
    assert told.output["structured_response"] == ORDER
    assert (told.nodes, told.refused) == (["extract"], [])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["cut_string", "wrong_type", "empty"])
async def test_what_does_not_fit_is_corrected_once(graph: Graph, method: Method, kind: str) -> None:
    told = await Told().of(graph, asked(f"[[bad_json={kind}]] {TEXT}", schema=SCHEMA, method=method))
    assert told.error is None
    assert told.output["structured_response"] == ORDER
    assert told.nodes == ["extract", "correct"]
    (refused,) = told.refused
    assert (refused["attempt"], refused["attempts"]) == (1, 2)
    assert 1 <= len(refused["problems"]) <= 10
    assert [type(one) for one in told.output["messages"]] == [HumanMessage, AIMessage]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["cut_string", "wrong_type", "empty"])
async def test_what_does_not_fit_again_is_an_error_with_a_name(graph: Graph, method: Method, kind: str) -> None:
    told = await Told().of(graph, asked(f"[[bad_json={kind}&call=all]] {TEXT}", schema=SCHEMA, method=method))
    assert isinstance(told.error, InvalidObject)
    assert told.error.failure_code == "invalid_object"
    assert str(told.error).startswith("The model's answer does not fit the schema Order: ")
    assert [one["attempt"] for one in told.refused] == [1, 2]
    assert told.refused[-1]["problems"] == list(told.error.problems)


@pytest.mark.parametrize("method", METHODS)
async def test_an_answer_that_the_limit_of_tokens_cuts_is_no_object(provider: Simulator, method: Method) -> None:
    async with DefaultAsyncHttpxClient() as client:
        model = build_model("openai:simulated", base_url=provider.base_url, client=client, max_tokens=20)
        told = await Told().of(build_extract(model), asked(TEXT, schema=SCHEMA, method=method))
    assert isinstance(told.error, InvalidObject)
    assert "cut off at the limit of tokens" in str(told.error)
    assert told.nodes == ["extract", "correct"]


@pytest.mark.parametrize("method", METHODS)
async def test_a_plain_text_is_taken_for_the_object_if_it_is_one(graph: Graph, method: Method) -> None:
    told = await Told().of(graph, asked('[[say={"name":"Oslo"}]] Where?', schema=CITY, method=method))
    assert told.output["structured_response"] == {"name": "Oslo"}
    told = await Told().of(graph, asked("[[say=No.]] Where is Oslo?", schema=CITY, method=method))
    assert told.output["structured_response"] == {"name": "Oslo"}
    assert told.nodes == ["extract", "correct"]
    told = await Told().of(graph, asked('[[say=%5B{"name":"Oslo"}%5D&call=all]] Where?', schema=CITY, method=method))
    assert isinstance(told.error, InvalidObject)
    assert "an array, not an object" in str(told.error)


async def test_a_model_that_refuses_is_not_pressed() -> None:
    no = AIMessageChunk(content="", id="m1", additional_kwargs={"refusal": "I will not."})
    model = Heard([[no], [call('{"name": "Oslo"}')]])
    told = await Told().of(build_extract(model), asked("Where?", schema=CITY))
    assert isinstance(told.error, InvalidObject)
    assert "the model refused: I will not." in str(told.error)
    assert [(one["attempt"], one["attempts"]) for one in told.refused] == [(1, 1)]
    assert len(model.heard) == 1


async def test_the_model_is_told_what_was_wrong_with_its_call() -> None:
    model = Heard([[call('{"name": 5}', call_id=None)], [call('{"name": "Oslo"}')]])
    found = await build_extract(model).ainvoke(asked("Where?", schema=CITY))
    assert found["structured_response"] == {"name": "Oslo"}
    *_, said, result = model.heard[1]
    assert isinstance(said, AIMessage)
    assert isinstance(result, ToolMessage)
    assert said.tool_calls[0]["args"] == {"name": 5}
    assert said.tool_calls[0]["id"] == result.tool_call_id
    assert 'name: the value is not of type "string"' in result.text


async def test_each_turn_of_a_conversation_is_a_text_of_its_own(model: BaseChatModel, provider: Simulator) -> None:
    graph = build_extract(model).copy({"checkpointer": InMemorySaver()})
    thread: Any = {"configurable": {"thread_id": "1"}}
    first = await graph.ainvoke(asked("Ada lives in Oslo", schema=CITY), thread)
    assert first["structured_response"] == {"name": "Ada"}
    with pytest.raises(InvalidObject):
        await graph.ainvoke(asked("[[bad_json=cut_string&call=all]] Bob", schema=CITY, method="json_mode"), thread)
    assert "structured_response" not in (await graph.aget_state(thread)).values
    second = await graph.ainvoke(asked("Grace lives in Rome", schema=CITY, method="json_schema"), thread)
    assert second["structured_response"] == {"name": "Grace"}
    third = await graph.ainvoke(asked("Alan lives in Bern"), thread)
    assert third["structured_response"]["people"][0]["name"] == "Alan"
    assert [type(one).__name__ for one in third["messages"]] == [
        *("HumanMessage", "AIMessage") * 4,
    ]
    assert third["messages"][3].text == "(no object)"


async def test_a_turn_sees_nothing_of_the_ones_before() -> None:
    model = Heard([[call('{"name": "Oslo"}')]])
    said: list[AnyMessage] = [HumanMessage("one"), AIMessage("two"), HumanMessage("three"), HumanMessage("four")]
    whole: Any = {"messages": said, "schema": CITY}
    await build_extract(model).ainvoke(whole)
    assert [one.text for one in model.heard[0][1:]] == ["three", "four"]


async def test_a_turn_that_failed_is_not_read_together_with_the_next_one() -> None:
    model = Heard([[RuntimeError("broken off")], [call('{"name": "Oslo"}')]])
    graph = build_extract(model).copy({"checkpointer": InMemorySaver()})
    thread: Any = {"configurable": {"thread_id": "1"}}
    with pytest.raises(RuntimeError):
        await graph.ainvoke(asked("one", schema=CITY), thread)
    whole: Any = {"messages": [HumanMessage("two"), HumanMessage("three")], "schema": CITY}
    await graph.ainvoke(whole, thread)
    assert [one.text for one in model.heard[-1][1:]] == ["two", "three"]


@pytest.mark.parametrize("schema", [{}, {"type": "array"}, {"$ref": "https://example.com/x"}, {"properties": {"a": 1}}])
async def test_a_schema_that_cannot_be_used_reaches_no_model(schema: dict[str, Any]) -> None:
    model = Heard([[call("{}")]])
    graph = build_extract(model)
    with pytest.raises(ValidationError, match=r"schema"):
        graph.get_input_schema().model_validate(asked("Where?", schema=schema))
    with pytest.raises(BadSchema) as error:
        await graph.ainvoke(asked("Where?", schema=schema))
    assert error.value.failure_code == "invalid_schema"
    assert model.heard == []


async def test_a_method_that_the_provider_does_not_know_is_named() -> None:
    graph = build_extract(NoJson(turns=[[]]))
    with pytest.raises(UnsupportedMethod, match="json_mode"):
        await graph.ainvoke(asked("Where?", schema=CITY, method="json_mode"))


def test_it_can_be_called_without_a_loop(provider: Simulator) -> None:
    graph = build_extract(build_model("openai:simulated", base_url=provider.base_url))
    for method in METHODS:
        bad = asked(f"[[bad_json=cut_string]] {TEXT}", schema=SCHEMA, method=method)
        assert graph.invoke(bad)["structured_response"] == ORDER


def test_who_draws_the_graph_sees_the_correction(model: BaseChatModel) -> None:
    edges = {(one.source, one.target) for one in build_extract(model).get_graph().edges}
    assert {("extract", "correct"), ("extract", "__end__"), ("correct", "__end__")} <= edges


# -- models that are told what to say ---------------------------------------------------------------------------------


def call(args: str, call_id: str | None = "c1") -> AIMessageChunk:
    piece: Any = {"name": "City", "args": args, "id": call_id, "index": 0}
    return AIMessageChunk(content="", id="m1", tool_call_chunks=[piece])


class Heard(Scripted):
    """Keeps what it was given."""

    heard: Any = None

    def __init__(self, turns: Sequence[Turn]) -> None:
        super().__init__(turns=list(turns))
        self.heard = []

    async def _astream(self, messages: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.heard.append(messages)
        async for chunk in super()._astream(messages, *args, **kwargs):
            yield chunk


class NoJson(Scripted):
    """Knows calls alone, as some providers do."""

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        if kwargs.get("method") != "function_calling":
            raise ValueError("Unrecognized structured output method")
        return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
