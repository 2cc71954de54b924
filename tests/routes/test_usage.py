"""``GET /usage`` over real HTTP: what the provider sent is what is told, by user, also after a restart."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, serving, settled

from app.runs.prices import Price, load_prices
from app.simulator.tokens import count

Until = Callable[[Callable[[], bool]], Awaitable[None]]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "usage.md"


def shown_in_the_docs(language: str) -> str:
    """The one example in that language."""
    (example,) = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return str(example)


async def usage(url: str, days: int | str = 30, **headers: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        answer = await client.get("/usage", params={"days": days}, headers=headers)
    answer.raise_for_status()
    told: dict[str, Any] = answer.json()
    return told


async def ran(url: str, said: str, agent: str = "chat", **headers: str) -> dict[str, Any]:
    """The row of a run that is over."""
    async with httpx.AsyncClient(base_url=url, timeout=20, headers=headers) as client:
        started = await client.post(f"/agents/{agent}/runs", json={"input": said})
        started.raise_for_status()
        await client.get(f"/runs/{started.json()['run_id']}/result", params={"wait": True})
        row: dict[str, Any] = (await client.get(f"/runs/{started.json()['run_id']}")).json()
    return row


async def heard(client: httpx.AsyncClient, run_id: str, tokens: int) -> None:
    """Read the run until it has said that many."""
    said = ""
    async with client.stream("GET", f"/runs/{run_id}/events") as answer:
        async for line in answer.aiter_lines():
            said += json.loads(line.removeprefix("data: ")).get("text", "") if line.startswith("data: ") else ""
            if count(said) >= tokens:
                return


@pytest.mark.parametrize("days", ["0", "-1", "401", "1000000000000", "1.5", "many", ""])
async def test_days_that_nobody_can_mean_are_refused(client: httpx.AsyncClient, days: str) -> None:
    answer = await client.get("/usage", params={"days": days})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["code"] == "invalid_input"
    assert error["detail"][0]["field"] == "query.days"


async def test_what_the_provider_sent_is_what_is_told() -> None:
    with serving() as server:
        rows = [await ran(server.url, f"[[tokens={count}]] Hello.") for count in (5, 12)]
        rows.append(await ran(server.url, "What is 17*23, and what is 6*7?", "assistant"))
        told = await usage(server.url)
        sent = sum(one.tokens_sent for one in server.simulator.requests)
    today = datetime.now(UTC).date()
    assert told["user"] == "127.0.0.1"
    assert told["since"] in {(today - timedelta(days)).isoformat() for days in (29, 30)}
    (day,) = told["days"]
    assert day["runs"] == {"completed": 3}
    assert day["output_tokens"] == sum(row["usage"]["output_tokens"] for row in rows) == sent
    assert day["input_tokens"] == sum(row["usage"]["input_tokens"] for row in rows)
    assert (day["calls"], day["unpriced_calls"], day["estimated_calls"]) == (4, 0, 0)
    assert day["cost_usd"] == pytest.approx(sum(row["usage"]["cost_usd"] for row in rows))
    assert day["cost_usd"] > 0
    assert [one["agent"] for one in day["agents"]] == ["assistant", "chat"]
    assert [one["model"] for one in day["models"]] == ["simulated"]
    assert told["total"] == {name: value for name, value in day.items() if name != "day"}
    assert told["today"]["tokens"] == day["total_tokens"]
    assert told["today"]["cost_usd"] == pytest.approx(day["cost_usd"])


async def test_cancelled_runs_are_told_apart_and_what_they_cost_is_what_was_sent(until: Until) -> None:
    with serving() as server:
        for _ in range(3):  # so that it is known how long such answers become
            await ran(server.url, "[[tokens=60]] Hello.")
        async with httpx.AsyncClient(base_url=server.url, timeout=20) as client:
            started = await client.post("/agents/chat/runs", json={"input": "[[tokens=2000&stall_after=40]] Go on."})
            await heard(client, started.json()["run_id"], 40)
            row = (await client.post(f"/runs/{started.json()['run_id']}/cancel")).json()
        await settled(server, server.simulator, until)
        told = (await usage(server.url, 1))["total"]
        sent = server.simulator.requests[3].tokens_sent
    assert told["runs"] == {"cancelled": 1, "completed": 3}
    cancelled = told["cancelled"]
    assert cancelled["runs"] == 1
    assert cancelled["output_tokens"] == row["usage"]["output_tokens"]
    assert abs(cancelled["output_tokens"] - sent) <= max(2, 0.03 * sent)
    assert 0 < cancelled["cost_usd"] < told["cost_usd"]
    assert told["estimated_calls"] == 1
    assert cancelled["saved_tokens"] == row["usage"]["saved_tokens"]
    assert (cancelled["saved_usd"] > 0) == (cancelled["saved_tokens"] > 0)


async def test_everybody_is_told_their_own() -> None:
    with serving(api_keys="key-of-ann:ann,key-of-bob:bob") as server:
        ann, bob = ({"x-api-key": f"key-of-{name}"} for name in ("ann", "bob"))
        await ran(server.url, "[[tokens=5]] Hello.", **ann)
        assert (await usage(server.url, **ann))["total"]["output_tokens"] == 5
        told = await usage(server.url, **bob)
        assert (told["user"], told["days"]) == ("bob", [])


async def test_it_adds_up_after_a_restart_and_goes_on(tmp_path: Path) -> None:
    kept = f"sqlite:///{tmp_path / 'm.db'}"
    for server_number in (1, 2, 3):
        with serving(database_url=kept, tokens_per_day=1_000_000) as server:
            await asyncio.gather(*(ran(server.url, "[[tokens=7]] Hello.") for _ in range(3)))
            told = await usage(server.url)
        assert told["total"]["output_tokens"] == 21 * server_number
        assert told["total"]["runs"] == {"completed": 3 * server_number}
        assert told["total"]["total_tokens"] == sum(day["total_tokens"] for day in told["days"])
        assert told["today"]["tokens"] == told["days"][0]["total_tokens"]
        assert told["today"]["tokens_per_day"] == 1_000_000


async def test_the_operators_prices_count_and_an_unknown_one_is_null(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text('[models."simulated"]\ninput = 0\noutput = 1000\n')
    with serving(prices_file=tmp_path / "prices.toml") as server:
        await ran(server.url, "[[tokens=7]] Hello.")
        assert (await usage(server.url))["total"]["cost_usd"] == pytest.approx(0.007)
    with serving(model="openai:my-own-model") as server:
        await ran(server.url, "[[tokens=7]] Hello.")
        told = (await usage(server.url))["total"]
        assert (told["cost_usd"], told["unpriced_calls"], told["output_tokens"]) == (None, 1, 7)


def test_the_route_is_documented(served: Served) -> None:
    operation = served.app.openapi()["paths"]["/usage"]["get"]
    assert operation["parameters"][0]["schema"] == {
        "type": "integer", "maximum": 400, "minimum": 1, "default": 30, "title": "Days"
    }  # fmt: skip


async def test_the_answer_in_the_docs_has_the_servers_names() -> None:
    shown = json.loads(shown_in_the_docs("json"))
    with serving() as server:
        await ran(server.url, "[[tokens=5]] Hello.")
        told = await usage(server.url)
    assert list(told) == list(shown)
    assert list(told["today"]) == list(shown["today"])
    assert list(told["total"]) == list(shown["total"])
    real, example = told["days"][0], shown["days"][0]
    assert list(real) == list(example)
    assert list(real["cancelled"]) == list(example["cancelled"]) == list(shown["total"]["cancelled"])
    for parts in ("models", "agents"):
        assert list(real[parts][0]) == list(example[parts][0])


def test_a_file_of_prices_in_the_docs_is_one(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(shown_in_the_docs("toml"))
    assert load_prices(path)["llama3.2:3b"] == Price(input=0, output=0)
