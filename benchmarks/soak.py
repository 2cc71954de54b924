"""Half an hour of mixed runs: whether the server's memory grows, and what is left when they are over.

Two hundred guests at once start runs of four agents by four ways in, and end them in every way that ``endings.py``
knows: read to the end, cancelled, left by FIN or RST or with their socket, come back to, read late, out of time, failed
by the provider, paused, in tools. Memory is read every few seconds; its slope is that of the straight line through what
was read after the warm-up, by least squares. Before and after, when all is quiet: gauges, sockets, tasks, threads.

The exit status is 1 when anything is not as it was, the memory apart.

    python benchmarks/soak.py [--minutes 30] [--quick] [--page docs/performance.md]
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import endings
import guests
import harness
from endings import ENDINGS, LONG, Base, Bench
from harness import told

WARM_UP = 1 / 3
"""This part of the time is not judged: caches fill, each thread gets a heap, and the allocator finds its size."""

EVERY_S = 5.0
SLOWLY = "[[tokens=100&tokens_per_second=5]] go on"
"""Instead of answers that are over soon: here runs are to be live, and the server is to have time for them.

One that is at its limit is no steady state: runs pile up whenever something holds it up, and memory follows.
"""

SYNC_THREADS, FILLS = 64, 10
"""As many as the server has by default, and how often each is taken before it is measured."""

FOR_EVER = sys.maxsize
MIXED = tuple(one._replace(text=SLOWLY) if one.text in ("", LONG) else one for one in ENDINGS)
SETTINGS = {"MILLRACE_MAX_STREAMS_PER_USER": "0", "MILLRACE_UPSTREAM_CONCURRENCY": "100000"}


class Sample(NamedTuple):
    """Minutes since the start, the server's memory in MB, its live runs."""

    minute: float
    rss: float
    live: int


class Soaked(NamedTuple):
    """What came of it."""

    samples: Sequence[Sample]
    done: Counter[tuple[str, str]]
    came_to: Counter[tuple[str, str]]
    before: Base
    after: Base
    strays: Sequence[str]

    @property
    def judged(self) -> list[Sample]:
        """After the warm-up."""
        return [one for one in self.samples if one.minute >= self.samples[-1].minute * WARM_UP]


def slope(samples: Sequence[Sample]) -> float:
    """MB a minute, of the straight line that is nearest to all of them."""
    minutes, sizes = [one.minute for one in samples], [one.rss for one in samples]
    return statistics.linear_regression(minutes, sizes).slope if len(set(minutes)) > 1 else float("nan")


async def _fill(bench: Bench) -> None:
    """Have every thread for synchronous nodes started and used: each has a heap of its own, which it keeps."""
    body = {"input": guests.message("[[tokens=50&tokens_per_second=50]] hello")}
    for _ in range(FILLS):
        users = itertools.islice(itertools.cycle(bench.users), SYNC_THREADS)
        await asyncio.gather(*(guests.ask(user, "POST", "/agents/blocking/invoke", body) for user in users))


async def soak(bench: Bench, minutes: float) -> Soaked:
    """Keep the guests coming for so long."""
    await _fill(bench)
    await bench.end(endings.WARM_UP // 4, lambda _: None)
    before = await bench.base()
    bench.done.clear()
    harness.say(f"at rest: {before}")
    samples: list[Sample] = []
    watching = asyncio.create_task(_watch(bench, minutes, samples))
    await bench.end(FOR_EVER, lambda _: None)
    await watching
    harness.say("waiting until all is quiet")
    after = await bench.base()
    strays = [*after.strays(before), *(f"{count} × {wrong}" for wrong, count in bench.wrong.items())]
    return Soaked(samples, bench.done, await bench.came_to(*bench.users), before, after, strays)


async def _watch(bench: Bench, minutes: float, samples: list[Sample]) -> None:
    began = time.monotonic()
    while (minute := (time.monotonic() - began) / 60) < minutes:
        gauges = await bench.gauges()
        samples.append(Sample(minute, bench.server.rss(), gauges["live"]))
        if len(samples) % 6 == 1:
            harness.say(
                f"{minute:5.1f} min, {bench.done.total():,} runs, {samples[-1].live} live, {samples[-1].rss:.1f} MB"
            )
        await asyncio.sleep(EVERY_S)
    bench.left = 0


# -- the page ---------------------------------------------------------------------------------------------------------


def report(soaked: Soaked) -> str:
    """What goes into the page."""
    names = [*(one.name for one in MIXED), endings.SOCKET_CLOSED]
    counts = {name: [soaked.done[name, way] for way in endings.WAYS] for name in names}
    done = [[name, *(f"{one:,}" if one else "–" for one in (*row, sum(row)))] for name, row in counts.items()]
    minutes, live = soaked.samples[-1].minute, statistics.mean(one.live for one in soaked.judged)
    grown = f"{slope(soaked.judged):+.3f} MB a minute"
    line = f"**{minutes:.0f} minutes with {live:.0f} runs live, ended in every way: memory {grown}**"
    what = (
        f"{soaked.done.total():,} runs in {minutes:.0f} minutes, {endings.AT_ONCE} guests at once, {live:.0f} runs "
        f"live on average. Memory is read every {EVERY_S:g} s; the slope is that of the straight line through it after "
        f"the first {WARM_UP:.0%}, by least squares. Written by `make soak`."
    )
    held = [
        ["before", *soaked.before[:-1], told(soaked.before.rss)],
        ["after", *soaked.after[:-1], told(soaked.after.rss)],
    ]
    verdict = "Nothing was left." if not soaked.strays else f"NOT as it was: {'; '.join(soaked.strays)}."
    return "\n\n".join(
        (
            "## Half an hour of mixed endings",
            line,
            what,
            harness.table(["ended", *endings.WAYS, "in all"], done),
            "When all was quiet, before and after:",
            harness.table(["", *(name.replace("_", " ") for name in Base._fields[:-1]), "memory, MB"], held),
            verdict,
            harness.machine(),
        )
    )


def chart(soaked: Soaked, page: Path) -> str:
    """The memory's line; gives the line that shows it."""
    with harness.chart("performance-soak", page) as axes:
        axes.plot([one.minute for one in soaked.samples], [one.rss for one in soaked.samples], color="#2a78a8")
        axes.axvline(soaked.judged[0].minute, color="#b9b9b9", linestyle=":")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes")
        axes.set_ylabel("MB")
        axes.set_title("The server's memory", loc="left")
    return "![The server's memory](performance-soak.svg)"


def main() -> int:
    """Measure, and write the page."""
    parser = harness.options("Whether memory grows.", minutes=(30.0, "how long"), seed=(6, "of the lots"))
    options = parser.parse_args()
    minutes, keys = 0.5 if options.quick else options.minutes, endings.users()
    with endings.providing() as provider, endings.serving(provider, keys, **SETTINGS) as server:
        soaked = asyncio.run(soak(Bench(server, provider, keys, options.seed, MIXED), minutes))
    text = report(soaked)
    if not options.quick:
        harness.write("soak", f"{text}\n\n{chart(soaked, options.page)}", options.page)
    print(text)
    return 1 if soaked.strays else 0


if __name__ == "__main__":
    harness.run(main)
