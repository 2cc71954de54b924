"""What ``GET /usage`` tells adds up, whatever was spent."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.limits.budget import Spent
from app.limits.policy import Limits
from app.runs.ledger import Usage
from app.runs.report import report
from app.runs.tally import NANO, CallSums, Key, RunSums

NOW = datetime(2026, 5, 4, 18, 0, tzinfo=UTC)

numbers = st.integers(0, 10**12)


def keys(kinds: Sequence[str]) -> st.SearchStrategy[Key]:
    days, agents = st.sampled_from(["2026-05-02", "2026-05-04"]), st.sampled_from(["chat", "assistant", "mine"])
    return st.builds(Key, st.just("ann"), days, agents, st.sampled_from(kinds))


@st.composite
def call_sums(draw: st.DrawFn) -> CallSums:
    calls = draw(st.integers(1, 100))
    unpriced = draw(st.integers(0, calls))
    cost = draw(numbers) if unpriced < calls else 0
    tokens = draw(st.tuples(numbers, numbers, numbers, numbers))
    return CallSums(calls, *tokens, cost, unpriced, draw(st.integers(0, calls)), draw(numbers))


@st.composite
def run_sums(draw: st.DrawFn) -> RunSums:
    runs = draw(st.integers(1, 100))
    unpriced = draw(st.integers(0, runs))
    cost, saved = (draw(numbers) if unpriced < runs else 0 for _ in range(2))
    return RunSums(runs, draw(numbers), draw(numbers), cost, unpriced, draw(numbers), saved)


usages = st.builds(
    Usage,
    st.lists(st.tuples(keys(["gpt-5", "gpt-5-mini", "?"]), call_sums())),
    st.lists(st.tuples(keys(["completed", "cancelled", "failed"]), run_sums())),
)

BY_CALL = (
    "calls",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "unpriced_calls",
    "estimated_calls",
    "queue_ms",
)
BY_RUN = ("runs", "input_tokens", "output_tokens", "total_tokens", "unpriced_runs", "saved_tokens")


def told(usage: Usage, limits: Limits | None = None, spent: Spent | None = None) -> dict[str, Any]:
    limits, spent = limits or Limits(), spent or Spent()
    return report("ann", date(2026, 5, 1), usage, limits=limits, spent=spent, now=NOW)


def nano(parts: Sequence[dict[str, Any]], name: str = "cost_usd") -> int:
    return sum(round(part[name] * NANO) for part in parts if part[name] is not None)


def statuses(parts: Sequence[dict[str, Any]]) -> dict[str, int]:
    names = {status for part in parts for status in part["runs"]}
    return {name: sum(part["runs"].get(name, 0) for part in parts) for name in sorted(names)}


@given(usages)
def test_models_agents_and_days_add_up(usage: Usage) -> None:
    found = told(usage)
    total, days = found["total"], found["days"]
    for whole, parts in [
        (total, days),
        *((one, one["models"]) for one in (total, *days)),
        *((one, one["agents"]) for one in (total, *days)),
    ]:
        for name in BY_CALL:
            assert whole[name] == sum(part[name] for part in parts)
        if whole["cost_usd"] is not None:
            assert round(whole["cost_usd"] * NANO) == nano(parts)
    for name in BY_RUN:
        assert total["cancelled"][name] == sum(day["cancelled"][name] for day in days)
    for one in (total, *days):
        assert one["runs"] == statuses(one["agents"])
        assert one["cancelled"]["runs"] == one["runs"].get("cancelled", 0)
        assert one["total_tokens"] == one["input_tokens"] + one["output_tokens"]
    assert total["runs"] == statuses(days)
    assert total["calls"] == sum(sums.calls for _, sums in usage.calls)
    assert [day["day"] for day in days] == sorted({key.day for key, _ in (*usage.calls, *usage.runs)}, reverse=True)


@given(usages)
def test_a_cost_is_null_where_nothing_of_it_is_known_and_else_says_how_much_is_missing(usage: Usage) -> None:
    found = told(usage)
    for one in (found["total"], *found["days"]):
        for part in (one, *one["models"], *one["agents"]):
            assert (part["cost_usd"] is None) <= (part["unpriced_calls"] > 0)
            assert not (part["unpriced_calls"] and part["cost_usd"] == 0)
        cancelled = one["cancelled"]
        assert (cancelled["cost_usd"] is None) <= (cancelled["unpriced_runs"] > 0)
        assert (cancelled["saved_usd"] is None) <= (cancelled["unpriced_runs"] > 0 and cancelled["saved_tokens"] > 0)


def test_a_call_that_was_refused_makes_no_unknown_price_a_known_one() -> None:
    key = Key("ann", "2026-05-04", "chat", "mine")
    refused, unpriced = CallSums(calls=1), CallSums(calls=1, input_tokens=5, unpriced=1)
    assert told(Usage([(key, refused)], []))["total"]["cost_usd"] == 0
    assert told(Usage([(key, refused), (key, unpriced)], []))["total"]["cost_usd"] is None


def test_who_has_spent_nothing_is_told_nothing() -> None:
    found = told(Usage([], []))
    assert (found["user"], found["since"], found["days"]) == ("ann", "2026-05-01", [])
    assert found["total"] == {
        "runs": {},
        **dict.fromkeys(BY_CALL, 0),
        "cost_usd": 0.0,
        "models": [],
        "agents": [],
        "cancelled": {**dict.fromkeys(BY_RUN, 0), "cost_usd": 0.0, "saved_usd": 0.0},
    }
    assert found["today"] == {
        "tokens": 0,
        "tokens_per_day": None,
        "cost_usd": 0.0,
        "cost_per_day_usd": None,
        "resets_in_s": 6 * 3600,
    }


def test_today_is_told_against_its_limits() -> None:
    found = told(Usage([], []), Limits(tokens_per_day=1000, cost_per_day_usd=0.5), Spent(250, 0.1 + 0.2))
    assert found["today"] == {
        "tokens": 250,
        "tokens_per_day": 1000,
        "cost_usd": 0.3,
        "cost_per_day_usd": 0.5,
        "resets_in_s": 6 * 3600,
    }


@pytest.mark.parametrize("nano_usd", [1, 268_875, 10**9 + 1])
def test_dollars_are_told_as_they_would_be_written(nano_usd: int) -> None:
    key = Key("ann", "2026-05-04", "chat", "gpt-5-mini")
    cost = told(Usage([(key, CallSums(1, cost_nano_usd=nano_usd))], []))["total"]["cost_usd"]
    assert f"{cost:.9f}" == f"{nano_usd // NANO}.{nano_usd % NANO:09}"
