"""How long a cancel takes to reach the provider: from the client's last word to the provider's closed socket.

By every way of cancelling (POST cancel, FIN, RST, a WebSocket's cancel) and in every phase, with the server idle and
under live runs, beside LangServe with the same graphs, which knows dropped connections only. Of a run with branches it
is the last of their sockets. The client and the provider that is cancelled are in this process, so that one clock tells
both ends; the servers, the load and the load's own provider are processes of their own. The moment of the cancel is
random, so that no tick is measured.

    python benchmarks/cancel.py [--n 200] [--live 500] [--quick] [--page docs/performance.md]
"""

import argparse
import gc
import itertools
import json
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple, TypeAlias
from urllib.parse import quote
from urllib.request import urlopen

import harness
from clients import HttpRun, SocketRun, Way
from harness import Server
from load import post, request
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from app.simulator.records import Exchange
from app.simulator.server import Simulator

Circumstance: TypeAlias = Literal["idle", "live"]

LANES = {"idle": 1, "live": 16}
"""Runs that are cancelled at a time. Under load one after another would take hours: a first token takes seconds."""

HESITATION_S = {"idle": (0.002, 0.03), "live": (0.0, 0.3)}
"""How long a client waits before it cancels: by chance, longer than a turn of the server's loop."""

TOKENS_PER_SECOND = {"idle": 100, "live": 10}
CELL_S = 25.0
"""So long at the most for each way in each phase; where it was not enough, the table tells how many it was."""

GIVEN_UP_S = {"idle": 3.0, "live": 20.0}
GIVEN_UP_AFTER = 2
"""So many cancels that did not reach the provider in that time: the way does not work there."""

AIM_MS = {"idle": 5.0, "live": 100.0}
AIM_CANCELS, AIM_LIVE = 200, 500
"""What the aims are for. With fewer cancels or fewer live runs nothing is said of them."""

SETTLE_S = 5.0


class Phase(NamedTuple):
    """Where a run is when it is cancelled: so many ``tokens`` have left the provider. ``told``: what makes it so."""

    name: str
    agent: str
    tokens: int = 2
    told: str = "tokens=5000"
    streams: bool = True
    branches: int = 1

    def text(self, pace: int, lane: int) -> str:
        """What the user says. The length of the prompt tells the lanes apart at the provider."""
        text = f"[[{self.told}&tokens_per_second={pace}]] go{' on' * lane}"
        if self.branches == 1:
            return text
        plan = json.dumps({"questions": [f"{letter} {text}" for letter in "abcde"[: self.branches]]})
        # The plan's own prompt is of a length that no branch's has.
        return f"[[say={quote(plan, safe='')}&burst=1]] go{' on' * 64}"


PHASES = (
    Phase("non-streaming invoke", "chat", streams=False),
    Phase("before the first token", "chat", 0, "first_token_s=300"),
    Phase("mid-token", "chat"),
    Phase("in a tool that calls a model", "consulting"),
    Phase("in a subgraph", "nested"),
    Phase("in three branches of research", "research", branches=3),
)
WAYS: tuple[Way, ...] = ("POST", "FIN", "RST", "WebSocket")
KNOWN: dict[str, tuple[Way, ...]] = {"Millrace": WAYS, "LangServe": ("FIN", "RST")}


@dataclass
class Cell:
    """One way in one phase: how long each cancel took, in ms, and how many never arrived."""

    wanted: int
    taken: list[float] = field(default_factory=list)
    never: int = 0

    @property
    def p99(self) -> float:
        """Infinite where the way does not work."""
        return float("inf") if self.never else harness.percentile(self.taken, 99)

    def __str__(self) -> str:
        if self.never:
            return f"never ({self.never} of {self.never + len(self.taken)})"
        few = f" (of {len(self.taken)})" if len(self.taken) < self.wanted else ""
        return " / ".join(f"{harness.percentile(self.taken, one):,.1f}" for one in (50, 99, 100)) + few


Cells: TypeAlias = dict[tuple[str, Way], Cell]


class Load(NamedTuple):
    """What the live runs got while the cancels were measured."""

    asked: int
    live: int
    tokens_per_second: float
    cpu: float  # of the server, in parts of a core

    def row(self, server: str) -> list[object]:
        """For the table."""
        asked = self.asked * TOKENS_PER_SECOND["live"]
        return [server, self.live, f"{asked:,}", f"{self.tokens_per_second:,.0f}", f"{self.cpu:.0%}"]


