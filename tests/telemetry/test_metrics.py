import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from app.routes.metrics import metrics_routes
from app.telemetry.metrics import CODES, MAX_MODELS, Metrics
from app.telemetry.records import CallStatus, FinishedRun, ModelCall, RunStatus

DOCS = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""As Prometheus sends it."""

CALL = ModelCall(
    run_id="1a2b",
    agent="chat",
    user="alice",
    model="gpt-5-mini",
    provider="openai",
    status="completed",
    started_at=100.0,
    ended_at=103.0,
    queue_s=0.3,
    ttft_s=0.4,
    input_tokens=120,
    output_tokens=345,
    reasoning_tokens=45,
    cached_tokens=20,
    cost_usd=0.0012,
)

RUN = FinishedRun(
    run_id="1a2b",
    agent="chat",
    user="alice",
    thread_id=None,
    status="cancelled",
    reason="disconnected",
    created_at=100.0,
    finished_at=103.2,
    duration_s=3.2,
    cancel_s=0.004,
    saved_tokens=410,
    saved_usd=0.0008,
)

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def watched(metrics: Metrics) -> Metrics:
    metrics.watch(runs=lambda: {"running": 3, "paused": 1}, readers=lambda: 7, gate=lambda: (2, 5, 8))
    return metrics


def read(families: Iterable[Metric]) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def values(metrics: Metrics) -> Values:
    """What both of the library's parsers read, which has to be the same."""
    text, openmetrics = (metrics.render(accept)[0].decode() for accept in ("", OPENMETRICS))
    read_text = read(parse_text(text))
    read_openmetrics = read(parse_openmetrics(openmetrics))  # type: ignore[no-untyped-call]

    def of_the_house(found: Values) -> Values:
        return {key: value for key, value in found.items() if key[0].startswith("millrace_")}

    assert of_the_house(read_text) == of_the_house(read_openmetrics)
    return read_text


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return values(metrics).get((f"millrace_{name}", frozenset(labels.items())))


def series(metrics: Metrics, name: str) -> list[dict[str, str]]:
    return [dict(labels) for key, labels in values(metrics) if key == f"millrace_{name}"]


def test_a_model_call_is_counted_by_agent_model_status_and_kind() -> None:
    metrics = Metrics(["chat"])
    metrics.call(CALL)
    metrics.call(CALL._replace(status="cancelled", output_tokens=5, cost_usd=0.5, estimated=True))
    who = {"agent": "chat", "model": "gpt-5-mini"}
    assert value(metrics, "model_calls_total", **who, status="completed") == 1
    assert value(metrics, "tokens_total", **who, status="completed", kind="input") == 120
    assert value(metrics, "tokens_total", **who, status="completed", kind="output") == 345
    assert value(metrics, "tokens_total", **who, status="completed", kind="reasoning") == 45
    assert value(metrics, "tokens_total", **who, status="completed", kind="cached") == 20
    assert value(metrics, "tokens_total", **who, status="cancelled", kind="output") == 5
    assert value(metrics, "cost_usd_total", **who, status="completed") == pytest.approx(0.0012)
    assert value(metrics, "cost_usd_total", **who, status="cancelled") == pytest.approx(0.5)
    assert value(metrics, "model_calls_estimated_total", **who) == 1
    assert value(metrics, "model_calls_unpriced_total", **who) is None
    assert value(metrics, "queue_wait_seconds_sum") == pytest.approx(0.6)
    assert value(metrics, "queue_wait_seconds_bucket", le="0.25") == 0
    assert value(metrics, "queue_wait_seconds_bucket", le="0.5") == 2
    assert value(metrics, "model_time_to_first_token_seconds_count", model="gpt-5-mini") == 2


def test_an_unknown_price_is_counted_as_unknown_and_not_as_nothing() -> None:
    metrics = Metrics(["chat"])
    metrics.call(CALL._replace(cost_usd=None))
    assert value(metrics, "model_calls_unpriced_total", agent="chat", model="gpt-5-mini") == 1
    assert series(metrics, "cost_usd_total") == []
    metrics.call(CALL._replace(cost_usd=0.0))
    assert value(metrics, "cost_usd_total", agent="chat", model="gpt-5-mini", status="completed") == 0
    assert value(metrics, "model_calls_unpriced_total", agent="chat", model="gpt-5-mini") == 1


def test_a_run_is_counted_by_agent_and_status() -> None:
    metrics = Metrics(["chat"])
    metrics.run(RUN)
    metrics.run(RUN._replace(status="completed", cancel_s=None, saved_tokens=0, saved_usd=None))
    assert value(metrics, "runs_total", agent="chat", status="cancelled") == 1
    assert value(metrics, "runs_total", agent="chat", status="completed") == 1
    assert value(metrics, "run_duration_seconds_sum", agent="chat") == pytest.approx(6.4)
    assert value(metrics, "cancel_latency_seconds_bucket", status="cancelled", le="0.005") == 1
    assert value(metrics, "cancel_latency_seconds_bucket", status="cancelled", le="0.002") == 0
    assert value(metrics, "saved_tokens_total", agent="chat") == 410
    assert value(metrics, "saved_cost_usd_total", agent="chat") == pytest.approx(0.0008)


def test_tokens_refusals_gaps_and_429s_are_counted() -> None:
    metrics = Metrics(["chat"])
    metrics.first_token("chat", 0.21)
    for seconds in (0.0, 0.012, 0.024, 1.7):
        metrics.token_gap(seconds)
    metrics.refused("rate_limited")
    metrics.refused("rate_limited")
    metrics.refused("a code that nobody knows")
    metrics.gap(12)
    metrics.gap(30)
    metrics.provider_refused()
    assert value(metrics, "time_to_first_token_seconds_sum", agent="chat") == pytest.approx(0.21)
    assert value(metrics, "inter_token_seconds_count") == 4
    assert value(metrics, "inter_token_seconds_bucket", le="0.015") == 2
    assert value(metrics, "refusals_total", code="rate_limited") == 2
    assert value(metrics, "refusals_total", code="too_many_streams") == 0
    assert value(metrics, "refusals_total", code="other") == 1
    assert value(metrics, "gaps_total") == 2
    assert value(metrics, "dropped_events_total") == 42
    assert value(metrics, "provider_rate_limited_total") == 1


def test_recoveries_are_counted_by_kind_and_problem() -> None:
    metrics = Metrics()
    metrics.recovered("tool.repaired", "not_json")
    metrics.recovered("tool.refused", "something new")
    metrics.recovered("provider.retry", "None")
    assert value(metrics, "recoveries_total", kind="tool.repaired", problem="not_json") == 1
    assert value(metrics, "recoveries_total", kind="tool.refused", problem="schema") == 0
    assert value(metrics, "recoveries_total", kind="tool.refused", problem="") == 1
    assert value(metrics, "recoveries_total", kind="provider.retry", problem="") == 1


def test_what_is_so_now_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    assert value(metrics, "readers") is None
    live = {"running": 3}
    metrics.watch(runs=lambda: live, readers=lambda: 0, gate=lambda: (0, 0, 64))
    assert value(metrics, "live_runs", state="running") == 3
    live["running"], live["queued"] = 1, 4
    assert value(metrics, "live_runs", state="running") == 1
    assert value(metrics, "live_runs", state="queued") == 4
    assert value(metrics, "live_runs", state="paused") == 0
    watched(metrics)
    assert value(metrics, "live_runs", state="running") == 3
    assert value(metrics, "readers") == 7
    assert value(metrics, "gate_calls_under_way") == 2
    assert value(metrics, "gate_calls_waiting") == 5
    assert value(metrics, "gate_limit") == 8


def test_series_of_known_agents_are_there_before_their_first_event() -> None:
    metrics = Metrics(["chat", "assistant"])
    for agent in ("chat", "assistant"):
        for status in get_args(RunStatus):
            assert value(metrics, "runs_total", agent=agent, status=status) == 0
        assert value(metrics, "time_to_first_token_seconds_count", agent=agent) == 0
        assert value(metrics, "saved_tokens_total", agent=agent) == 0
    for code in CODES:
        assert value(metrics, "refusals_total", code=code) == 0
    assert value(metrics, "cancel_latency_seconds_count", status="timed_out") == 0


