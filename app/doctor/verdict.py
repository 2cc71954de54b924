"""What is wrong with which layer, from what was measured. No I/O.

Layers stand in the order of a request's way back from the server: the first one is nearest to it. What one does to a
stream is seen in all that stand further out, so a fault is told of the first that shows it. Nothing is told that
could be the network's doing or a busy machine's: better silent than wrong.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

from app.doctor.cures import Fault, cure
from app.doctor.measurement import HEARD_S, Failure, Layer, Stream, bursts, held, is_held, judged

MEANT = {
    "Cache-Control": frozenset(("no-cache", "no-transform")),
    "X-Run-Id": frozenset[str](),
    "Content-Location": frozenset[str](),
}
"""Headers of a stream that clients and what stands further out go by, with the words that must be in them."""

FOLLOWS = {
    Fault.BUFFERS: (Fault.HOLDS_HEARTBEATS,),
    Fault.COMPRESSES: (Fault.HOLDS_HEARTBEATS,),
}
"""What a fault brings with it, and its cure takes away."""

GATEWAY = (502, 503, 504)

UNKNOWN = "http://ADDRESS_OF_MILLRACE"
"""Where what is behind the nearest layer is not known."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: at which layer, in a sentence, and what cures it: lines to copy, or a sentence."""

    layer: int
    fault: Fault
    says: str
    cure: str

    @property
    def is_configuration(self) -> bool:
        """Whether the cure is lines to copy."""
        return self.cure.endswith((";", "}"))


def product(server: str) -> str:
    """What ``Server`` names: ``nginx`` of ``nginx/1.22.1``. Of the server itself, which names none or uvicorn: none."""
    name = server.partition("/")[0].strip()
    return "" if name.lower() == "uvicorn" or not name.isascii() or not name.isprintable() else name[:40]


