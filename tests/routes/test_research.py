"""``research`` over real HTTP: lanes that can be told apart, and an end that reaches every branch.

A question tells the provider what to plan (``planned``), and so what the branches are to do.
"""

import asyncio
import itertools
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from graphs import Slow
from httpx_sse import aconnect_sse
from langchain_core.runnables import Runnable
from serving import Served, open_requests, serving, settled

from app.simulator.server import Simulator
from chains.models import build_model
from chains.research import build_research
from tools.calculator import build_calculator

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def planned(*questions: str, **told: object) -> str:
    """A question whose plan is made of these; ``told``: directives for the call that plans."""
    plan = "".join(f"%{byte:02x}" for byte in json.dumps({"questions": questions}).encode())
    return f"[[{' '.join(f'{name}={value}' for name, value in {**told, 'say': plan}.items())}]] Look into it."


PLAN_IS_SLOW = "[[first_token_s=60]] think"
BRANCHES_TALK = planned("count to 3000", "count to 3001", "count to 3002")
TOOLS_WAIT = planned("wait for the first", "wait for the second", "wait for the third")
QUESTIONS = ("what is 17*23", "what is 6*7", "what time is it in Tokyo")
TOOLS_ARE_QUICK = planned(*QUESTIONS)


@pytest.fixture(scope="module")
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    with serving({"waits": waiting(provider, slow)}, openai_base_url=provider.base_url) as one:
        yield one


@pytest.fixture
def narrow(provider: Simulator, slow: Slow) -> Iterator[Served]:
    """A server through whose gate one model call passes at a time."""
    agents = {"waits": waiting(provider, slow)}
    with serving(agents, openai_base_url=provider.base_url, upstream_concurrency=1) as one:
        yield one


@pytest.fixture
def thread() -> str:
    """A conversation of this test's own."""
    return f"t-{uuid4()}"


def waiting(provider: Simulator, slow: Slow) -> Runnable[Any, Any]:
    """Research whose branches have a tool that does not come to its end."""
    return build_research(build_model("openai:simulated", base_url=provider.base_url), [slow.tool, build_calculator()])


async def turn(client: httpx.AsyncClient, text: str, agent: str = "research", **request: Any) -> list[dict[str, Any]]:
    """All events of one run."""
    answer = await client.post(f"/agents/{agent}/runs", json={"input": text, **request})
    return [event async for event in events(client, answer.json()["run_id"])]


async def events(client: httpx.AsyncClient, run_id: str) -> AsyncIterator[dict[str, Any]]:
    async with aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source:
        async for event in source.aiter_sse():
            yield {"event": event.event, **json.loads(event.data)}


async def result(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await client.get(f"/runs/{run_id}/result", params={"wait": True})).json()
    return answer


def lane(event: dict[str, Any]) -> str:
    return "|".join(event.get("namespace", ()))


# -- what a reader sees -----------------------------------------------------------------------------------------------


async def test_every_branch_is_a_lane_of_its_own(client: httpx.AsyncClient) -> None:
    told = await turn(client, TOOLS_ARE_QUICK)
    assert told[-1]["status"] == "completed"
    named = {
        "|".join(one["data"]["namespace"]): one["data"]["question"]
        for one in told
        if one["event"] == "custom" and one["name"] == "branch.started"
    }
    assert sorted(named.values()) == sorted(QUESTIONS)
    assert {lane(one) for one in told} == {"", *named}
    for namespace, question in named.items():
        mine = [one for one in told if lane(one) == namespace]
        steps = [(one["event"], one["node"]) for one in mine if one["event"].startswith("node.")]
        assert [step for step in steps if step[1] in ("model", "tools")] == [
            (f"node.{what}", node) for node in ("model", "tools", "model") for what in ("started", "finished")
        ]
        tools = [one["name"] for one in mine if one["event"] == "tool.started"]
        assert tools == ["clock" if "time" in question else "calculator"]
        assert Counter(one["event"] for one in mine)["tool.finished"] == 1
    ends = Counter((one["node"], one["event"]) for one in told if one["event"].startswith("node.") and not lane(one))
    assert ends == {
        (node, f"node.{what}"): times
        for node, times in (("plan", 1), ("investigate", 3), ("synthesis", 1))
        for what in ("started", "finished")
    }


async def test_branches_that_stream_at_once_never_mix(client: httpx.AsyncClient) -> None:
    told = await turn(client, planned("count to 30", "count from 50 to 80"))
    texts: dict[tuple[str, str], str] = {}
    order: list[str] = []
    for one in told:
        if one["event"] == "token":
            where = (lane(one), one["message_id"])
            texts[where] = texts.get(where, "") + one["text"]
            order.append(lane(one))
    assert len({message for _, message in texts}) == len(texts) == 3
    branches = [lane for lane in dict.fromkeys(order) if lane]
    assert sum(one != other for one, other in itertools.pairwise(order)) > len(branches) + 1
    said = sorted(text for (lane, _), text in texts.items() if lane)
    assert [text.strip(" .").replace(",", "").split() for text in said] == [
        [str(number) for number in numbers] for numbers in (range(1, 31), range(50, 81))
    ]


