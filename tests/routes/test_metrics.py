"""``/metrics`` of a running server, as Prometheus reads it."""

import contextlib
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text
from serving import Served, serving

from app.eventlog.subscriber import EndOfLog
from app.simulator.server import Simulator

Until = Callable[[Callable[[], bool]], Awaitable[None]]
LONG = "[[tokens=5000]] go on"


@pytest.fixture(scope="module")
def server(provider: Simulator) -> Iterator[Served]:
    address = provider.base_url
    with serving(
        openai_base_url=address, max_streams_per_user=2, upstream_concurrency=1, subscriber_max_events=5
    ) as one:
        yield one


class Scraped:
    """One scrape. A sample is its value, summed over the labels that are not asked for."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200
        parse = openmetrics if "openmetrics" in answer.headers["content-type"] else text
        self.samples = [sample for family in parse(answer.text) for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        found = [one.value for one in self.samples if one.name == name and labels.items() <= one.labels.items()]
        assert found, name
        return sum(found)


async def start(client: httpx.AsyncClient, text: str) -> httpx.Response:
    return await client.post("/agents/chat/runs", json={"input": text})


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
async def test_what_happens_is_scraped(server: Served, client: httpx.AsyncClient, until: Until, accept: str) -> None:
    async def scrape() -> Scraped:
        return Scraped(await client.get("/metrics", headers={"Accept": accept}))

    before = await scrape()
    whole = (await start(client, "[[tokens=30]] hello")).json()["run_id"]
    await client.get(f"/runs/{whole}/result?wait=true")
    talks = (await start(client, LONG)).json()["run_id"]
    await until(lambda: server.run(talks).ttft_ms is not None)
    waits = (await start(client, LONG)).json()["run_id"]
    await until(lambda: server.runner.gate.waiting == 1)
    assert (await start(client, LONG)).status_code == 429

    async with client.stream("GET", f"/runs/{talks}/events"):
        during = await scrape()
    assert during("millrace_live_runs", state="running") == 2
    assert during("millrace_readers") == 1
    assert (during("millrace_gate_calls_under_way"), during("millrace_gate_calls_waiting")) == (1, 1)
    assert during("millrace_gate_limit") == 1

    for run_id in (waits, talks):
        await client.post(f"/runs/{run_id}/cancel")
    await until(lambda: server.runner.live == 0)
    after = await scrape()

    def grew(name: str, **labels: str) -> float:
        return after(name, **labels) - before(name, **labels)

    assert grew("millrace_runs_total", agent="chat", status="completed") == 1
    assert grew("millrace_runs_total", agent="chat", status="cancelled") == 2
    assert grew("millrace_refusals_total", code="too_many_streams") == 1
    assert grew("millrace_time_to_first_token_seconds_count", agent="chat") == 2
    assert grew("millrace_cancel_latency_seconds_count", status="cancelled") == 2
    assert grew("millrace_inter_token_seconds_count") >= 29
    said = server.run(whole).usage.output_tokens
    model = {"agent": "chat", "model": "simulated"}
    assert after("millrace_tokens_total", kind="output", status="completed", **model) >= said == 30
    assert after("millrace_cost_usd_total", **model) > 0
    assert (after("millrace_readers"), after("millrace_gate_calls_under_way")) == (0, 0)
    assert after("millrace_live_runs") == 0


async def test_gaps_of_readers_are_counted(server: Served, client: httpx.AsyncClient) -> None:
    before = Scraped(await client.get("/metrics"))
    run_id = (await start(client, "[[tokens=40]] hello")).json()["run_id"]
    subscriber = server.run(run_id).subscribe(0)  # a reader that reads nothing before the end
    await client.get(f"/runs/{run_id}/result?wait=true")
    with contextlib.suppress(EndOfLog):
        while True:
            await subscriber.read()
    after = Scraped(await client.get("/metrics"))
    assert after("millrace_gaps_total") - before("millrace_gaps_total") >= 1
    assert after("millrace_dropped_events_total") > before("millrace_dropped_events_total")
