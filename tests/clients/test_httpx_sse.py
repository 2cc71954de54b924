"""httpx-sse, as its users write it: come back with the last event's id until a stream ends as it should."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse
from proxy import proxying
from scripted import Scripted, words
from serving import Served, serving
from story import Eventually, Seen, Story, documented, telling

Read = Callable[[str, list[Seen]], None]


@pytest.fixture
def story() -> Iterator[Story]:
    with telling() as one:
        yield one


def read(url: str, seen: list[Seen]) -> None:
    """By the reader that the docs show."""
    names: dict[str, Any] = {}
    exec(documented("python"), names)
    origin, run_id = re.fullmatch(r"(.*)/runs/(.*)/events", url).groups()  # type: ignore[union-attr]
    with httpx.Client(base_url=origin, timeout=20) as client:
        for event in names["follow"](client, run_id, pause_s=0):
            take(event, seen)


async def aread(url: str, seen: list[Seen]) -> None:
    async with httpx.AsyncClient(timeout=20) as client:
        for _ in range(10):
            with suppress(httpx.TransportError):
                async with aconnect_sse(client, "GET", url, headers=last(seen)) as source:
                    async for event in source.aiter_sse():
                        take(event, seen)
                    return


def last(seen: list[Seen]) -> dict[str, str]:
    return {"Last-Event-ID": seen[-1].id} if seen else {}


def take(event: ServerSentEvent, seen: list[Seen]) -> None:
    seen.append(Seen(event.id, event.event, event.data))


def in_a_loop(url: str, seen: list[Seen]) -> None:
    asyncio.run(aread(url, seen))


@pytest.mark.parametrize("reader", [read, in_a_loop], ids=["sync", "async"])
def test_a_reader_whose_line_breaks_five_times_has_every_event_once(
    story: Story, eventually: Eventually, reader: Read
) -> None:
    seen: list[Seen] = []
    thread = threading.Thread(target=reader, args=(story.url, seen))
    thread.start()
    try:
        story.tell(eventually)
    finally:
        thread.join(20)
    story.check(seen)
    assert httpx.get(story.url, headers=last(seen)).status_code == 204


@pytest.fixture(scope="module")
def whole() -> Iterator[tuple[Served, str, list[Seen]]]:
    """A run that is over: its server, its path, and its events."""
    with serving({"told": Scripted(turns=[words("Nach ", "世界 ", "und ", "🌞 ", "zurück.")])}) as served:
        run_id = httpx.post(f"{served.url}/agents/told/runs", json={"input": "Tell me."}).json()["run_id"]
        httpx.get(f"{served.url}/runs/{run_id}/result", params={"wait": "true"})
        seen: list[Seen] = []
        read(f"{served.url}/runs/{run_id}/events", seen)
        yield served, f"/runs/{run_id}/events", seen


def test_wherever_the_line_breaks_nothing_is_lost_and_nothing_comes_twice(
    whole: tuple[Served, str, list[Seen]],
) -> None:
    served, path, events = whole
    length = len(httpx.get(f"{served.url}{path}").content)
    with proxying(served.url) as proxy:
        for number, place in enumerate(range(1, length, 29)):
            proxy.cut_after(rb"(?s).{%d}" % place, "close" if number % 2 else "reset")
            seen: list[Seen] = []
            read(f"{proxy.url}{path}", seen)
            assert seen == events, f"broken after {place} bytes"
            assert not proxy.planned


@pytest.mark.parametrize("step", [1, 3, 50])
def test_a_line_that_carries_a_few_bytes_at_a_time_carries_them_all(
    whole: tuple[Served, str, list[Seen]], step: int
) -> None:
    served, path, events = whole
    with proxying(served.url, step=step) as proxy:
        proxy.step(10_000)
        seen: list[Seen] = []
        read(f"{proxy.url}{path}", seen)
    assert seen == events
