"""An exception, in words that may be shown to whoever sent the request.

Provider libraries are told apart by the shape their errors share (``status_code``, ``response``, and the class
names of httpx and the SDKs built on it), so that no SDK is imported here and any model's errors are understood.
The exception's own text is never passed on: it may hold a key or a path. The operator finds it in the log. But for an
exception with a ``failure_code``, such as ``"invalid_tool_args"``: its author has written it for the reader.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.errors import MillraceError
from app.events import codec

MAX_WORDS = 1000
"""Characters of a failure that a graph has named."""

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")

_CONNECTING = frozenset(("APIConnectionError", "ConnectError", "ConnectTimeout", "ConnectionRefusedError"))
_BROKEN = frozenset(
    ("RemoteProtocolError", "ReadError", "WriteError", "IncompleteRead", "ChunkedEncodingError", "ProviderDropped")
)
_SLOW = frozenset(("APITimeoutError", "ReadTimeout", "StreamChunkTimeoutError", "PoolTimeout", "WriteTimeout"))
_TIMED_OUT = {
    "run_timeout": "The run took longer than it may: the request's timeout_s, or the server's RUN_TIMEOUT_S. Allow it "
    "more time, or ask for less.",
    "first_token_timeout": "The model provider was silent for too long before its answer: first_token_timeout_s, or "
    "the server's FIRST_TOKEN_TIMEOUT_S. Try again in a moment.",
    "token_timeout": "The model provider fell silent for too long in the middle of its answer: token_timeout_s, or the "
    "server's TOKEN_TIMEOUT_S. What had come is kept; try again in a moment.",
}


class ProviderDropped(Exception):
    """The provider's stream ended without a finish reason: the answer is cut, though the connection closed cleanly."""


class Failure(NamedTuple):
    """The fields of an ``error`` event; see docs/reference.md for the list of codes."""

    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None


def describe(error: BaseException | None, *, streamed: bool) -> Failure:
    """What happened. ``streamed``: whether the model had already sent something of its answer."""
    for cause in _chain(error):
        if isinstance(cause, MillraceError):
            return Failure(cause.reason, str(cause), cause.retryable, cause.retry_after_ms)
        failure = _named(cause) or _provider(cause, streamed=streamed)
        if failure is not None:
            return failure
        if type(cause).__name__ == "GraphRecursionError":
            return Failure("recursion_limit", "The agent took more steps than its recursion limit allows.", False)
    return Failure(
        "agent_error", f"The agent failed ({type(error).__name__}). The server's log has the details.", False
    )


def timed_out(reason: str) -> Failure:
    """A ``timed_out`` ending's: ``run_timeout``, ``first_token_timeout`` or ``token_timeout``."""
    return Failure(reason, _TIMED_OUT[reason], True)


def _named(error: BaseException) -> Failure | None:
    """A failure that the graph itself names, in words for whoever asked: an exception with a ``failure_code``."""
    code = getattr(error, "failure_code", None)
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    return Failure(code, codec.text(str(error))[:MAX_WORDS], False)


def _provider(error: BaseException, *, streamed: bool) -> Failure | None:
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and hasattr(error, "response"):
        return _status(status, retry_after_ms(error))
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _SLOW:
        return Failure("provider_error", "The model provider did not answer in time.", True)
    if names & _BROKEN or (names & _CONNECTING and streamed):
        return Failure(
            "provider_dropped", "The model provider's connection broke off in the middle of the answer.", True
        )
    if names & _CONNECTING:
        return Failure("provider_error", "The model provider cannot be reached.", True)
    if "LengthFinishReasonError" in names:
        return Failure("answer_cut", "The model's answer reached its token limit before it was complete.", False)
    if "ContentFilterFinishReasonError" in names:
        return Failure("content_filtered", "The model provider withheld the answer: its content filter.", False)
    if "APIError" in names:
        return Failure("provider_error", "The model provider reported an error in the middle of the answer.", True)
    return None


def _status(status: int, wait_ms: int | None) -> Failure:
    if status == 429:
        message = "The model provider's rate limit is reached."
        return Failure("provider_rate_limited", message, True, wait_ms)
    if status in (401, 403):
        return Failure("provider_error", "The model provider refused the server's key.", False)
    message = f"The model provider answered with HTTP status {status}."
    return Failure("provider_error", message, status >= 500 or status in (408, 409), wait_ms)


def retry_after_ms(error: BaseException) -> int | None:
    """How long the provider asks to be left alone, if it says so."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        if "retry-after-ms" in headers:
            wait_ms = int(float(headers["retry-after-ms"]))
        else:
            wait_ms = int(float(headers["retry-after"]) * 1000) if "retry-after" in headers else -1
    except (ValueError, OverflowError):  # an HTTP date: rare here, and waiting longer is harmless; or "inf"
        return None
    return wait_ms if wait_ms >= 0 else None


def _chain(error: BaseException | None, seen: set[int] | None = None) -> Iterator[BaseException]:
    seen = set() if seen is None else seen
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _chain(inner, seen)
        error = error.__cause__ or error.__context__
