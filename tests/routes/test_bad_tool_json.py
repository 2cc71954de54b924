"""A model that breaks its tool calls, over real HTTP: each run ends in a right answer or in the error that has a name.

The grammar is checked as the runs go (``strict``): an event out of order would fail the run.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models import BaseChatModel
from serving import Served, serving
from typing_extensions import override

from app.runs.agent import Agent
from app.simulator.server import Simulator
from chains.assistant import build_assistant
from chains.models import build_model
from tools.calculator import build_calculator

QUESTION = "What is 6*7 and what is 3+4?"
RIGHT = ("6*7 = 42", "3+4 = 7")

MENDED = {
    "bad_json=trailing_comma": [("tool.repaired", "not_json")] * 2,
    "bad_json=mismatched": [("tool.repaired", "not_json")] * 2,
    "bad_json=mismatched&bad_call=2": [("tool.repaired", "not_json")],
    "dup_ids=1": [("tool.repaired", "repeated_id")],
    "no_ids=1": [("tool.repaired", "no_id")] * 2,
    "twice_named=1": [("tool.repaired", "unknown_tool")] * 2,
}
"""What is mended for certain, and the recoveries that are told: two calls are made, side by side."""

REFUSED = {
    "bad_json=cut_string": [("tool.refused", "not_json")] * 2,
    "bad_json=cut_string&bad_call=1": [("tool.refused", "not_json")],
    "bad_json=wrong_type": [("tool.refused", "schema")] * 2,
    "bad_json=empty": [("tool.refused", "schema")] * 2,
    "unknown_tool=1": [("tool.refused", "unknown_tool")],
}
"""What the model has to make again."""

PIECES = ("fragments", "lump=1", "byte_by_byte=1")

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    with serving(openai_base_url=provider.base_url, run_timeout_s=60) as one:
        model: BaseChatModel = build_model("openai:simulated", base_url=provider.base_url)
        model = model.model_copy(update={"disable_streaming": True})
        unstreamed = Agent("unstreamed", build_assistant(model, [build_calculator()]))
        graph = build_assistant(build_model("openai:simulated", base_url=provider.base_url), [build_calculator()])
        stopped = Agent("stopped", graph.with_config(callbacks=[StopsBeforeCheck()]))
        one.runner.agents = {**one.runner.agents, "unstreamed": unstreamed, "stopped": stopped}
        yield one


class StopsBeforeCheck(AsyncCallbackHandler):
    """Holds a run with a directive where the model's message is kept and not yet judged, until it is cancelled."""

    @override
    async def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        if kwargs.get("name") == "check" and "[[" in inputs["messages"][-2].text:
            await asyncio.Event().wait()


async def ask(client: httpx.AsyncClient, text: str, agent: str = "assistant", **options: Any) -> Told:
    async with aconnect_sse(client, "POST", f"/agents/{agent}/runs", json={"input": text, **options}) as source:
        return [(event.event, json.loads(event.data)) async for event in source.aiter_sse()]


def told(events: Told, name: str) -> list[dict[str, Any]]:
    return [data for event, data in events if event == name]


def only(events: Told, name: str) -> dict[str, Any]:
    (one,) = told(events, name)
    return one


def recoveries(events: Told) -> list[tuple[str, str]]:
    return [(data["name"], data["data"]["problem"]) for data in told(events, "custom")]


def every_call_has_its_result(events: Told) -> None:
    pending = [data["call_id"] for data in told(events, "tool.pending")]
    finished = [data["call_id"] for data in told(events, "tool.finished")]
    assert len(pending) == len(set(pending))
    assert sorted(finished) == sorted(pending)


def answer(events: Told) -> str:
    return "".join(data["text"] for data in told(events, "token"))


async def the_next_question_works(client: httpx.AsyncClient, thread: str, agent: str = "assistant") -> None:
    events = await ask(client, QUESTION, agent, thread_id=thread)
    assert only(events, "run.finished")["status"] == "completed"
    assert all(one in answer(events) for one in RIGHT)


def directive(*parts: str) -> str:
    return f"[[{'&'.join(part for part in parts if '=' in part)}]] {QUESTION}"


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("call", ["once", "call=all"])
@pytest.mark.parametrize("fault", MENDED)
async def test_what_is_certain_is_mended_and_the_answer_is_right(
    client: httpx.AsyncClient, fault: str, call: str, pieces: str
) -> None:
    thread = f"{fault} {call} {pieces}"
    events = await ask(client, directive(fault, call, pieces), thread_id=thread)
    assert only(events, "run.finished")["status"] == "completed"
    assert all(one in answer(events) for one in RIGHT)
    assert recoveries(events) == MENDED[fault]
    assert [data["status"] for data in told(events, "tool.finished")] == ["ok", "ok"]
    every_call_has_its_result(events)
    await the_next_question_works(client, thread)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("fault", REFUSED)
