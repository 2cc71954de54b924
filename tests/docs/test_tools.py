"""What docs/tools.md builds and sends works, as it stands there."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from machine import program
from serving import Served, serving

from app.simulator.server import Simulator

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tools") / "outbox"


@pytest.fixture(scope="module")
def server(outbox: Path) -> Iterator[Served]:
    with Simulator(tokens_per_second=0) as provider:
        names: dict[str, Any] = {}
        code = PAGE.split("```python\n")[1].split("```")[0]
        code = code.replace('"openai:gpt-5-mini"', f'"openai:gpt-5-mini", base_url="{provider.base_url}"')
        exec(compile(code, "docs/tools.md", "exec"), names)
        with serving({"brief": names["graph"]}, openai_base_url=provider.base_url, outbox_dir=outbox) as one:
            yield one


def test_its_first_graph_runs_its_tools(server: Served) -> None:
    (body,) = re.findall(r"agents/brief/runs .* -d '\{\"input\": \"(.*)\"\}'", PAGE)
    with (
        httpx.Client(base_url=server.url, timeout=20) as client,
        connect_sse(client, "POST", "/agents/brief/runs", json={"input": body}) as source,
    ):
        events = [(one.event, one.json()) for one in source.iter_sse()]
    assert sorted(data["output"] for event, data in events if event == "tool.finished") == ["42", "7"]
    assert events[-1][1]["status"] == "completed"


def test_its_approval_can_be_pasted_as_one_block(server: Served, outbox: Path) -> None:
    program("curl", package="curl")
    (block,) = re.findall(r"```sh\n(curl -N \S+/agents/approval/runs.*?)```", PAGE, re.DOTALL)
    pasted = block.replace("http://127.0.0.1:8000", server.url)
    said = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=60, check=True).stdout
    assert re.findall(r"event: run.finished\ndata: .*?\"status\":\"(\w+)\"", said) == ["interrupted", "completed"]
    assert '"interrupts":[{' in said
    assert len(list((outbox / "new").iterdir())) == 1
