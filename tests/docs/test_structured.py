"""What docs/structured.md sends and shows is what happens."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from serving import Served, serving

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


def test_its_program_prints_the_object_as_it_grows(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(from langserve.*?)```", PAGE, re.DOTALL)
    exec(compile(code.replace("http://127.0.0.1:8000", served.url), "docs/structured.md", "exec"), {})
    printed = re.findall(r"'structured_response': (\{.*?\})", capsys.readouterr().out)
    assert len(printed) > 1
    assert ast.literal_eval(printed[-1]) == {"name": "Oslo", "people": 700000}


def test_its_limits_are_those_of_the_code() -> None:
    assert f"{MAX_BYTES // 1024} KiB, {MAX_PARTS} parts" in PAGE
    assert f"{MAX_DEPTH} levels and {MAX_PATTERNS} patterns" in PAGE


def test_its_own_agent_finds_its_own_object(served: Served) -> None:
    code = PAGE[PAGE.rindex("```python\n") + 10 :].split("```")[0]
    (text,) = re.findall(r"agents/invoices/runs .* -d '\{\"input\": \"(.*)\"\}'", PAGE)
    names: dict[str, Any] = {}
    model = f'"openai:gpt-5-mini", base_url="{served.simulator.base_url}"'
    exec(compile(code.replace('"openai:gpt-5-mini"', model), "docs/structured.md", "exec"), names)
    with serving({"invoices": names["graph"]}) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        run_id = client.post("/agents/invoices/runs", json={"input": text}).json()["run_id"]
        found = client.get(f"/runs/{run_id}/result", params={"wait": True}).json()
    assert (found["status"], found["object"]) == ("completed", {"number": "A-7", "total": 49.6})
