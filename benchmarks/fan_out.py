"""One run and a thousand readers: how many frames a core's worth of the server's processor time delivers in a second.

Every reader follows the run over SSE from its first event to its last, and counts its tokens. Beside it the floor: bare
ASGI under the same uvicorn, whose readers wait for one another's feed.

    python benchmarks/fan_out.py [--readers 1000] [--quick] [--page docs/performance.md]
"""

from typing import NamedTuple

import harness
from crowd import Followed, follow
from harness import told
from readers import Serving, begin, per_frame, start

PACES = (5, 20, 50)
SECONDS = 12
WARM = 20


class Measured(NamedTuple):
    """One server, with a run at one pace."""

    server: str
    pace: int
    followed: Followed

    @property
    def cpu_us(self) -> float:
        """Of the server, for each frame that one reader got."""
        return per_frame(self.followed.all_open)

    def row(self) -> list[object]:
        """For the table."""
        there = self.followed.all_open
        seconds = there[-1].at - there[0].at if len(there) > 1 else float("nan")
        came = (there[-1].frames - there[0].frames) / seconds if there else float("nan")
        return [
            self.server, f"{self.pace}/s", f"{self.followed.readers:,}", f"{self.followed.fed:,}", self.followed.gaps,
            told(came), told(self.cpu_us), told(1e6 / self.cpu_us),
        ]  # fmt: skip


def measure(serving: Serving, readers: int, pace: int) -> Measured:
    """A server that nothing else has used."""
    with harness.provider(pace) as provider, serving({"OPENAI_BASE_URL": provider}) as server:
        ours, tokens = server.name == "Millrace", pace * SECONDS
        follow(server, "sse", WARM, 20, [start(server, "assistant", 20, 20) if ours else begin(server, "warm", 20, 20)])
        harness.say(f"{server.name}: {readers:,} readers of one run at {pace} tokens/s")
        path = start(server, "assistant", tokens, pace, 2.0) if ours else begin(server, "one", tokens, pace)
        measured = Measured(server.name, pace, follow(server, "sse", readers, tokens, [path]))
        harness.say(f"    {told(measured.cpu_us)} µs a frame")
        return measured


# -- the page ---------------------------------------------------------------------------------------------------------


def report(measured: list[Measured]) -> str:
    """What goes into the page."""
    best = min((one for one in measured if one.server == "Millrace"), key=lambda one: one.cpu_us)
    line = (
        f"**One run to {best.followed.readers:,} readers: {told(1e6 / best.cpu_us)} frames delivered by each second of "
        "processor time**"
    )
    what = (
        f"One run of {SECONDS} s and its readers, over SSE; fed is who has had every token, the end, and no gap. CPU "
        "is the server's while all of them were there, over the frames that they read meanwhile. A reader that lags "
        "gets tokens that wait for it merged into one frame, so where the server cannot keep up frames are fewer. "
        "Bare ASGI has the same frames from its own clock. Written by `python benchmarks/fan_out.py`."
    )
    head = ["server", "tokens", "readers", "fed", "with a gap", "frames/s", "CPU, µs a frame", "frames a second of CPU"]
    return "\n\n".join(
        (
            "## One run, many readers",
            line,
            what,
            harness.table(head, [one.row() for one in measured]),
            harness.machine(),
        )
    )


def main() -> None:
    """Measure all of it, and write the page."""
    options = harness.options("One run and many readers.", readers=(1000, "how many")).parse_args()
    readers, paces = (50, (20,)) if options.quick else (options.readers, PACES)
    measured = [measure(one, readers, pace) for one in (harness.floor, harness.millrace) for pace in paces]
    text = report(measured)
    if not options.quick:
        harness.write("fan_out", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
