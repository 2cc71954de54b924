"""How events and figures are told."""

from typing import Any

import pytest

from app.terminal.wording import arguments, ending, failure, lasted, money, one_line, retry, tally

USAGE: dict[str, Any] = {
    "input_tokens": 32, "output_tokens": 210, "cost_usd": 0.000431, "estimated": False, "tokens_per_s": 48.2,
    "saved_tokens": 0,
}  # fmt: skip


def finished(status: str = "completed", reason: str | None = None, **usage: Any) -> dict[str, Any]:
    return {"status": status, "reason": reason, "usage": {**USAGE, **usage}, "ttft_ms": 420, "duration_ms": 5000}


def test_an_answer_is_tallied_in_a_line() -> None:
    assert tally(finished()) == "first token after 420 ms · 48 tokens/s · 32 + 210 tokens · $0.00043"


def test_an_estimate_is_marked_and_what_nobody_knows_is_no_number() -> None:
    assert tally(finished(estimated=True)).endswith("~32 + ~210 tokens · ~$0.00043")
    assert tally(finished(cost_usd=None, tokens_per_s=None)).endswith("– tokens/s · 32 + 210 tokens · cost –")


@pytest.mark.parametrize(
    ("usd", "told"), [(None, "–"), (0, "$0"), (12.3456, "$12.35"), (0.05, "$0.050"), (0.0000071, "$0.0000071")]
)
def test_money_has_two_digits_that_say_something(usd: float | None, told: str) -> None:
    assert money(usd) == told


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.0412, "41 ms"), (1.25, "1.2 s"), (12.9, "12 s"), (125.0, "2 min 5 s")]
)
def test_a_time_is_as_exact_as_it_matters(seconds: float, told: str) -> None:
    assert lasted(seconds) == told


def test_arguments_are_short_and_in_one_line() -> None:
    assert arguments({"place": "Oslo", "days": 3}) == 'place="Oslo", days=3'
    assert arguments(None) == ""
    assert len(arguments({"text": "long " * 100})) == 60
    assert one_line("a\n  b\tc", 10) == "a b c"
    assert one_line({"a": [1]}, 10) == '{"a": [1]}'


def test_an_error_says_what_to_do() -> None:
    error = {"code": "provider_rate_limited", "message": "Too many.", "retryable": True, "retry_after_ms": 11_200}
    assert failure(error) == "Too many. The provider takes no more for now. Try again in 12 s."
    assert failure({"code": "x", "message": "It broke", "retryable": True}) == "It broke. Trying again may help."
    assert failure({"code": "x", "message": "It broke", "retryable": False}) == "It broke."


def test_how_a_run_ended_is_told_where_nothing_else_tells_it() -> None:
    assert ending(finished()) is None
    assert ending(finished("failed", "provider_error")) is None
    assert ending(finished("failed", "server_lost")) == "The answer broke off: the server was restarted."
    assert ending(finished("cancelled", "superseded")) == (
        "The answer was stopped: another run took its place in the conversation."
    )
    assert ending(finished("cancelled", "requested", saved_tokens=21)) == (
        "Stopped. What was said stays. About 21 tokens were saved."
    )


def test_a_retry_says_when_and_why() -> None:
    data = {"attempt": 1, "of": 2, "wait_ms": 1500, "reason": "rate_limited", "status": 429}
    assert retry(data) == "The provider is asked again in 1.5 s (rate limited; 1 of 2)"
