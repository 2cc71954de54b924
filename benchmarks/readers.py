"""Ten thousand readers of a hundred runs on one worker: what each of them takes, and whether each is fed.

All of them follow from a run's first event to its last, over SSE and over WebSocket, and count the tokens that come.
What a reader takes is the server's memory with all of them there, less that with the runs alone, over their number.
Beside it the floor: bare ASGI under the same uvicorn.

    python benchmarks/readers.py [--readers 10000] [--runs 100] [--quick] [--page docs/performance.md]
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple
from urllib.request import Request, urlopen

import harness
from crowd import Followed, Moment, Wire, follow
from harness import Server, told

PACE = 1.0
"""Tokens a second of each run."""

SETTLE_S = 2.0
WARM = 50


class Measured(NamedTuple):
    """One server on one wire; ``before`` is its memory with the runs alone, in MB."""

    server: str
    wire: Wire
    before: float
    followed: Followed

    @property
    def kib(self) -> float:
        """What a reader takes, while all of them are there."""
        most = max((one.rss for one in self.followed.all_open), default=float("nan"))
        return (most - self.before) * 1e6 / 1024 / self.followed.readers

    @property
    def cpu_us(self) -> float:
        """Of the server, for each frame that a reader got while all of them were there."""
        return per_frame(self.followed.all_open)

    def row(self) -> list[object]:
        """For the table."""
        followed = self.followed
        seconds = followed.moments[-1].at - followed.moments[0].at
        return [
            self.server, {"sse": "SSE", "ws": "WebSocket"}[self.wire], f"{followed.readers:,}",
            f"{followed.fed:,}", followed.gaps, followed.broken, told(self.kib), told(self.cpu_us), f"{seconds:.0f}",
        ]  # fmt: skip


def per_frame(moments: list[Moment]) -> float:
    """Microseconds of the server's processor time for each frame that was read between the first and the last."""
    if len(moments) < 2 or moments[-1].frames == moments[0].frames:
        return float("nan")
    return (moments[-1].cpu_s - moments[0].cpu_s) / (moments[-1].frames - moments[0].frames) * 1e6


def start(server: Server, agent: str, tokens: int, pace: float, first_token_s: float = 0.0) -> str:
    """A run in the background; the path of its events."""
    text = f"[[tokens={tokens}&tokens_per_second={pace:g}&first_token_s={first_token_s:g}]] go on"
    asked = Request(
        f"{server.url}/agents/{agent}/runs", json.dumps({"input": text}).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(asked, timeout=60) as response:
        return f"/runs/{json.load(response)['run_id']}/events"


def begin(server: Server, name: str, tokens: int, pace: float) -> str:
    """A feed of the floor's; its path."""
    with urlopen(f"{server.url}/feed/{name}", f"tokens={tokens}&tokens_per_second={pace:g}".encode(), timeout=60):
        return f"/feed/{name}"


def runs(server: Server, number: int, tokens: int, pace: float) -> list[str]:
    """So many, started in the background; where their events are."""
    if server.name == "Millrace":
        return [start(server, "assistant", tokens, pace) for _ in range(number)]
    return [begin(server, f"{time.monotonic_ns()}-{one}", tokens, pace) for one in range(number)]


Serving = Callable[[Mapping[str, str]], AbstractContextManager[Server]]


def measure(serving: Serving, wire: Wire, number: int, runs_: int, tokens: int) -> Measured:
    """A server that nothing else has used."""
    with harness.provider(PACE) as provider, serving({"OPENAI_BASE_URL": provider}) as server:
        follow(server, wire, WARM, 3, runs(server, 1, 3, 100))
        paths = runs(server, runs_, tokens, PACE)
        time.sleep(SETTLE_S)
        before = server.rss()
        harness.say(f"{server.name}, {wire}: {number:,} readers of {runs_} runs")

        def tell(moment: Moment) -> None:
            if int(moment.at) % 10 == 0:
                harness.say(f"    {moment.open:,} there, {moment.frames:,} frames, {moment.rss:.0f} MB")

        return Measured(server.name, wire, before, follow(server, wire, number, tokens, paths, tell=tell))


# -- the page ---------------------------------------------------------------------------------------------------------


def report(measured: list[Measured], runs_: int, tokens: int) -> str:
    """What goes into the page."""
    what = (
        f"Readers of {runs_} runs of {tokens} tokens at {PACE:g} token/s, on one worker; each follows from the first "
        "event to the last, and is fed when it has had every token, the run's end, and no gap. KiB: the server's "
        "memory with all of them there, less that with the runs alone, by reader. A WebSocket reader has a socket of "
        "its own with one stream. Bare ASGI has the same frames from its own clock. Written by `python "
        "benchmarks/readers.py`."
    )
    head = [
        "server",
        "wire",
        "readers",
        "fed",
        "with a gap",
        "broken off",
        "KiB a reader",
        "CPU, µs a frame",
        "took, s",
    ]
    lines = [
        f"**{one.followed.fed:,} of {one.followed.readers:,} {'SSE' if one.wire == 'sse' else 'WebSocket'} readers of "
        f"{runs_} runs fed by one worker, {told(one.kib)} KiB each**"
        for one in measured
        if one.server == "Millrace"
    ]
    table = harness.table(head, [one.row() for one in measured])
    return "\n\n".join((f"## {measured[0].followed.readers:,} readers", *lines, what, table, harness.machine()))


def main() -> None:
    """Measure all of it, and write the page."""
    parser = harness.options(
        "What readers cost.", readers=(10_000, "how many"), runs=(100, "runs that they follow"), tokens=(45, "of a run")
    )
    options = parser.parse_args()
    number, runs_, tokens = (300, 10, 10) if options.quick else (options.readers, options.runs, options.tokens)
    wires: tuple[Wire, ...] = ("sse", "ws")
    measured = [
        measure(one, wire, number, runs_, tokens) for wire in wires for one in (harness.floor, harness.millrace)
    ]
    text = report(measured, runs_, tokens)
    if not options.quick:
        values = {f"{one.server}, {'SSE' if one.wire == 'sse' else 'WebSocket'}": one.kib for one in measured}
        text += "\n\n" + harness.bars("performance-readers", "Memory of a reader", "KiB", values, options.page)
        harness.write("readers", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
