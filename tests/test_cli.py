"""The command, as a person runs it: a process of its own, in a folder of the user's."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from app.simulator.server import Simulator

PROJECTS = Path(__file__).parent / "projects"

MY_AGENTS = """
import os
from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from tools import lookup_order

def graph():
    model = ChatOpenAI(base_url=os.environ["OPENAI_BASE_URL"], api_key="none", model="simulated")
    model = model.bind_tools([lookup_order])

    async def think(state: MessagesState):
        return {"messages": [await model.ainvoke(state["messages"])]}

    inner = StateGraph(MessagesState)
    inner.add_node("think", think)
    inner.add_node("tools", ToolNode([lookup_order]))
    inner.add_edge(START, "think")
    inner.add_conditional_edges("think", tools_condition)
    inner.add_edge("tools", "think")
    outer = StateGraph(MessagesState)
    outer.add_node("desk", inner.compile())
    outer.add_edge(START, "desk")
    return outer.compile()
"""

THEIR_TOOLS = '''
import asyncio
from langchain_core.tools import tool

@tool
async def lookup_order(order_number: int) -> str:
    """Look up an order by its number."""
    await asyncio.sleep(0.01)
    return f"Order {order_number} is on its way."
'''


def millrace(*args: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    return start("app.cli", *args, cwd=cwd, **env)


def start(module: str, *args: str, cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=cwd, env=environment(env), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def environment(extra: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}
    # -m puts the folder first on the path, as no installed command does: safe path takes it off again.
    own = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "MILLRACE_DATABASE_URL": "sqlite://"}
    return kept | own | extra


@contextmanager
def served(*args: str, cwd: Path, **env: str) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """A server on a free port: its address, its process, and the lines it prints."""
    with running(millrace("serve", "--port", "0", *args, cwd=cwd, **env)) as one:
        yield one


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    assert process.stdout is not None
    lines: list[str] = []
    found = threading.Event()

    def read(stream: Iterator[str]) -> None:
        for line in stream:
            lines.append(line)
            if "Uvicorn running on" in line:
                found.set()
        found.set()

    reader = threading.Thread(target=read, args=(process.stdout,))
    reader.start()
    try:
        assert found.wait(60)
        address = re.search(r"http://127\.0\.0\.1:\d+", next(line for line in lines if "running on" in line))
        assert address, lines
        yield address[0], process, lines
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        reader.join()
        process.stdout.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Simulator]:
    with Simulator(tokens_per_second=0) as one:
        yield one


def test_a_graph_of_ones_own_is_served_by_one_command_beside_a_tools_file_of_ones_own(
    tmp_path: Path, provider: Simulator
) -> None:
    (tmp_path / "my_agents.py").write_text(MY_AGENTS)
    (tmp_path / "tools.py").write_text(THEIR_TOOLS)
    with served("support=my_agents:graph", cwd=tmp_path, OPENAI_BASE_URL=provider.base_url) as (url, _, _lines):
        names = [agent["name"] for agent in httpx.get(f"{url}/agents").json()["agents"]]
        assert names[0] == "chat"
        assert names[-1] == "support"
        stream = httpx.post(
            f"{url}/agents/support/runs",
            json={"input": "Where is my order number 4711?"},
            headers={"Accept": "text/event-stream"},
            timeout=30,
        ).text
        assert '"name":"lookup_order","status":"ok","output":"Order 4711 is on its way."' in stream
        assert '"namespace":["desk:' in stream
        assert stream.rstrip().splitlines()[-2] == "event: run.finished"
        built_in = httpx.post(f"{url}/agents/assistant/invoke", json={"input": "What is 6*7?"}, timeout=30).json()
        assert "42" in built_in["output"]["messages"][-1]["content"]


def test_uvicorn_serves_it_from_a_folder_with_a_tools_file_of_its_own(tmp_path: Path, provider: Simulator) -> None:
    (tmp_path / "my_agents.py").write_text(MY_AGENTS)
    (tmp_path / "tools.py").write_text(THEIR_TOOLS)
    (tmp_path / "chains").mkdir()
    env = {"OPENAI_BASE_URL": provider.base_url, "MILLRACE_AGENTS": "support=my_agents:graph"}
    command = ("app.main:create_app", "--factory", "--port", "0")
    with running(start("uvicorn", *command, cwd=tmp_path, **env)) as (url, _, _lines):
        for agent, question, word in (("support", "Where is order number 4711?", "way"), ("assistant", "6*7?", "42")):
            answer = httpx.post(f"{url}/agents/{agent}/invoke", json={"input": question}, timeout=30).json()
            assert word in answer["output"]["messages"][-1]["content"]


def test_the_graphs_of_a_langgraph_project_are_served_as_they_are(provider: Simulator) -> None:
    env = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "none"}
    with served("--config", "langgraph.json", cwd=PROJECTS / "langgraph_app", **env) as (url, _, _lines):
        inputs = {
            "support": "Where is order 4711?",
            "translator": "Good morning",
            "summary": {"text": "one two three four"},
        }
        for agent, given in inputs.items():
            started = httpx.post(f"{url}/agents/{agent}/runs", json={"input": given}, timeout=30)
            assert started.status_code == 202, started.text
            path = f"{url}{started.headers['content-location']}/result?wait=true"
            result = httpx.get(path, timeout=30).json()
            assert result["status"] == "completed"
            assert result["text"] or result["object"]["summary"] == "one two three …"
        refused = httpx.post(f"{url}/agents/summary/runs", json={"input": "a text"})
        assert refused.status_code == 422


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("support=nowhere:graph", "nowhere"),
        ("support=my_agents:grahp", "did you mean 'graph'"),
        ("support", "NAME=MODULE:ATTR"),
        ("../x=my_agents:graph", "name"),
    ],
)
def test_a_bad_target_is_one_clear_line_and_exit_code_2(tmp_path: Path, spec: str, said: str) -> None:
    (tmp_path / "my_agents.py").write_text("graph = 7\n")
    process = millrace("serve", spec, cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = output.strip().splitlines()
    assert line.startswith("millrace: ")
    assert said in line


def test_a_bad_setting_is_named_and_nothing_starts(tmp_path: Path) -> None:
    process = millrace("serve", cwd=tmp_path, MILLRACE_RUN_TIMEOUT_S="-1")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("millrace: MILLRACE_RUN_TIMEOUT_S: ")


def test_a_model_whose_integration_is_missing_is_one_line(tmp_path: Path) -> None:
    process = millrace("serve", cwd=tmp_path, MILLRACE_MODEL="mistralai:some-model")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "langchain-mistralai" in output or "langchain_mistralai" in output
    assert len(output.strip().splitlines()) == 1


def test_without_a_key_it_says_plainly_that_answers_are_simulated(tmp_path: Path) -> None:
    with served(cwd=tmp_path) as (url, _, lines):
        answer = httpx.post(f"{url}/agents/assistant/invoke", json={"input": "What is 6*7?"}, timeout=30).json()
        assert "42" in answer["output"]["messages"][-1]["content"]
        assert any("simulated" in line for line in lines)


def test_settings_are_shown_with_value_default_and_meaning_and_no_key(tmp_path: Path) -> None:
    process = millrace("settings", cwd=tmp_path, OPENAI_API_KEY="sk-very-secret", MILLRACE_HEARTBEAT_S="7")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "sk-very-secret" not in output
    for name in Settings.model_fields:
        shown = name.upper() if name.startswith("openai_") else f"MILLRACE_{name.upper()}"
        assert shown in output
    assert re.search(r"MILLRACE_HEARTBEAT_S\s+7.0\s+5", output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_its_streams_with_their_last_event(
    tmp_path: Path, provider: Simulator, number: signal.Signals
) -> None:
    with served(cwd=tmp_path, OPENAI_BASE_URL=provider.base_url, MILLRACE_DRAIN_GRACE_S="0") as (url, process, lines):
        body = {"input": "[[first_token_s=60]] think"}
        with httpx.stream(
            "POST", f"{url}/agents/chat/runs", json=body, headers={"Accept": "text/event-stream"}
        ) as stream:
            read = stream.iter_lines()
            while next(read) != "event: run.started":
                pass
            process.send_signal(number)
            rest = "\n".join(read)
        assert '"status":"cancelled","reason":"shutdown"' in rest
        process.wait(30)
        assert not any("Traceback" in line for line in lines)


# Who may use it


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "example.com", "localhost.example.com"])
def test_without_keys_it_does_not_listen_for_other_machines(tmp_path: Path, host: str) -> None:
    process = millrace("serve", "--host", host, cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = output.strip().splitlines()
    assert line.startswith(f"millrace: --host {host} lets other machines in")
    for word in ("MILLRACE_API_KEYS", "--serve-anyone", "spend the model provider's money"):
        assert word in line


@pytest.mark.parametrize(
    ("option", "env", "warned"),
    [
        ("--serve-anyone", {}, True),
        ("--host=0.0.0.0", {"MILLRACE_SERVE_ANYONE": "yes"}, True),
        ("--host=0.0.0.0", {"MILLRACE_API_KEYS": "a-key-that-is-long-enough:ada"}, False),
    ],
)
def test_with_keys_or_told_to_serve_anyone_it_listens_and_the_second_is_warned_of(
    tmp_path: Path, option: str, env: dict[str, str], warned: bool
) -> None:
    process = millrace("serve", "--host", "0.0.0.0", option, "--port", "0", cwd=tmp_path, **env)
    assert process.stdout is not None
    said = ""
    while "Uvicorn running on http://0.0.0.0:" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert ("ANYBODY who reaches this port may use the agents and spend" in said) is warned
    assert "a-key-that-is-long-enough" not in said


def test_what_the_environment_allows_the_command_line_can_forbid(tmp_path: Path) -> None:
    process = millrace(
        "serve", "--host", "0.0.0.0", "--no-serve-anyone", cwd=tmp_path, MILLRACE_SERVE_ANYONE="true"
    )  # fmt: skip
    process.communicate(timeout=60)
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("hidden-secret", "neither key:user pairs nor a file that can be read"),
        ("k1:ada,hidden-secret:bob:tomorrow", "entry 2: what follows the second colon is no day"),
        ("keys.txt", "line 2 of keys.txt: must be key:user"),
    ],
)
def test_bad_keys_are_one_line_that_names_the_place_and_shows_no_key(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "keys.txt").write_text("k1:ada\nhidden-secret\n")
    process = millrace("serve", cwd=tmp_path, MILLRACE_API_KEYS=keys)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = output.strip().splitlines()
    assert line.startswith(f"millrace: MILLRACE_API_KEYS: {said}")
    assert "secret" not in line


@pytest.mark.parametrize(
    ("setting", "content", "said"),
    [
        ("MILLRACE_LIMITS_FILE", "[users.ada]\nmax_streams = -1\n", "file.toml, line 2: users.ada.max_streams must be"),
        ("MILLRACE_LIMITS_FILE", "[users.ada\n", "file.toml: "),
        ("MILLRACE_PRICES_FILE", "[a\n", "file.toml: "),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_setting_and_the_line(
    tmp_path: Path, setting: str, content: str, said: str
) -> None:
    (tmp_path / "file.toml").write_text(content)
    process = millrace("serve", cwd=tmp_path, **{setting: "file.toml"})
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = output.strip().splitlines()
    assert line.startswith(f"millrace: {setting}: {said}")


def test_a_bad_proxy_is_named(tmp_path: Path) -> None:
    process = millrace("serve", cwd=tmp_path, MILLRACE_TRUSTED_PROXIES="10.0.0.1,*")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.startswith("millrace: MILLRACE_TRUSTED_PROXIES: ")


def test_settings_show_no_key_of_a_user_nor_where_they_are(tmp_path: Path) -> None:
    for keys in ("a-hidden-secret:ada", "secret-file"):
        process = millrace("settings", cwd=tmp_path, MILLRACE_API_KEYS=keys)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "MILLRACE_API_KEYS" in output
        assert "secret" not in output