class Bench:
    """A server, the provider behind it, and runs that are cancelled."""

    def __init__(self, server: Server, provider: Simulator, circumstance: Circumstance) -> None:
        self._server = server
        self._provider = provider
        self._circumstance = circumstance
        self._shortest: dict[str, int] = {}  # the tokens of the prompt that an agent makes of the shortest text
        self._starting = threading.Lock()
        self._listed: set[str] = set()

    def measure(self, phase: Phase, way: Way, count: int, tell: Callable[[], None]) -> Cell:
        """``count`` cancels."""
        if phase.agent not in self._shortest:
            self._shortest[phase.agent] = self._learn(phase)
        cell, todo, until = Cell(count), itertools.count(), time.monotonic() + CELL_S

        def work(lane: int) -> None:
            while next(todo) < count and cell.never < GIVEN_UP_AFTER and time.monotonic() < until:
                taken = self._cancel(phase, way, lane)
                if taken is None:
                    cell.never += 1
                else:
                    cell.taken.append(taken * 1000)
                tell()

        lanes = LANES[self._circumstance]
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(work, range(lanes)))
        return cell

    def _cancel(self, phase: Phase, way: Way, lane: int) -> float | None:
        """Seconds from the client's last word to the provider's closed socket; ``None``: it stayed open."""
        after, size = self._newest(), self._shortest[phase.agent] + lane
        with self._started(phase, way, lane) as run:
            exchanges = self._exchanges(after, phase.branches, size)
            _until(lambda: all(one.tokens_sent >= phase.tokens for one in exchanges))
            if phase.streams and phase.tokens:
                run.until_token()
            numbers = {one.connection for one in exchanges}
            connections = [one for one in self._provider.connections if one.number in numbers]
            end = run.ending(way)
            time.sleep(random.uniform(*HESITATION_S[self._circumstance]))
            began = time.monotonic()
            end()
            _until(lambda: all(one.closed is not None for one in connections), GIVEN_UP_S[self._circumstance])
            closed = [one.closed for one in connections if one.closed is not None]
            return max(closed) - began if len(closed) == len(connections) else None

    def _started(self, phase: Phase, way: Way, lane: int) -> AbstractContextManager[HttpRun | SocketRun]:
        text = phase.text(TOKENS_PER_SECOND[self._circumstance], lane)
        if way == "WebSocket":
            return SocketRun(self._server.address, phase.agent, text)
        asked = request(f"/agents/{phase.agent}/{self._route(phase)}", text)
        if phase.streams or way != "POST":
            run = HttpRun(self._server.address, asked)
            if way == "POST":
                run.read_run_id()
            return run
        with self._starting:
            run = HttpRun(self._server.address, asked)
            run.run_id = self._only_new(phase.agent)
        return run

    def _route(self, phase: Phase) -> str:
        if not phase.streams:
            return "invoke"
        return "runs" if self._server.name == "Millrace" else "stream_events"

    def _only_new(self, agent: str) -> str:
        """The run that was just started: an answer in one piece tells its id at its end only."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with urlopen(f"{self._server.url}/runs", timeout=60) as response:
                rows = json.load(response)["runs"]
            for row in rows:
                if row["agent"] == agent and row["status"] == "running" and row["run_id"] not in self._listed:
                    self._listed.add(row["run_id"])
                    return str(row["run_id"])
            time.sleep(0.001)
        raise SystemExit("a run that was started is not in the list of runs")

    def _learn(self, phase: Phase) -> int:
        after = self._newest()
        with self._started(phase, "FIN", 0):
            return self._exchanges(after, phase.branches)[0].prompt_tokens

    def _newest(self) -> int:
        requests = self._provider.requests
        return requests[-1].number if requests else 0

    def _exchanges(self, after: int, count: int, size: int | None = None) -> list[Exchange]:
        """The requests that reached the provider: so many whose prompts have that size, or all the same one."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            alike: dict[int, list[Exchange]] = defaultdict(list)
            for one in itertools.takewhile(lambda one: one.number > after, reversed(self._provider.requests)):
                alike[one.prompt_tokens].append(one)
            wanted = alike.keys() - {0} if size is None else {size}
            for tokens in wanted:
                if len(alike[tokens]) >= count:
                    return alike[tokens]
            time.sleep(0.001)
        raise SystemExit("a run did not reach the provider within 120 s")


