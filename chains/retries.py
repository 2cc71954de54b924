"""When a failed model call is made again, and after how long.

Again only where it is safe: the provider said that it did not serve the call (429, 500, 502, 503, 504, 529), was never
reached, or closed a kept connection without a byte of response. Never after a timeout of a request that was sent, as
the provider may be at work on it; never for what will not change (400, 401, 404, a quota that is used up).

Errors are told apart by the shape that all SDKs give them (``status_code``, ``response``, httpx's class names), and
only by what caused them: an error of a callback, raised while another one was handled, is nobody's to repeat.
``sleep``, ``block``, ``random`` and ``now`` come from outside, so that tests need not wait.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, NamedTuple

SAFE = frozenset((429, 500, 502, 503, 504, 529))
"""HTTP statuses after which a call may be made again."""

_UNREACHABLE = frozenset(("ConnectError", "ConnectTimeout", "ConnectionRefusedError"))
_NO_RESPONSE = "Server disconnected without sending a response"


class Retry(NamedTuple):
    """The next attempt: number ``attempt`` of at most ``of`` beyond the first, after ``wait_s`` seconds."""

    attempt: int
    of: int
    wait_s: float
    reason: str
    status: int | None

    def data(self) -> dict[str, Any]:
        """What the ``provider.retry`` event carries."""
        wait_ms = round(self.wait_s * 1000)
        return {
            "attempt": self.attempt,
            "of": self.of,
            "wait_ms": wait_ms,
            "reason": self.reason,
            "status": self.status,
        }


@dataclass(frozen=True, kw_only=True)
class Retries:
    """The policy. Times are in seconds; ``most`` attempts follow the first one.

    The wait is what ``Retry-After`` asks for and a little more, else random up to ``backoff_s`` doubled with each
    attempt. A provider that asks for more than ``longest_wait_s`` is not waited for: the client is told instead.
    """

    most: int = 2
    longest_wait_s: float = 20.0
    backoff_s: float = 0.5
    jitter_s: float = 0.25
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    block: Callable[[float], Any] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.time

    def after(self, error: Exception, failed: int) -> Retry | None:
        """What to do after ``error``, when ``failed`` attempts have failed; None: raise it."""
        if failed > self.most:
            return None
        for cause in _causes(error):
            found = _reason(cause)
            if found is not None:
                wait_s = self._wait_s(cause, failed)
                return Retry(failed, self.most, wait_s, *found) if found[0] and wait_s is not None else None
        return None

    def _wait_s(self, error: BaseException, failed: int) -> float | None:
        asked_s = _retry_after_s(error, self.now)
        if asked_s is None:
            return self.random() * self.backoff_s * 2.0 ** (failed - 1)
        return None if asked_s > self.longest_wait_s else asked_s + self.random() * self.jitter_s


def _reason(error: BaseException) -> tuple[str, int | None] | None:
    """``(reason, status)``, an empty reason where the call is not to be repeated; None: this error says nothing."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and hasattr(error, "response"):
        if status == 429:
            return "" if _quota_used_up(error) else "rate_limited", status
        return "unavailable" if status in SAFE else "", status
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & _UNREACHABLE or ("RemoteProtocolError" in names and str(error).startswith(_NO_RESPONSE)):
        return "unreachable", None
    return None


def _quota_used_up(error: BaseException) -> bool:
    return "insufficient_quota" in (getattr(error, "code", None), getattr(error, "type", None))


def _retry_after_s(error: BaseException, now: Callable[[], float]) -> float | None:
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers["retry-after"])
    except KeyError:
        return None
    except ValueError:
        return _until(headers.get("retry-after", ""), now)
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _until(date: str, now: Callable[[], float]) -> float | None:
    """Seconds to an HTTP date; one that is past is now."""
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": UTC, of unknown place
        moment = moment.replace(tzinfo=UTC)
    return max(moment.timestamp() - now(), 0.0)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__
