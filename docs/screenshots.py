"""Takes the README's pictures of the page anew: ``python docs/screenshots.py``, with a Chromium on this machine.

They are of the page as it is, in front of a server that it starts itself, with simulated answers.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 800}
TOOLS = "What time is it in Tokyo, what is 17*23, and what do the docs say about cancel?"
RESEARCH = "Compare the time in Tokyo and in Lima, and say what the docs tell about resuming a stream."
PACE = " [[call=all&tokens_per_second=60]]"


@contextmanager
def serving() -> Iterator[str]:
    """A server of its own, on a free port and without a trace."""
    command = [str(Path(sys.executable).with_name("millrace")), "serve", "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "MILLRACE_MODEL": "simulated", "COLUMNS": "500"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if found := re.search(r"running on (http://\S+)", line):
                    yield found[1]
                    break
        finally:
            server.terminate()
            server.wait()


def ask(page: Page, text: str) -> None:
    """Write a question, and show it without its directives."""
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".question").last.evaluate(
        "one => { one.lastChild.data = one.lastChild.data.replace(/ ?\\[\\[.*/, ''); }"
    )


def answered(page: Page) -> None:
    """Wait for the answer's end."""
    expect(page.get_by_role("button", name="Send")).to_be_visible(timeout=60_000)


def take(page: Page, name: str) -> None:
    """Keep what is to be seen."""
    page.wait_for_timeout(300)  # for what is drawn a moment later
    page.screenshot(path=IMAGES / f"{name}.png")


def tools(page: Page, url: str) -> None:
    """In the middle of an answer, with three tools."""
    page.goto(f"{url}/#/chat/assistant")
    ask(page, TOOLS + PACE)
    expect(page.locator(".tool")).to_have_count(3)
    page.wait_for_function("() => (document.querySelector('.answer .md')?.innerText ?? '').length > 150")
    take(page, "tools")


def lanes(page: Page, url: str) -> None:
    """Branches side by side."""
    page.goto(f"{url}/#/chat/research")
    ask(page, RESEARCH + PACE)
    answered(page)
    take(page, "lanes")


def gap(page: Page, url: str) -> None:
    """A reader that fell behind, in the dark."""
    page.emulate_media(color_scheme="dark")
    page.goto(f"{url}/#/chat/chat")
    page.get_by_role("button", name="Connected").click()
    page.get_by_role("button", name="Slow my reader down").click()
    expect(page.locator(".trial")).to_contain_text("This reader was told of a gap", timeout=60_000)
    take(page, "gap")


def main() -> None:
    """All of them."""
    IMAGES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium") or sys.exit("no chromium on this machine")
    with serving() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for picture in (tools, lanes, gap):
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            picture(page, url)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