def address(url: str) -> str:
    """Where a layer is, as short as it can be said."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f":{parts.port}" if _is_loopback(url) and parts.port else host


def name(layers: Sequence[Layer], at: int) -> str:
    """What a layer is called."""
    layer = layers[at]
    return f"{product(layer.server) or ('the proxy' if at else 'the server')} at {address(layer.url)}"


def findings(layers: Sequence[Layer]) -> list[Finding]:
    """All that is wrong, nearest layer first."""
    told: set[Fault] = set()
    found: list[Finding] = []
    for at, layer in enumerate(layers):
        behind = layers[at - 1].url.rstrip("/") if at else UNKNOWN
        wrong = list(_failing(layer, layer.failure, at) if layer.failure else _wrong(layers, at))
        told |= {hidden for one in wrong for hidden in FOLLOWS.get(one.fault, ())}
        for one in wrong:
            if one.fault not in told:
                text = cure(one.fault, product(layer.server), behind, one.headers)
                found.append(Finding(at, one.fault, f"{name(layers, at)} {one.says}", text))
        told |= {one.fault for one in wrong} - {Fault.CHANGES_HEADERS}  # these are compared with the nearer layer's
    return found


class Wrong(NamedTuple):
    """A fault of the layer that is being looked at; ``headers`` are those it concerns."""

    fault: Fault
    says: str
    headers: Sequence[str] = ()


def _failing(layer: Layer, failure: Failure, at: int) -> Iterator[Wrong]:
    status, words = failure.status, failure.words
    if status is None:
        yield Wrong(Fault.UNREACHABLE, f"does not answer: {failure.problem}")
    elif failure.location is not None:
        yield Wrong(Fault.REDIRECTS, f"redirects to {failure.location}")
    elif status in GATEWAY and words is None:
        yield Wrong(Fault.UNREACHABLE, f"answers {status}: it does not reach what is behind it")
    elif status == 401 and words and at:
        yield Wrong(Fault.DROPS_KEY, f"drops the key: 401, “{words}”")
    elif status == 401 and words:
        yield Wrong(Fault.NEEDS_KEY, f"wants a key: “{words}”")
    elif status == 403 and words and at and _is_loopback(layer.url):
        yield Wrong(Fault.CHANGES_HOST, f"passes on another Host: 403, “{words}”")
    elif words:
        yield Wrong(Fault.REFUSES, f"answers {status}, “{words}”")
    else:
        yield Wrong(Fault.NOT_MILLRACE, f"is no Millrace, or does not pass it on: GET /agents answers {status}")


def _wrong(layers: Sequence[Layer], at: int) -> Iterator[Wrong]:
    layer = layers[at]
    if layer.stream is not None:
        yield from _streaming(layer, layer.stream, itself=not (at or product(layer.server)))
        yield from _headers(layers, at)
    if layer.resumed is not None and layer.resumed[1] <= layer.resumed[0]:
        asked, first = layer.resumed
        says = f"drops Last-Event-ID: asked for what follows event {asked}, the stream began at event {first}"
        yield Wrong(Fault.DROPS_LAST_EVENT_ID, says)
    if layer.left_s is not None and layer.left_s > HEARD_S:
        says = f"keeps a run going, and costing, whose reader has left: {layer.left_s:.1f} s later it was not over"
        yield Wrong(Fault.KEEPS_RUNS, says)
    yield from _silent(layers, at)
    if layer.as_page == 403:
        yield Wrong(Fault.CHANGES_HOST, "passes on another Host: pages of its own origin are answered 403")
    if layer.socket is not None and layer.socket.refused is not None:
        yield Wrong(Fault.NO_WEBSOCKET, f"does not pass WebSockets on: {layer.socket.refused}")
    if layer.socket is not None and layer.socket.cut_after_s is not None:
        yield Wrong(Fault.CUTS_WEBSOCKET, f"cuts a WebSocket after {layer.socket.cut_after_s:.1f} s of silence")


def _streaming(layer: Layer, stream: Stream, *, itself: bool) -> Iterator[Wrong]:
    again = layer.again or Stream()
    coding = stream.headers.get("content-encoding", "identity")
    slow, still_slow = is_held(stream.events), is_held(again.events)
    if stream.refused is not None:
        yield Wrong(Fault.NOT_MILLRACE, f"answers the start of a run with {stream.refused} and no stream")
    if coding != "identity":
        says = f"compresses the stream ({coding[:20]}), which its no-transform forbids"
        yield Wrong(Fault.COMPRESSES, f"{says}; {_bunches(stream)}" if slow and not still_slow else says)
    if slow and still_slow:
        fault, does = (Fault.SERVER_LATE, "is late") if itself else (Fault.BUFFERS, "buffers")
        yield Wrong(fault, f"{does}: {_bunches(stream)}")
    if stream.unanswered_s is not None and again.unanswered_s is not None:
        says = f"buffers: after {_count(len(stream.events), 'event')} nothing arrived for {stream.unanswered_s:.0f} s"
        yield Wrong(Fault.BUFFERS, says)
    if stream.broken_after_s is not None and again.broken_after_s is not None:
        says = (
            f"breaks a stream off: after {_count(len(stream.events), 'event')} and {stream.broken_after_s:.1f} s more"
        )
        yield Wrong(Fault.BREAKS_OFF, says)


def _bunches(stream: Stream) -> str:
    lateness = median(held(stream.events))
    came = f"{_count(len(stream.events), 'event')} arrived in {_count(bursts(stream.events), 'burst')}"
    return f"{came}, half of them more than {lateness:.1f} s late"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _headers(layers: Sequence[Layer], at: int) -> Iterator[Wrong]:
    """What of the headers is not as it was one layer nearer; of the nearest, as the server sends it."""
    stream, nearer = layers[at].stream, layers[at - 1].stream if at else None
    if stream is None or stream.refused is not None or stream.headers_s is None:
        return
    changed = [
        title for title, words in MEANT.items()
        if not _has(stream, title, words) and (not at or (nearer is not None and _has(nearer, title, words)))
    ]  # fmt: skip
    if changed:
        now = (stream.headers.get(title.lower()) for title in changed)
        told = (
            f"{title} is “{value[:60]}”" if value else f"no {title}" for title, value in zip(changed, now, strict=True)
        )
        yield Wrong(Fault.CHANGES_HEADERS, f"changes the headers of a stream: {', '.join(told)}", changed)


def _has(stream: Stream, title: str, words: frozenset[str]) -> bool:
    value = stream.headers.get(title.lower())
    return value is not None and words <= {word.strip() for word in value.lower().split(",")}


def _silent(layers: Sequence[Layer], at: int) -> Iterator[Wrong]:
    silence, nearest = layers[at].silence, layers[0].silence
    if silence is None:
        return
    if silence.cut_after_s is not None:
        says = f"cuts a stream after {silence.cut_after_s:.1f} s of silence, before the server's next heartbeat"
        yield Wrong(Fault.CUTS_SILENCE, says)
    elif not silence.heartbeats and nearest is not None and nearest.heartbeats > 1:
        says = f"holds heartbeats back: of {nearest.heartbeats} in a silent stream none arrived"
        yield Wrong(Fault.HOLDS_HEARTBEATS, says)


def notes(layers: Sequence[Layer]) -> list[str]:
    """What could not be judged, and why."""
    found = []
    stream = layers[0].stream or Stream()
    if stream.error:
        found.append(f"the run failed, so what is told of its stream may not be all: {stream.error}")
    elif stream.complete and not judged(stream.events):
        found.append("the pace was not judged: the answer came in few pieces. Name an agent that streams by --agent")
    if layers[0].silence is not None and not layers[0].silence.heartbeats and layers[0].silence.cut_after_s is None:
        found.append("silence was not judged: no heartbeat came in time. What is MILLRACE_HEARTBEAT_S at the server?")
    return found


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK
