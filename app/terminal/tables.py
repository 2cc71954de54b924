"""What ``/agents`` and ``/usage`` show: the answers of ``GET /agents`` and ``GET /usage`` as tables."""

from collections.abc import Iterable
from typing import Any, TypedDict

from rich.table import Table

from app.terminal.wording import money


class Capabilities(TypedDict):
    """What of an agent's capabilities matters to a conversation."""

    text_input: bool
    messages: bool
    tools: list[str]
    threads: bool


class Agent(TypedDict):
    """What of a row of ``GET /agents`` is used."""

    name: str
    description: str
    model: str | None
    capabilities: Capabilities


class Agents(TypedDict):
    """The answer of ``GET /agents``."""

    agents: list[Agent]


class Usage(TypedDict):
    """What of the answer of ``GET /usage`` is shown."""

    days: list[dict[str, Any]]
    total: dict[str, Any]
    today: dict[str, Any]


def agents_table(agents: Iterable[Agent], current: str) -> Table:
    """Every agent, the ``current`` one marked."""
    table = Table("", "agent", "model", "remembers", "tools", "what it is", box=None)
    for agent in agents:
        can = agent["capabilities"]
        table.add_row(
            "*" if agent["name"] == current else "",
            agent["name"],
            agent["model"] or "–",
            "yes" if can["threads"] else "sent along" if can["messages"] else "no",
            ", ".join(can["tools"]) or "–",
            agent["description"],
        )
    for column in table.columns[:4]:
        column.no_wrap = True
    return table


def usage_table(usage: Usage) -> Table:
    """A row a day, and their sum."""
    table = Table("day (UTC)", "runs", "tokens in", "out", "cost", "cancelled", "saved", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spent in [*((day["day"], day) for day in usage["days"]), ("all", usage["total"])]:
        cancelled = spent["cancelled"]
        about = "~" if spent["estimated_calls"] else ""
        saved = f"~{cancelled['saved_tokens']}" if cancelled["saved_tokens"] else "–"
        table.add_row(
            name,
            str(sum(spent["runs"].values())),
            f"{about}{spent['input_tokens']}",
            f"{about}{spent['output_tokens']}",
            _cost(spent, about),
            str(cancelled["runs"]),
            f"{saved} ({money(cancelled['saved_usd'])})" if cancelled["saved_tokens"] else saved,
        )
    return table


def budget(usage: Usage) -> str | None:
    """What is left of the day's budget, where there is one."""
    today = usage["today"]
    parts = []
    if today["tokens_per_day"] is not None:
        parts.append(f"{today['tokens']} of {today['tokens_per_day']} tokens")
    if today["cost_per_day_usd"] is not None:
        parts.append(f"{money(today['cost_usd'])} of {money(today['cost_per_day_usd'])}")
    hours, rest = divmod(int(today["resets_in_s"]), 3600)
    return f"Today: {', '.join(parts)}; renewed in {hours} h {rest // 60} min." if parts else None


def _cost(spent: dict[str, Any], about: str) -> str:
    """A sum that lacks prices is a lower bound."""
    least = "≥ " if spent["unpriced_calls"] and spent["cost_usd"] is not None else ""
    return f"{least}{about if spent['cost_usd'] else ''}{money(spent['cost_usd'])}"
