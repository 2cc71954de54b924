"""A thousand live runs on one worker: whether their tokens still come evenly, and what memory a run takes.

Half as many, and all of them, each on a process that nothing else has used, whose memory is read before the first one
and while they go; no run ends meanwhile. What a run takes is told twice: over the idle server, and as the difference
between the two. LangServe and langgraph-api stand beside it with the same graph, and bare ASGI without one.

    python benchmarks/live_runs.py [--runs 1000] [--seconds 15] [--quick] [--page docs/performance.md]
"""

from typing import NamedTuple

import harness
from harness import told
from load import Driven, drive
from streams import ASSISTANT, FLOOR, LANGGRAPH, LANGSERVE, OURS, PACE, Served

RAMP_S, SETTLE_S = 5.0, 5.0
TOKENS = 1000
"""Longer than it is measured."""

WARM = 20


class Measured(NamedTuple):
    """So many runs on one server; ``idle`` is its memory before the first one, in MB."""

    served: Served
    runs: int
    idle: float
    got: Driven

    @property
    def kb(self) -> float:
        """What a run takes, over the idle server."""
        return (self.got.rss - self.idle) * 1000 / self.runs


def measure(served: Served, runs: int, seconds: float) -> Measured:
    """On a process of its own, warmed up by a few short runs."""
    with harness.provider(PACE) as provider, served.serving({"OPENAI_BASE_URL": provider}) as server:
        drive(server, served.path, WARM, 100, tokens=20, ramp=0.5, settle=0, seconds=2)
        idle = server.rss()
        harness.say(f"{served.title}: {runs} live runs, {seconds:g} s")
        got = drive(
            server, served.path, runs, PACE, tokens=TOKENS, ramp=RAMP_S, settle=SETTLE_S, seconds=seconds
        )  # fmt: skip
        harness.say(f"    between tokens {harness.three(got.between)} ms, {told(got.cpu_us)} µs a token")
        return Measured(served, runs, idle, got)


# -- the page ---------------------------------------------------------------------------------------------------------


def report(measured: list[Measured], seconds: float) -> str:
    """What goes into the page."""
    half = {one.served: one for one in measured[::2]}
    rows = [
        [
            one.served.title, one.runs, harness.three(one.got.between), harness.three(one.got.first),
            f"{told(one.got.tokens_per_second)} of {one.got.asked:,.0f}", told(one.got.cpu_us),
            f"{one.got.of_a_core:.0%}", told(one.idle), told(one.got.rss), told(one.kb),
            told(by_difference(half[one.served], one)),
        ]
        for one in measured
    ]  # fmt: skip
    head = [
        "server", "runs", "between tokens, ms", "first token, ms", "tokens/s", "CPU, µs a token", "of a core",
        "memory idle, MB", "with them, MB", "KB a run", "KB a run, by difference",
    ]  # fmt: skip
    what = (
        f"Runs at {PACE} tokens/s that are started in {RAMP_S:g} s and do not end while they are measured, for "
        f"{seconds:g} s; one worker. Times are the clients', p50 / p99 / longest. KB a run: the server's memory at its "
        "most, over that of the idle server, by run, and as the difference between the two numbers of runs; a run's "
        "log, which grows with every token, is in it. Written by `python benchmarks/live_runs.py`."
    )
    ours, first = measured[1], by_difference(measured[0], measured[1])
    line = (
        f"**{ours.runs:,} live runs on one worker: between two tokens p99 {told(ours.got.between[1])} ms, "
        f"{told(first)} KB of memory a run**"
    )
    return "\n\n".join((f"## {ours.runs:,} live runs", line, what, harness.table(head, rows), harness.machine()))


def by_difference(half: Measured, whole: Measured) -> float:
    """KB for each run that one had more than the other."""
    more = whole.runs - half.runs
    return (whole.got.rss - half.got.rss) * 1000 / more if more else float("nan")


def main() -> None:
    """Measure all of it, and write the page."""
    parser = harness.options(
        "A thousand live runs.", runs=(1000, "live runs"), seconds=(15.0, "how long they are measured")
    )
    options = parser.parse_args()
    runs, seconds = (40, 2.0) if options.quick else (options.runs, options.seconds)
    served = (ASSISTANT, OURS, LANGSERVE, LANGGRAPH, FLOOR)
    measured = [measure(one, number, seconds) for one in served for number in (runs // 2, runs)]
    text = report(measured, seconds)
    if not options.quick:
        harness.write("live_runs", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