async def test_the_answer_is_the_synthesis_and_the_conversation_holds_nothing_else(
    client: httpx.AsyncClient, thread: str
) -> None:
    told = await turn(client, TOOLS_ARE_QUICK, thread_id=thread)
    answer = await result(client, told[0]["run_id"])
    said = "".join(one["text"] for one in told if one["event"] == "token" and not lane(one))
    assert answer["text"] == said
    assert {one["node"] for one in told if one["event"] == "token" and not lane(one)} == {"synthesis"}
    assert answer["message"]["id"] in {one["message_id"] for one in told if one["event"] == "token" and not lane(one)}
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [(one["type"], one["content"]) for one in messages] == [("human", TOOLS_ARE_QUICK), ("ai", said)]


async def test_the_plan_is_told_as_an_object_and_neither_as_text_nor_as_a_tool(client: httpx.AsyncClient) -> None:
    told = await turn(client, TOOLS_ARE_QUICK)
    kinds = Counter(one["event"] for one in told if one.get("node") == "plan")
    assert not kinds.keys() & {"token", "tool.pending", "tool.args", "tool.started"}
    fields = [one["value"] for one in told if one["event"] == "object.field"]
    assert fields == list(QUESTIONS)
    partial = [one["value"] for one in told if one["event"] == "object.partial"]
    assert partial[-1] == {"questions": fields}


async def test_it_comes_to_its_end_through_a_gate_for_one(narrow: Served) -> None:
    async with httpx.AsyncClient(base_url=narrow.url, timeout=20) as client:
        told = await turn(client, TOOLS_ARE_QUICK)
    assert told[-1]["status"] == "completed"
    assert any(one["event"] == "run.queued" for one in told)


async def test_when_every_branch_fails_the_providers_own_error_is_told(client: httpx.AsyncClient) -> None:
    told = await turn(client, planned("[[status=402]] one", "[[status=402]] two"))
    error = next(one for one in told if one["event"] == "error")
    assert (error["code"], "402" in error["message"]) == ("provider_error", True)
    problems = [one["data"]["problem"] for one in told if one.get("name") == "branch.finished"]
    assert problems == ["APIStatusError, HTTP status 402"] * 2
    assert (told[-1]["status"], told[-1]["reason"]) == ("failed", "provider_error")


@pytest.mark.parametrize("thread_id", [None, "thread"])
async def test_paused_while_its_branches_speak_each_of_them_goes_on_where_it_was(
    client: httpx.AsyncClient, thread: str, thread_id: str | None
) -> None:
    request = {"input": planned("count to 60", "count from 70 to 130"), "thread_id": thread_id and thread}
    run_id = (await client.post("/agents/research/runs", json=request)).json()["run_id"]
    texts: dict[str, str] = {}
    asked = paused = False
    async for one in events(client, run_id):
        if one["event"] == "token" and lane(one):
            texts[one["message_id"]] = texts.get(one["message_id"], "") + one["text"]
            if not asked and len(texts) == 2 and min(map(len, texts.values())) > 10:
                asked = True
                await client.post(f"/runs/{run_id}/pause")
        elif one["event"] == "run.paused":
            paused = True
            await client.post(f"/runs/{run_id}/continue")
    assert paused
    assert one["status"] == "completed"
    assert sorted(texts.values()) == [
        f"{', '.join(map(str, numbers))}." for numbers in (range(1, 61), range(70, 131))
    ]  # fmt: skip


# -- how it is ended --------------------------------------------------------------------------------------------------


class Phase:
    """Where a run is when it is ended: ``seen`` was told, and so many requests of it are open at the provider."""

    def __init__(self, name: str, text: str, seen: str, requests: int, agent: str = "research", tools: int = 0) -> None:
        self.name, self.text, self.seen, self.requests, self.agent, self.tools = (
            name, text, seen, requests, agent, tools,
        )  # fmt: skip


PHASES = [
    Phase("in the plan", PLAN_IS_SLOW, "node.started", 1),
    Phase("in the branches' answers", BRANCHES_TALK, "token", 3),
    Phase("in the branches' tools", TOOLS_WAIT, "tool.started", 0, "waits", tools=3),
]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
@pytest.mark.parametrize("way", ["close", "reset", "cancel"])
async def test_its_end_reaches_every_branch_and_the_thread_goes_on(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, slow: Slow, thread: str,
    phase: Phase, way: str,
) -> None:  # fmt: skip
    await settled(server, provider, until)
    before, cancelled = len(provider.requests), slow.cancelled
    reader, writer, run_id = await start_raw(server, phase.agent, phase.text, thread)
    await reader.readuntil(f"event: {phase.seen}\n".encode())
    await until(lambda: open_requests(provider) == phase.requests)
    await until(lambda: slow.entered - slow.cancelled == phase.tools)
    await end(client, writer, run_id, way)
    await settled(server, provider, until)
    cut = [one for one in provider.requests[before:] if not one.finished]
    assert len(cut) == phase.requests
    closed = {one.number for one in provider.connections if one.closed is not None}
    assert {one.connection for one in cut} <= closed
    assert slow.cancelled - cancelled == phase.tools
    told = [event async for event in events(client, run_id)]
    is_terminal(told, "requested" if way == "cancel" else "disconnected")
    assert (await result(client, run_id))["text"] == ""
    await goes_on(client, provider, thread, phase.agent, phase.text)


