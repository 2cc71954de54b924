"""What a newcomer pastes works: every command of these pages is run, in their order, as it stands there.

Who reads has a shell in a folder of its own. What would serve until it is stopped (``make run``, ``millrace serve``,
``uvicorn``) goes on beside it, in place of the one before, on a free port that stands for 8000 in all that follows.
``RUN_ID`` is the newest run. A fenced ``text`` is what the commands above it print: line by line, in this order, where
``…`` stands for whatever changes. An error fails its page, unless such a text shows it.

What cannot be run is told by its line in ``LEFT_OUT``, with the reason: so a new command is run unless somebody says
why not.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest
from machine import program

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
JOURNEYS = (("README.md",), ("docs/tutorial.md",), ("docs/runs.md", "docs/usage.md", "docs/cancelling.md"))
"""Pages that are read one after the other, in one shell; the last ones by somebody who has a server."""

PAGES = tuple(page for journey in JOURNEYS for page in journey)
STUCK_S = 240
"""A page that takes longer waits for what will not come."""

LEFT_OUT = {
    r"make test\b": "is what runs this",
    r"OPENAI_API_KEY=|MILLRACE_MODEL=anthropic": "wants a key, and spends money",
    r"OPENAI_BASE_URL=http://127\.0\.0\.1:11434": "wants a model server on this machine",
    r"\. \.venv/bin/activate": "this shell has it",
}

PRESUMED = {
    "my_agents.py": "from langchain_core.runnables import RunnableLambda\n\ngraph = RunnableLambda(str)\n",
    "langgraph.json": '{"graphs": {"support": "./my_agents.py:graph"}, "dependencies": ["."]}',
}
"""What a reader is taken to have; in a program it is ``graph``."""

RUN, SHOWN = {"sh", "python"}, {"", "text", "json", "yaml", "toml", "js"}

STAND_IN = """#!/bin/bash
set -m  # else what goes on beside it would not hear of SIGINT
name=${0##*/}
case "$name $1 $2" in
  "make run "*) set -- millrace serve --port "$PORT" ;;
  "make "*) echo "make $1 is not for this shell" >&2; exit 2 ;;
  "millrace serve "* | "uvicorn "*) set -- "$name" "$@" --port "$PORT" ;;
  "python -m app.simulator") name=simulator; set -- python "$@" ;;
  *) exec "$BIN/$name" "$@" ;;
esac
[ "$name" = simulator ] || name=server
if [ -e "$HERE/$name.pid" ]; then
  old=$(<"$HERE/$name.pid")
  kill -INT "$old" && while kill -0 "$old" 2>/dev/null; do sleep 0.05; done
fi
program=$1; shift
"$BIN/$program" "$@" >"$HERE/$name.log" 2>&1 </dev/null &
echo $! >"$HERE/$name.pid"
ready() {
  if [ "$name" = simulator ]; then [ -s "$HERE/$name.log" ]; else curl -fs "http://127.0.0.1:$PORT/health/ready"; fi
}
until ready >/dev/null; do
  kill -0 $! || { cat "$HERE/$name.log"; exit 1; }
  sleep 0.1
done
cat "$HERE/$name.log"
"""
"""Stands before the programs of its name: what would hold the terminal goes on beside it."""


def free_port() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as one:
        return str(one.getsockname()[1])


def environment() -> dict[str, str]:
    """Without the settings and keys of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}


