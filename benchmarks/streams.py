"""What a token costs the server, and how soon it comes: live runs at a pace, and one stream as fast as it goes.

Millrace, LangServe and langgraph-api serve the same graph on the same provider, each a process that nothing else has
used; Millrace its built-in agents too. Beside them the floor: bare ASGI, whose tokens come from its own clock. The cost
is the server's processor time by the operating system's account, over the tokens that the clients got meanwhile.

    python benchmarks/streams.py [--runs 500] [--seconds 12] [--quick] [--page docs/performance.md]
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import harness
from harness import Server, told
from load import Driven, drive

PACE = 10
TOKENS, FLAT_TOKENS = 200, 2000
RAMP_S = 2.0


class Served(NamedTuple):
    """A server with what it serves, and the path of it. ``same``: the graph that all serve."""

    title: str
    serving: Callable[[Mapping[str, str]], AbstractContextManager[Server]]
    path: str
    same: bool = True


def millrace(environment: Mapping[str, str]) -> AbstractContextManager[Server]:
    """With the graph that all serve, beside the built-in agents."""
    return harness.millrace(environment, "live")


FLOOR = Served("bare ASGI, no agent", harness.floor, "/answer", same=False)
OURS = Served("Millrace", millrace, "/agents/live/runs")
ASSISTANT = Served("Millrace, its `assistant`", millrace, "/agents/assistant/runs", same=False)
CHAT = Served("Millrace, its `chat`", millrace, "/agents/chat/runs", same=False)
LANGSERVE = Served("LangServe", harness.langserve, "/agents/live/stream_events")
LANGGRAPH = Served("langgraph-api", harness.langgraph_api, "/runs/stream")
SERVED = (FLOOR, OURS, ASSISTANT, CHAT, LANGSERVE, LANGGRAPH)


class Load(NamedTuple):
    """So many runs at a pace; 0: as fast as it goes."""

    runs: int
    pace: int
    tokens: int
    settle_s: float

    @property
    def title(self) -> str:
        """For the table."""
        return f"{self.runs} × {self.pace} tokens/s" if self.pace else "1, flat out"


Results = dict[tuple[Served, Load], Driven]


def loads(runs: int, *, quick: bool) -> tuple[Load, ...]:
    """From the lightest to the heaviest."""
    flat, few, many = (0, 0, 0) if quick else (1, 3, 6)
    return Load(1, 0, FLAT_TOKENS, flat), Load(max(runs // 5, 1), PACE, TOKENS, few), Load(runs, PACE, TOKENS, many)


def measure(served: Sequence[Served], wanted: Sequence[Load], seconds: float) -> Results:
    """Every load on every server."""
    results: Results = {}
    for one in served:
        with harness.provider(PACE) as provider, one.serving({"OPENAI_BASE_URL": provider}) as server:
            for load in wanted:
                harness.say(f"{one.title}: {load.title}, {seconds:g} s")
                results[one, load] = got = drive(
                    server, one.path, load.runs, load.pace,
                    tokens=load.tokens, ramp=RAMP_S, settle=load.settle_s, seconds=seconds,
                )  # fmt: skip
                harness.say(
                    f"    {told(got.cpu_us)} µs a token, first after {harness.three(got.first)} ms, "
                    f"{told(got.tokens_per_second)} tokens/s"
                )
    return results


# -- the page ---------------------------------------------------------------------------------------------------------


def report(results: Results) -> str:
    """What goes into the page."""
    head = [
        "server", "load", "CPU, µs a token", "of a core", "tokens/s", "first token, ms", "between tokens, ms",
        "memory, MB",
    ]  # fmt: skip
    rows = [_row(one, load, got) for (one, load), got in sorted(results.items(), key=lambda item: -item[0][1].runs)]
    what = (
        f"Runs that are kept live, each of {TOKENS} tokens and followed by another one, all started within {RAMP_S:g} "
        f"s; flat out, answers of {FLAT_TOKENS:,}. Millrace, LangServe and langgraph-api serve the same graph, one "
        "node that asks a plain `ChatOpenAI`, over native SSE, `stream_events` and `runs/stream` (`messages-tuple`), "
        "and ask the same provider; bare ASGI sends tokens by its own clock and asks nobody. CPU is the server's, by "
        "the operating system, over the tokens that the clients got; times are the clients', p50 / p99 / longest, the "
        "first token's of all starts, those in the ramp and those that follow. Flat out, a server that does not fill "
        "its core waits for provider and client, which share one. Memory is the most there was, what is kept of the "
        "loads before included. Written by `python benchmarks/streams.py`."
    )
    return "\n\n".join(
        (
            "## What a token costs",
            *headlines(results),
            what,
            harness.table(head, rows),
            harness.machine(),
        )
    )


def _row(one: Served, load: Load, got: Driven) -> list[object]:
    waiting = f" ({got.none_yet} still without)" if got.none_yet else ""
    broken = f", {got.broken} broke off" if got.broken else ""
    asked = f" of {got.asked:,.0f}" if load.pace else ""
    return [
        one.title, load.title, told(got.cpu_us), f"{got.of_a_core:.0%}",
        f"{told(got.tokens_per_second)}{asked}{broken}",
        harness.three(got.first) + waiting, harness.three(got.between), told(got.rss),
    ]  # fmt: skip


def headlines(results: Results) -> list[str]:
    """What is worth a line in the README: ratios within this run."""
    flat = next((load for _, load in results if not load.pace), None)
    heavy = max((load for _, load in results if load.pace), key=lambda load: load.runs)
    found = []
    for peer in (LANGSERVE, LANGGRAPH):
        if (peer, heavy) not in results:
            continue
        theirs, ours = results[peer, heavy], results[OURS, heavy]
        found.append(
            f"**{heavy.runs} runs at {heavy.pace} tokens/s, the same graph: {ratio(theirs.cpu_us, ours.cpu_us)} less "
            f"CPU a token than {peer.title} ({told(ours.cpu_us)} µs to {told(theirs.cpu_us)}), the first token after "
            f"{told(ours.first[0])} ms and not {told(theirs.first[0])}**"
        )
        if flat is not None:
            theirs, ours = results[peer, flat], results[OURS, flat]
            found.append(
                f"**One stream flat out: {ratio(ours.tokens_per_second, theirs.tokens_per_second)} the tokens of "
                f"{peer.title} ({told(ours.tokens_per_second)}/s to {told(theirs.tokens_per_second)})**"
            )
    return found


def ratio(more: float, less: float) -> str:
    """``4.2 ×``."""
    return "–" if math.isnan(more / less) else f"{more / less:.1f} ×"


def chart(results: Results, page: Path) -> str:
    """The costs under the heaviest load, as bars."""
    heavy = max((load for _, load in results), key=lambda load: load.runs)
    costs = {one.title.replace("`", ""): got.cpu_us for (one, load), got in results.items() if load == heavy}
    return harness.bars("performance-streams", f"Server CPU a token, {heavy.title}", "µs", costs, page)


def main() -> None:
    """Measure all of it, and write the page."""
    parser = harness.options(
        "What a token costs the server.", runs=(500, "live runs"), seconds=(12.0, "how long each is measured")
    )
    options = parser.parse_args()
    runs, seconds = (20, 2.0) if options.quick else (options.runs, options.seconds)
    results = measure(SERVED, loads(runs, quick=options.quick), seconds)
    text = report(results)
    if not options.quick:
        harness.write("streams", f"{text}\n\n{chart(results, options.page)}", options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
