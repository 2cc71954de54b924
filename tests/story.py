"""A run that is told piece by piece while its reader's line breaks five times: what any resuming client must survive.

The pieces are let go by the test, the breaks are placed by bytes, so what happens while a reader is there, while it is
away (where it waits before it returns), and what it finds then, is the same each time::

    1   in the response's head, before the reader has seen any event
    2   behind an event's id, live
    3   inside a letter, in what was appended while the reader was away
    4   exactly between two events, live
    5   behind the last event's data, whose closing blank line never comes
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from proxy import How, Proxy, proxying
from scripted import Gate, Scripted, Step, words
from serving import Served, serving

Eventually = Callable[[Callable[[], bool]], None]

PIECES = (
    ("Der ", "erste ", "Teil ", "ist ", "kurz. "),
    ("In ", "der ", "Welt, ", "auf ", "Chinesisch 世界, ", "regnet ", "es. "),
    ("Es ", "regnet ", "weiter, ", "und ", "weiter. "),
    ("Am ", "Ende ", "scheint ", "🌞."),
)
TEXT = "".join(word for piece in PIECES for word in piece)

BREAKS: tuple[tuple[bytes, How], ...] = (
    (rb"(?i)content-type: text/event-", "reset"),
    (rb"id: 5\nevent: to", "reset"),
    (rb"\xe4\xb8", "close"),
    (rb"id: 17\n[^\n]*\n[^\n]*\n\n", "close"),
    (rb"event: run\.finished\ndata: [^\n]*", "reset"),
)


DOCS = Path(__file__).resolve().parents[1] / "docs" / "http.md"


class Seen(NamedTuple):
    """An event as a client handed it over."""

    id: str
    event: str
    data: str


class Story:
    """One run and the broken line to it."""

    def __init__(self, served: Served, proxy: Proxy, gates: list[Gate]) -> None:
        self.served = served
        self.proxy = proxy
        self.gates = gates
        answer = httpx.post(f"{served.url}/agents/story/runs", json={"input": "Tell me."})
        assert answer.status_code == 202
        self.run_id: str = answer.json()["run_id"]
        self.url = f"{proxy.url}/runs/{self.run_id}/events"

    @property
    def requests(self) -> int:
        """How often the stream was asked for."""
        return self.proxy.asked.count(f"GET /runs/{self.run_id}/events".encode())

    def tell(self, eventually: Eventually) -> None:
        """Let the run go on, break the line where it is to be broken, until all has been told."""
        first, second, third, last = self.gates
        eventually(lambda: self.requests == 2)  # the first was broken in its head
        first.open()
        eventually(lambda: self.proxy.cuts == 2)
        second.open()
        eventually(lambda: self.requests == 4)  # the third was broken inside a letter
        third.open()
        eventually(lambda: self.proxy.cuts == 4)
        eventually(lambda: self.requests == 5)
        last.open()

    def check(self, seen: list[Seen]) -> None:
        """All breaks happened. Nothing lost, nothing twice, nothing out of order, and one end."""
        whole = [Seen(*event) for event in self._stored()]
        assert seen == whole
        assert [event.id for event in seen] == [str(number) for number in range(1, len(seen) + 1)]
        assert "".join(text_of(event) for event in seen) == TEXT
        assert [event.event for event in seen].count("run.finished") == 1
        assert not self.proxy.planned

    def _stored(self) -> Iterator[tuple[str, str, str]]:
        body = httpx.get(f"{self.served.url}/runs/{self.run_id}/events").text.removeprefix("retry: 1000\n")
        for block in body.split("\n\n")[:-1]:
            number, event, data = (line.split(": ", 1)[1] for line in block.split("\n") if not line.startswith(":"))
            yield number, event, data


def text_of(event: Seen) -> str:
    """What of the answer's text the event brings."""
    return str(json.loads(event.data)["text"]) if event.event == "token" else ""


def documented(language: str) -> str:
    """The reader that the docs show, as code."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    return next(str(block) for block in blocks if "follow(" in block)


@contextmanager
def telling(breaks: Sequence[tuple[bytes, How]] = BREAKS) -> Iterator[Story]:
    """A story at its beginning: the run waits, and the line will break where ``breaks`` say."""
    gates = [Gate() for _ in PIECES]
    turn: list[Step] = []
    for gate, piece in zip(gates, PIECES, strict=True):
        turn += [gate, *words(*piece)]
    with serving({"story": Scripted(turns=[turn])}) as served, proxying(served.url) as proxy:
        for pattern, how in breaks:
            proxy.cut_after(pattern, how)
        yield Story(served, proxy, gates)
