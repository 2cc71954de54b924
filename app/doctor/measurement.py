"""What was seen of a layer, and the arithmetic of a stream's pace. No I/O; all times are in seconds.

Every event says by its ``ts`` when it happened. How much later it arrived than that is known but for a constant, the
difference of the two clocks, and the smallest difference of a stream is taken for it: what is left is how long each
event was held on its way, whatever the pace of the model that wrote the answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

TOGETHER_S = 0.005
"""What came within so short a time of one another came together."""

ENOUGH = 8
"""Moments at which something happened, below which nothing can be said of a stream's pace."""

BUNCHED = 3
"""A stream of so many moments for each burst in which they arrived is bunched, if it is late as well."""

BUNCHED_S = 0.05
"""How late the median event of a bunched stream must be. On a busy machine it is a few milliseconds."""

LATE_S, LATE_SHARE = 0.25, 1 / 3
"""Events later than this are late, and with this share of them a stream is; one long pause makes less."""

HEARD_S = 1.5
"""How long a run may go on whose reader has left. To be heard of, that takes milliseconds, or a round trip or two."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its ``id``, when it happened by the server's clock, and when it was here by our own."""

    id: int
    ts: float
    at: float


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream as it arrived; times since the request was sent.

    ``complete``: its last event was ``run.finished``. ``broken_after_s``: it ended without it, after so long a silence.
    ``unanswered_s``: so long was waited for more, in vain. ``refused``: the status of an answer that is no stream.
    ``error``: what the run failed with.
    """

    headers_s: float | None = None
    first_event_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    events: Sequence[Event] = ()
    complete: bool = False
    broken_after_s: float | None = None
    unanswered_s: float | None = None
    refused: int | None = None
    run_id: str | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a layer cannot be asked at all. ``status`` is None where nothing answers; ``words`` are Millrace's own."""

    status: int | None
    words: str | None = None
    problem: str = ""
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """A stream in which nothing happens: the heartbeats that arrived, and after how long it was cut, if it was."""

    heartbeats: int
    cut_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Socket:
    """A WebSocket: in words why there was none, or after how long a silence it was cut, if it was."""

    refused: str | None = None
    cut_after_s: float | None = None


@dataclass(slots=True)
class Layer:
    """All that was asked of a layer; what was not is ``None``.

    ``again``: the stream asked for once more, without compression, because the first one was held. ``as_page``: the
    status a page of this origin gets. ``resumed``: after which id it was asked for, and the first that came.
    ``left_s``: how long a run went on when its reader had left.
    """

    url: str
    server: str = ""
    failure: Failure | None = None
    stream: Stream | None = None
    again: Stream | None = None
    as_page: int | None = None
    resumed: tuple[int, int] | None = None
    left_s: float | None = None
    silence: Silence | None = None
    socket: Socket | None = None


def groups(moments: Iterable[float]) -> int:
    """How many times something came: what came together counts once."""
    count, first = 0, float("-inf")
    for moment in sorted(moments):
        if moment - first > TOGETHER_S:
            count, first = count + 1, moment
    return count


def bursts(events: Sequence[Event]) -> int:
    """In how many pieces the events arrived."""
    return groups(event.at for event in events)


def instants(events: Sequence[Event]) -> int:
    """At how many moments they happened."""
    return groups(event.ts for event in events)


def held(events: Sequence[Event]) -> list[float]:
    """How long each event was held on its way, beyond the one that was held least."""
    lags = [event.at - event.ts for event in events]
    return [lag - min(lags) for lag in lags]


def between(events: Sequence[Event], share: float) -> float | None:
    """The quantile of the times between two events' arrivals, by the nearest rank."""
    gaps = sorted(later.at - earlier.at for earlier, later in pairwise(events))
    return gaps[min(int(share * len(gaps)), len(gaps) - 1)] if gaps else None


def judged(events: Sequence[Event]) -> bool:
    """Whether there is enough to say anything of the pace."""
    return instants(events) >= ENOUGH


def is_held(events: Sequence[Event]) -> bool:
    """Whether something on the way holds events back: many arrive together that did not happen together, or late."""
    if not judged(events):
        return False
    lateness = held(events)
    bunched = BUNCHED * bursts(events) <= instants(events) and median(lateness) >= BUNCHED_S
    return bunched or sum(late > LATE_S for late in lateness) >= LATE_SHARE * len(events)
