"""Measurements made up for tests: streams of a pace, and layers in which nothing is wrong."""

from collections.abc import Callable
from typing import Any

from app.doctor.measurement import Event, Layer, Silence, Socket, Stream

HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache, no-transform",
    "x-run-id": "r",
    "content-location": "/runs/r",
}

CLOCKS_S = 1_700_000_000.0
"""What lies between the server's clock and ours."""


def events(arrives: Callable[[float], float], *, number: int = 40, every_s: float = 0.05) -> list[Event]:
    """Events that happen ``every_s`` and arrive when ``arrives`` says, given when they happened."""
    happened = [number_ * every_s for number_ in range(number)]
    return [Event(at + 1, CLOCKS_S + ts, arrives(ts)) for at, ts in enumerate(happened)]


def at_once(ts: float) -> float:
    return ts + 0.001


def all_at_the_end(_: float) -> float:
    return 2.0


def each_second(ts: float) -> float:
    """As a proxy does whose buffer holds a second of the stream."""
    return float(int(ts) + 1)


def stream(arrives: Callable[[float], float] = at_once, **changed: Any) -> Stream:
    whole: dict[str, Any] = {
        "headers_s": 0.01, "first_event_s": 0.02, "headers": HEADERS, "events": events(arrives), "complete": True,
    }  # fmt: skip
    return Stream(**(whole | changed))


def layer(url: str = "http://127.0.0.1:8000", **changed: Any) -> Layer:
    whole: dict[str, Any] = {
        "stream": stream(), "as_page": 200, "resumed": (41, 42), "left_s": 0.02,
        "silence": Silence(heartbeats=2), "socket": Socket(),
    }  # fmt: skip
    return Layer(url, **(whole | changed))


def proxy(**changed: Any) -> Layer:
    return layer("http://127.0.0.1:8080", **({"server": "nginx/1.22.1"} | changed))
