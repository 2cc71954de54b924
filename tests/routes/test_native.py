"""The native protocol over real HTTP: a run is started, followed, fetched, cancelled."""

import json
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from serving import Served

STREAM = {"Accept": "text/event-stream"}


async def run(client: httpx.AsyncClient, agent: str, body: Any) -> list[ServerSentEvent]:
    async with aconnect_sse(client, "POST", f"/agents/{agent}/runs", json=body) as source:
        source.response.raise_for_status()
        return [event async for event in source.aiter_sse()]


def named(events: list[ServerSentEvent], name: str) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events if event.event == name]


async def test_an_answer_arrives_token_by_token_and_ends_with_its_usage(client: httpx.AsyncClient) -> None:
    events = await run(client, "chat", {"input": "[[tokens=12]] Tell me something."})
    assert events[0].event == "run.started"
    assert events[-1].event == "run.finished"
    assert [event.event for event in events].count("run.finished") == 1
    assert [int(event.id) for event in events] == list(range(1, len(events) + 1))
    assert len(named(events, "token")) == 12
    finished = named(events, "run.finished")[0]
    assert finished["status"] == "completed"
    assert finished["usage"]["output_tokens"] == 12
    assert not finished["usage"]["estimated"]
    assert finished["ttft_ms"] is not None


async def test_a_question_with_three_parts_runs_three_tools_at_once(client: httpx.AsyncClient) -> None:
    question = "What time is it in Tokyo, what is 17*23, and search the docs for cancel?"
    events = await run(client, "assistant", {"input": question})
    pending = named(events, "tool.pending")
    assert {one["name"] for one in pending} == {"clock", "calculator", "search_documents"}
    assert all(one["label"].endswith("…") for one in pending)
    order = [event.event for event in events]
    assert order.index("tool.pending") < order.index("tool.args") < order.index("tool.started")
    starts = [place for place, name in enumerate(order) if name == "tool.started"]
    first_answer = order.index("token")
    assert max(starts) < first_answer
    finished = named(events, "tool.finished")
    assert {one["call_id"] for one in finished} == {one["call_id"] for one in pending}
    assert {one["status"] for one in finished} == {"ok"}
    answer = "".join(one["text"] for one in named(events, "token"))
    assert "391" in answer
    assert len(named(events, "usage")) == 2


async def test_arguments_in_fragments_add_up_to_what_the_tool_was_started_with(client: httpx.AsyncClient) -> None:
    events = await run(client, "assistant", {"input": "What is 17*23, and what is 6*7?"})
    started = {one["call_id"]: one["args"] for one in named(events, "tool.started")}
    assert len(started) == 2
    for call_id, args in started.items():
        pieces = [one for one in named(events, "tool.args") if one["call_id"] == call_id]
        assert json.loads("".join(piece["delta"] for piece in pieces)) == args
        assert pieces[-1]["args"] == args


async def test_the_stream_has_the_headers_that_keep_proxies_from_holding_it_back(client: httpx.AsyncClient) -> None:
    async with client.stream("POST", "/agents/chat/runs", json={"input": "hello"}, headers=STREAM) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        run_id = response.headers["x-run-id"]
        assert response.headers["content-location"] == f"/runs/{run_id}"
        assert "content-length" not in response.headers
        lines = [line async for line in response.aiter_lines()]
    assert lines[0] == "retry: 1000"


async def test_a_run_in_the_background_is_answered_at_once_and_can_be_waited_for(client: httpx.AsyncClient) -> None:
    started = await client.post("/agents/chat/runs", json={"input": "[[tokens=20]] hello"})
    assert started.status_code == 202
    run_id = started.json()["run_id"]
    assert (await client.get(f"/runs/{run_id}/result")).json()["error"]["code"] == "run_not_finished"
    result = (await client.get(f"/runs/{run_id}/result", params={"wait": "true"})).json()
    assert result["status"] == "completed"
    assert result["usage"]["output_tokens"] == 20
    row = (await client.get(f"/runs/{run_id}")).json()
    assert (row["agent"], row["status"], row["usage"]["output_tokens"]) == ("chat", "completed", 20)
    assert run_id in [one["run_id"] for one in (await client.get("/runs")).json()["runs"]]


async def test_a_late_reader_reads_the_same_run_from_where_it_says(client: httpx.AsyncClient) -> None:
    events = await run(client, "chat", {"input": "[[tokens=8]] hello"})
    run_id = json.loads(events[0].data)["run_id"]
    half = len(events) // 2
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events", headers={"Last-Event-ID": str(half)}) as source:
        rest = [event async for event in source.aiter_sse()]
    assert [(event.id, event.event, event.data) for event in rest] == [
        (event.id, event.event, event.data) for event in events[half:]
    ]
    nothing = await client.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": str(len(events))})
    assert nothing.status_code == 204


async def test_the_result_is_the_text_that_was_streamed(client: httpx.AsyncClient) -> None:
    for agent in ("chat", "assistant"):
        events = await run(client, agent, {"input": "What is 6*7?"})
        run_id = json.loads(events[0].data)["run_id"]
        last = named(events, "message.started")[-1]["message_id"]
        text = "".join(one["text"] for one in named(events, "token") if one["message_id"] == last)
        result = (await client.get(f"/runs/{run_id}/result")).json()
        assert result["text"] == text
        assert result["message"]["id"] == last


async def test_an_idempotency_key_attaches_a_repeated_start_to_the_first_run(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-77"}
    one = await client.post("/agents/chat/runs", json={"input": "hello"}, headers=headers)
    two = await client.post("/agents/chat/runs", json={"input": "hello"}, headers=headers)
    assert one.json()["run_id"] == two.json()["run_id"]


async def test_the_agents_tell_what_they_take(client: httpx.AsyncClient) -> None:
    agents = {one["name"]: one for one in (await client.get("/agents")).json()["agents"]}
    assert {"chat", "assistant"} <= agents.keys()
    assert agents["assistant"]["capabilities"]["messages"]
    assert "calculator" in agents["assistant"]["capabilities"]["tools"]
    assert "messages" in agents["assistant"]["input_schema"]["properties"]


@pytest.mark.parametrize(
    "body",
    [
        {"input": "What is 6*7?"},
        {"input": {"messages": "What is 6*7?"}},
        {"input": {"messages": ["user", "What is 6*7?"]}},
        {"input": {"messages": [["user", "What is 6*7?"]]}},
        {"input": {"messages": [{"role": "user", "content": "What is 6*7?"}]}},
        {"input": {"messages": [{"type": "human", "content": "What is 6*7?"}]}},
        {"input": {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is 6*7?"}]}]}},
    ],
)
async def test_a_question_may_be_written_in_any_of_the_usual_forms(client: httpx.AsyncClient, body: Any) -> None:
    events = await run(client, "assistant", body)
    assert named(events, "run.finished")[0]["status"] == "completed"
    assert "42" in "".join(one["text"] for one in named(events, "token"))


async def test_another_users_run_looks_like_none(served: Served) -> None:
    async with httpx.AsyncClient(base_url=served.url) as mine:
        run_id = (await mine.post("/agents/chat/runs", json={"input": "hello"})).json()["run_id"]
    transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
    async with httpx.AsyncClient(base_url=served.url, transport=transport) as other:
        for path in ("", "/events", "/result"):
            assert (await other.get(f"/runs/{run_id}{path}")).status_code == 404
        assert (await other.post(f"/runs/{run_id}/cancel")).status_code == 404
        assert run_id not in [one["run_id"] for one in (await other.get("/runs")).json()["runs"]]
