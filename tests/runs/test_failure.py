"""An exception in words that may be shown: what it was, whether to try again, and nothing of its own text."""

import asyncio
from typing import Any

import httpx
import openai
import pytest
from langgraph.errors import GraphRecursionError

from app.errors import InvalidInput, Unavailable
from app.runs.failure import Failure, ProviderDropped, describe, timed_out

SECRET = "sk-secret /srv/keys"
REQUEST: Any = httpx.Request("POST", "http://provider.invalid/v1")


def answered(status: int, headers: dict[str, str] | None = None) -> Exception:
    response: Any = httpx.Response(status, headers=headers, request=REQUEST)
    kinds: dict[int, type[openai.APIStatusError]] = {429: openai.RateLimitError, 401: openai.AuthenticationError}
    return kinds.get(status, openai.InternalServerError)(SECRET, response=response, body=None)


def seen(error: BaseException | None, *, streamed: bool = False) -> Failure:
    failure = describe(error, streamed=streamed)
    assert "secret" not in failure.message
    assert "srv" not in failure.message
    assert failure.message.endswith(".")
    return failure


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (answered(500), "provider_error", True),
        (answered(503), "provider_error", True),
        (answered(529), "provider_error", True),
        (answered(408), "provider_error", True),
        (answered(409), "provider_error", True),
        (answered(400), "provider_error", False),
        (answered(404), "provider_error", False),
        (answered(401), "provider_error", False),
        (answered(403), "provider_error", False),
        (answered(429), "provider_rate_limited", True),
        (openai.APITimeoutError(REQUEST), "provider_error", True),
        (openai.APIConnectionError(message=SECRET, request=REQUEST), "provider_error", True),
        (openai.APIError(SECRET, REQUEST, body=None), "provider_error", True),
        (httpx.ConnectError(SECRET), "provider_error", True),
        (httpx.ConnectTimeout(SECRET), "provider_error", True),
        (httpx.ReadTimeout(SECRET), "provider_error", True),
        (httpx.RemoteProtocolError(SECRET), "provider_dropped", True),
        (httpx.ReadError(SECRET), "provider_dropped", True),
        (ProviderDropped(SECRET), "provider_dropped", True),
        (ConnectionRefusedError(SECRET), "provider_error", True),
        (GraphRecursionError(SECRET), "recursion_limit", False),
        (ValueError(SECRET), "agent_error", False),
        (asyncio.CancelledError(SECRET), "agent_error", False),
        (KeyError(SECRET), "agent_error", False),
        (None, "agent_error", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_failure_has_its_code(error: BaseException | None, code: str, retryable: bool) -> None:
    failure = seen(error)
    assert (failure.code, failure.retryable) == (code, retryable)


def test_a_connection_that_fails_after_the_answer_began_has_dropped() -> None:
    error = openai.APIConnectionError(message=SECRET, request=REQUEST)
    assert seen(error, streamed=True).code == "provider_dropped"
    assert "middle" in seen(error, streamed=True).message
    assert "cannot be reached" in seen(error).message


def test_one_of_our_own_errors_speaks_for_itself() -> None:
    assert describe(InvalidInput("say more"), streamed=False) == Failure("invalid_input", "say more", False)
    assert describe(Unavailable("soon", code="upstream_busy"), streamed=True) == Failure("upstream_busy", "soon", True)


def test_what_no_provider_said_names_only_its_type() -> None:
    assert "ZeroDivisionError" in seen(ZeroDivisionError(SECRET)).message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2000),
        ({"retry-after": "0.5"}, 500),
        ({"retry-after-ms": "1500"}, 1500),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1500),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "1e400"}, None),
        ({"retry-after": "-5"}, None),
    ],
)
def test_a_wait_that_the_provider_names_is_passed_on(headers: dict[str, str], expected: int | None) -> None:
    assert seen(answered(429, headers)).retry_after_ms == expected
    assert seen(answered(503, headers)).retry_after_ms == expected


def raised(error: BaseException, cause: BaseException | None = None, during: BaseException | None = None) -> Any:
    """The error as ``raise … from`` and ``except`` leave it."""
    error.__cause__ = cause
    error.__context__ = during
    return error


def test_a_provider_is_found_behind_what_a_graph_made_of_it() -> None:
    wrapped = raised(RuntimeError(SECRET), cause=raised(ValueError(SECRET), during=answered(429)))
    assert seen(wrapped).code == "provider_rate_limited"


def test_a_provider_is_found_in_a_group() -> None:
    group = BaseExceptionGroup("all", [ValueError(SECRET), ExceptionGroup("more", [httpx.ReadError(SECRET)])])
    assert seen(group).code == "provider_dropped"
    assert seen(raised(RuntimeError(SECRET), cause=group)).code == "provider_dropped"


def test_the_nearest_cause_is_the_one_told() -> None:
    assert seen(raised(answered(429), cause=httpx.ReadError(SECRET))).code == "provider_rate_limited"


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    raised(first, during=second)
    raised(second, during=first)
    assert seen(first).code == "agent_error"


def test_a_group_that_is_its_own_members_cause_ends() -> None:
    member = ValueError(SECRET)
    group = ExceptionGroup("all", [member])
    raised(member, cause=group)
    assert seen(group).code == "agent_error"


def test_a_foreign_error_with_a_status_but_no_answer_is_the_agents() -> None:
    class Odd(Exception):
        status_code = 500

    assert seen(Odd(SECRET)).code == "agent_error"


@pytest.mark.parametrize("response", [None, object(), {"headers": None}])
def test_an_answer_without_headers_is_no_obstacle(response: Any) -> None:
    class Refused(Exception):
        status_code = 429

        def __init__(self) -> None:
            self.response = response

    assert seen(Refused()) == Failure("provider_rate_limited", seen(Refused()).message, True, None)


@pytest.mark.parametrize("reason", ["run_timeout", "first_token_timeout", "token_timeout"])
def test_a_run_out_of_time_is_told_which_limit_it_was(reason: str) -> None:
    failure = timed_out(reason)
    assert (failure.code, failure.retryable) == (reason, True)
    assert reason.upper() in failure.message
    assert failure.message.endswith(".")


class Named(ValueError):
    """A failure that a graph's author has a name for."""

    def __init__(self, code: object, words: str = "The model did not keep to the form. Ask again.") -> None:
        super().__init__(words)
        self.failure_code = code


def test_a_failure_that_a_graph_names_is_told_in_its_words() -> None:
    wrapped = RuntimeError("in a node")
    wrapped.__cause__ = Named("invalid_object")
    for error in (Named("invalid_object"), wrapped):
        failure = describe(error, streamed=True)
        assert failure.code == "invalid_object"
        assert failure.message == "The model did not keep to the form. Ask again."
        assert not failure.retryable


@pytest.mark.parametrize("code", [None, 7, "", "Not a code", "x" * 65, "a\nb"])
def test_a_name_that_is_none_is_no_name(code: object) -> None:
    assert describe(Named(code), streamed=False).code == "agent_error"


def test_a_named_failures_words_are_bounded_and_have_their_json() -> None:
    words = describe(Named("odd", "\ud800" + "x" * 5000), streamed=False).message
    assert len(words) == 1000
    assert words.startswith("\ufffd")