@pytest.mark.parametrize("way", ["close", "reset", "cancel"])
async def test_its_end_between_the_plan_and_the_branches_makes_no_more_calls(
    narrow: Served, provider: Simulator, until: Until, thread: str, way: str
) -> None:
    await settled(narrow, provider, until)
    slowly = planned("count to 3000", "count to 3001", first_token_s=0.5)
    async with httpx.AsyncClient(base_url=narrow.url, timeout=20) as client:
        reader, writer, run_id = await start_raw(narrow, "research", slowly, thread)
        await until(lambda: open_requests(provider) == 1)
        # Gets in line behind the plan and before the branches, so that those wait at the gate.
        other = await client.post("/agents/chat/runs", json={"input": "[[first_token_s=60]] think"})
        await reader.readuntil(b'"name":"branch.started"')
        before = len(provider.requests)
        await end(client, writer, run_id, way)
        await until(lambda: narrow.run(run_id).finished)
        await client.post(f"/runs/{other.json()['run_id']}/cancel")
        await settled(narrow, provider, until)
        assert len(provider.requests) - before <= 1
        is_terminal(
            [event async for event in events(client, run_id)], "requested" if way == "cancel" else "disconnected"
        )
        await goes_on(client, provider, thread, "research", slowly)


async def test_its_end_in_the_synthesis_keeps_what_was_said_of_it(
    server: Served, provider: Simulator, client: httpx.AsyncClient, until: Until, thread: str
) -> None:
    await settled(server, provider, until)
    answer = await client.post("/agents/research/runs", json={"input": TOOLS_ARE_QUICK, "thread_id": thread})
    run_id = answer.json()["run_id"]
    async for event in events(client, run_id):
        if event["event"] == "token" and event["node"] == "synthesis":
            await client.post(f"/runs/{run_id}/cancel")
            break
    await settled(server, provider, until)
    text = (await result(client, run_id))["text"]
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert text
    assert [(one["type"], one["content"]) for one in messages] == [("human", TOOLS_ARE_QUICK), ("ai", text)]


def is_terminal(told: list[dict[str, Any]], reason: str) -> None:
    """One end, and everything that was opened is closed."""
    assert [one["event"] for one in told].count("run.finished") == 1
    assert (told[-1]["event"], told[-1]["status"], told[-1]["reason"]) == ("run.finished", "cancelled", reason)
    kinds = Counter(one["event"] for one in told)
    assert kinds["message.started"] == kinds["message.finished"]
    assert kinds["tool.pending"] == kinds["tool.finished"]


async def goes_on(client: httpx.AsyncClient, provider: Simulator, thread: str, agent: str, text: str) -> None:
    """The next question on the thread is answered, from findings of its own, and nothing of the last one is left."""
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [(one["type"], one["content"]) for one in messages] == [("human", text)]
    before = len(provider.requests)
    told = await turn(client, planned("what is 2*3", "what is 3*4"), agent, thread_id=thread)
    assert told[-1]["status"] == "completed"
    assert all(one.status == 200 for one in provider.requests[before:])
    answer = await result(client, told[0]["run_id"])
    assert "2*3 = 6" in answer["text"]
    assert "3*4 = 12" in answer["text"]
    assert "count" not in answer["text"].partition("Things to try")[0]
    messages = (await client.get(f"/threads/{thread}")).json()["messages"]
    assert [one["type"] for one in messages] == ["human", "human", "ai"]


async def start_raw(
    server: Served, agent: str, text: str, thread: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """A client whose socket is ours to break, and its run."""
    where = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    body = json.dumps({"input": text, "thread_id": thread}).encode()
    head = (
        f"POST /agents/{agent}/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    return reader, writer, next(line for line in answer.split("\r\n") if line.startswith("x-run-id: ")).split()[1]


async def end(client: httpx.AsyncClient, writer: asyncio.StreamWriter, run_id: str, way: str) -> None:
    if way == "cancel":
        assert (await client.post(f"/runs/{run_id}/cancel")).json()["status"] == "cancelled"
    elif way == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort() if way == "reset" else writer.close()
    with suppress(OSError):
        await writer.wait_closed()
