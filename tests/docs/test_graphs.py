"""The graph of docs/graphs.md does what the page says: served as it stands there, its branches are lanes."""

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
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    with serving({"visits": names["graph"]}) as one:
        yield one


def test_its_branches_are_lanes_that_say_what_they_are_about(server: Served) -> None:
    with (
        httpx.Client(base_url=server.url) as client,
        connect_sse(client, "POST", "/agents/visits/runs", json={"input": "go"}) as source,
    ):
        told = [{"event": one.event, **json.loads(one.data)} for one in source.iter_sse()]
    lanes = {one["data"]["namespace"][0]: one["data"]["question"] for one in told if one["event"] == "custom"}
    said = {one["namespace"][0]: one["text"] for one in told if one["event"] == "token" and one.get("namespace")}
    assert sorted(lanes.values()) == ["Oslo", "Rome"]
    assert said == {lane: f"It rains in {place}." for lane, place in lanes.items()}
    assert [one["text"] for one in told if one["event"] == "token" and not one.get("namespace")] == [
        "It rains in Oslo. It rains in Rome."
    ]
