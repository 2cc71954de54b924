"""What readers that do not keep up cost the others: the same run with and without them.

Ten readers follow one long run; beside them one that takes a byte a second and one that takes none, both with small
buffers, so that the server feels it. Measured: the ten's times between tokens, whether they got all of them, and the
server's memory before, at its peak and after. LangServe stands beside it for the memory and the pace; it has no
fan-out, so each of its readers has a run of its own.

    python benchmarks/slow_reader.py [--tokens 10000] [--pace 100] [--quick] [--page docs/performance.md]
"""

import argparse
import asyncio
import json
import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.request import Request, urlopen

import harness
import orjson
from harness import Memory, Server
from load import LANGSERVE, LAST_CHUNK, MILLRACE, request
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from app.simulator.tokens import count

READERS = 10
FEW_BYTES = 4096
"""A slow reader's receive buffer: all that the kernel takes on its behalf."""

AFTER_S = 5.0


@dataclass
class Reader:
    """One that keeps up: when its token events came, how many tokens they were, and whether some were missed."""

    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    gaps: int = 0
    finished: bool = False

    async def read(self, address: tuple[str, int], asked: bytes, tokens: re.Pattern[bytes]) -> None:
        """To the end of the response."""
        reader, writer = await asyncio.open_connection(*address)
        writer.write(asked)
        rest = b""
        while not rest.endswith(LAST_CHUNK) and (data := await reader.read(65536)):
            now = time.monotonic()
            rest += data
            self.gaps += data.count(b"event: gap")
            read_to = 0
            for found in tokens.finditer(rest):
                self.tokens += count(orjson.loads(found[1]))
                self.arrivals.append(now)
                read_to = found.end()
            rest = rest[read_to:]
        self.finished = rest.endswith(LAST_CHUNK)
        writer.close()

    @property
    def between(self) -> list[float]:
        """The times between tokens, in ms."""
        return [(after - before) * 1000 for before, after in pairwise(self.arrivals)]


@dataclass
class Laggard:
    """One that takes a byte every ``pause_s``, or none. ``dropped``: after so many seconds the server let go of it."""

    pause_s: float | None
    taken: int = 0
    dropped: float | None = None

    async def read(self, address: tuple[str, int], asked: bytes) -> None:
        """Until the server has had enough, or for ever."""
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FEW_BYTES)
            client.connect(address)
            client.setblocking(False)
            await loop.sock_sendall(client, asked)
            began = time.monotonic()
            gone = select.poll()
            gone.register(client, select.POLLERR | select.POLLHUP | select.POLLRDHUP)
            due = began
            while not gone.poll(0):
                if self.pause_s is not None and time.monotonic() >= due:
                    due += self.pause_s
                    self.taken += len(await loop.sock_recv(client, 1))
                await asyncio.sleep(0.05)
            self.dropped = time.monotonic() - began

    def __str__(self) -> str:
        return "kept to the end" if self.dropped is None else f"dropped after {self.dropped:.0f} s"


class Measured(NamedTuple):
    """One run of it."""

    server: str
    pace: int
    readers: list[Reader]
    laggards: list[Laggard]
    seconds: float
    memory: tuple[float, float, float]

    def row(self, tokens: int) -> list[str]:
        """For the table."""
        between = [one for reader in self.readers for one in reader.between]
        whole = sum(one.finished and one.tokens == tokens and not one.gaps for one in self.readers)
        return [
            self.server,
            f"{self.pace}/s" if self.pace else "flat out",
            "with" if self.laggards else "without",
            " / ".join(f"{harness.percentile(between, one):.1f}" for one in (50, 99, 100)),
            f"{whole} of {len(self.readers)}",
            f"{self.seconds:.1f}",
            " / ".join(f"{one:.0f}" for one in self.memory),
            *(str(one) for one in self.laggards or ("–", "–")),
        ]


Serving: TypeAlias = Callable[[dict[str, str]], Any]


