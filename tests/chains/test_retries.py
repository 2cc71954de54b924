"""Which failures are repeated, and after how long. How real clients' errors look is in test_answering."""

from datetime import UTC, datetime
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from chains.retries import Retries, Retry

POLICY = Retries(random=lambda: 1.0, now=lambda: 1_000_000.0)


class Answered(Exception):
    """An SDK's error for an HTTP status."""

    def __init__(self, status: int, code: str | None = None, **headers: str) -> None:
        super().__init__("no")
        self.status_code = status
        self.code = code
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


class ConnectError(Exception):
    pass


class ReadTimeout(Exception):
    pass


class RemoteProtocolError(Exception):
    pass


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("the SDK's own")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_what_the_provider_did_not_serve_is_repeated(status: int) -> None:
    retry = POLICY.after(Answered(status), 1)
    assert retry == Retry(1, 2, 0.5, "rate_limited" if status == 429 else "unavailable", status)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 501])
def test_what_will_not_change_is_not(status: int) -> None:
    assert POLICY.after(Answered(status), 1) is None


def test_a_quota_that_is_used_up_is_no_rate() -> None:
    assert POLICY.after(Answered(429, "insufficient_quota"), 1) is None


def test_a_provider_that_was_not_reached_is_tried_again() -> None:
    assert POLICY.after(caused_by(ConnectError("refused")), 1) == Retry(1, 2, 0.5, "unreachable", None)
    closed = RemoteProtocolError("Server disconnected without sending a response.")
    assert POLICY.after(caused_by(caused_by(closed)), 1) == Retry(1, 2, 0.5, "unreachable", None)


@pytest.mark.parametrize(
    "error",
    [
        ReadTimeout(),
        RemoteProtocolError("peer closed connection without sending complete message body"),
        ConnectionResetError(),
        TimeoutError(),
        ValueError("a bug"),
    ],
)
def test_what_the_provider_may_have_begun_is_not(error: Exception) -> None:
    assert POLICY.after(error, 1) is None
    assert POLICY.after(caused_by(error), 1) is None


def test_an_error_that_came_up_while_another_was_handled_is_not_the_providers() -> None:
    error = ValueError("in a callback")
    error.__context__ = ConnectError("refused")
    assert POLICY.after(error, 1) is None


def test_two_attempts_follow_the_first() -> None:
    waits = [retry and retry.wait_s for retry in (POLICY.after(Answered(503), failed) for failed in (1, 2, 3))]
    assert waits == [0.5, 1.0, None]


def test_the_wait_is_random_up_to_its_bound() -> None:
    retry = Retries(random=lambda: 0.1).after(Answered(503), 2)
    assert retry is not None
    assert retry.wait_s == pytest.approx(0.1)


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(1_000_000.0 + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry_after": "3"}, 3.25),
        ({"retry_after": "0"}, 0.25),
        ({"retry_after": "20"}, 20.25),
        ({"retry_after_ms": "1500"}, 1.75),
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.75),
        ({"retry_after": date(7)}, 7.25),
        ({"retry_after": date(-7)}, 0.25),
        ({"retry_after": date(7).replace("GMT", "-0000")}, 7.25),
        ({"retry_after": "soon"}, 0.5),
        ({"retry_after": "-3"}, 0.5),
        ({"retry_after": "nan"}, 0.5),
        ({"retry_after": "inf"}, 0.5),
        ({"retry_after": ""}, 0.5),
        ({"retry_after": "21"}, None),
        ({"retry_after": date(21)}, None),
    ],
)
def test_the_provider_says_when(headers: dict[str, Any], wait_s: float | None) -> None:
    retry = POLICY.after(Answered(429, **headers), 1)
    assert (retry and retry.wait_s) == wait_s
