"""What one user's flood costs the others at the gate: user A starts 200 runs at once, B to F come with one run each.

B comes when all of A's runs are at the gate, the others a second after one another. Measured: each run's wait at the
gate by the server's own account (``queue_ms``), its first token as its client sees it, and by the provider's own
records how many calls were under way. Beside it the same 205 runs first come, first served: all with A's key, as a
line that is fair between users is just that when there is one user only. And LangServe, which has no gate. Every
server is a process that nothing else has used, and so is each provider.

Jain's index of fairness is (Σx)² / (n·Σx²) for what n users got: 1 when all got alike, 1/n when one got everything
(Jain, Chiu and Hawe, DEC-TR-301, 1984). As users here want different amounts, what each got is put in relation to what
was due to it by max-min fairness, as Jain does it for throughput ("Throughput Fairness Index: An Explanation", ATM
Forum/99-0045, 1999). So x is the place-seconds at the provider that a user had, by those that were due to it: at each
moment the gate's places go round the users, one each, until nobody wants more, and a user wants as many as it has
calls that it has asked for and that are not over. Only moments count in which at least two users want some. Waits
themselves would be no measure: who floods would be wronged by long ones of its own making.

    python benchmarks/fairness.py [--runs 200] [--gate 8] [--quick] [--page docs/performance.md]
"""

import argparse
import asyncio
import json
import random
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import harness
import httpx
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

USERS = "ABCDEF"
FLOOD, OTHERS = USERS[0], USERS[1:]
APART_S = 1.0
TOKENS_PER_SECOND = 40
TOKENS, SPREAD = 40, 20
"""How long an answer is; A's are so much shorter or longer by chance, or else all would end at the same moment."""

LONG_S = "3600"
AT_GATE = {"run.queued", "token", "data"}
"""Events that tell that a run's call has reached the gate; the last one is LangServe's, which has none."""

COLUMNS = ("s at the gate", "s to the first token", "went before it", "got of its due")


@dataclass
class Run:
    """One run as its client sees it. Times are monotonic seconds, ``queue_ms`` is the server's account."""

    user: str
    tokens: int
    asked: float = 0.0
    first: float | None = None
    queue_ms: int | None = None
    failed: str | None = None
    at_gate: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """What is asked. Its length tells the users apart at the provider."""
        return f"[[tokens={self.tokens}]] go{' on' * USERS.index(self.user)}"

    async def read(self, client: httpx.AsyncClient, path: str, body: dict[str, Any], key: str) -> None:
        """From the start to the last event."""
        headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {key}"}
        self.asked = time.monotonic()
        async with client.stream("POST", path, json=body, headers=headers) as response:
            if response.is_error:
                self._fail((await response.aread()).decode())
            event = ""
            async for line in response.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    self._hear(event, value)

    def _hear(self, event: str, data: str) -> None:
        if event == "error":
            self._fail(data)
        if event in AT_GATE:
            self.at_gate.set()
        if event == "token" and self.first is None:
            self.first = time.monotonic()
        if event == "run.finished":
            self.queue_ms = json.loads(data)["usage"].get("queue_ms", 0)

    def _fail(self, why: str) -> None:
        self.failed = why
        self.at_gate.set()  # it will not come there, and is not to be waited for


class Call(NamedTuple):
    """A model call by the provider's records: whose, and from when to when it was under way."""

    user: str
    began: float
    ended: float


class Moment(NamedTuple):
    """A stretch of time in which nothing changed: what each user wanted, and what it had, in calls."""

    seconds: float
    wanted: Mapping[str, int]
    had: Mapping[str, int]


class Measured(NamedTuple):
    """One server, with all of the runs over."""

    name: str
    runs: list[Run]
    calls: list[Call]
    gate: int | None

    @property
    def seconds(self) -> float:
        """From the first run's start to the last call's end."""
        return max(one.ended for one in self.calls) - min(one.asked for one in self.runs)

    @property
    def most(self) -> int:
        """The most calls that were under way at once."""
        return max(sum(one.had.values()) for one in self._moments())

    @property
    def full(self) -> float:
        """How much of the gate was in use while a run of A's still waited, from the first call's begin on."""
        assert self.gate is not None
        last = max(one.began for one in self.calls if one.user == FLOOD)
        first = min(one.began for one in self.calls)
        used = sum(min(one.ended, last) - one.began for one in self.calls if one.began < last)
        return used / (self.gate * (last - first))

    def shares(self) -> dict[str, float]:
        """What each user got of what was due to it, while users contended."""
        assert self.gate is not None
        return shares(self._moments(), self.gate)

    def before(self, user: str) -> int:
        """How many calls began while the user's one run waited."""
        asked = self.of(user)[0].asked
        began = next(one.began for one in self.calls if one.user == user)
        return sum(asked < one.began < began for one in self.calls)

    def of(self, user: str) -> list[Run]:
        """One user's runs."""
        return [one for one in self.runs if one.user == user]

    def _moments(self) -> list[Moment]:
        return moments([(one.user, one.asked) for one in self.runs], self.calls)


def moments(asked: Sequence[tuple[str, float]], calls: Sequence[Call]) -> list[Moment]:
    """What happened, cut at each change."""
    changes = [(at, user, 1, 0) for user, at in asked]
    changes += [(one.began, one.user, 0, 1) for one in calls]
    changes += [(one.ended, one.user, -1, -1) for one in calls]
    wanted: Counter[str] = Counter()
    had: Counter[str] = Counter()
    told = []
    for (at, user, wants, has), (until, *_) in pairwise(sorted(changes)):
        wanted[user] += wants
        had[user] += has
        told.append(Moment(until - at, dict(wanted), dict(had)))
    return told


def shares(told: Sequence[Moment], places: int) -> dict[str, float]:
    """The place-seconds that each user had, by those that were due to it; only while at least two wanted some."""
    contended = [one for one in told if sum(wants > 0 for wants in one.wanted.values()) > 1]
    had: defaultdict[str, float] = defaultdict(float)
    due: defaultdict[str, float] = defaultdict(float)
    for one in contended:
        for user, share in max_min(one.wanted, places).items():
            due[user] += share * one.seconds
            had[user] += one.had.get(user, 0) * one.seconds
    return {user: had[user] / due[user] for user in sorted(due) if due[user]}


def max_min(wanted: Mapping[str, int], places: float) -> dict[str, float]:
    """Who is due how many places: all alike, but nobody more than it wants, and what is left goes to the others."""
    due: dict[str, float] = {}
    left = places
    for rest, user in zip(range(len(wanted), 0, -1), sorted(wanted, key=lambda one: wanted[one]), strict=True):
        due[user] = min(float(wanted[user]), left / rest)
        left -= due[user]
    return due


def jain(values: Sequence[float]) -> float:
    """Jain's index; NaN of none."""
    squares = sum(one * one for one in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else float("nan")


# -- the runs ---------------------------------------------------------------------------------------------------------


def with_gate(name: str, runs: int, gate: int, users: str, tell: Callable[[], None]) -> Measured:
    """Millrace, where each of ``USERS`` has the key of the user at its place in ``users``."""
    keys = {user: secrets.token_hex(16) for user in USERS}
    most = str(runs + len(OTHERS))
    settings = {
        "MILLRACE_API_KEYS": ",".join(f"{key}:{user}" for user, key in keys.items()),
        "MILLRACE_REQUESTS_PER_MINUTE": "0",
        "MILLRACE_UPSTREAM_CONCURRENCY": str(gate),
        "MILLRACE_UPSTREAM_QUEUE_MAX": most,
        "MILLRACE_UPSTREAM_QUEUE_MAX_PER_USER": most,
        "MILLRACE_UPSTREAM_QUEUE_TIMEOUT_S": LONG_S,
        "MILLRACE_RUN_TIMEOUT_S": LONG_S,
    }
    whose = {user: keys[owner] for user, owner in zip(USERS, users, strict=True)}
    with (
        harness.provider(TOKENS_PER_SECOND) as provider,
        harness.millrace({"OPENAI_BASE_URL": provider, **settings}) as server,
    ):
        done = asyncio.run(_all(f"{server.url}/agents/chat/runs", _ours, runs, whose, tell))
        if any(one.queue_ms is None or one.first is None for one in done):
            raise SystemExit("a run ended without a token, or without its last event")
        return Measured(name, done, _calls(provider, done), gate)


def without_gate(name: str, runs: int, tell: Callable[[], None]) -> Measured:
    """LangServe."""
    with (
        harness.provider(TOKENS_PER_SECOND) as provider,
        harness.langserve({"OPENAI_BASE_URL": provider, "LOAD_BASE_URL": provider}) as server,
    ):
        nobody = dict.fromkeys(USERS, "none")
        done = asyncio.run(_all(f"{server.url}/agents/chat/stream_events", _theirs, runs, nobody, tell))
        return Measured(name, done, _calls(provider, done), None)


def _ours(text: str) -> dict[str, Any]:
    return {"input": text}


def _theirs(text: str) -> dict[str, Any]:
    return {"input": {"messages": [{"type": "human", "content": text}]}}


async def _all(
    path: str, body: Callable[[str], dict[str, Any]], runs: int, keys: Mapping[str, str], tell: Callable[[], None]
) -> list[Run]:
    """The flood, and the others after it; all of the runs, over."""
    lengths = random.Random(0)  # the same for every server
    flood = [Run(FLOOD, lengths.randint(TOKENS - SPREAD, TOKENS + SPREAD)) for _ in range(runs)]
    others = [Run(user, TOKENS) for user in OTHERS]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client, asyncio.TaskGroup() as group:

        async def read(run: Run) -> None:
            await run.read(client, path, body(run.text), keys[run.user])
            tell()

        warm = Run(FLOOD, 5)
        await warm.read(client, path, body(warm.text), keys[FLOOD])
        for run in flood:
            group.create_task(read(run))
        for run in flood:
            await run.at_gate.wait()
        for run in others:
            group.create_task(read(run))
            await asyncio.sleep(APART_S)
    return _whole([*flood, *others])


def _whole(runs: list[Run]) -> list[Run]:
    failed = next((one for one in runs if one.failed is not None), None)
    if failed is not None:
        raise SystemExit(f"a run of {failed.user}'s failed: {failed.failed}")
    return runs


def _calls(provider: str, runs: Sequence[Run]) -> list[Call]:
    """What the provider has on record of these runs."""
    with urlopen(f"{provider.removesuffix('/v1')}/simulator/requests", timeout=60) as response:
        records = [one for one in json.load(response) if one["started"] > runs[0].asked]
    shortest = min(one["prompt_tokens"] for one in records)
    calls = [Call(USERS[one["prompt_tokens"] - shortest], one["started"], one["ended"]) for one in records]
    if Counter(one.user for one in calls) != Counter(one.user for one in runs):
        raise SystemExit("the provider saw other calls than one a run")
    return calls


# -- the page ---------------------------------------------------------------------------------------------------------


def report(fair: Measured, fifo: Measured, ungated: Measured) -> str:
    """What goes into the page."""
    runs = len(fair.of(FLOOD))
    what = (
        f"User {FLOOD} starts {runs} runs at once through a gate of {fair.gate}; when all of them are at it, "
        f"{OTHERS[0]} to {OTHERS[-1]} come with one run each, {APART_S:g} s after one another. Answers have "
        f"{TOKENS} tokens, {FLOOD}'s {TOKENS - SPREAD} to {TOKENS + SPREAD}, at {TOKENS_PER_SECOND} tokens/s. Fair: as "
        "Millrace serves them, the users taking turns. FIFO: the same runs on the same server, all with "
        f"{FLOOD}'s key, so that there is one user and its calls are served as they came. The wait at the gate is the "
        f"server's account, the time to the first token the client's; of {FLOOD}'s runs p50 / p99 / longest. "
        "Written by `python benchmarks/fairness.py`."
    )
    index = (
        "Went before it: the calls that began while the run waited. Got of its due: the places at the provider that a "
        "user had, by those due to it by max-min fairness, over the time in which at least two users wanted some; 1 is "
        "exactly its due. Jain's index is taken over that column, "
        f"from 1 (all got alike) to {1 / len(USERS):.2f} (one got everything). Calls at once and the gate's use are "
        f"the provider's own count; in use: while runs of {FLOOD}'s still waited. LangServe has no gate, and this "
        "provider refuses nobody: its row shows only what a provider would have to bear."
    )
    head = ["user", "runs", *(f"{one}, {line}" for one in COLUMNS for line in ("fair", "FIFO"))]
    return "\n\n".join(
        (
            "## One user's flood, and the others",
            what,
            harness.table(head, [_row(user, fair, fifo) for user in USERS]),
            harness.table(
                ["", "Jain's index", "most calls at once", "gate in use", "all done after, s"],
                [_summary(one) for one in (fair, fifo, ungated)],
            ),
            index,
            harness.machine(),
        )
    )


def _row(user: str, *lines: Measured) -> list[str]:
    waits = [_times([(run.queue_ms or 0) / 1000 for run in one.of(user)]) for one in lines]
    firsts = [_times([(run.first or 0.0) - run.asked for run in one.of(user)]) for one in lines]
    before = ["–" if user == FLOOD else str(one.before(user)) for one in lines]
    got = [f"{one.shares().get(user, float('nan')):.2f}" for one in lines]
    return [user, str(len(lines[0].of(user))), *waits, *firsts, *before, *got]


def _times(seconds: Sequence[float]) -> str:
    if len(seconds) == 1:
        return f"{seconds[0]:.2f}"
    return " / ".join(f"{harness.percentile(seconds, one):.2f}" for one in (50, 99, 100))


def _summary(one: Measured) -> list[str]:
    judged = ["–", "–"] if one.gate is None else [f"{jain(list(one.shares().values())):.3f}", f"{one.full:.1%}"]
    return [one.name, judged[0], str(one.most), judged[1], f"{one.seconds:.1f}"]


def main() -> None:
    """Measure all of it, and write the page."""
    parser = argparse.ArgumentParser(description="What one user's flood costs the others at the gate.")
    parser.add_argument("--runs", type=int, default=200, help="how many runs the flood is")
    parser.add_argument("--gate", type=int, default=8, help="model calls at once")
    parser.add_argument("--quick", action="store_true", help="a short flood, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=harness.PAGE, help="the page that the table is written to")
    options = parser.parse_args()
    runs, gate = (60, 8) if options.quick else (options.runs, options.gate)
    if gate < 1 or runs < len(USERS) * gate:
        parser.error(
            f"--runs must be at least {len(USERS)} times --gate, or the flood is over before the last one comes"
        )
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as show:
        tasks = [show.add_task(name, total=runs + len(OTHERS)) for name in ("fair", "FIFO", "LangServe")]
        tells = [lambda task=task: show.advance(task) for task in tasks]
        fair = with_gate("Millrace, fair", runs, gate, USERS, tells[0])
        fifo = with_gate("Millrace, FIFO", runs, gate, FLOOD * len(USERS), tells[1])
        ungated = without_gate("LangServe, no gate", runs, tells[2])
    text = report(fair, fifo, ungated)
    if not options.quick:
        harness.write("fairness", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
