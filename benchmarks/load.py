"""The load: so many live runs on a server, read as fast as it writes, from a process of its own.

As a process it prints a line of JSON a second, ``{"at", "live", "tokens"}``: monotonic seconds, runs whose tokens have
begun to come, tokens so far. With ``--seconds`` it ends, and its last line tells what the runs got: the times to the
first token of all that were started, the times between tokens from when it is steady. ``drive`` starts the process and
reads the server's processor time and memory at each of its lines.

    python benchmarks/load.py HOST PORT PATH RUNS TOKENS_PER_SECOND [--tokens N] [--seconds S]
"""

import argparse
import json
import math
import re
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import harness
import orjson
from epoll import Epoll, Line

from app.simulator.tokens import count

RAMP_S = 5.0
TOKENS = 2000
"""How long a run is; one that is over is followed by another."""

MILLRACE = re.compile(rb'event: token\ndata: \{[^\n]*?"text":("(?:[^"\\]|\\.)+")')
LANGSERVE = re.compile(rb'"on_chat_model_stream","data":\{"chunk":\{"content":("(?:[^"\\]|\\.)+")')
LANGGRAPH = re.compile(rb'event: messages\r?\ndata: \[\{"content":("(?:[^"\\]|\\.)+")')
PROVIDER = re.compile(rb'"delta":\{"content":("(?:[^"\\]|\\.)+")')
"""Where the text of a token event is, as JSON. Its tokens are counted: for a reader that lags, events are merged."""

LAST_CHUNK = b"\r\n0\r\n\r\n"


def wording(path: str) -> re.Pattern[bytes]:
    """How the server behind this path tells of a token."""
    if path.endswith(("/completions", "/relay")):
        return PROVIDER
    if path == "/runs/stream":
        return LANGGRAPH
    return LANGSERVE if path.endswith("/stream_events") else MILLRACE


def request(path: str, text: str) -> bytes:
    """The request that starts a run with this text, in the words of the server behind this path."""
    messages = [{"role": "user", "content": text}]
    human: dict[str, Any] = {"messages": [{"type": "human", "content": text}]}
    body: dict[str, Any] = {"input": text if path.endswith("/runs") else human}
    if path.endswith(("/completions", "/relay")):
        body = {"model": "simulated", "stream": True, "messages": messages}
    if path == "/runs/stream":
        body = {"assistant_id": "live", "input": {"messages": messages}, "stream_mode": ["messages-tuple"]}
    return post(path, json.dumps(body).encode())


