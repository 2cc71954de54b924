"""Real clients against the real wire: ``openai`` and LangChain's ``ChatOpenAI``, both ways of calling each."""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from app.simulator.server import Simulator

THREE = "What time is it in Tokyo, what is 17*23, and what's the weather in Oslo?"


@tool
def calculator(expression: str) -> str:
    """Work out an expression."""
    return str({"17*23": 391}[expression])


@tool
def clock(zone: str = "UTC") -> str:
    """Tell the time."""
    return f"12:00 in {zone}"


@tool
def weather(place: str) -> str:
    """Look up the weather."""
    return f"It is raining in {place}."


TOOLS = [calculator, clock, weather]


class Stop(BaseModel):
    """A stop of a tour."""

    city: str
    nights: int


class Tour(BaseModel):
    """A tour."""

    title: str
    stops: list[Stop]
    budget: float | None
    style: Literal["slow", "fast"]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def summed(chunks: Sequence[AIMessage]) -> AIMessageChunk:
    """The chunks of a stream added up, as LangChain's users do it."""
    total, *others = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    return total.__add__(others)


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["simulated"]


def test_the_stream_joined_is_the_answer_and_the_usage_counts_its_chunks(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="simulated", messages=[{"role": "user", "content": "hello"}])
    stream = client.chat.completions.create(
        model="simulated",
        messages=[{"role": "user", "content": "hello"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert text_of(chunks) == whole.choices[0].message.content
    assert len({(chunk.created, chunk.id, chunk.model) for chunk in chunks}) == 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(chunks) - 3  # all but the role, the end and the usage
    assert whole.usage is not None
    assert whole.usage.model_dump() == chunks[-1].usage.model_dump()


async def test_the_asynchronous_client_gets_the_same(async_client: openai.AsyncOpenAI) -> None:
    stream = await async_client.chat.completions.create(
        model="simulated", messages=[{"role": "user", "content": "count to 20"}], stream=True
    )
    chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == ", ".join(map(str, range(1, 21))) + "."
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_one_connection_serves_many_requests(client: openai.OpenAI, simulator: Simulator) -> None:
    for _ in range(5):
        client.chat.completions.create(model="simulated", messages=[{"role": "user", "content": "hello"}])
    assert [connection.requests for connection in simulator.connections] == [5]


def test_an_error_is_the_clients_own_exception(client: openai.OpenAI) -> None:
    illegal: Any = [{"role": "tool", "tool_call_id": "x", "content": "y"}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="simulated", messages=illegal)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == "messages"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="simulated", input="x")


def test_chat_openai_streams_text_with_usage(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat()
    total = summed(list(model.stream("count to 30")))
    assert total.text == model.invoke("count to 30").text
    assert total.usage_metadata is not None
    assert total.usage_metadata["output_tokens"] == 60
    assert total.usage_metadata["input_tokens"] == 6
    assert total.response_metadata["model_name"] == "simulated"


async def test_chat_openai_streams_asynchronously(async_chat: ChatOpenAI) -> None:
    chunks = [chunk.text async for chunk in async_chat.astream("count to 30")]
    assert "".join(chunks) == (await async_chat.ainvoke("count to 30")).text
    assert len([chunk for chunk in chunks if chunk]) == 60


def test_three_parts_become_three_tool_calls_whose_fragments_sum_up(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat().bind_tools(TOOLS)
    chunks = list(model.stream(THREE))
    total = summed(chunks)
    whole = model.invoke(THREE)
    assert [(call["name"], call["args"], call["id"]) for call in total.tool_calls] == [
        (call["name"], call["args"], call["id"]) for call in whole.tool_calls
    ]
    assert {call["name"]: call["args"] for call in whole.tool_calls} == {
        "clock": {"zone": "Asia/Tokyo"},
        "calculator": {"expression": "17*23"},
        "weather": {"place": "Oslo"},
    }
    parts = [part for chunk in chunks if isinstance(chunk, AIMessageChunk) for part in chunk.tool_call_chunks]
    order = [part["index"] for part in parts if not part["id"]]
    assert order[:3] == [0, 1, 2], "the arguments of parallel calls come interleaved"


def test_the_results_of_the_tools_become_one_answer(chat: Callable[..., ChatOpenAI]) -> None:
    model = chat().bind_tools(TOOLS)
    first = model.invoke(THREE)
    by_name = {one.name: one for one in TOOLS}
    results = [by_name[call["name"]].invoke(call) for call in first.tool_calls]
    assert all(isinstance(result, ToolMessage) for result in results)
    last = model.invoke([HumanMessage(THREE), first, *results])
    assert not last.tool_calls
    for found in ("12:00 in Asia/Tokyo", "17*23 = 391", "It is raining in Oslo."):
        assert found in last.text


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_asked_type(
    chat: Callable[..., ChatOpenAI], method: Literal["json_schema", "function_calling"]
) -> None:
    question = "A slow tour, 3 nights in Lisbon and 2 in Porto"
    model = chat().with_structured_output(Tour, method=method)
    tour = model.invoke(question)
    assert isinstance(tour, Tour)
    assert tour.style == "slow"
    assert [stop.nights for stop in tour.stops] == [3, 2]


def test_a_schema_as_json_gives_a_dict(chat: Callable[..., ChatOpenAI]) -> None:
    schema = {"title": "Point", "type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    model = chat().with_structured_output(schema)
    assert model.invoke("4.5 metres") == {"x": 4.5}
    assert list(model.stream("4.5 metres"))[-1] == {"x": 4.5}
    assert isinstance(json.loads(chat().bind(response_format={"type": "json_object"}).invoke("json").text), dict)
