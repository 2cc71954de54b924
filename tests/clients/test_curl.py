"""curl in two terminals: Ctrl-C at a third of a long run, the rest by ``Last-Event-ID``, and nothing is missing."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from machine import program
from scripted import Gate, Scripted, Step, words
from serving import Served, serving
from story import Eventually

TOKENS, PORTION = 2000, 40
THIRD = 680
FIRST_TOKEN = 3
"""Its id: the run and its message have begun before."""

HEARTBEAT = b": hb\n"
RETRY = b"retry: 1000\n"


class LongRun:
    """2,000 tokens in portions that the test lets go: no more of them than a reader may lag and get each on its own."""

    def __init__(self) -> None:
        self._portions = [Gate() for _ in range(TOKENS // PORTION)]
        self.turn: list[Step] = []
        for number, gate in enumerate(self._portions):
            told = range(number * PORTION, (number + 1) * PORTION)
            self.turn += [gate, *words(*(f"word {one} " for one in told))]

    def go_on(self) -> None:
        self._portions.pop(0).open()

    def go_on_to_the_end(self) -> None:
        while self._portions:
            self.go_on()


@pytest.fixture
def long_run() -> LongRun:
    return LongRun()


@pytest.fixture
def served(long_run: LongRun) -> Iterator[Served]:
    with serving({"long": Scripted(turns=[long_run.turn])}, heartbeat_s=0.2) as one:
        yield one


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background job ignores SIGINT, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def curl(*args: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [program("curl", package="curl"), "--no-buffer", "--silent", "--show-error", "--max-time", "60", *args],
        stdout=subprocess.PIPE,
    )


def read_portions(process: "subprocess.Popen[bytes]", long_run: LongRun, tokens: range) -> bytes:
    """What curl prints while these tokens are let go, each portion once the one before it has arrived."""
    assert process.stdout is not None
    lines: list[bytes] = []
    for first in tokens[::PORTION]:
        long_run.go_on()
        last = f"id: {FIRST_TOKEN + first + PORTION - 1}\n".encode()
        while not lines or lines[-1] != last:
            lines.append(process.stdout.readline())
            assert lines[-1], "the stream ended"
    return b"".join(lines)


def read_rest(process: "subprocess.Popen[bytes]") -> bytes:
    """The rest of what curl prints, and its end. (``communicate`` would pass by what ``readline`` has buffered.)"""
    with process:
        assert process.stdout is not None
        return process.stdout.read()


def without_comments(stream: bytes) -> bytes:
    """The events alone: no heartbeats, no ``retry:`` before the first one."""
    return b"".join(line for line in stream.splitlines(keepends=True) if line != HEARTBEAT).removeprefix(RETRY)


@pytest.mark.usefixtures("interruptible")
def test_a_long_run_stopped_at_a_third_and_read_to_its_end_elsewhere_is_the_whole_byte_for_byte(
    served: Served, long_run: LongRun, eventually: Eventually
) -> None:
    body = json.dumps({"input": "go on", "on_disconnect": "continue"})
    first = curl(
        f"{served.url}/agents/long/runs", "-H", "Accept: text/event-stream", "-H", "Content-Type: application/json",
        "-d", body,
    )  # fmt: skip
    begun = read_portions(first, long_run, range(THIRD))
    first.send_signal(signal.SIGINT)
    begun += read_rest(first)
    run_id = re.search(rb'"run_id":"([^"]+)"', begun)
    assert run_id
    run = served.run(run_id[1].decode())
    eventually(lambda: run.scope.readers == 0)
    assert not run.finished

    complete = begun[: begun.rindex(b"\n\n") + 2]
    position = re.findall(rb"^id: (\d+)$", complete, re.MULTILINE)[-1].decode()
    long_run.go_on()
    eventually(lambda: run.last_event_id == FIRST_TOKEN + THIRD + PORTION - 1)  # while nobody reads
    stream = f"{served.url}/runs/{run.run_id}/events"
    second = curl(stream, "-H", f"Last-Event-ID: {position}")
    eventually(lambda: run.scope.readers == 1)
    rest = read_portions(second, long_run, range(THIRD + PORTION, TOKENS))
    rest += read_rest(second)
    assert second.returncode == 0

    whole = without_comments(read_rest(curl(stream)))
    assert without_comments(complete) + without_comments(rest) == whole
    assert whole.count(b"event: token\n") == TOKENS
    assert whole.count(b"event: run.finished\n") == 1
    assert b"event: gap\n" not in whole


def test_curl_is_told_that_nothing_is_left(served: Served, long_run: LongRun, eventually: Eventually) -> None:
    started = curl(f"{served.url}/agents/long/runs", "-H", "Content-Type: application/json", "-d", '{"input": "go on"}')
    run_id = json.loads(read_rest(started))["run_id"]
    long_run.go_on_to_the_end()
    run = served.run(run_id)
    eventually(lambda: run.finished)
    asked = curl(
        f"{served.url}/runs/{run_id}/events", "-H", f"Last-Event-ID: {run.last_event_id}", "-w", "%{http_code}"
    )
    assert read_rest(asked) == b"204"