def post(path: str, body: bytes) -> bytes:
    """A POST, as bytes."""
    head = (
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: text/event-stream",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*head, "", "")).encode() + body


class Run(Line):
    """One run, and the one that follows it."""

    __slots__ = ("_last", "_load", "_rest", "first")

    def __init__(self, load: "Load") -> None:
        super().__init__()
        self._load = load
        self._rest = b""
        self._last = 0.0
        self.first: float | None = None

    def greeting(self) -> bytes:
        """See ``Line``."""
        return self._load.request

    def received(self, data: bytes, now: float) -> bool:
        """See ``Line``."""
        rest = self._rest + data if self._rest else data
        read_to = tokens = 0
        for found in self._load.tokens_in(rest):
            tokens += count(orjson.loads(found[1]))
            read_to = found.end()
        self._rest = rest[read_to:]
        if tokens:
            self._load.came(tokens, now, self._last)
            self._last = now
            if self.first is None:
                self.first = now - self.began
        if self._rest.endswith(LAST_CHUNK):
            self._load.over(self)
            return False
        return True

    def lost(self, now: float) -> None:
        """See ``Line``."""
        self._load.broken += 1
        self._load.over(self)


class Load:
    """Runs that are kept alive, and what came of them."""

    def __init__(self, host: str, port: int, path: str, tokens_per_second: float, tokens: int = TOKENS) -> None:
        self.tokens = self.broken = 0
        self.steady_from = math.inf
        self.between = array("f")
        self.firsts = array("f")
        self._address = (host, port)
        self._epoll = Epoll()
        self._due = time.monotonic()
        self._runs: set[Run] = set()
        self.request = request(path, f"[[tokens={tokens}&tokens_per_second={tokens_per_second:g}]] go on")
        self.tokens_in = wording(path).finditer

    @property
    def live(self) -> int:
        """Runs whose first token is there."""
        return sum(one.first is not None for one in self._runs)

    def start(self) -> None:
        """One more run."""
        run = Run(self)
        self._runs.add(run)
        self._epoll.open(run, self._address)

    def came(self, tokens: int, now: float, last: float) -> None:
        """Tokens, all in one piece; ``last`` is when the ones before came to this run, 0 for the first ones."""
        self.tokens += tokens
        if last and now > self.steady_from:
            self.between.append((now - last) * 1000)

    def over(self, run: Run) -> None:
        """A run has come to its end: the next one."""
        self._runs.discard(run)
        if run.first is not None:
            self.firsts.append(run.first * 1000)
        self.start()

    def until(self, moment: float, tell: Callable[[], None]) -> None:
        """Read until then, and ``tell`` each second."""
        while (now := time.monotonic()) < moment:
            if now >= self._due:
                self._due += 1
                tell()
            self._epoll.turn(min(self._due, moment) - now)

    def waited(self) -> list[float]:
        """Milliseconds to the first token, of every run; of those that still wait, as long as they have waited."""
        now = time.monotonic()
        waiting = [(one.first or now - one.began) * 1000 for one in self._runs]
        return [*self.firsts, *waiting]

    def summary(self) -> dict[str, Any]:
        """What the runs got."""
        return {
            "first": _percentiles(self.waited()),
            "between": _percentiles(self.between),
            "none_yet": len(self._runs) - self.live,
            "broken": self.broken,
        }

    def state(self, *, steady: bool = False) -> dict[str, Any]:
        """The line of each second."""
        return {"at": time.monotonic(), "live": self.live, "tokens": self.tokens, "steady": steady}


def _percentiles(values: Sequence[float]) -> list[float]:
    return [harness.percentile(values, one) for one in (50, 99, 100)] if values else []


def main() -> None:
    """Keep the runs alive until the process is ended, or its time is over."""
    parser = argparse.ArgumentParser(description="Live runs on a server.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("runs", type=int)
    parser.add_argument("pace", type=float, help="tokens a second of each run; 0: flat out")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="how long a run is")
    parser.add_argument("--ramp", type=float, default=RAMP_S, help="in so many seconds all of them are started")
    parser.add_argument("--settle", type=float, default=0.0, help="then so long until it is taken for steady")
    parser.add_argument("--seconds", type=float, default=math.inf, help="and so long it is measured")
    options = parser.parse_args()
    load = Load(options.host, options.port, options.path, options.pace, options.tokens)

    def tell(*, steady: bool = False) -> None:
        print(json.dumps(load.state(steady=steady)), flush=True)

    began = time.monotonic()
    for number in range(options.runs):
        load.until(began + options.ramp * number / options.runs, tell)
        load.start()
    load.until(began + options.ramp + options.settle, tell)
    load.steady_from = time.monotonic()
    tell(steady=True)
    load.until(load.steady_from + options.seconds, lambda: tell(steady=True))
    print(json.dumps(load.state(steady=True) | load.summary()), flush=True)


# -- the other side of it ---------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """At one line of the load's: what it told, and what the server had used by then."""

    at: float
    live: int
    tokens: int
    steady: bool
    cpu_s: float
    rss: float


class Driven(NamedTuple):
    """What a load came to. Times in ms, each p50, p99 and longest; ``rss`` in MB, the most there was."""

    asked: float
    tokens_per_second: float
    cpu_us: float
    of_a_core: float
    first: Sequence[float]
    between: Sequence[float]
    live: int
    none_yet: int
    broken: int
    rss: float
    moments: Sequence[Moment]


def drive(
    server: harness.Server,
    path: str,
    runs: int,
    pace: float,
    *,
    tokens: int,
    ramp: float = 2.0,
    settle: float = 5.0,
    seconds: float = 10.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Driven:
    """``runs`` live runs of ``tokens`` tokens each at ``pace``, measured for ``seconds`` once they are steady."""
    host, port = server.address
    command = [sys.executable, str(harness.HERE / "load.py"), host, str(port), path, str(runs), str(pace)]
    options = {"tokens": tokens, "ramp": ramp, "settle": settle, "seconds": seconds}
    moments: list[Moment] = []
    last: dict[str, Any] = {}
    for last in harness.lines([*command, *(f"--{name}={value}" for name, value in options.items())]):
        told = (last["at"], last["live"], last["tokens"], last["steady"])
        moments.append(Moment(*told, server.cpu_s(), server.rss()))
        tell(f"{last['live']} live, {last['tokens']:,} tokens")
    if "first" not in last:
        raise SystemExit("the load ended by itself")
    return driven(runs * pace, moments, last)


def driven(asked: float, moments: Sequence[Moment], last: dict[str, Any]) -> Driven:
    """From the steady moments, and from the load's last word."""
    steady = [one for one in moments if one.steady]
    begin, end = steady[0], steady[-1]
    seconds, tokens, cpu_s = end.at - begin.at, end.tokens - begin.tokens, end.cpu_s - begin.cpu_s
    return Driven(
        asked,
        tokens / seconds,
        cpu_s / tokens * 1e6 if tokens else math.nan,
        cpu_s / seconds,
        last["first"] or [math.nan] * 3,
        last["between"] or [math.nan] * 3,
        last["live"],
        last["none_yet"],
        last["broken"],
        max(one.rss for one in moments),
        moments,
    )


if __name__ == "__main__":
    main()
