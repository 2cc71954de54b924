"""What each server adds to the time to the first token, when it has nothing else to do.

One request after another, the servers in turns by lot, so that whatever else the machine does meets all of them alike;
the provider itself is asked too, and what a server adds is its median less the provider's. From before the connection
is made to the piece in which the first token comes. The floor hands the provider's bytes on as they come.

    python benchmarks/ttft.py [--n 200] [--quick] [--page docs/performance.md]
"""

import random
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import harness
import load
from harness import told
from streams import ASSISTANT, CHAT, FLOOR, LANGGRAPH, LANGSERVE, OURS

TOKENS, PACE = 5, 1000
WARM = 10
REST_S = 0.005

DIRECT = "the provider itself"
SERVED = (FLOOR._replace(path="/relay"), OURS, ASSISTANT, CHAT, LANGSERVE, LANGGRAPH)


class Target(NamedTuple):
    """Where to ask, and for what."""

    title: str
    address: tuple[str, int]
    path: str

    def first_ms(self) -> float:
        """Milliseconds to the first token of one answer, which is then read to its end."""
        asked = load.request(self.path, f"[[tokens={TOKENS}&tokens_per_second={PACE}]] go on")
        found, data, first = load.wording(self.path), b"", 0.0
        began = time.monotonic()
        with socket.create_connection(self.address, 60) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(asked)
            while not data.endswith(load.LAST_CHUNK) and (more := client.recv(65536)):
                data += more
                if not first and found.search(data):
                    first = time.monotonic()
        if not first:
            raise SystemExit(f"{self.title} sent no token: {data[-500:]!r}")
        return (first - began) * 1000


Times = Mapping[str, Sequence[float]]
"""Milliseconds of each request, by server."""


def measure(count: int) -> Times:
    """``count`` requests to each, in turn."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        provider = stack.enter_context(harness.provider(PACE))
        base = provider.removeprefix("http://").split("/")[0]
        targets = [Target(DIRECT, harness.address(f"http://{base}"), "/v1/chat/completions")]
        started = {}
        for one in SERVED:
            if one.serving not in started:
                harness.say(f"starting {one.title}")
                started[one.serving] = stack.enter_context(one.serving({"OPENAI_BASE_URL": provider}))
            targets.append(Target(one.title, started[one.serving].address, one.path))
        for number in range(-WARM, count):
            if number % 50 == 0:
                harness.say(f"{number} of {count} requests to each")
            # By lot, so that nobody is always the one who comes after the slowest.
            for target in random.Random(number).sample(targets, len(targets)):
                taken = target.first_ms()
                if number >= 0:
                    times[target.title].append(taken)
                time.sleep(REST_S)
    return times


def added(times: Times) -> dict[str, float]:
    """By how much each server's median is over the provider's."""
    medians = {title: statistics.median(taken) for title, taken in times.items()}
    return {one.title: medians[one.title] - medians[DIRECT] for one in SERVED}


# -- the page ---------------------------------------------------------------------------------------------------------


def report(times: Times, count: int) -> str:
    """What goes into the page."""
    more = added(times)
    peers = " and ".join(f"{told(more[one.title])} ms by {one.title}" for one in (LANGSERVE, LANGGRAPH))
    rows = [
        [title, *(f"{harness.percentile(times[title], one):.2f}" for one in (50, 99)), f"{more.get(title, 0):+.2f}"]
        for title in (DIRECT, *more)
    ]
    what = (
        f"{count} requests to each, one after another, in turns by lot, with nothing else to do; over a new connection "
        "each, from before it is made to the first token. The provider answers at once. Bare ASGI hands the "
        "provider's bytes on as they come. Written by `python benchmarks/ttft.py`."
    )
    return "\n\n".join(
        (
            "## The first token of an idle server",
            f"**{told(more[OURS.title])} ms are added to the provider's first token when idle; {peers}**",
            what,
            harness.table(["server", "p50, ms", "p99, ms", "added to p50, ms"], rows),
            harness.machine(),
        )
    )


def main() -> None:
    """Measure all of it, and write the page."""
    options = harness.options("What each server adds to the first token.", n=(200, "requests to each")).parse_args()
    count = 5 if options.quick else options.n
    times = measure(count)
    text = report(times, count)
    if not options.quick:
        values = {title.replace("`", ""): more for title, more in added(times).items()}
        text += "\n\n" + harness.bars("performance-ttft", "Added to the first token, idle", "ms", values, options.page)
        harness.write("ttft", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
