"""How events and figures are told to people, in a line each."""

import json
import math
from typing import Any

DONE, FAILED = "✓", "✗"

LONGEST_ARGS, LONGEST_OUTPUT = 60, 100
"""Characters of a call's arguments and of its result."""

ADVICE = {
    "provider_rate_limited": "The provider takes no more for now",
    "upstream_busy": "Too many wait for the provider",
    "log_full": "Ask for less at once",
    "recursion_limit": "Ask for one step at a time",
    "invalid_tool_args": "Say more plainly what the tool is to be given",
    "content_filtered": "Ask in other words",
    "agent_error": "The server's log has the details",
    "run_timeout": "Ask for less at once",
}
"""What to do about an error, by its code."""

REASONS = {
    "disconnected": "nobody read it for too long",
    "superseded": "another run took its place in the conversation",
    "pause_timeout": "it was paused and nobody continued it",
    "shutdown": "the server is going away",
    "server_lost": "the server was restarted",
}
"""Why a run ended, beside its errors."""


def one_line(value: Any, most: int) -> str:
    """A JSON value in one line of at most so many characters; a text stands for itself."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text[: 8 * most].split())
    return text if len(text) <= most else text[: most - 1] + "…"


def arguments(args: Any) -> str:
    """A call's arguments, as one would write them."""
    if not isinstance(args, dict):
        return "" if args is None else one_line(args, LONGEST_ARGS)
    pairs = (f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in args.items())
    return one_line(", ".join(pairs), LONGEST_ARGS)


def output(value: Any) -> str:
    """A tool's result."""
    return one_line(value, LONGEST_OUTPUT)


def lasted(seconds: float) -> str:
    """A time, as exact as it matters."""
    if seconds < 10:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60)} s" if minutes else f"{int(seconds)} s"


def money(usd: float | None) -> str:
    """US dollars with two digits that say something; "–" where nobody knows."""
    if usd is None:
        return "–"
    if usd <= 0:
        return "$0"
    return f"${usd:.{min(max(2, 1 - math.floor(math.log10(usd))), 8)}f}"


def tally(finished: dict[str, Any]) -> str:
    """What an answer took: how soon, how fast, how many tokens, what they cost. ``~`` marks an estimate."""
    usage = finished["usage"]
    about = "~" if usage.get("estimated") else ""
    ttft_ms, speed, cost = finished.get("ttft_ms"), usage.get("tokens_per_s"), usage.get("cost_usd")
    figures = [
        *([] if ttft_ms is None else [f"first token after {lasted(ttft_ms / 1000)}"]),
        "– tokens/s" if speed is None else f"{speed:.0f} tokens/s",
        f"{about}{usage['input_tokens']} + {about}{usage['output_tokens']} tokens",
        "cost –" if cost is None else f"{about}{money(cost)}",
    ]
    return " · ".join(figures)


def failure(error: dict[str, Any]) -> str:
    """An ``error`` event: what failed, and what to do about it."""
    said = [str(error["message"]).rstrip(".")]
    if advice := ADVICE.get(error["code"]):
        said.append(advice)
    if (wait_ms := error.get("retry_after_ms")) is not None:
        said.append(f"Try again in {math.ceil(wait_ms / 1000)} s")
    elif error.get("retryable"):
        said.append("Trying again may help")
    return ". ".join(said) + "."


def ending(finished: dict[str, Any]) -> str | None:
    """How a run ended, where that is not said by its text, its errors or its question."""
    reason = str(finished.get("reason"))
    match finished["status"]:
        case "cancelled" if reason == "requested":
            return stopped(finished["usage"])
        case "cancelled":
            return f"The answer was stopped: {REASONS.get(reason, reason)}."
        case "failed" if reason in REASONS:
            return f"The answer broke off: {REASONS[reason]}."
    return None


def stopped(usage: dict[str, Any]) -> str:
    """What a cancel left."""
    saved = usage.get("saved_tokens")
    return "Stopped. What was said stays." + (f" About {saved} tokens were saved." if saved else "")


def retry(data: dict[str, Any]) -> str:
    """A ``provider.retry`` event."""
    why = str(data.get("reason", "it failed")).replace("_", " ")
    wait = lasted(data.get("wait_ms", 0) / 1000)
    return f"The provider is asked again in {wait} ({why}; {data.get('attempt')} of {data.get('of')})"
