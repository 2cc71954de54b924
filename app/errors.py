"""Everything that can go wrong on purpose: each error has a code, an HTTP status and says whether to try again.

::

    MillraceError
    ├── BadRequest             400  the request cannot be read
    ├── Unauthorized           401  no key, or a key nobody has
    ├── Forbidden              403  known, and not allowed
    ├── NotFound               404  no such agent or run, or somebody else's
    ├── Conflict               409
    │   └── RunNotFinished     409  asked for a result that is still being written
    ├── RunExpired             410  the run is known, its log is gone
    ├── TooLarge               413  the body is over the bound
    ├── UnsupportedMedia       415  the body is not plain JSON
    ├── InvalidInput           422  readable, and wrong in a named field
    │   └── Unsupported        422  this agent cannot do what was asked
    ├── TooManyRequests        429  a limit of this user's
    │   ├── TooManyStreams     429  as many runs at once as may be
    │   ├── TooManyReaders     429  as many open streams as may be
    │   ├── RateLimited        429  as many requests a minute as may be
    │   └── BudgetExhausted    429  the day's tokens or money are used up
    ├── NotShared              501  it takes one worker, or what workers share
    ├── RunFailed              502  a run that was waited for did not end well
    └── Unavailable            503  the server is going away
        └── UpstreamBusy       503  too many calls wait for the model provider

A message is written for whoever sent the request: it says what to do, and never carries a trace, a key or a path
of the machine. An error that is not in this tree is a defect; it reaches the client as ``internal_error`` alone.
"""

from typing import Any, ClassVar


class MillraceError(Exception):
    """The root: ``code`` is stable for programs, ``str(error)`` is for people.

    ``detail`` is any JSON value that helps a program (the fields that are wrong, for instance). ``retry_after_ms``
    says when to try again, where waiting helps.
    """

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, code: str | None = None, detail: Any = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = code or self.code
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    def body(self) -> dict[str, Any]:
        """The error object of every response: ``{"error": {"code", "message", "retry_after_ms"?, "detail"?}}``."""
        error: dict[str, Any] = {"code": self.reason, "message": str(self)}
        if self.retry_after_ms is not None:
            error["retry_after_ms"] = self.retry_after_ms
        if self.detail is not None:
            error["detail"] = self.detail
        return {"error": error}


class BadRequest(MillraceError):
    """The request cannot be read: it is not JSON, or an id is no id."""

    code = "bad_request"
    status = 400


class Unauthorized(MillraceError):
    """No key was sent, or one that nobody has."""

    code = "unauthorized"
    status = 401


class Forbidden(MillraceError):
    """The caller is known and may not do this."""

    code = "forbidden"
    status = 403


class NotFound(MillraceError):
    """No such agent or run; another user's run looks the same."""

    code = "not_found"
    status = 404


class Conflict(MillraceError):
    """The thing exists and is in the wrong state for this."""

    code = "conflict"
    status = 409


class RunNotFinished(Conflict):
    """The result was asked for while the run still writes it."""

    code = "run_not_finished"
    retryable = True


class RunExpired(MillraceError):
    """The run is known, and its log has been let go."""

    code = "run_expired"
    status = 410


class TooLarge(MillraceError):
    """The body is over ``MAX_BODY_BYTES``."""

    code = "body_too_large"
    status = 413


class UnsupportedMedia(MillraceError):
    """The body is compressed, or is not JSON by its content type."""

    code = "unsupported_media_type"
    status = 415


class InvalidInput(MillraceError):
    """The body was read and a field of it is wrong; ``detail`` names the fields."""

    code = "invalid_input"
    status = 422


class Unsupported(InvalidInput):
    """What was asked for is sound, but this agent cannot do it."""

    code = "unsupported_by_agent"


class TooManyRequests(MillraceError):
    """A limit of this user's is reached; nothing was consumed by asking."""

    code = "too_many_requests"
    status = 429
    retryable = True


class TooManyStreams(TooManyRequests):
    """The user has as many live runs as may be."""

    code = "too_many_streams"

    def __init__(self, *, retry_after_ms: int | None = None) -> None:
        super().__init__(
            "Maximum concurrent streams reached. Please wait for an existing response to complete.",
            retry_after_ms=retry_after_ms,
        )


class TooManyReaders(TooManyRequests):
    """The user has as many open streams as may be, over all runs."""

    code = "too_many_readers"


class RateLimited(TooManyRequests):
    """The user has made as many requests within a minute as may be."""

    code = "rate_limited"


class BudgetExhausted(TooManyRequests):
    """The user's tokens or money for the day are used up."""

    code = "budget_exhausted"


class NotShared(MillraceError):
    """Several workers that share nothing serve one port, and this needs what they would have to share."""

    code = "not_shared"
    status = 501


class RunFailed(MillraceError):
    """A run whose answer was waited for ended otherwise than well; ``reason`` is the code of its ``error`` event."""

    code = "agent_error"
    status = 502


class Unavailable(MillraceError):
    """The server is going away; another one, or a later try, will do."""

    code = "draining"
    status = 503
    retryable = True


class UpstreamBusy(Unavailable):
    """Too many model calls wait, or this one has waited for too long."""

    code = "upstream_busy"
