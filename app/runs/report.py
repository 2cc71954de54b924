"""What a user has spent, as ``GET /usage`` tells it: by day, by model, by agent, and what cancelled runs came to.

Tokens and cost are those of the model calls that ended on a day. Runs, and with them the cancelled ones, belong to the
day on which they ended. Everything is a sum of the same rows, so all of it adds up.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Literal

from app.limits.budget import Spent, until_midnight_s
from app.limits.policy import Limits
from app.runs.ledger import Usage
from app.runs.tally import NANO, CallSums, Key, RunSums, Sums

Calls = Sequence[tuple[Key, CallSums]]
Runs = Sequence[tuple[Key, RunSums]]


def report(user: str, since: date, usage: Usage, *, limits: Limits, spent: Spent, now: datetime) -> dict[str, Any]:
    """The answer of ``GET /usage``. ``spent``: what counts against the budget of today; ``now`` is in UTC."""
    calls, runs = _by("day", usage.calls), _by("day", usage.runs)
    days = sorted({*calls, *runs}, reverse=True)
    return {
        "user": user,
        "since": since.isoformat(),
        "days": [{"day": day, **_told(calls[day], runs[day])} for day in days],
        "total": _told(usage.calls, usage.runs),
        "today": {
            "tokens": spent.tokens,
            "tokens_per_day": limits.tokens_per_day or None,
            "cost_usd": round(spent.cost_usd, 9),
            "cost_per_day_usd": limits.cost_per_day_usd or None,
            "resets_in_s": math.ceil(until_midnight_s(now)),
        },
    }


def _told(calls: Calls, runs: Runs) -> dict[str, Any]:
    by_model, by_agent, runs_by_agent = _by("kind", calls), _by("agent", calls), _by("agent", runs)
    return {
        "runs": _by_status(runs),
        **_spent_by_calls(calls),
        "models": [{"model": model, **_spent_by_calls(by_model[model])} for model in sorted(by_model)],
        "agents": [
            {"agent": agent, "runs": _by_status(runs_by_agent[agent]), **_spent_by_calls(by_agent[agent])}
            for agent in sorted({*by_agent, *runs_by_agent})
        ],
        "cancelled": _spent_by_runs(_by("kind", runs)["cancelled"]),
    }


def _by_status(runs: Runs) -> dict[str, int]:
    return {status: _sum(of, RunSums()).runs for status, of in sorted(_by("kind", runs).items())}


def _spent_by_calls(calls: Calls) -> dict[str, Any]:
    sums = _sum(calls, CallSums())
    return {
        "calls": sums.calls,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "total_tokens": sums.input_tokens + sums.output_tokens,
        "reasoning_tokens": sums.reasoning_tokens,
        "cached_tokens": sums.cached_tokens,
        "cost_usd": _usd(sums.cost_nano_usd, sums.unpriced),
        "unpriced_calls": sums.unpriced,
        "estimated_calls": sums.estimated,
        "queue_ms": sums.queue_ms,
    }


def _spent_by_runs(runs: Runs) -> dict[str, Any]:
    sums = _sum(runs, RunSums())
    return {
        "runs": sums.runs,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "total_tokens": sums.input_tokens + sums.output_tokens,
        "cost_usd": _usd(sums.cost_nano_usd, sums.unpriced),
        "unpriced_runs": sums.unpriced,
        "saved_tokens": sums.saved_tokens,
        "saved_usd": _usd(sums.saved_nano_usd, min(sums.saved_tokens, sums.unpriced)),
    }


def _by(
    field: Literal["day", "agent", "kind"], rows: Sequence[tuple[Key, Sums]]
) -> defaultdict[str, list[tuple[Key, Sums]]]:
    found: defaultdict[str, list[tuple[Key, Sums]]] = defaultdict(list)
    for key, sums in rows:
        found[getattr(key, field)].append((key, sums))
    return found


def _sum(rows: Sequence[tuple[Key, Sums]], zero: Sums) -> Sums:
    return type(zero)(*map(sum, zip(zero, *(sums for _, sums in rows), strict=True)))


def _usd(nano: int, unpriced: int) -> float | None:
    """The known part; ``None`` where nothing is known of what costs something."""
    return None if unpriced and not nano else nano / NANO
