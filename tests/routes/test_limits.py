"""Limits as a user meets them: who is refused is told why and until when, and nobody else notices."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse
from langserve import RemoteRunnable
from serving import Served, open_requests, serving
from websockets.asyncio.client import connect

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

USERS = ("ann", "bob", "cleo")
KEYS = ",".join(f"a-long-enough-key-of-{user}:{user}" for user in USERS)
LONG = "[[tokens=5000]] go on"
SHORT = "[[tokens=3]] hello"
FULL = "Maximum concurrent streams reached. Please wait for an existing response to complete."


@contextmanager
def limited(provider: Simulator, **settings: Any) -> Iterator[Served]:
    chosen = {"max_streams_per_user": 3, "requests_per_minute": 0, "max_readers_per_user": 64, **settings}
    with serving(openai_base_url=provider.base_url, api_keys=KEYS, **chosen) as one:
        yield one


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    with limited(provider) as one:
        yield one


def of(user: str, server: Served) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer a-long-enough-key-of-{user}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=20)


@pytest.fixture(autouse=True)
async def nothing_is_left(server: Served, until: Until) -> Any:
    yield
    door, gate = server.runner.door, server.runner.gate
    for user in USERS:
        async with of(user, server) as client:
            for row in (await client.get("/runs")).json()["runs"]:
                if row["finished_at"] is None:
                    await client.post(f"/runs/{row['run_id']}/cancel")
    await until(lambda: (server.runner.live, door.streams, door.readers) == (0, 0, 0))
    await until(lambda: (gate.under_way, gate.waiting) == (0, 0))


async def begin(client: httpx.AsyncClient, text: str = LONG, agent: str = "chat", **request: Any) -> httpx.Response:
    return await client.post(f"/agents/{agent}/runs", json={"input": text, **request})


async def begun(client: httpx.AsyncClient, text: str = LONG, agent: str = "chat", **request: Any) -> str:
    answer = await begin(client, text, agent, **request)
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"/runs/{run_id}/result", params={"wait": True})).json()
    return answer


def refusal(answer: httpx.Response) -> str:
    error = answer.json()["error"]
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert error["retry_after_ms"] > 0
    code: str = error["code"]
    return code


# Runs at once


async def test_of_fifty_streams_at_once_three_run_and_the_others_are_told_to_wait(server: Served, until: Until) -> None:
    seen: list[tuple[int, str]] = []
    running = asyncio.Event()
    stop = asyncio.Event()

    async def tab(client: httpx.AsyncClient) -> None:
        body, headers = {"input": LONG}, {"Accept": "text/event-stream"}
        async with client.stream("POST", "/agents/chat/runs", json=body, headers=headers) as answer:
            seen.append((answer.status_code, "" if answer.status_code == 200 else (await answer.aread()).decode()))
            if len(seen) == 50:
                running.set()
            if answer.status_code == 200:
                await stop.wait()

    async with of("ann", server) as ann, of("bob", server) as bob:
        tabs = [asyncio.create_task(tab(ann)) for _ in range(50)]
        await running.wait()
        statuses = [status for status, _ in seen]
        assert (statuses.count(200), statuses.count(429)) == (3, 47)
        errors = [json.loads(body)["error"] for status, body in seen if status == 429]
        assert {(one["code"], one["message"]) for one in errors} == {("too_many_streams", FULL)}
        other = await ended(bob, await begun(bob, SHORT))
        assert other["status"] == "completed"
        one = (await ann.get("/runs")).json()["runs"][0]["run_id"]
        await ann.post(f"/runs/{one}/cancel")
        assert (await begin(ann)).status_code == 202
        assert refusal(await begin(ann)) == "too_many_streams"
        stop.set()
        await asyncio.gather(*tabs)


async def test_who_has_heard_of_the_end_of_one_run_can_start_the_next_at_once(server: Served) -> None:
    async with of("ann", server) as ann:
        for _ in range(2):
            await begun(ann)
        for _ in range(10):
            async with aconnect_sse(
                ann, "POST", "/agents/chat/runs", json={"input": SHORT}, headers={"Accept": "text/event-stream"}
            ) as source:
                assert [one.event async for one in source.aiter_sse()][-1] == "run.finished"


async def test_a_run_in_the_background_holds_its_place_and_a_paused_one_does_not(server: Served, until: Until) -> None:
    async with of("ann", server) as ann:
        runs = [await begun(ann) for _ in range(3)]
        await until(lambda: all(server.run(run_id).ttft_ms is not None for run_id in runs))
        assert refusal(await begin(ann)) == "too_many_streams"
        assert (await ann.post(f"/runs/{runs[0]}/pause")).json()["status"] == "paused"
        runs.append(await begun(ann))
        refused = await ann.post(f"/runs/{runs[0]}/continue")
        assert refusal(refused) == "too_many_streams"
        assert (await ann.get(f"/runs/{runs[0]}")).json()["status"] == "paused"
        await ann.post(f"/runs/{runs[1]}/cancel")
        assert (await ann.post(f"/runs/{runs[0]}/continue")).json()["status"] == "running"
        assert refusal(await begin(ann)) == "too_many_streams"


async def test_a_run_that_waits_for_its_thread_holds_no_place(server: Served, until: Until) -> None:
    async with of("ann", server) as ann:
        first = await begun(ann, LONG, "assistant", thread_id="limits-1")
        waiting = [
            await begun(ann, SHORT, "assistant", thread_id="limits-1", multitask_strategy="enqueue") for _ in range(2)
        ]
        others = [await begun(ann) for _ in range(2)]
        assert refusal(await begin(ann)) == "too_many_streams"
        await ann.post(f"/runs/{first}/cancel")
        for run_id in waiting:
            assert (await ended(ann, run_id))["status"] == "completed"
        assert (await ann.get("/runs/" + others[0])).json()["status"] == "running"


async def test_a_run_that_supersedes_another_takes_its_place(server: Served) -> None:
    async with of("ann", server) as ann:
        runs = [await begun(ann, LONG, "assistant", thread_id=f"super-{n}") for n in range(3)]
        later = await begun(ann, SHORT, "assistant", thread_id="super-0", multitask_strategy="interrupt")
        assert (await ended(ann, later))["status"] == "completed"
        assert (await ended(ann, runs[0]))["status"] == "cancelled"


async def test_a_start_that_is_repeated_by_its_key_is_not_counted(server: Served) -> None:
    async with of("ann", server) as ann:
        ann.headers["Idempotency-Key"] = "once"
        first = await begun(ann)
        for _ in range(5):
            assert await begun(ann) == first
        del ann.headers["Idempotency-Key"]
        for _ in range(2):
            await begun(ann)
        assert refusal(await begin(ann)) == "too_many_streams"


async def test_a_start_that_is_refused_for_its_body_takes_no_place(server: Served) -> None:
    async with of("ann", server) as ann:
        for _ in range(5):
            assert (await begin(ann, agent="assistant", max_tokens=-1)).status_code == 422
            assert (await begin(ann, max_tokens=10**9)).status_code == 422
            assert (await begin(ann, nonsense=1)).status_code == 422
        assert server.runner.door.streams == 0


# Every way in passes the same door


async def test_a_refusal_on_a_socket_ends_that_stream_and_not_the_socket(server: Served) -> None:
    url = server.url.replace("http", "ws") + "/ws"
    headers = {"Authorization": "Bearer a-long-enough-key-of-ann"}
    async with of("ann", server) as ann, connect(url, additional_headers=headers) as socket:
        runs = [await begun(ann) for _ in range(3)]
        await socket.send(json.dumps({"type": "start", "stream_id": "s", "agent": "chat", "input": SHORT}))
        frame = json.loads(await socket.recv())
        assert (frame["event"], frame["final"], frame["stream_id"]) == ("error", True, "s")
        assert "id" not in frame
        assert (frame["data"]["code"], frame["data"]["message"]) == ("too_many_streams", FULL)
        assert frame["data"]["retry_after_ms"] > 0
        await ann.post(f"/runs/{runs[0]}/cancel")
        await socket.send(json.dumps({"type": "start", "stream_id": "s", "agent": "chat", "input": SHORT}))
        while (frame := json.loads(await socket.recv()))["event"] != "run.finished":
            assert frame["event"] != "error"


@pytest.mark.parametrize("route", ["invoke", "stream", "stream_log", "stream_events", "batch"])
async def test_langserves_routes_are_refused_alike(server: Served, route: str) -> None:
    async with of("ann", server) as ann:
        for _ in range(3):
            await begun(ann)
        body = {"inputs": [SHORT]} if route == "batch" else {"input": SHORT}
        answer = await ann.post(f"/agents/chat/{route}", json=body)
        assert refusal(answer) == "too_many_streams"
        assert answer.json()["error"]["message"] == FULL


async def test_a_batch_is_worked_off_in_one_place(server: Served, until: Until) -> None:
    most: list[int] = []
    async with of("ann", server) as ann:
        others = [await begun(ann) for _ in range(2)]
        batch = asyncio.create_task(ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 5}))
        while not batch.done():
            most.append(server.runner.door.streams)
            await asyncio.sleep(0)
        answer = (await batch).json()
        assert len(answer["output"]) == 5
        assert max(most) == 3
        for run_id in others:
            assert (await ann.get(f"/runs/{run_id}")).json()["status"] == "running"


async def test_a_batch_whose_client_leaves_starts_nothing_more(
    server: Served, provider: Simulator, until: Until
) -> None:
    async with of("ann", server) as ann:
        batch = asyncio.create_task(ann.post("/agents/chat/batch", json={"inputs": [LONG] * 5}))
        await until(lambda: server.runner.live == 1)
        batch.cancel()
        await asyncio.gather(batch, return_exceptions=True)
    await until(lambda: server.runner.live == 0)
    await until(lambda: open_requests(provider) == 0)
    await until(lambda: server.runner.door.streams == 0)


async def test_remote_runnable_has_its_whole_batch(server: Served) -> None:
    headers = {"x-api-key": "a-long-enough-key-of-ann"}
    remote: RemoteRunnable[str, Any] = RemoteRunnable(f"{server.url}/agents/chat", headers=headers)
    assert len(await remote.abatch([SHORT] * 4)) == 4
    await remote.async_client.aclose()


# Requests a minute


async def test_a_request_past_the_limit_is_refused_until_the_first_is_a_minute_old(provider: Simulator) -> None:
    with limited(provider, requests_per_minute=5) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            for left in (4, 3, 2, 1, 0):
                answer = await begin(ann, SHORT)
                assert f'"requests";r={left};t=' in answer.headers["ratelimit"]
                assert '"requests";q=5;w=60' in answer.headers["ratelimit-policy"]
                await ended(ann, answer.json()["run_id"])
            for _ in range(3):
                refused = await begin(ann, SHORT)
                assert refusal(refused) == "rate_limited"
                assert 55 <= int(refused.headers["retry-after"]) <= 60
                wait = re.search(r'"requests";r=0;t=(\d+)', refused.headers["ratelimit"])
                assert wait is not None
                assert int(wait[1]) <= int(refused.headers["retry-after"])
            assert (await ended(bob, await begun(bob, SHORT)))["status"] == "completed"
            await ann.get("/runs")  # only starts count
            assert (await ann.get("/usage")).status_code == 200


async def test_a_batch_is_as_many_requests_as_it_has_inputs(provider: Simulator) -> None:
    with limited(provider, requests_per_minute=5) as server:
        async with of("ann", server) as ann:
            assert (await ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 3})).status_code == 200
            assert refusal(await ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 3})) == "rate_limited"
            assert (await ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 2})).status_code == 200
            never = await ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 6})
            assert refusal(never) == "rate_limited"
            assert "fewer" in never.json()["error"]["message"]


async def test_too_many_streams_is_told_first_and_costs_no_request(provider: Simulator) -> None:
    with limited(provider, requests_per_minute=4) as server:
        async with of("ann", server) as ann:
            runs = [await begun(ann) for _ in range(3)]
            for _ in range(10):
                assert refusal(await begin(ann)) == "too_many_streams"
            await ann.post(f"/runs/{runs[0]}/cancel")
            await begun(ann)
            await ann.post(f"/runs/{runs[1]}/cancel")
            assert refusal(await begin(ann)) == "rate_limited"


# Budgets


async def test_a_budget_that_is_used_up_is_renewed_at_midnight_and_not_by_a_restart(
    provider: Simulator, tmp_path: Path
) -> None:
    kept = {"tokens_per_day": 100, "database_url": f"sqlite:///{tmp_path}/one.db"}
    with limited(provider, **kept) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            run = await ended(ann, await begun(ann, "[[tokens=120]] tell me"))
            assert run["status"] == "completed"  # a run that has begun is let finish
            assert refusal(await begin(ann)) == "budget_exhausted"
            today = (await ann.get("/usage")).json()["today"]
            assert today["tokens"] == run["usage"]["total_tokens"] > today["tokens_per_day"] == 100
            assert (await begin(bob, SHORT)).status_code == 202
    with limited(provider, **kept) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            refused = await begin(ann)
            assert refusal(refused) == "budget_exhausted"
            assert refused.json()["error"]["retry_after_ms"] <= 86_400_000
            assert '"tokens";r=0;t=' in refused.headers["ratelimit"]
            assert (await begin(bob, SHORT)).status_code == 202


async def test_money_is_a_budget_too(provider: Simulator, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[models.simulated]\ninput = 0\noutput = 1000\n")
    with limited(provider, cost_per_day_usd=0.05, prices_file=prices) as server:
        async with of("ann", server) as ann:
            run = await ended(ann, await begun(ann, "[[tokens=60]] tell me"))
            assert run["usage"]["cost_usd"] == pytest.approx(0.06)
            assert refusal(await begin(ann)) == "budget_exhausted"


# Readers


async def test_open_streams_are_counted_over_all_runs(provider: Simulator, until: Until) -> None:
    with limited(provider, max_readers_per_user=2) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            run_id = await begun(ann)
            path = f"/runs/{run_id}/events"
            async with ann.stream("GET", path) as one, ann.stream("GET", path) as two:
                assert (one.status_code, two.status_code) == (200, 200)
                assert refusal(await ann.get(path)) == "too_many_readers"
                assert refusal(await ann.get(f"/runs/{run_id}/result?wait=true")) == "too_many_readers"
                streamed = await ann.post(
                    "/agents/chat/runs", json={"input": SHORT}, headers={"Accept": "text/event-stream"}
                )
                assert refusal(streamed) == "too_many_readers"
                assert refusal(await ann.post("/agents/chat/invoke", json={"input": SHORT})) == "too_many_readers"
                assert len((await ann.get("/runs")).json()["runs"]) == 1  # refused before they began
                await ended(bob, await begun(bob, SHORT))
            await until(lambda: server.runner.door.readers == 0)
            assert (await ann.post("/agents/chat/invoke", json={"input": SHORT})).status_code == 200


async def test_a_batch_is_one_reader_however_many_runs_it_has(provider: Simulator) -> None:
    with limited(provider, max_readers_per_user=1, max_streams_per_user=0) as server:
        async with of("ann", server) as ann:
            assert (await ann.post("/agents/chat/batch", json={"inputs": [SHORT] * 6})).status_code == 200


# Who has which


async def test_limits_differ_by_user_as_the_file_says(provider: Simulator, tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text("[default]\nmax_streams = 1\n\n[users.ann]\nmax_streams = 2\n")
    with limited(provider, limits_file=file) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            answers = [await begin(ann) for _ in range(3)]
            assert [one.status_code for one in answers] == [202, 202, 429]
            assert [(await begin(bob)).status_code for _ in range(2)] == [202, 429]
            assert answers[0].headers["ratelimit"] == '"streams";r=1'
            assert answers[0].headers["ratelimit-policy"] == '"streams";q=2;qu="concurrent-requests"'


# The provider


async def test_an_answer_in_one_piece_that_waited_too_long_is_503_and_says_when_to_come_back(
    provider: Simulator, until: Until
) -> None:
    with limited(provider, upstream_concurrency=1, upstream_queue_timeout_s=0.1) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            run_id = await begun(ann)
            await until(lambda: server.run(run_id).ttft_ms is not None)
            answer = await bob.post("/agents/chat/invoke", json={"input": SHORT})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_busy")
            assert answer.headers["retry-after"] == "1"
            headers = {"Accept": "text/event-stream"}
            async with aconnect_sse(bob, "POST", "/agents/chat/runs", json={"input": SHORT}, headers=headers) as source:
                events = [(one.event, one.json()) async for one in source.aiter_sse()]
            names = [name for name, _ in events]
            assert "run.queued" in names
            error = dict(events)["error"]
            assert (error["code"], error["retryable"]) == ("upstream_busy", True)
            assert dict(events)["run.finished"]["status"] == "failed"


# Adaptive


async def test_who_stops_most_answers_gets_shorter_ones_until_more_is_asked_for(
    provider: Simulator, until: Until
) -> None:
    with limited(provider, adaptive_max_tokens=True) as server:
        async with of("ann", server) as ann, of("bob", server) as bob:
            for _ in range(3):
                run_id = await begun(ann)
                await until(lambda: server.run(run_id).ttft_ms is not None)  # noqa: B023 - called in this round
                await ann.post(f"/runs/{run_id}/cancel")
            assert await bound(ann) == 128
            assert await bound(ann, max_tokens=500) == 500
            assert await bound(bob) is None


async def bound(client: httpx.AsyncClient, **request: Any) -> int | None:
    """The ``max_tokens`` of a run's first event."""
    body = {"input": "[[tokens=200]] tell me", "on_disconnect": "cancel", **request}
    headers = {"Accept": "text/event-stream"}
    async with aconnect_sse(client, "POST", "/agents/chat/runs", json=body, headers=headers) as source:
        events = [(one.event, one.json()) async for one in source.aiter_sse()]
    said = dict(events)["run.finished"]["usage"]["output_tokens"]
    most: int | None = dict(events)["run.started"]["max_tokens"]
    assert said == min(most or 200, 200)
    return most
