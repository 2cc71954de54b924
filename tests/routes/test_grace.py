"""How long a run outlives its last reader: by its own word, by the server's, and a little longer for an EventSource."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from httpx_sse import aconnect_sse
from proxy import proxying
from scripted import Gate, Scripted, words
from serving import Served, open_requests, serving

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]

STREAM = {"Accept": "text/event-stream"}
STALLS = "[[stall_after=3]] go on"
LONG = 3600


class Slow:
    """An answer whose second half the test lets go."""

    def __init__(self) -> None:
        self.rest = Gate()
        self.agent = Scripted(turns=[[*words("It ", "rains"), self.rest, *words(" and ", "rains")]])


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def server(provider: Simulator, slow: Slow) -> Iterator[Served]:
    with serving({"slow": slow.agent}, openai_base_url=provider.base_url) as one:
        yield one


@pytest.fixture
def patient(provider: Simulator) -> Iterator[Served]:
    """A server whose runs wait long, where they do not say otherwise."""
    with serving(openai_base_url=provider.base_url, disconnect_grace_s=LONG) as one:
        yield one


@asynccontextmanager
async def reading(server: Served, path: str, tokens: int, **sent: object) -> AsyncIterator[str]:
    """A reader that has seen so many tokens; leaving the block is leaving. Gives the run's id."""
    method = "POST" if sent else "GET"
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=20) as client,
        aconnect_sse(client, method, path, json=sent or None) as source,
    ):
        source.response.raise_for_status()
        seen, events = 0, source.aiter_sse()  # an iterator that nobody holds would close the connection
        async for event in events:
            seen += event.event == "token"
            if seen == tokens:
                break
        yield source.response.headers["x-run-id"]


async def told(server: Served, run_id: str) -> tuple[str, str | None]:
    """How the run ended, in its last event's words."""
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=20) as client,
        aconnect_sse(client, "GET", f"/runs/{run_id}/events") as source,
    ):
        last = [event async for event in source.aiter_sse()][-1].json()
        return last["status"], last["reason"]


async def background(server: Served, agent: str, **body: object) -> str:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.post(f"/agents/{agent}/runs", json={"input": "Tell me.", **body})
        return str(answer.json()["run_id"])


async def test_who_comes_back_within_the_grace_finds_the_run_and_misses_nothing(
    server: Served, slow: Slow, until: Until
) -> None:
    start = {"input": "Tell me.", "disconnect_grace_s": LONG}
    async with reading(server, "/agents/slow/runs", 2, **start) as run_id:
        pass
    run = server.run(run_id)
    for _ in range(3):  # a grace begins anew with each leaving
        await until(lambda: run.scope.readers == 0)
        assert not run.finished
        async with reading(server, f"/runs/{run_id}/events", 2):
            assert run.scope.readers == 1
    slow.rest.open()
    await until(lambda: run.finished)
    assert run.result()["text"] == "It rains and rains"
    assert await told(server, run_id) == ("completed", None)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_who_does_not_come_back_takes_the_run_and_the_providers_stream_with_him(
    server: Served, provider: Simulator, until: Until, how: str
) -> None:
    grace_s = 0.3
    with proxying(server.url) as proxy:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=20) as client:
            body = {"input": STALLS, "disconnect_grace_s": grace_s}
            async with client.stream("POST", "/agents/chat/runs", json=body, headers=STREAM) as response:
                run = server.run(response.headers["x-run-id"])
                await until(lambda: open_requests(provider) == 1)
                loop = asyncio.get_running_loop()
                left = loop.time()
                proxy.cut("reset" if how == "reset" else "close")
                await until(lambda: run.finished)
                assert loop.time() - left >= grace_s
    await until(lambda: open_requests(provider) == 0)
    assert await told(server, run.run_id) == ("cancelled", "disconnected")


