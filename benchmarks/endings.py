"""Ten thousand runs that end in every way there is, and what the server holds when they are over: what it held before.

A server in a process of its own, with keys, limits and a gate that is too narrow for what comes, so that runs are
refused, wait in line and time out there; a simulated provider in another, which is told to fail in all its ways. Some
200 guests at once start runs of four agents by four ways in, and each run is ended as its lot says: read to its end,
cancelled, left by FIN or RST or with its socket, out of time, failed by the provider, paused. The seed repeats the
lots, not the moments.

Before, between and after, when all is quiet: the server's gauges, its sockets to the provider and the provider's open
requests, the tasks and threads of its process, its memory. In the end each user starts as many runs as it may have at
once: exactly so many must be let in, or a place was lost or given back twice. And every run must have had its end by
the server's own list. The exit status is 1 when anything is not as it was.

    python benchmarks/endings.py [--runs 10000] [--seed 4] [--beside TEXT] [--page docs/performance.md]
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import guests
import harness
from guests import Background, Guest, Http, LangServe, Leaving, Odd, Place, Refused, Socket, SocketStream, Stream, Whole
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from websockets.exceptions import WebSocketException

from app.simulator.server import Simulator

AT_ONCE, USERS, STREAMS, GATE = 200, 20, 8, 40
QUEUE_TIMEOUT_S, PAUSE_TIMEOUT_S, RETENTION_S = 6, 3, 5
WARM_UP, ROUNDS = 600, 4
QUIET_S, STUCK_S = 60.0, 120.0
IDLE_S = 6.0
"""Connections to the provider that are idle for 5 s are closed when the next call is made."""

CENSUS = "census"
"""The user who looks."""

AGENTS = ("chat", "assistant", "consulting", "blocking")
OURS = ("chat", "assistant")
ASYNC = ("chat", "assistant", "consulting")
SSE, BACKGROUND, LANGSERVE, WEBSOCKET = WAYS = ("SSE", "202 + attach", "LangServe", "WebSocket")
OPTIONS = (SSE, BACKGROUND, WEBSOCKET)
"""The ways by which a run can be asked for with options, and paused."""

LONG = "[[tokens=400&tokens_per_second=100]] go on"


class Ending(NamedTuple):
    """One way to end: how often it is drawn, what the provider is told, until when one waits, what one does then."""

    name: str
    weight: float
    deed: str = "read"
    at: tuple[str, ...] = ()
    text: str = ""
    options: Mapping[str, Any] = {}
    agents: tuple[str, ...] = AGENTS
    ways: tuple[str, ...] = WAYS


ENDINGS = (
    Ending("read to its end", 26),
    Ending("cancelled at any moment", 8, "cancel"),
    Ending("cancelled in line for the provider", 6, "cancel", ("run.queued", "token"), ways=OPTIONS),
    Ending("cancelled in mid-answer", 8, "cancel", ("token",), LONG),
    Ending("cancelled twice at once", 4, "cancel twice", ("token",), LONG),
    Ending("cancelled in a tool", 4, "cancel", ("tool.started",), LONG, agents=("consulting",), ways=OPTIONS),
    Ending("left before the first byte", 6, "leave unseen"),
    Ending("left at any moment", 4, "leave"),
    Ending("left in mid-answer", 8, "leave", ("token",), LONG),
    Ending("left in a tool", 3, "leave", ("tool.started",), LONG, agents=("consulting",), ways=OPTIONS),
    Ending("left at its end", 3, "leave", ("run.finished", "end", "error")),
    Ending("out of time", 4, text=LONG, options={"timeout_s": 0.4}, ways=OPTIONS),
    Ending(
        "no first token in time", 3, text="[[first_token_s=2]] hm", options={"first_token_timeout_s": 0.4}, ways=OPTIONS
    ),
    Ending(
        "no next token in time", 3, text="[[stall_after=5]] hm", options={"token_timeout_s": 0.4}, agents=ASYNC,
        ways=OPTIONS,
    ),
    Ending("provider: 500", 3, text="[[status=500]] hm"),
    Ending("provider: 429", 0.1, text="[[status=429&retry_after=0&fail_times=1]] hm"),
    Ending("provider: hangs up", 3, text="[[hang_up=1]] hm"),
    Ending("provider: reset in mid-answer", 3, text="[[drop_after=6]] hm"),
    Ending("provider: cut in mid-answer", 3, text="[[close_after=6]] hm"),
    Ending("provider: error in mid-answer", 2, text="[[error_after=6]] hm"),
    Ending(
        "left in mid-answer, and come back", 4, "leave, return", ("token",), LONG, {"disconnect_grace_s": 20},
        ways=(SSE, BACKGROUND),
    ),
    Ending("read late", 2, "dawdle", ("token",), "[[tokens=1500&tokens_per_second=500]]", agents=ASYNC, ways=OPTIONS),
    Ending("paused, then cancelled", 4, "pause, cancel", ("token",), LONG, agents=OURS, ways=OPTIONS),
    Ending("paused, then continued", 4, "pause, continue", ("token",), agents=OURS, ways=OPTIONS),
    Ending("paused, and left so", 2, "pause, leave", ("token",), LONG, agents=OURS, ways=OPTIONS),
)  # fmt: skip
SOCKET_CLOSED = "left, with its socket and the streams beside it"


# -- the provider's process -------------------------------------------------------------------------------------------


def provide() -> None:
    """Serve, say where, and tell twice a second how many requests and connections are open."""
    with Simulator(tokens_per_second=60) as simulator:
        sys.stdout.write(f"{simulator.base_url}\n")
        while True:
            open_ = {
                "requests": sum(one.ended is None for one in simulator.requests),
                "connections": sum(one.ended is None for one in simulator.connections),
            }
            sys.stdout.write(f"{json.dumps(open_)}\n")
            sys.stdout.flush()
            time.sleep(0.5)


class Provider:
    """The provider, and what it told last; of the last 10,000 requests and connections."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.base_url = lines.readline().decode().strip()
        self.open = {"requests": 0, "connections": 0}
        self.told = 0
        self._lines = lines
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for line in self._lines:
            self.open = json.loads(line)
            self.told += 1


