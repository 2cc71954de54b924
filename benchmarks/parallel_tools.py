"""What it saves that the tools of one message run at the same time: k tools of 200 ms against one.

A model asks for k tools in one message, over a real server and the simulated provider. What is timed is the node that
runs them, by the server's own events from its start to its end; the table has it as a ratio to that with one tool, so
that neither the model nor the machine's speed is in it. Ideal is 1 for any k; one after the other it is k. The peer is
LangGraph's own ``ToolNode`` as it comes, in a graph that is otherwise the same, on the same server in the same rounds.

    python benchmarks/parallel_tools.py [--rounds 15] [--quick] [--page docs/performance.md]
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import harness
from agents import NAP_MS
from harness import Server
from rich.console import Console
from rich.progress import Progress

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Tools in one message."""

AT_ONCE = (16, 8)
"""``MILLRACE_TOOLS_AT_ONCE`` of the servers: as many places as tools, and the default."""


class Column(NamedTuple):
    """An agent on a server with so many places for tools; ``title`` heads its column."""

    title: str
    agent: str
    at_once: int


COLUMNS = (
    Column("Millrace, async", "napping", 16),
    Column("Millrace, threads", "napping_in_threads", 16),
    Column("ToolNode, async", "napping_plainly", 16),
    Column("ToolNode, threads", "napping_plainly_in_threads", 16),
    Column("Millrace, async, 8 at once", "napping", 8),
    Column("Millrace, threads, 8 at once", "napping_in_threads", 8),
)

Times = Mapping[tuple[Column, int], Sequence[float]]
"""Milliseconds of each round, by column and number of tools."""


def measure(rounds: int, show: Progress) -> Times:
    """Every cell once a round, so that whatever else the machine does meets all of them alike."""
    times: dict[tuple[Column, int], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        provider = stack.enter_context(harness.provider(0))
        servers = {at_once: stack.enter_context(millrace(provider, at_once)) for at_once in AT_ONCE}
        cells = [(column, count) for column in COLUMNS for count in COUNTS]
        task = show.add_task("tools", total=(rounds + 1) * len(cells))
        for number in range(rounds + 1):
            for column, count in cells:
                taken = node_ms(servers[column.at_once], column.agent, count)
                if number:  # the first round warms up
                    times[column, count].append(taken)
                show.advance(task)
    return times


def millrace(provider: str, at_once: int) -> AbstractContextManager[Server]:
    """A server with so many places for the tools of one run."""
    environment = {"OPENAI_BASE_URL": provider, "MILLRACE_TOOLS_AT_ONCE": str(at_once)}
    return harness.millrace(environment, *sorted({column.agent for column in COLUMNS}))


def node_ms(server: Server, agent: str, count: int) -> float:
    """How long the node took that ran so many tools: from its first task's start to its last one's end."""
    text = "; ".join(f"nap {number}" for number in range(1, count + 1))
    asked = Request(
        f"{server.url}/agents/{agent}/runs",
        json.dumps({"input": text}).encode(),
        {"Content-Type": "application/json", "Accept": "text/event-stream"},
    )
    with urlopen(asked, timeout=60) as response:
        events = [line for line in response.read().decode().split("\n\n") if "\nevent: " in f"\n{line}"]
    told = [(_field(one, "event"), json.loads(_field(one, "data"))) for one in events]
    done = sum(kind == "tool.finished" and data["status"] == "ok" for kind, data in told)
    if done != count or told[-1][1]["status"] != "completed":
        raise SystemExit(f"{agent}: {done} of {count} tools ran, and the run ended as {told[-1][1]}")
    steps = [data["ts"] for kind, data in told if kind.startswith("node.") and data["node"] == "tools"]
    return float(max(steps) - min(steps))


def _field(event: str, name: str) -> str:
    return next(line for line in event.split("\n") if line.startswith(f"{name}: ")).removeprefix(f"{name}: ")


# -- the page ---------------------------------------------------------------------------------------------------------


def report(times: Times, rounds: int) -> str:
    """What goes into the page."""
    medians = {cell: statistics.median(taken) for cell, taken in times.items()}

    def ratio(column: Column, count: int) -> str:
        return f"{medians[column, count] / medians[column, 1]:.2f}"

    rows: list[list[object]] = [
        [count, *(ratio(column, count) for column in COLUMNS), f"{count:.2f}"] for count in COUNTS
    ]
    rows.append(["1, in ms", *(f"{medians[column, 1]:.0f}" for column in COLUMNS), NAP_MS])
    what = (
        f"k tools of {NAP_MS} ms in one message, by the time of the node that runs them, as a ratio to that with one "
        f"tool; medians of {rounds} rounds. Ideal is 1.00 for every k, and twice that for 16 tools of which 8 may work "
        "at once (`MILLRACE_TOOLS_AT_ONCE`, 8 by default; 16 in the first columns). ToolNode is LangGraph's own, as it "
        "comes and with no such bound, on the same server. Written by `python benchmarks/parallel_tools.py`."
    )
    return "\n\n".join(
        (
            "## Tools at the same time",
            what,
            harness.table(["k", *(column.title for column in COLUMNS), "one after the other"], rows),
            harness.machine(),
        )
    )


def main() -> None:
    """Measure all of it, and write the page."""
    parser = argparse.ArgumentParser(description="What it saves that the tools of one message run at the same time.")
    parser.add_argument("--rounds", type=int, default=15, help="how often each number of tools is measured")
    parser.add_argument("--quick", action="store_true", help="one round, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=harness.PAGE, help="the page that the table is written to")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    if rounds < 1:
        parser.error("--rounds must be at least 1")
    with Progress(console=Console(stderr=True)) as show:
        text = report(measure(rounds, show), rounds)
    if not options.quick:
        harness.write("parallel_tools", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