def measure(serving: Serving, pace: int, tokens: int, slow: bool) -> Measured:
    """A server that nothing else has used, and one run, or with LangServe one a reader."""
    with harness.provider(0) as provider, serving({"OPENAI_BASE_URL": provider, "LOAD_BASE_URL": provider}) as server:
        asyncio.run(Reader().read(server.address, _own_run(server, "[[tokens=500]] go"), MILLRACE))  # warm
        readers = [Reader() for _ in range(READERS)]
        laggards = [Laggard(1.0), Laggard(None)] if slow else []
        text = f"[[tokens={tokens}&tokens_per_second={pace}&first_token_s=1]] go"
        with Memory(server) as memory:
            asked = _attach(server, text) if server.name == "Millrace" else _own_run(server, text)
            began = time.monotonic()
            asyncio.run(_read(server, asked, readers, laggards))
            seconds = time.monotonic() - began
        time.sleep(AFTER_S)
        return Measured(server.name, pace, readers, laggards, seconds, (memory.before, memory.peak, server.rss()))


async def _read(server: Server, asked: bytes, readers: list[Reader], laggards: list[Laggard]) -> None:
    lagging = [asyncio.create_task(one.read(server.address, asked)) for one in laggards]
    pattern = MILLRACE if server.name == "Millrace" else LANGSERVE
    await asyncio.gather(*(one.read(server.address, asked, pattern) for one in readers))
    for task in lagging:
        task.cancel()
    await asyncio.gather(*lagging, return_exceptions=True)


def _attach(server: Server, text: str) -> bytes:
    """One run in the background; what its readers send to follow it."""
    body = json.dumps({"input": text}).encode()
    start = Request(f"{server.url}/agents/chat/runs", body, {"Content-Type": "application/json"})
    with urlopen(start, timeout=60) as response:
        run_id = json.load(response)["run_id"]
    return f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n".encode()


def _own_run(server: Server, text: str) -> bytes:
    return request(f"/agents/chat/{'runs' if server.name == 'Millrace' else 'stream_events'}", text)


def report(measured: list[Measured], tokens: int) -> str:
    """What goes into the page."""
    head = [
        "server",
        "tokens",
        "slow readers",
        "between tokens, ms",
        "got all",
        "took, s",
        "memory, MB",
        "1 byte/s",
        "never reads",
    ]
    what = (
        f"A run of {tokens:,} tokens and {READERS} readers, with and without two slow ones beside them: one takes a "
        "byte a second, one never reads, both through a receive buffer of "
        f"{FEW_BYTES} bytes. Between tokens: p50 / p99 / longest over all ten. Memory of the server's process: "
        f"before / peak / {AFTER_S:g} s after. LangServe has no fan-out: each of its readers has a run of its own, and "
        "a slow one holds up none but its own. Written by `python benchmarks/slow_reader.py`."
    )
    return "\n\n".join(
        (
            "## Readers that fall behind",
            what,
            harness.table(head, [one.row(tokens) for one in measured]),
            harness.machine(),
        )
    )


def main() -> None:
    """Measure all of it, and write the page."""
    parser = argparse.ArgumentParser(description="What readers that do not keep up cost the others.")
    parser.add_argument("--tokens", type=int, default=10_000, help="how long the run is")
    parser.add_argument("--pace", type=int, default=100, help="tokens a second")
    parser.add_argument("--quick", action="store_true", help="a short run, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=harness.PAGE, help="the page that the table is written to")
    options = parser.parse_args()
    tokens, pace = (200, 400) if options.quick else (options.tokens, options.pace)
    wanted: list[tuple[Serving, int]] = [(harness.millrace, pace), (harness.millrace, 0), (harness.langserve, pace)]
    measured = []
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as show:
        task = show.add_task("", total=2 * len(wanted))
        for serving, at in wanted:
            for slow in (False, True):
                name = (
                    f"{serving.__name__}, {f'{at}/s' if at else 'flat out'}, slow readers: {'two' if slow else 'none'}"
                )
                show.update(task, description=name)
                measured.append(measure(serving, at, tokens, slow))
                show.advance(task)
    text = report(measured, tokens)
    if not options.quick:
        harness.write("slow_reader", text, options.page)
    print(text)


if __name__ == "__main__":
    harness.run(main)