async def test_what_is_not_certain_is_made_again_and_the_answer_is_right(
    client: httpx.AsyncClient, fault: str, pieces: str
) -> None:
    thread = f"{fault} {pieces}"
    events = await ask(client, directive(fault, pieces), thread_id=thread)
    assert only(events, "run.finished")["status"] == "completed"
    assert all(one in answer(events) for one in RIGHT)
    assert recoveries(events) == REFUSED[fault]
    statuses = sorted(data["status"] for data in told(events, "tool.finished"))
    assert statuses == ["error"] * len(REFUSED[fault]) + ["ok", "ok"]
    every_call_has_its_result(events)
    await the_next_question_works(client, thread)


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("fault", REFUSED)
async def test_a_model_that_never_learns_ends_in_the_named_error(
    client: httpx.AsyncClient, fault: str, pieces: str
) -> None:
    thread = f"{fault} {pieces} each time"
    events = await ask(client, directive(fault, "call=all", pieces), thread_id=thread)
    assert [name for name, _ in events][-2:] == ["error", "run.finished"]
    error, finished = only(events, "error"), only(events, "run.finished")
    assert (error["code"], finished["status"], finished["reason"]) == (
        "invalid_tool_args",
        "failed",
        "invalid_tool_args",
    )
    assert "4 times in a row" in error["message"]
    assert {data["data"]["attempt"] for data in told(events, "custom") if data["name"] == "tool.refused"} == {1, 2, 3}
    every_call_has_its_result(events)
    await the_next_question_works(client, thread)


@pytest.mark.parametrize("fault", [*MENDED, *REFUSED])
async def test_a_model_that_does_not_stream_recovers_as_well(client: httpx.AsyncClient, fault: str) -> None:
    events = await ask(client, directive(fault), "unstreamed", thread_id=f"{fault} unstreamed")
    assert only(events, "run.finished")["status"] == "completed"
    assert all(one in answer(events) for one in RIGHT)
    assert sorted(recoveries(events)) == sorted({**MENDED, **REFUSED}[fault])
    await the_next_question_works(client, f"{fault} unstreamed", "unstreamed")


@pytest.mark.parametrize("fault", [*MENDED, *REFUSED])
async def test_calls_that_a_cancel_left_unjudged_are_none_that_the_next_turn_is_refused_for(
    client: httpx.AsyncClient, fault: str
) -> None:
    thread = f"{fault} cancelled"
    request = {"input": directive(fault, "call=all"), "thread_id": thread}
    async with aconnect_sse(client, "POST", "/agents/stopped/runs", json=request) as source:
        async for event in source.aiter_sse():
            if event.event == "node.started" and event.json()["node"] == "check":
                await client.post(f"/runs/{source.response.headers['x-run-id']}/cancel")
    assert event.json()["status"] == "cancelled"
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    made = [call["id"] for name in ("tool_calls", "invalid_tool_calls") for call in messages[1][name]]
    assert len(made) >= 2
    assert all(made)
    assert {one["tool_call_id"]: one["status"] for one in messages[2:]} == dict.fromkeys(made, "error")
    await the_next_question_works(client, thread, "stopped")


async def test_a_recovery_names_its_call_by_an_id_that_readers_know(client: httpx.AsyncClient) -> None:
    events = await ask(client, directive("bad_json=cut_string&bad_call=1"))
    (refused,) = [data["data"] for data in told(events, "custom")]
    failed = next(data for data in told(events, "tool.finished") if data["status"] == "error")
    assert refused["call_id"] == failed["call_id"] == told(events, "tool.pending")[0]["call_id"]
    assert "Call calculator again" in failed["output"]


async def test_a_call_that_was_cut_by_the_token_limit_is_never_made(client: httpx.AsyncClient) -> None:
    events = await ask(client, QUESTION, max_tokens=1, thread_id="cut")
    assert only(events, "error")["code"] == "invalid_tool_args"
    assert not told(events, "tool.started")
    assert "token limit" in told(events, "tool.finished")[-1]["output"]
    await the_next_question_works(client, "cut")


async def test_the_conversation_is_kept_as_providers_take_it(client: httpx.AsyncClient) -> None:
    await ask(client, directive("bad_json=cut_string&no_ids=1&call=all"), thread_id="kept")
    messages = (await client.get("/threads/kept")).json()["messages"]
    calls = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    assert len(calls) == len(set(calls)) == 8
    assert not any(message.get("invalid_tool_calls") for message in messages)
    assert [message["tool_call_id"] for message in messages if message["type"] == "tool"] == calls
