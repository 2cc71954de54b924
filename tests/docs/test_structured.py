"""What docs/structured.md sends and shows is what happens."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
from httpx_sse import connect_sse
from serving import Served

from chains.extract import build_extract
from chains.schema import MAX_BYTES, MAX_DEPTH, MAX_PARTS, MAX_PATTERNS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "structured.md").read_text(encoding="utf-8")


def test_its_order_is_told_field_by_field(served: Served) -> None:
    (body,) = re.findall(r"-d '(\{\"input\": \{\n.*?\})'\n", PAGE, re.DOTALL)
    with (
        httpx.Client(base_url=served.url, timeout=20) as client,
        connect_sse(client, "POST", "/agents/extract/runs", json=json.loads(body)) as source,
    ):
        events = [(one.event, json.loads(one.data)) for one in source.iter_sse()]
    partials = [data["value"] for event, data in events if event == "object.partial"]
    assert partials[-1] == {
        "number": "A-1042",
        "items": [
            {"name": "Brass gear", "quantity": 2, "unit_price": 12.5},
            {"name": "Punched cards", "quantity": 3, "unit_price": 8.2},
        ],
        "total": 49.6,
        "currency": "EUR",
        "customer": {"name": "Ada Lovelace", "email": "ada@example.com"},
    }
    assert [data["path"] for event, data in events if event == "object.field"][:2] == [["number"], ["items", 0, "name"]]
    assert events[-1][1]["status"] == "completed"


def test_its_limits_are_those_of_the_code() -> None:
    assert f"{MAX_BYTES // 1024} KiB, {MAX_PARTS} parts" in PAGE
    assert f"{MAX_DEPTH} levels and {MAX_PATTERNS} patterns" in PAGE


def test_its_own_agent_is_one() -> None:
    names: dict[str, Any] = {}
    code = (
        PAGE[PAGE.rindex("```python\n") + 10 :]
        .split("```")[0]
        .replace('"openai:gpt-5-mini"', '"openai:x", api_key="x"')
    )
    exec(compile(code, "docs/structured.md", "exec"), names)
    assert type(names["graph"]) is type(build_extract(names["build_model"]("openai:x", api_key="x")))