def serving(
    provider: Provider, keys: Mapping[str, str], **settings: str
) -> contextlib.AbstractContextManager[harness.Server]:
    """The server, with keys, limits and a gate; or with other settings."""
    environment = {
        "OPENAI_BASE_URL": provider.base_url,
        "MILLRACE_API_KEYS": ",".join(f"{key}:{user}" for user, key in keys.items()),
        "MILLRACE_MAX_STREAMS_PER_USER": str(STREAMS),
        "MILLRACE_MAX_READERS_PER_USER": "64",
        "MILLRACE_REQUESTS_PER_MINUTE": "0",
        "MILLRACE_UPSTREAM_CONCURRENCY": str(GATE),
        "MILLRACE_UPSTREAM_QUEUE_TIMEOUT_S": str(QUEUE_TIMEOUT_S),
        "MILLRACE_UPSTREAM_QUEUE_MAX_PER_USER": str(STREAMS - 1),
        "MILLRACE_PAUSE_TIMEOUT_S": str(PAUSE_TIMEOUT_S),
        "MILLRACE_RUN_RETENTION_S": str(RETENTION_S),
    }
    return harness.millrace({**environment, **settings}, "consulting", "blocking", CENSUS)


@contextlib.contextmanager
def providing() -> Iterator[Provider]:
    """The provider, in a process of its own that tells of itself."""
    with harness.piped([sys.executable, str(Path(__file__).resolve()), "provide"]) as process:
        assert process.stdout is not None
        yield Provider(process.stdout)


def users() -> dict[str, str]:
    """Everybody's key, by name."""
    return {user: secrets.token_urlsafe(24) for user in (*(f"user{number}" for number in range(USERS)), CENSUS)}


# -- what is held -----------------------------------------------------------------------------------------------------


class Base(NamedTuple):
    """What is there when all is quiet. ``rss`` in MB; ``threads`` but for those that are kept for nodes."""

    live: int
    readers: int
    under_way: int
    waiting: int
    requests: int
    to_provider: int
    to_clients: int
    tasks: int
    at_work: int
    threads: int
    rss: float

    def strays(self, before: "Base") -> list[str]:
        """What is not as it was. Memory is shown, and not judged."""
        pairs = zip(self._fields[:-1], self[:-1], before[:-1], strict=True)
        return [f"{name}: {was} before, {now} now" for name, now, was in pairs if now != was]


GOING = {"queued", "running", "paused"}

GAUGES = {
    "live": "millrace_live_runs",
    "readers": "millrace_readers",
    "under_way": "millrace_gate_calls_under_way",
    "waiting": "millrace_gate_calls_waiting",
}


