"""The composition root: what is served, and what is opened and closed."""

from typing import Any

import httpx
from fastapi.testclient import TestClient
from langchain_core.runnables import RunnableLambda
from serving import running, serving

from app.main import create_app
from app.settings import Settings


def upper(text: str) -> str:
    return text.upper()


def test_an_agent_of_ones_own_is_served_beside_the_built_in_ones() -> None:
    with serving({"loud": RunnableLambda(upper)}) as served:
        started = httpx.post(f"{served.url}/agents/loud/runs", json={"input": "hello"})
        result = httpx.get(f"{served.url}{started.headers['content-location']}/result?wait=true").json()
        assert (result["status"], result["text"]) == ("completed", "HELLO")
        assert httpx.post(f"{served.url}/agents/loud/invoke", json={"input": "hello"}).json()["output"] == "HELLO"
        assert [one["name"] for one in httpx.get(f"{served.url}/agents").json()["agents"]] == [
            "chat",
            "assistant",
            "approval",
            "research",
            "extract",
            "loud",
        ]


def test_an_agent_of_the_same_name_takes_a_built_in_ones_place() -> None:
    with serving({"chat": RunnableLambda(upper)}) as served:
        assert httpx.post(f"{served.url}/agents/chat/invoke", json={"input": "hello"}).json()["output"] == "HELLO"


def test_it_can_be_embedded_and_tested_without_a_socket() -> None:
    with TestClient(create_app(Settings(model="simulated", simulated_tokens_per_second=0))) as client:
        answer = client.post("/agents/assistant/invoke", json={"input": "What is 6*7?"}).json()
        assert "42" in answer["output"]["messages"][-1]["content"]
        stream = client.post("/agents/chat/runs", json={"input": "hi"}, headers={"Accept": "text/event-stream"}).text
        assert "event: run.finished" in stream


def test_two_servers_in_one_process_do_not_disturb_each_other() -> None:
    settings: dict[str, Any] = {"model": "simulated", "simulated_tokens_per_second": 0}
    with running(create_app(Settings(**settings))) as one, running(create_app(Settings(**settings))) as two:
        for url in (one, two, one, two):
            assert "end" in httpx.post(f"{url}/agents/chat/stream", json={"input": "hello"}).text
        assert len(httpx.get(f"{one}/runs").json()["runs"]) == 2


def test_a_server_that_is_never_started_opens_nothing() -> None:
    create_app(Settings(model="simulated"))


def test_the_probes_answer(served: Any) -> None:
    assert httpx.get(f"{served.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{served.url}/health/ready").json() == {"status": "ready"}
    assert httpx.get(f"{served.url}/", follow_redirects=True).status_code == 200
