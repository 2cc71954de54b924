"""A provider that fails: the run says how, keeps what came, and has exactly one end."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from graphs import openai
from httpx_sse import ServerSentEvent, aconnect_sse
from serving import Served, serving

from app.simulator.server import Simulator


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    agents = {
        "bare": openai(provider.base_url, stream_usage=True),
        "unreachable": openai("http://127.0.0.1:1/v1"),
        "unstreamed": openai(provider.base_url, disable_streaming=True),
    }
    with serving(agents, openai_base_url=provider.base_url) as one:
        yield one


Told = list[tuple[str, dict[str, Any]]]


async def ask(client: httpx.AsyncClient, agent: str, text: str, **options: Any) -> Told:
    async with aconnect_sse(client, "POST", f"/agents/{agent}/runs", json={"input": text, **options}) as source:
        return [told(event) async for event in source.aiter_sse()]


def told(event: ServerSentEvent) -> tuple[str, dict[str, Any]]:
    return event.event, json.loads(event.data)


def only(events: Told, name: str) -> dict[str, Any]:
    (one,) = [data for event, data in events if event == name]
    return one


def text(events: Told) -> str:
    return "".join(data["text"] for event, data in events if event == "token")


@pytest.mark.parametrize(
    ("fault", "code", "tokens"),
    [
        ("drop_after=5", "provider_dropped", 5),
        ("close_after=5", "provider_dropped", 5),
        ("error_after=5", "provider_error", 5),
        ("drop_after=0", "provider_error", 0),
        ("status=500", "provider_error", 0),
        ("status=503", "provider_error", 0),
        ("status=429&retry_after=7", "provider_rate_limited", 0),
    ],
)
async def test_a_provider_that_breaks_off_is_an_error_then_a_failed_end_and_the_text_is_kept(
    client: httpx.AsyncClient, fault: str, code: str, tokens: int
) -> None:
    events = await ask(client, "bare", f"[[{fault}]] tell me something")
    assert [name for name, _ in events][-2:] == ["error", "run.finished"]
    error, finished = only(events, "error"), only(events, "run.finished")
    assert (error["code"], finished["status"], finished["reason"]) == (code, "failed", code)
    assert error["retryable"]
    assert sum(name == "token" for name, _ in events) == tokens
    result = (await client.get(f"/runs/{events[0][1]['run_id']}/result")).json()
    assert (result["status"], result["text"]) == ("failed", text(events))
    usage = [data for name, data in events if name == "usage"]
    assert [one["output_tokens"] for one in usage] == ([tokens] if tokens else [])
    assert all(one["estimated"] for one in usage)


async def test_a_rate_limit_tells_when_to_come_back(client: httpx.AsyncClient) -> None:
    events = await ask(client, "bare", "[[status=429&retry_after=7]] hello")
    assert only(events, "error")["retry_after_ms"] == 7000


async def test_a_provider_that_is_down_is_named_and_nothing_of_the_machine_is(client: httpx.AsyncClient) -> None:
    events = await ask(client, "unreachable", "hello")
    assert only(events, "error")["code"] == "provider_error"
    shown = json.dumps(events)
    assert "127.0.0.1" not in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("fault", ["cut_utf8=1", "split_lines=1", "byte_by_byte=1", "empty_chunks=5", "burst=1"])
async def test_however_the_bytes_are_cut_the_answer_is_the_same(client: httpx.AsyncClient, fault: str) -> None:
    said = "say=Z%C3%BCrich%20%E6%97%A5%E6%9C%AC%20%F0%9F%98%80%20done"
    events = await ask(client, "bare", f"[[{said}&{fault}]]")
    assert text(events) == "Zürich 日本 😀 done"
    assert only(events, "run.finished")["status"] == "completed"


async def test_a_provider_without_usage_is_counted_here_and_says_so(client: httpx.AsyncClient) -> None:
    events = await ask(client, "bare", "[[no_usage=1&tokens=40]] hello")
    usage = only(events, "usage")
    assert (usage["estimated"], usage["output_tokens"]) == (True, 40)
    assert only(events, "run.finished")["usage"]["estimated"]


async def test_an_answer_that_was_not_streamed_is_one_token_and_counted(client: httpx.AsyncClient) -> None:
    events = await ask(client, "unstreamed", "[[tokens=30]] hello")
    assert sum(name == "token" for name, _ in events) == 1
    assert only(events, "usage")["output_tokens"] == 30
    assert not only(events, "usage")["estimated"]


async def test_a_stalled_provider_ends_with_the_runs_deadline_and_what_came_is_kept(
    client: httpx.AsyncClient, provider: Simulator
) -> None:
    events = await ask(client, "bare", "[[stall_after=3]] hello", timeout_s=1)
    finished = only(events, "run.finished")
    assert (finished["status"], finished["reason"]) == ("timed_out", "run_timeout")
    assert sum(name == "token" for name, _ in events) == 3
    assert provider.wait_for(lambda: all(one.ended is not None for one in provider.requests))


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ("bad_json=wrong_type", ["error", "error", "ok", "ok"]),
        ("bad_json=empty", ["error", "error", "ok", "ok"]),
        ("bad_json=trailing_comma", ["ok", "ok"]),
        ("bad_json=cut_string", ["error", "error", "ok", "ok"]),
        ("unknown_tool=1", ["ok", "ok", "error"]),
        ("dup_ids=1", ["ok", "ok"]),
        ("lump=1", ["ok", "ok"]),
        ("byte_by_byte=1", ["ok", "ok"]),
    ],
)
async def test_every_tool_call_that_was_announced_has_a_result(
    client: httpx.AsyncClient, fault: str, calls: list[str]
) -> None:
    events = await ask(client, "assistant", f"[[{fault}]] What is 6*7 and what is 3+4?")
    pending = [data["call_id"] for name, data in events if name == "tool.pending"]
    finished = {data["call_id"]: data["status"] for name, data in events if name == "tool.finished"}
    assert len(pending) == len(set(pending))
    assert set(finished) == set(pending)
    assert sorted(finished.values()) == sorted(calls)
    assert only(events, "run.finished")["status"] == "completed"
    assert text(events)