def test_ten_thousand_models_are_fifty_and_the_rest() -> None:
    metrics = Metrics(["chat"])
    for number in range(10_000):
        metrics.call(CALL._replace(model=f"model-{number}"))
    found = series(metrics, "model_calls_total")
    assert len({labels["model"] for labels in found}) == MAX_MODELS + 1
    assert value(metrics, "model_calls_total", agent="chat", model="model-0", status="completed") == 1
    assert value(metrics, "model_calls_total", agent="chat", model="other", status="completed") == 10_000 - MAX_MODELS


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("x" * 10_240, "x" * 100),
        ("a\nmillrace_runs_total 9", "a?millrace_runs_total 9"),
        ('say "hi"\\', 'say "hi"\\'),
        ("\x00\x1b[31m\r\u2028", "??[31m??"),
        ("modèle-日本", "modèle-日本"),
        ("half \ud800", "half ?"),
        ("", "unknown"),
    ],
    ids=["10 KB", "newline", "quotes", "controls", "unicode", "surrogate", "empty"],
)
def test_a_nasty_name_of_a_model_or_an_agent_breaks_nothing(name: str, label: str) -> None:
    metrics = Metrics(["chat"])
    metrics.call(CALL._replace(model=name, agent=name))
    metrics.run(RUN._replace(agent=name))
    metrics.first_token(name, 0.1)
    assert value(metrics, "model_calls_total", agent=label, model=label, status="completed") == 1
    assert value(metrics, "runs_total", agent=label, status="cancelled") == 1


def test_a_clock_that_jumps_and_values_that_are_no_numbers_harm_nothing() -> None:
    metrics = Metrics(["chat"])
    metrics.call(CALL._replace(queue_s=-4.0, ttft_s=float("nan"), input_tokens=-1, cost_usd=float("nan")))
    metrics.run(RUN._replace(duration_s=-3600.0, cancel_s=-1.0, saved_tokens=-5, saved_usd=-0.1))
    metrics.token_gap(float("nan"))
    metrics.token_gap(-7.0)
    metrics.first_token("chat", -1.0)
    metrics.gap(-1)
    found = values(metrics)
    assert all(amount >= 0 for (name, _), amount in found.items() if name.startswith("millrace_"))


def test_threads_may_count_at_once_and_nothing_is_lost() -> None:
    metrics = watched(Metrics(["chat"]))

    def work(number: int) -> None:
        for _ in range(200):
            metrics.call(CALL._replace(model=f"model-{number}"))
            metrics.token_gap(0.01)
        metrics.render("")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert value(metrics, "inter_token_seconds_count") == 1600
    assert value(metrics, "queue_wait_seconds_count") == 1600
    assert value(metrics, "model_calls_total", agent="chat", model="model-3", status="completed") == 200


def test_two_applications_of_a_process_count_apart() -> None:
    one, other = Metrics(["chat"]), Metrics(["chat"])
    one.gap(1)
    assert value(one, "gaps_total") == 1
    assert value(other, "gaps_total") == 0


def test_nobody_is_sent_the_times_at_which_series_began() -> None:
    metrics = Metrics(["chat"])
    metrics.call(CALL)
    for accept in ("", OPENMETRICS):
        assert b"_created" not in metrics.render(accept)[0]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=banana", "text/plain; version=0.0.4"),
        ("text/plain; version=x.y", "text/plain; version=0.0.4"),
    ],
)
async def test_the_route_speaks_what_its_client_accepts(accept: str, content_type: str) -> None:
    metrics = watched(Metrics(["chat"]))
    metrics.call(CALL)
    app = FastAPI()
    app.include_router(metrics_routes(metrics))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        reply = await client.get("/metrics", headers={"accept": accept})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith(content_type)
    assert len(reply.headers.get_list("content-type")) == 1
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    found = read(parse(reply.text))
    assert found["millrace_readers", frozenset()] == 7


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """``name: (type, labels)`` of the rows of the docs' tables."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| .+ \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    return {name: (kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def exposed() -> dict[str, tuple[str, frozenset[str]]]:
    metrics = watched(Metrics(["chat"]))
    metrics.call(CALL._replace(estimated=True))
    metrics.call(CALL._replace(cost_usd=None))
    metrics.run(RUN)
    found = {}
    for family in parse_text(metrics.render("")[0].decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, frozenset(labels))
    return found


def test_every_metric_is_documented_with_its_type_and_labels_and_every_documented_one_exists() -> None:
    told, shown = documented(), exposed()
    assert all(told.get(name) == what for name, what in shown.items()), set(shown.items()) - set(told.items())
    of_the_machine = {name for name in told if name.startswith("process_")}  # Linux alone has them
    assert told.keys() - shown.keys() <= of_the_machine


def test_what_the_docs_ask_of_prometheus_is_there_to_be_asked() -> None:
    names = set(re.findall(r"\bmillrace_\w+", DOCS.read_text("utf-8")))
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert bases <= exposed().keys()


def test_the_docs_name_every_status() -> None:
    told = DOCS.read_text("utf-8")
    assert all(f"`{status}`" in told for status in (*get_args(RunStatus), *get_args(CallStatus), *CODES))
