"""Whether a token of a long answer costs what one of a short answer does: it must not grow with what was said before.

The same pace and the same number of streams, with answers of a hundred, a thousand and ten thousand tokens, each length
on a process that nothing else has used. In a short answer each token bears more of the run's start; so beside the cost
by length stands what the last tenth of the longest answers cost, over the first.

    python benchmarks/long_answers.py [--quick] [--page docs/performance.md]
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import harness
from harness import told
from load import Driven, Moment, drive
from streams import ASSISTANT, FLOOR, LANGGRAPH, LANGSERVE, OURS, Served

STREAMS, PACE = 4, 250
LENGTHS = (100, 1000, 10_000)
SECONDS = 8.0


class Measured(NamedTuple):
    """Answers of one length."""

    served: Served
    tokens: int
    got: Driven


def measure(served: Served, tokens: int, pace: int) -> Measured:
    """On a process of its own. The longest are read from their start to nearly their end."""
    seconds = max(SECONDS, 0.97 * tokens / pace) if pace == PACE else 2.0
    with harness.provider(pace) as provider, served.serving({"OPENAI_BASE_URL": provider}) as server:
        drive(server, served.path, STREAMS, pace, tokens=50, ramp=0.5, settle=0, seconds=1)
        harness.say(f"{served.title}: answers of {tokens:,} tokens, {seconds:.0f} s")
        got = drive(server, served.path, STREAMS, pace, tokens=tokens, ramp=0.1, settle=0, seconds=seconds)
        harness.say(f"    {told(got.cpu_us)} µs a token")
        return Measured(served, tokens, got)


def tenths(moments: Sequence[Moment]) -> list[float]:
    """What a token cost in each tenth of the time, in µs."""
    steady = [one for one in moments if one.steady]
    cuts = [steady[round(number * (len(steady) - 1) / 10)] for number in range(11)]
    pairs = pairwise(cuts)
    return [
        (after.cpu_s - before.cpu_s) / (after.tokens - before.tokens) * 1e6
        if after.tokens > before.tokens
        else float("nan")
        for before, after in pairs
    ]


def growth(one: Measured) -> float:
    """What a token of the last tenth cost, over one of the first; told of the longest answers alone."""
    if one.tokens != LENGTHS[-1]:
        return float("nan")
    parts = tenths(one.got.moments)
    return parts[-1] / parts[0]


# -- the page ---------------------------------------------------------------------------------------------------------


def report(measured: Sequence[Measured], pace: int) -> str:
    """What goes into the page."""
    rows = []
    for one in measured:
        short = next(other for other in measured if other.served == one.served).got.cpu_us
        figures = [told(one.got.cpu_us), f"{one.got.cpu_us / short:.2f}", told(growth(one))]
        rows.append([one.served.title, f"{one.tokens:,}", *figures])
    ours = [one for one in measured if one.served == ASSISTANT][-1]
    line = (
        f"**In answers of {ours.tokens:,} tokens, a token of the last tenth costs {told(growth(ours))} × what one of "
        "the first does**"
    )
    what = (
        f"{STREAMS} streams at {pace} tokens/s, one answer after another. In a short answer each token bears more of "
        "what a run costs to start; the last column compares within the longest answers. Written by `python "
        "benchmarks/long_answers.py`."
    )
    head = ["server", "tokens an answer", "CPU, µs a token", "to that at 100", "last tenth to first"]
    return "\n\n".join(("## Long answers", line, what, harness.table(head, rows), harness.machine()))


def main() -> None:
    """Measure all of it, and write the page."""
    options = harness.options("What a token of a long answer costs.").parse_args()
    pace = 500 if options.quick else PACE
    lengths = (100, 1000) if options.quick else LENGTHS
    served = (ASSISTANT, OURS, LANGSERVE, LANGGRAPH, FLOOR)
    measured = [measure(one, tokens, pace) for one in served for tokens in lengths]
    text = report(measured, pace)
    if not options.quick:
        harness.write("long_answers", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