def _until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)


def nothing_between(provider: Simulator, count: int, tell: Callable[[], None]) -> Cell:
    """The floor: a client of the provider itself, with no server in between."""
    cell = Cell(count)
    address = harness.address(provider.base_url.removesuffix("/v1"))
    message = {"role": "user", "content": "[[tokens=5000]] go"}
    asked = post("/v1/chat/completions", json.dumps({"model": "m", "stream": True, "messages": [message]}).encode())
    for _ in range(count):
        with HttpRun(address, asked) as run:
            run.until_token()
            connection = provider.connections[-1]
            end = run.ending("FIN")
            time.sleep(random.uniform(*HESITATION_S["idle"]))
            began = time.monotonic()
            end()
            _until(lambda: connection.closed is not None)  # noqa: B023 - called here
            assert connection.closed is not None
            cell.taken.append((connection.closed - began) * 1000)
        tell()
    return cell


class Watch:
    """The load's process, and what it has told so far."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines = lines
        self.last = {"at": time.monotonic(), "live": 0.0, "tokens": 0.0}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with self._lines:
            for line in self._lines:
                self.last = json.loads(line)


class Measured(NamedTuple):
    """One server in one circumstance; ``floor``: with no server between."""

    server: str
    cells: Cells
    floor: Cell
    load: Load | None

    @property
    def circumstance(self) -> str:
        """The head of its column."""
        return "idle" if self.load is None else f"{self.load.live} live"


Serving: TypeAlias = Callable[[dict[str, str]], AbstractContextManager[Server]]


def millrace(environment: dict[str, str]) -> AbstractContextManager[Server]:
    """As a user would start it; ``chat`` is the built-in agent."""
    return harness.millrace(environment, "consulting", "nested", "live")


def measure(serving: Serving, circumstance: Circumstance, count: int, runs: int, show: Progress) -> Measured:
    """Every cell of a server that nothing else has used."""
    with (
        Simulator() as provider,
        harness.provider(TOKENS_PER_SECOND["live"]) as for_load,
        serving({"OPENAI_BASE_URL": provider.base_url, "LOAD_BASE_URL": for_load}) as server,
    ):
        if circumstance == "idle":
            cells, floor = _cells(server, provider, circumstance, count, show)
            return Measured(server.name, cells, floor, None)
        with _loaded(server, runs, show) as watch:
            before, used = watch.last, server.cpu_s()
            cells, floor = _cells(server, provider, circumstance, count, show)
            after, used = watch.last, server.cpu_s() - used
        seconds = after["at"] - before["at"]
        tokens = after["tokens"] - before["tokens"]
        return Measured(server.name, cells, floor, Load(runs, int(after["live"]), tokens / seconds, used / seconds))


def _cells(
    server: Server, provider: Simulator, circumstance: Circumstance, count: int, show: Progress
) -> tuple[Cells, Cell]:
    bench = Bench(server, provider, circumstance)
    phases = [phase for phase in PHASES if phase.branches == 1 or server.name == "Millrace"]
    wanted = [(phase, way) for phase in phases for way in KNOWN[server.name] if phase.streams or way != "WebSocket"]
    task = show.add_task("", total=count * (len(wanted) + 1))

    def tell() -> None:
        show.advance(task)

    cells: Cells = {}
    for phase, way in wanted:
        show.update(task, description=f"{server.name}, {circumstance}: {phase.name}, {way}")
        gc.collect()  # ours and the provider's, before and not while it is measured
        cells[phase.name, way] = bench.measure(phase, way, count, tell)
    show.update(task, description=f"{server.name}, {circumstance}")
    floor = nothing_between(provider, count, tell)
    show.update(task, completed=count * (len(wanted) + 1))
    return cells, floor


@contextmanager
def _loaded(server: Server, runs: int, show: Progress) -> Iterator[Watch]:
    """The live runs, from when each has its first token."""
    host, port = server.address
    path = f"/agents/live/{'runs' if server.name == 'Millrace' else 'stream_events'}"
    command = [sys.executable, str(harness.HERE / "load.py"), host, str(port), path, str(runs)]
    with harness.piped([*command, str(TOKENS_PER_SECOND["live"])]) as process:
        assert process.stdout is not None
        watch = Watch(process.stdout)
        task = show.add_task(f"{server.name}: live runs", total=runs)
        while watch.last["live"] < runs:
            if process.poll() is not None:
                raise SystemExit("the load ended by itself")
            show.update(task, completed=watch.last["live"])
            time.sleep(0.2)
        show.update(task, completed=runs)
        time.sleep(SETTLE_S)
        yield watch


# -- the page ---------------------------------------------------------------------------------------------------------


def report(idle: list[Measured], live: list[Measured], count: int) -> str:
    """What goes into the page."""
    columns = [*idle, *live]
    head = ["phase", "way", *(f"{one.server}, {one.circumstance}" for one in columns)]
    rows = [
        [phase.name, way, *(str(one.cells.get((phase.name, way), "–")) for one in columns)]
        for phase in PHASES
        for way in WAYS
        if phase.streams or way != "WebSocket"
    ]
    rows.append(["(no server: the provider's own client)", "FIN", *(str(one.floor) for one in columns)])
    what = (
        f"From the client's last word to the provider's closed socket, p50 / p99 / longest of {count}, in ms; "
        f'"never": not within {GIVEN_UP_S["idle"]:g} s ({GIVEN_UP_S["live"]:g} s under load); "of": so many in the '
        f"{CELL_S:g} s that each cell has. Of three branches it is the last one's socket; LangServe ends a graph that "
        "sends its branches with status 500, as it cannot serialise a `Send`. "
        "Written by `python benchmarks/cancel.py`."
    )
    return "\n\n".join(
        (
            "## A cancel's way to the provider",
            what,
            harness.table(head, rows),
            _verdict(idle[0], "idle"),
            _verdict(live[0], "live"),
            "The live runs, while the cancels were measured:",
            harness.table(
                ["server", "live runs", "tokens/s asked", "tokens/s delivered", "of a core"],
                [one.load.row(one.server) for one in live if one.load is not None],
            ),
            harness.machine(),
        )
    )


def _verdict(measured: Measured, circumstance: Circumstance) -> str:
    """Whether the aim holds; said only of what the aim is for."""
    aim, cells = AIM_MS[circumstance], measured.cells
    name = f"Aim {'idle' if measured.load is None else f'with {AIM_LIVE} live runs'}, p99 ≤ {aim:g} ms"
    if measured.load is not None and min(measured.load.asked, measured.load.live) < AIM_LIVE:
        return f"{name}: not judged, as {measured.load.live} runs were live."
    if any(cell.wanted < AIM_CANCELS for cell in cells.values()):
        return f"{name}: not judged, as each cell has fewer than {AIM_CANCELS} cancels."
    missed = {f"{phase}, {way}": cell.p99 for (phase, way), cell in cells.items() if cell.p99 > aim}
    few = [cell for cell in cells.values() if cell.p99 <= aim and len(cell.taken) < AIM_CANCELS]
    said = [f"held by {len(cells) - len(missed) - len(few)} of {len(cells)}"]
    if missed:
        worst = max(missed, key=lambda one: missed[one])
        said.append(f"missed by {len(missed)}, furthest by {worst} ({missed[worst]:,.1f} ms)")
    if few:
        said.append(f"not judged in {len(few)}, which had fewer than {AIM_CANCELS} cancels in their time")
    return f"{name}: {'; '.join(said)}."


def main() -> None:
    """Measure all of it, and write the page."""
    parser = argparse.ArgumentParser(description="How long a cancel takes to reach the provider.")
    parser.add_argument("--n", type=int, default=200, help="cancels of each way in each phase")
    parser.add_argument("--live", type=int, default=500, help="live runs beside them")
    parser.add_argument("--quick", action="store_true", help="few of each, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=harness.PAGE, help="the page that the table is written to")
    options = parser.parse_args()
    count, runs = (3, 10) if options.quick else (options.n, options.live)
    if count < 1 or runs < 1:
        parser.error("--n and --live must be at least 1")
    servers: tuple[Serving, ...] = (millrace, harness.langserve)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as show:
        idle = [measure(one, "idle", count, runs, show) for one in servers]
        live = [measure(one, "live", count, runs, show) for one in servers]
    text = report(idle, live, count)
    if not options.quick:
        harness.write("cancel", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
