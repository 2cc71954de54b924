"""The graphs of docs/graphs.md do what the page says, served as they stand there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from serving import Served, serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "graphs.md"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    visits, rooms = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with serving({"visits": graph(visits), "rooms": graph(rooms)}) as one:
        yield one


def graph(code: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names["graph"]


def run(server: Served, agent: str, **request: Any) -> list[dict[str, Any]]:
    with (
        httpx.Client(base_url=server.url) as client,
        connect_sse(client, "POST", f"/agents/{agent}/runs", json=request) as source,
    ):
        return [{"event": one.event, **json.loads(one.data)} for one in source.iter_sse()]


def test_its_branches_are_lanes_that_say_what_they_are_about(server: Served) -> None:
    told = run(server, "visits", input="go")
    lanes = {one["data"]["namespace"][0]: one["data"]["question"] for one in told if one["event"] == "custom"}
    said = {one["namespace"][0]: one["text"] for one in told if one["event"] == "token" and one.get("namespace")}
    assert sorted(lanes.values()) == ["Oslo", "Rome"]
    assert said == {lane: f"It rains in {place}." for lane, place in lanes.items()}


def test_each_turn_tells_what_was_found_in_it_alone(server: Served) -> None:
    for _ in range(2):
        told = run(server, "visits", input="go", thread_id="visits")
        assert [one["text"] for one in told if one["event"] == "token" and not one.get("namespace")] == [
            "It rains in Oslo. It rains in Rome."
        ]


def test_its_tools_wait_each_for_its_own_answer(server: Served) -> None:
    asked = waits(run(server, "rooms", input="go", thread_id="rooms"))
    assert sorted(asked) == ["A room in Oslo?", "A room in Rome?"]
    left = waits(run(server, "rooms", resume={asked["A room in Rome?"]: "no"}, thread_id="rooms"))
    assert left == {"A room in Oslo?": asked["A room in Oslo?"]}
    told = run(server, "rooms", resume={left["A room in Oslo?"]: "yes"}, thread_id="rooms")
    messages = httpx.get(f"{server.url}/threads/rooms").json()["messages"]
    assert told[-1]["status"] == "completed"
    assert [one["content"] for one in messages if one["type"] == "tool"] == ["Oslo: yes", "Rome: no"]


def waits(told: list[dict[str, Any]]) -> dict[str, str]:
    """What a run asks, and by which id each question is answered."""
    return {
        interrupt["value"]: interrupt["id"]
        for one in told
        if one["event"] == "run.interrupted"
        for interrupt in one["interrupts"]
    }
