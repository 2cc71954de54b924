"""Structured answers of users' own agents, over real HTTP: told while they are written, whole in the result."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from graphs import openai
from httpx_sse import ServerSentEvent, aconnect_sse
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langserve import RemoteRunnable
from pydantic import BaseModel
from serving import Served, serving
from typing_extensions import TypedDict

from app.simulator.server import Simulator


class Trip(BaseModel):
    """A journey."""

    start: str
    end: str
    days: int
    notes: list[str]


class State(TypedDict, total=False):
    text: str
    structured_response: dict[str, Any]


def fills(base_url: str, method: Any) -> Any:
    """A graph of a user's own that answers with an object."""
    model = openai(base_url, stream_usage=True).with_structured_output(Trip.model_json_schema(), method=method)

    async def fill(state: State) -> State:
        answer = await model.ainvoke([HumanMessage(state["text"])])
        return {"structured_response": answer}

    graph = StateGraph(State)
    graph.add_node("fill", fill)
    graph.add_edge(START, "fill")
    return graph.compile()


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    url, model = provider.base_url, openai(provider.base_url, stream_usage=True)
    trip = {"title": "Trip", "description": "A journey.", **Trip.model_json_schema()}
    agents = {
        "by-call": fills(url, "function_calling"),
        "by-text": fills(url, "json_schema"),
        "chain": RunnableLambda(lambda text: [HumanMessage(text)])
        | model.with_structured_output(trip, method="json_schema"),
        "tool-strategy": create_agent(model, [], response_format=ToolStrategy(trip)),
        "provider-strategy": create_agent(model, [look_up], response_format=ProviderStrategy(trip)),
    }
    with serving(agents, strict=True) as one:
        yield one


async def run(client: httpx.AsyncClient, agent: str, value: Any) -> list[ServerSentEvent]:
    async with aconnect_sse(client, "POST", f"/agents/{agent}/runs", json={"input": value}) as source:
        source.response.raise_for_status()
        return [event async for event in source.aiter_sse()]


def named(events: list[ServerSentEvent], name: str) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events if event.event == name]


async def result(client: httpx.AsyncClient, events: list[ServerSentEvent]) -> Any:
    run_id = named(events, "run.started")[0]["run_id"]
    return (await client.get(f"/runs/{run_id}/result", params={"wait": "true"})).json()


def fits(value: Any) -> bool:
    return isinstance(Trip.model_validate(value), Trip)


@tool
async def look_up(word: str) -> str:
    """Look a word up."""
    return word


def built(fields: list[dict[str, Any]]) -> Any:
    """The object that the fields make; Trip is flat but for its notes."""
    made: dict[str, Any] = {}
    for field in fields:
        key, *rest = field["path"]
        if rest:
            made.setdefault(key, []).append(field["value"])
        else:
            made[key] = field["value"]
    return made


INPUTS: dict[str, Any] = {
    "by-call": {"text": "From Oslo to Rome in 12 days."},
    "by-text": {"text": "From Oslo to Rome in 12 days."},
    "chain": "From Oslo to Rome in 12 days.",
    "provider-strategy": "From Oslo to Rome in 12 days.",
}


@pytest.mark.parametrize("agent", INPUTS)
async def test_the_fields_come_one_by_one_and_are_the_result_in_the_end(client: httpx.AsyncClient, agent: str) -> None:
    events = await run(client, agent, INPUTS[agent])
    fields, partials = named(events, "object.field"), named(events, "object.partial")
    made = (await result(client, events))["object"]
    assert fits(made)
    assert built(fields) == partials[-1]["value"] == made
    assert len(partials) > 2
    assert not named(events, "token")
    assert not named(events, "tool.pending")
    assert named(events, "run.finished")[0]["ttft_ms"] is not None


async def test_an_object_that_an_agent_makes_by_a_tool_is_in_the_result_too(client: httpx.AsyncClient) -> None:
    events = await run(client, "tool-strategy", "From Oslo to Rome in 12 days.")
    assert [one["status"] for one in named(events, "tool.finished")] == ["ok"]
    assert fits((await result(client, events))["object"])


@pytest.mark.parametrize("agent", ["by-call", "by-text", "chain"])
async def test_a_run_that_is_cancelled_keeps_the_object_as_far_as_it_came(
    client: httpx.AsyncClient, agent: str
) -> None:
    value = {"text": "[[stall_after=20]] From Oslo to Rome."}
    async with aconnect_sse(
        client, "POST", f"/agents/{agent}/runs", json={"input": value["text"] if agent == "chain" else value}
    ) as source:
        events = []
        async for event in source.aiter_sse():
            events.append(event)
            if event.event == "object.field":
                run_id = named(events, "run.started")[0]["run_id"]
                await client.post(f"/runs/{run_id}/cancel")
    whole = await result(client, events)
    assert whole["status"] == "cancelled"
    field = named(events, "object.field")[0]
    assert whole["object"][field["path"][0]] == field["value"]


async def test_langserves_stream_yields_the_same_partial_objects(server: Served, client: httpx.AsyncClient) -> None:
    remote: Any = RemoteRunnable(f"{server.url}/agents/by-text")
    chunks = [chunk["fill"]["structured_response"] async for chunk in remote.astream(INPUTS["by-text"])]
    partials = [one["value"] for one in named(await run(client, "by-text", INPUTS["by-text"]), "object.partial")]
    assert chunks == [*partials, partials[-1]]  # what the node returns comes last


async def test_langserves_other_calls_are_as_ever(server: Served) -> None:
    remote: Any = RemoteRunnable(f"{server.url}/agents/by-call")
    whole = await remote.ainvoke(INPUTS["by-call"])
    assert fits(whole["structured_response"])
    names = [one["event"] async for one in remote.astream_events(INPUTS["by-call"], version="v2")]
    assert names[-1] == "on_chain_end"


async def test_two_readers_are_told_the_same_object(client: httpx.AsyncClient) -> None:
    started = (await client.post("/agents/by-text/runs", json={"input": INPUTS["by-text"]})).json()

    async def read() -> list[tuple[str, str]]:
        async with aconnect_sse(client, "GET", f"/runs/{started['run_id']}/events") as source:
            return [(event.id, event.data) async for event in source.aiter_sse() if event.event.startswith("object.")]

    first, second = await asyncio.gather(read(), read())
    assert first == second
    assert first