class Terminal:
    """A newcomer's shell, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._here = folder / "clone", folder
        self._ports = {"8000": free_port(), "9000": free_port()}
        self._folder.mkdir()
        for name, content in PRESUMED.items():
            (self._folder / name).write_text(content, "utf-8")
        stand_ins = folder / "bin"
        stand_ins.mkdir()
        for name in ("make", "millrace", "uvicorn", "python"):
            (stand_ins / name).write_text(STAND_IN, "utf-8")
            (stand_ins / name).chmod(0o755)
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            cwd=self._folder,
            env={
                **environment(),
                "PATH": f"{stand_ins}:{BIN}:{os.environ['PATH']}",
                "BIN": str(BIN),
                "HERE": str(folder),
                "PORT": self._ports["8000"],
                "MILLRACE_URL": f"http://127.0.0.1:{self._ports['8000']}",
                "PYTHONUNBUFFERED": "1",
                "MILLRACE_SIMULATED_TOKENS_PER_SECOND": "100",
            },
        )
        self._watch = threading.Timer(STUCK_S, self._end)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self._end()
        self._shell.communicate()
        for file in self._here.glob("*.pid"):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(int(file.read_text()))
                process.send_signal(signal.SIGINT)
                process.wait(20)

    def _end(self) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)  # with what it waits for, which would hold its output open

    def paste(self, language: str, block: str) -> str:
        """What it prints. Fails where a command does."""
        block = self.placed(block)
        if language == "python":
            presumed = "from my_agents import graph\n" if re.search(r": graph\b", block) else ""
            (self._folder / "pasted.py").write_text(presumed + block, "utf-8")
            block = "python pasted.py\n"
        (self._here / "pasted.sh").write_text(block, "utf-8")
        assert self._shell.stdin is not None
        self._shell.stdin.write('set -e; source "$HERE/pasted.sh" </dev/null; set +e; echo; echo "<done>"\n')
        self._shell.stdin.flush()
        printed = "".join(self._printed())
        assert printed.endswith("\n<done>\n"), f"this failed:\n{block}\nand had printed:\n{printed}"
        return printed.removesuffix("\n<done>\n")

    def _printed(self) -> Iterator[str]:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            yield line
            if line == "<done>\n":
                return

    def placed(self, block: str) -> str:
        """What the page says, with this terminal's ports and run."""
        for known, port in self._ports.items():
            block = re.sub(rf"(?<=127\.0\.0\.1:){known}\b|(?<=--port ){known}\b", port, block)
        return block.replace("RUN_ID", self._newest_run()) if "RUN_ID" in block else block

    def _newest_run(self) -> str:
        rows = httpx.get(f"http://127.0.0.1:{self._ports['8000']}/runs").json()["runs"]
        return str(rows[0]["run_id"])


def fences(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def to_run(block: str) -> str:
    """The block without the lines that are left out."""
    return "".join(line for line in block.splitlines(keepends=True) if not any(re.match(one, line) for one in LEFT_OUT))


def missing(shown: str, printed: str) -> list[str]:
    """The lines that were to be printed, in this order, from the first on that was not."""
    wanted = [line.rstrip() for line in shown.splitlines() if line.strip(" …")]
    for line in printed.splitlines():
        if wanted and re.fullmatch(".*".join(map(re.escape, wanted[0].split("…"))), line.rstrip()):
            del wanted[0]
    return wanted


@pytest.mark.parametrize("pages", JOURNEYS, ids=lambda pages: pages[0])
def test_every_command_works_as_it_is_pasted(pages: tuple[str, ...], tmp_path: Path) -> None:
    for name, package in (("bash", "bash"), ("curl", "curl"), ("python3", "python3")):
        program(name, package=package)
    blocks = [block for page in pages for block in fences(page)]
    with Terminal(tmp_path) as terminal:
        if not any("make run" in block for _, block in blocks):
            terminal.paste("sh", "make run\n")
        for (language, block), (following, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
            if language not in RUN:
                continue
            printed = terminal.paste(language, to_run(block))
            expected = terminal.placed(shown) if following == "text" else ""
            assert not missing(expected, printed), f"{block}\nprinted:\n{printed}"
            assert '{"error":' not in printed or '"error"' in expected, f"{block}\nprinted:\n{printed}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_only_shown(page: str) -> None:
    assert {language for language, _ in fences(page)} <= RUN | SHOWN


def test_what_is_left_out_is_still_there() -> None:
    lines = [
        line for page in PAGES for language, block in fences(page) if language in RUN for line in block.splitlines()
    ]
    assert [one for one in LEFT_OUT if not any(re.match(one, line) for line in lines)] == []


def test_make_run_serves_a_fresh_copy(tmp_path: Path) -> None:
    make = program("make", package="make")
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT, clone, ignore=shutil.ignore_patterns(".*", "__pycache__", "benchmarks", "tests", "millrace.db*")
    )
    (clone / ".venv").symlink_to(BIN.parent)
    port = free_port()
    process = subprocess.Popen(
        [make, "run", f"PORT={port}"],
        cwd=clone,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health/ready", process)
        served = httpx.get(f"http://127.0.0.1:{port}/agents").json()["agents"]
        assert {"chat", "assistant"} <= {agent["name"] for agent in served}
        assert (clone / "millrace.db").exists()
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server is ready; fails where its program ends instead, or never says so."""
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"it is not served: exit code {process.poll()}")