async def test_the_servers_grace_holds_where_the_run_says_nothing(
    patient: Served, provider: Simulator, until: Until
) -> None:
    async with reading(patient, "/agents/chat/runs", 3, input=STALLS) as kept:
        pass
    async with reading(patient, "/agents/chat/runs", 3, input=STALLS, disconnect_grace_s=0) as ended:
        pass
    await until(lambda: patient.run(ended).finished)
    await until(lambda: patient.run(kept).scope.readers == 0)
    assert await told(patient, ended) == ("cancelled", "disconnected")
    assert not patient.run(kept).finished
    assert open_requests(provider) == 1
    async with httpx.AsyncClient(base_url=patient.url) as client:
        await client.post(f"/runs/{kept}/cancel")


async def test_an_explicit_cancel_wins_at_once_in_the_middle_of_a_grace(
    patient: Served, provider: Simulator, until: Until
) -> None:
    async with reading(patient, "/agents/chat/runs", 3, input=STALLS) as run_id:
        pass
    run = patient.run(run_id)
    await until(lambda: run.scope.readers == 0)
    async with httpx.AsyncClient(base_url=patient.url, timeout=20) as client:
        answers = await asyncio.gather(*(client.post(f"/runs/{run_id}/cancel") for _ in range(3)))
    assert {(one.status_code, one.json()["status"]) for one in answers} == {(200, "cancelled")}
    await until(lambda: open_requests(provider) == 0)
    assert await told(patient, run_id) == ("cancelled", "requested")


async def test_a_background_run_told_to_end_with_its_readers_gives_an_eventsource_time_to_return(
    server: Served, slow: Slow, until: Until
) -> None:
    run_id = await background(server, "slow", on_disconnect="cancel")
    run = server.run(run_id)
    await until(lambda: run.last_event_id == 4)
    assert not run.finished  # nobody has read it yet: it waits for its first reader
    for _ in range(2):
        async with reading(server, f"/runs/{run_id}/events", 2):
            pass
        await until(lambda: run.scope.readers == 0)
        assert not run.finished
    loop = asyncio.get_running_loop()
    async with reading(server, f"/runs/{run_id}/events", 2):
        left = loop.time()
    await until(lambda: run.finished)
    assert loop.time() - left >= 3
    assert await told(server, run_id) == ("cancelled", "disconnected")


async def test_the_run_ends_with_the_last_of_two_readers_and_in_that_ones_grace(server: Served, until: Until) -> None:
    async with reading(server, "/agents/slow/runs", 2, input="Tell me.") as run_id:
        run = server.run(run_id)
        async with reading(server, f"/runs/{run_id}/events", 2):
            assert run.scope.readers == 2
        await until(lambda: run.scope.readers == 1)
        assert run.scope.ending is None
    await until(lambda: run.finished)  # the starter is not expected back: no three seconds
    assert await told(server, run_id) == ("cancelled", "disconnected")


async def test_waiting_for_the_result_is_reading(server: Served, slow: Slow, until: Until) -> None:
    run_id = await background(server, "slow", on_disconnect="cancel")
    run = server.run(run_id)
    async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
        waiting = asyncio.create_task(client.get(f"/runs/{run_id}/result", params={"wait": "true"}))
        await until(lambda: run.scope.readers == 1)
        async with reading(server, f"/runs/{run_id}/events", 2):
            pass
        await until(lambda: run.scope.readers == 1)
        assert run.scope.ending is None  # the one who waits keeps it
        slow.rest.open()
        result = (await waiting).json()
    assert (result["status"], result["text"]) == ("completed", "It rains and rains")


async def test_who_asks_without_waiting_is_no_reader(server: Served, until: Until) -> None:
    run_id = await background(server, "slow", on_disconnect="cancel")
    run = server.run(run_id)
    await until(lambda: run.last_event_id == 4)
    async with httpx.AsyncClient(base_url=server.url) as client:
        for path in (f"/runs/{run_id}", f"/runs/{run_id}/result", "/runs"):
            await client.get(path)
    assert run.scope.ending is None
    assert not run.finished
