"""The WebSocket clients of the docs do what they are there to show: a broken line costs no letter of the answer."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from machine import chromium
from playwright.sync_api import Browser, Page, expect
from proxy import How, Proxy, proxying
from scripted import Gate, Scripted, Step, say
from serving import Served, serving

Eventually = Callable[[Callable[[], bool]], None]

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

PIECES = (
    ("One ", "two ", "three. "),
    ("Auf ", "Chinesisch ", "世界, "),
    ("and ", "on, "),
    ("to ", "the ", "🌞."),
)
BREAKS: tuple[How, ...] = ("reset", "close", "reset")
LONG = (("The ", "beginning. "), tuple(f"{number} {'x' * 300} " for number in range(400)), ("The ", "end."))
"""More than the run's log holds."""


class Turn:
    """Pieces of an answer with a gate before each but the first, made as they are said."""

    def __init__(self, pieces: Sequence[Sequence[str]]) -> None:
        self.pieces = pieces
        self.gates = [Gate() for _ in pieces[1:]]

    def __iter__(self) -> Iterator[Step]:
        for number, piece in enumerate(self.pieces):
            if number:
                yield self.gates[number - 1]
            yield from map(say, piece)


class Line:
    """A server behind a line that can be broken, with one answer to give."""

    def __init__(self, served: Served, proxy: Proxy, turn: Turn) -> None:
        self.served = served
        self.proxy = proxy
        self.gates = turn.gates
        self.parts = ["".join(piece) for piece in turn.pieces]
        self.text = "".join(self.parts)

    def finished(self) -> bool:
        """Whether the one run is over."""
        return [run.status for run in self.served.runner.kept("127.0.0.1")] == ["completed"]


@contextmanager
def line(pieces: Sequence[Sequence[str]]) -> Iterator[Line]:
    turn = Turn(pieces)
    with (
        serving({"story": Scripted(turns=[turn])}, run_max_bytes=64 * 1024) as served,
        proxying(served.url) as proxy,
    ):
        yield Line(served, proxy, turn)


# Python


class Running:
    """The Python example as a process."""

    def __init__(self, url: str, agent: str) -> None:
        command = [sys.executable, str(EXAMPLES / "websocket_client.py"), "Tell me.", "--url", url, "--agent", agent]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "utf-8"}
        )
        self.printed = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        printed = self.printed.encode()
        while text.encode() not in printed:
            read = os.read(self.process.stdout.fileno(), 4096)
            assert read, f"it ended with {printed.decode()!r}"
            printed += read
        self.printed = printed.decode()

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said of errors."""
        printed, complained = self.process.communicate(timeout=60)
        self.printed += printed.decode()
        return self.process.returncode, complained.decode()


@contextmanager
def running(url: str, agent: str = "story") -> Iterator[Running]:
    one = Running(url, agent)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


def test_the_python_client_has_the_whole_answer_over_a_line_that_breaks() -> None:
    with line(PIECES) as story, running(story.proxy.url) as client:
        for how, gate, part in zip(BREAKS, story.gates, story.parts, strict=False):
            client.read_until(part)
            story.proxy.cut(how)
            gate.open()
        assert client.end() == (0, "")
        assert client.printed == story.text + "\n"
        assert story.proxy.asked.count(b"GET /ws") == len(BREAKS) + 1
        assert story.finished()


def test_the_python_client_shows_the_result_after_a_gap(eventually: Eventually) -> None:
    with line(LONG) as story, running(story.proxy.url) as client:
        client.read_until(story.parts[0])
        client.process.send_signal(signal.SIGSTOP)
        story.proxy.cut()
        for gate in story.gates:
            gate.open()
        eventually(story.finished)
        client.process.send_signal(signal.SIGCONT)
        assert client.end() == (0, "")
        assert re.search(r"\n\(\d+ events were missed", client.printed)
        assert client.printed.endswith(f"\n{story.text}\n")


def test_the_python_client_knows_when_to_stop_trying() -> None:
    with line(PIECES) as story, running(story.proxy.url, agent="nobody") as client:
        code, complained = client.end()
        assert code == 1
        assert "there is no agent 'nobody'" in complained
        assert story.proxy.connections == 1


# The page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@contextmanager
def showing(browser: Browser, story: Line, agent: str = "story") -> Iterator[Page]:
    """The example as a page of the server's own origin; nothing may go wrong on it but the line.

    The origin's own page is replaced: one that the test made up Chromium would not let speak to this machine.
    """
    context = browser.new_context()
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(f"{story.proxy.url}/health/live?agent={agent}")
    page.set_content((EXAMPLES / "websocket_client.html").read_text("utf-8"))
    yield page
    context.close()
    assert not wrong


def ask(page: Page) -> None:
    page.get_by_label("Question").fill("Tell me.")
    page.get_by_role("button", name="Ask").click()


def test_the_page_has_the_whole_answer_over_a_line_that_breaks(browser: Browser) -> None:
    with line(PIECES) as story, showing(browser, story) as page:
        ask(page)
        for how, gate, part in zip(BREAKS, story.gates, story.parts, strict=False):
            expect(page.locator("#answer")).to_contain_text(part.strip(), timeout=20_000)
            story.proxy.cut(how)
            gate.open()
        expect(page.locator("#state")).to_have_text("completed", timeout=20_000)
        assert page.locator("#answer").text_content() == story.text
        assert story.proxy.asked.count(b"GET /ws") == len(BREAKS) + 1


def test_the_page_shows_the_result_after_a_gap(browser: Browser, eventually: Eventually) -> None:
    with line(LONG) as story, showing(browser, story) as page:
        page.clock.install()
        ask(page)
        expect(page.locator("#answer")).to_contain_text("The beginning.", timeout=20_000)
        page.clock.pause_at(page.evaluate("Date.now()") + 1000)
        story.proxy.cut()
        expect(page.locator("#state")).to_contain_text("trying again", timeout=20_000)
        for gate in story.gates:
            gate.open()
        eventually(story.finished)
        page.clock.resume()
        expect(page.locator("#state")).to_have_text("completed", timeout=20_000)
        assert page.locator("#answer").text_content() == story.text


def test_a_person_stops_the_answer_on_the_page(browser: Browser, eventually: Eventually) -> None:
    with line(PIECES) as story, showing(browser, story) as page:
        ask(page)
        expect(page.locator("#answer")).to_contain_text("three.", timeout=20_000)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#state")).to_have_text("cancelled", timeout=20_000)
        eventually(lambda: story.served.runner.live == 0)


def test_the_page_says_what_was_refused(browser: Browser) -> None:
    with line(PIECES) as story, showing(browser, story, agent="nobody") as page:
        ask(page)
        expect(page.locator("#state")).to_contain_text("refused: there is no agent 'nobody'", timeout=20_000)
        assert story.proxy.asked.count(b"GET /ws") == 1