class Bench:
    """The server, its users, and what has become of what they did."""

    def __init__(
        self,
        server: harness.Server,
        provider: Provider,
        keys: Mapping[str, str],
        seed: int,
        endings: Sequence[Ending] = ENDINGS,
    ) -> None:
        self.server = server
        self.provider = provider
        self.chance = random.Random(seed)
        self.places = {user: Place(server.address, user, key) for user, key in keys.items()}
        self.users = [place for user, place in self.places.items() if user != CENSUS]
        self.done: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.fullest = Counter[str]()
        self.left = 0
        self._endings = endings

    async def metrics(self) -> str:
        """``/metrics``."""
        http = await Http.send(self.places[CENSUS], "GET", "/metrics")
        await http.head()
        text = (await http.body()).decode()
        http.close()
        return text

    async def gauges(self) -> dict[str, int]:
        """The server's own, and the provider's open requests."""
        text = await self.metrics()
        found = {name: re.findall(rf"^{gauge}(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name, gauge in GAUGES.items()}
        return {name: int(sum(map(float, values))) for name, values in found.items()} | {
            "requests": self.provider.open["requests"]
        }

    async def base(self) -> Base:
        """Wait until nothing goes on, and look."""
        deadline = time.monotonic() + QUIET_S
        while any((await self.gauges()).values()) and time.monotonic() < deadline:  # noqa: ASYNC110 - it is elsewhere
            await asyncio.sleep(0.5)
        await asyncio.sleep(max(RETENTION_S, IDLE_S) + 1)
        for agent in AGENTS:  # each call closes what its client has had idle for long
            await guests.ask(self.places[CENSUS], "POST", f"/agents/{agent}/invoke", {"input": guests.message("hello")})
        await asyncio.sleep(1.5)  # the provider tells of itself twice a second
        gauges = await self.gauges()
        _, said = await guests.ask(self.places[CENSUS], "POST", f"/agents/{CENSUS}/invoke", {"input": "?"})
        await asyncio.sleep(0.2)  # for the connection that asked
        port = int(self.provider.base_url.split(":")[2].split("/")[0])
        ends = [one for one in self.server.process.net_connections("tcp") if one.status != "LISTEN"]
        return Base(
            **gauges,
            **said["output"],
            to_provider=sum(one.raddr.port == port for one in ends),
            to_clients=sum(one.laddr.port == self.server.address[1] for one in ends),
            rss=self.server.rss(),
        )

    # The runs

    async def end(self, runs: int, tell: Any) -> None:
        """Start and end so many runs, ``AT_ONCE`` at once."""
        self.left = runs
        watching = asyncio.create_task(self._watch())
        async with asyncio.TaskGroup() as group:
            for _ in range(min(AT_ONCE, runs)):
                group.create_task(self._guests(tell))
        watching.cancel()

    async def _watch(self) -> None:
        while True:
            self.fullest |= Counter(await self.gauges())
            await asyncio.sleep(1)

    async def _guests(self, tell: Any) -> None:
        while self.left > 0:
            way = self.chance.choices(WAYS, (45, 15, 20, 20))[0]
            streams = self.chance.randint(1, 4) if way == WEBSOCKET else 1
            self.left -= streams
            try:
                async with asyncio.timeout(STUCK_S):
                    await (self._socket(streams) if way == WEBSOCKET else self._one(way))
            except TimeoutError:
                self.wrong[f"stuck for {STUCK_S:g} s, {way}"] += 1
            except (Odd, OSError, EOFError, WebSocketException) as error:
                self.wrong[f"{way}: {error!r}"] += 1
            tell(streams)

    async def _one(self, way: str) -> None:
        ending, place = self._draw(way), self.chance.choice(self.users)
        while True:
            guest: Guest
            if way == BACKGROUND:
                guest = Background(place, self.chance)
            elif way == SSE:
                guest = Stream(place)
            elif ending.deed in {"read", "leave unseen"} and self.chance.random() < 0.5:
                guest = Whole(place, self.chance)
            else:
                guest = LangServe(place, self.chance)
            if await self._tried(guest, ending, way):
                return

    async def _socket(self, streams: int) -> None:
        place = self.chance.choice(self.users)
        socket = await Socket.open(place)
        closed = streams > 1 and self.chance.random() < 0.3
        tasks = [asyncio.create_task(self._stream(place, socket, closed=closed)) for _ in range(streams)]
        if closed:
            await asyncio.sleep(self.chance.uniform(0, 2))
            await socket.leave(self._leaving())
            for task in tasks:
                task.cancel()
            self.done[SOCKET_CLOSED, WEBSOCKET] += streams
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(done, Exception) and not closed:
                raise done
        await socket.leave("FIN")

    async def _stream(self, place: Place, socket: Socket, *, closed: bool) -> None:
        ending = self._endings[0] if closed else self._draw(WEBSOCKET)
        while not await self._tried(SocketStream(place, socket), ending, "" if closed else WEBSOCKET):
            pass

    def _draw(self, way: str) -> Ending:
        possible = [one for one in self._endings if way in one.ways]
        return self.chance.choices(possible, [one.weight for one in possible])[0]

    def _leaving(self) -> Leaving:
        return self.chance.choice(("FIN", "RST"))

    async def _tried(self, guest: Guest, ending: Ending, way: str) -> bool:
        """Whether the run was let in, and has been ended so."""
        text = ending.text or f"[[tokens={self.chance.randint(5, 60)}]] go on"
        if not ending.text and self.chance.random() < 0.2:
            text = "What is 6*7, and what time is it in Oslo?"
        try:
            if await self._refused(self._do(guest, ending, text)):
                return False
        finally:
            await guest.close()
        if way:
            self.done[ending.name, way] += 1
        return True

    async def _refused(self, asking: Coroutine[Any, Any, None]) -> bool:
        """Whether it was; then it is time to try again."""
        try:
            await asking
        except Refused as refused:
            self.refused[refused.code] += 1
            self.wrong.update(refused.wrong)
            await asyncio.sleep(refused.retry_after_s * self.chance.random())
            return True
        return False

    async def _do(self, guest: Guest, ending: Ending, text: str) -> None:
        await guest.send(self.chance.choice(ending.agents), text, ending.options)
        if ending.deed == "leave unseen":
            await asyncio.sleep(self.chance.choice((0, self.chance.uniform(0, 1))))
            await guest.leave(self._leaving())
            return
        await guest.admitted()
        if ending.at:
            await guest.until(*ending.at)
        elif ending.deed != "read":
            await asyncio.sleep(self.chance.uniform(0, 1.5))
        match ending.deed:
            case "cancel":
                await guest.tell("cancel")
            case "cancel twice":
                await asyncio.gather(guest.tell("cancel"), guest.tell("cancel"))
            case "leave":
                await guest.leave(self._leaving())
                return
            case "leave, return":
                await guest.leave(self._leaving())
                await asyncio.sleep(self.chance.uniform(0, 1))
                await guest.back()
            case "dawdle":
                await asyncio.sleep(3)
            case "pause, cancel":
                await guest.tell("pause")
                await guest.tell("cancel")
            case "pause, continue":
                await guest.tell("pause")
                await asyncio.sleep(self.chance.uniform(0, 0.5))
                while await self._refused(guest.tell("continue")):
                    pass  # until there is a place again, or the pause has lasted too long, when it changes nothing
            case "pause, leave":
                await guest.tell("pause")
                await guest.until("run.paused")
                await guest.leave(self._leaving())
                return
        await guest.read()

    # What there is at the end

    async def came_to(self, *places: Place) -> Counter[tuple[str, str]]:
        """The runs of these users by status and reason, from their own lists, which go back 1000 runs."""
        found: Counter[tuple[str, str]] = Counter()
        for place in places:
            _, said = await guests.ask(place, "GET", "/runs")
            found.update((row["status"], row["reason"] or "") for row in said["runs"])
        return found

    async def ended_once(self) -> list[str]:
        """Whether every run has had its end, and one only."""
        listed = await self.came_to(*self.places.values())
        going = [f"{count} runs are {status}" for (status, _), count in listed.items() if status in GOING]
        counted = sum(map(float, re.findall(r"^millrace_runs_total{.*} (\S+)$", await self.metrics(), re.MULTILINE)))
        differ = [f"{listed.total()} runs are listed, and {counted:g} were booked"] if counted != listed.total() else []
        return [*going, *differ]

    async def places_free(self) -> list[str]:
        """Whether each user can have its runs again, and not one more."""
        strays = []
        for place in self.users:
            body = {"input": "[[first_token_s=60]] hm"}
            asked = [await guests.ask(place, "POST", "/agents/chat/runs", body) for _ in range(STREAMS + 1)]
            codes = [status for status, _ in asked]
            if codes != [202] * STREAMS + [429]:
                strays.append(f"{place.user} started {STREAMS + 1} runs at once: {codes}")
            for status, said in asked:
                if status == 202:
                    await guests.ask(place, "POST", f"/runs/{said['run_id']}/cancel")
        return strays


# -- the page ---------------------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What was measured."""

    runs: int
    seconds: float
    done: Counter[tuple[str, str]]
    refused: Counter[str]
    fullest: Mapping[str, int]
    came_to: Counter[tuple[str, str]]
    bases: Sequence[tuple[str, Base]]
    strays: Sequence[str]


def report(told: Told, seed: int, beside: str) -> str:
    """What goes into the page."""
    names = [*(one.name for one in ENDINGS), SOCKET_CLOSED]
    counts = {name: [told.done[name, way] for way in WAYS] for name in names}
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    done = [[name, *(f"{one:,}" if one else "–" for one in (*row, sum(row)))] for name, row in counts.items()]
    came_to = [[status, reason or "–", f"{count:,}"] for (status, reason), count in sorted(told.came_to.items())]
    bases = [[name, *base[:-1], f"{base.rss:.0f}"] for name, base in told.bases]
    refused = ", ".join(f"{count:,} × `{code}`" for code, count in told.refused.most_common())
    what = (
        f"{told.runs:,} runs of {USERS} users, {AT_ONCE} guests at once, in {told.seconds:,.0f} s. A user may have "
        f"{STREAMS} runs at once, the provider {GATE} calls, and a call waits {QUEUE_TIMEOUT_S} s in line at most. At "
        f"the fullest, {told.fullest['live']} runs were live and {told.fullest['waiting']} calls in line. Written by "
        f"`python benchmarks/endings.py --seed {seed}`."
    )
    seen = (
        f"Refused, each as the contract has it (status, code, message, when to try again), and tried again: {refused}."
        if not told.strays
        else f"Refused: {refused}."
    )
    held = (
        f"When all was quiet, before, in between and after: what goes on by the server's own gauges, the provider's "
        f"open requests, the server's sockets (to the provider: those kept for the next call), and its process. Then "
        f"each of the {USERS} users started {STREAMS + 1} runs at once: {STREAMS} were let in, and one was refused."
    )
    verdict = "Nothing was left." if not told.strays else f"NOT at its base: {'; '.join(told.strays)}."
    return "\n\n".join(
        (
            "## Runs that end in every way, and what is left of them",
            what,
            harness.table(["ended", *WAYS, "in all"], done),
            seen,
            "What they came to, by the server's own list; a batch is three runs, and what was left early may be none:",
            harness.table(["status", "reason", "runs"], came_to),
            held,
            harness.table(
                [
                    "", "live runs", "readers", "at the gate", "in line", "requests at the provider", "sockets to it",
                    "sockets to clients", "tasks", "threads at work", "other threads", "memory, MB",
                ],
                bases,
            ),
            verdict,
            harness.machine() + (f" Beside it: {beside}." if beside else ""),
        )
    )  # fmt: skip


async def measure(bench: Bench, runs: int, show: Progress) -> Told:
    """Warm up, look, and end the runs in rounds, looking after each."""
    task = show.add_task("warm-up", total=WARM_UP)
    await bench.end(WARM_UP, lambda count: show.advance(task, count))
    bases = [("before", await bench.base())]
    strays = []
    warm = await bench.came_to(*bench.users)
    bench.done.clear()
    bench.refused.clear()
    seconds = 0.0
    for part in range(1, ROUNDS + 1):
        task = show.add_task(f"round {part} of {ROUNDS}", total=runs // ROUNDS)
        started = time.monotonic()
        await bench.end(runs // ROUNDS, lambda count, task=task: show.advance(task, count))
        seconds += time.monotonic() - started
        bases.append((f"after {runs * part // ROUNDS:,}", await bench.base()))
        strays += [f"after {runs * part // ROUNDS:,} runs, {stray}" for stray in bases[-1][1].strays(bases[0][1])]
    came_to = await bench.came_to(*bench.users) - warm
    strays += await bench.places_free()
    bases.append(("after the last check", await bench.base()))
    strays += await bench.ended_once()
    strays += [f"in the end, {stray}" for stray in bases[-1][1].strays(bases[0][1])]
    strays += [f"{count} × {wrong}" for wrong, count in bench.wrong.items()]
    return Told(bench.done.total(), seconds, bench.done, bench.refused, bench.fullest, came_to, bases, strays)


def main() -> int:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description="What runs leave behind, however they end.")
    parser.add_argument("--runs", type=int, default=10_000, help="how many")
    parser.add_argument("--seed", type=int, default=4, help="of the lots")
    parser.add_argument("--beside", default="", help="what else ran on the machine")
    parser.add_argument("--quick", action="store_true", help="400 runs, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=harness.PAGE, help="the page that the table is written to")
    options = parser.parse_args()
    runs = 400 if options.quick else options.runs
    keys = users()
    with (
        providing() as provider,
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as show,
        serving(provider, keys) as server,
    ):
        told = asyncio.run(measure(Bench(server, provider, keys, options.seed), runs, show))
    text = report(told, options.seed, options.beside)
    if not options.quick:
        harness.write("endings", text, options.page)
    print(text)
    return 1 if told.strays else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["provide"]:
        with contextlib.suppress(KeyboardInterrupt):
            provide()
    else:
        harness.run(main)
