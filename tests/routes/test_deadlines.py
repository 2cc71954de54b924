"""A provider falls silent, or refuses: the built-in agents' runs end in time, or ask once more where it is safe."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from serving import Served, serving

from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    with serving(openai_base_url=provider.base_url) as one:
        yield one


async def told(client: httpx.AsyncClient, agent: str, text: str, **request: Any) -> list[tuple[str, dict[str, Any]]]:
    """All events of a run: ``(name, data)``."""
    answer = await client.post(
        f"/agents/{agent}/runs", json={"input": text, **request}, headers={"Accept": "text/event-stream"}
    )
    blocks = [block.splitlines() for block in answer.text.removeprefix("retry: 1000\n").strip().split("\n\n")]
    events = []
    for block in blocks:
        fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
        events.append((fields["event"], httpx.Response(200, text=fields["data"]).json()))
    return events


@pytest.mark.parametrize("agent", ["chat", "assistant"])
@pytest.mark.parametrize(
    ("text", "limit", "code", "tokens"),
    [
        ("[[first_token_s=60]] hi", "first_token_timeout_s", "first_token_timeout", 0),
        ("[[stall_after=3]] go on", "token_timeout_s", "token_timeout", 3),
        ("[[stall_after=3]] go on", "timeout_s", "run_timeout", 3),
    ],
)
async def test_each_silence_has_its_deadline(
    client: httpx.AsyncClient, provider: Simulator, until: Until,
    agent: str, text: str, limit: str, code: str, tokens: int,
) -> None:  # fmt: skip
    events = await told(client, agent, text, **{limit: 0.5})
    names = [name for name, _ in events]
    assert names[-2:] == ["error", "run.finished"]
    assert (events[-2][1]["code"], events[-2][1]["retryable"]) == (code, True)
    assert (events[-1][1]["status"], events[-1][1]["reason"]) == ("timed_out", code)
    assert names.count("token") == tokens
    assert events[-1][1]["usage"]["output_tokens"] == tokens
    await until(lambda: all(request.ended is not None for request in provider.requests))


@pytest.mark.parametrize("agent", ["chat", "assistant"])
async def test_a_provider_that_refuses_at_first_is_asked_again_and_that_can_be_seen(
    client: httpx.AsyncClient, provider: Simulator, agent: str
) -> None:
    before = len(provider.requests)
    events = await told(client, agent, f"[[status=503&fail_times=2]] hi from {agent}")
    retries = [data["data"] for name, data in events if name == "custom" and data["name"] == "provider.retry"]
    assert [(retry["attempt"], retry["status"]) for retry in retries] == [(1, 503), (2, 503)]
    assert events[-1][1]["status"] == "completed"
    assert len(provider.requests) - before == 3


async def test_a_wait_that_is_too_long_is_the_clients_to_decide(client: httpx.AsyncClient) -> None:
    events = await told(client, "chat", "[[status=429&retry_after=30]] hi")
    error = next(data for name, data in events if name == "error")
    assert (error["code"], error["retry_after_ms"]) == ("provider_rate_limited", 30_000)
    assert not any(name == "custom" for name, _ in events)


async def test_nothing_is_asked_twice_once_it_has_begun_to_answer(
    client: httpx.AsyncClient, provider: Simulator
) -> None:
    before = len(provider.requests)
    events = await told(client, "assistant", "[[drop_after=3]] hi")
    assert [data["code"] for name, data in events if name == "error"] == ["provider_dropped"]
    assert (events[-1][1]["status"], sum(name == "token" for name, _ in events)) == ("failed", 3)
    assert len(provider.requests) - before == 1
