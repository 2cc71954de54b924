"""Where the time of a token goes: a loaded Millrace, looked at a few hundred times a second of its processor time.

``millrace serve`` is started through this file, which sets a timer that counts the process's own processor time
(``ITIMER_PROF``): at each tick the stack is looked at, and the processor time since the last look is booked on the room
of the house or the library that the innermost frame belongs to. What the standard library does is booked on its caller;
what runs in C on the Python that called it; the garbage collector is told apart by its own callbacks. No root, no
tracing: what is not looked at runs at its speed.

    python benchmarks/where.py [--agent assistant] [--runs 200] [--seconds 15] [--quick] [--page docs/performance.md]
"""

import gc
import json
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import harness
from harness import told
from load import Driven, drive

EVERY_S = 0.002
PACE, TOKENS = 10, 200
SHOWN = 25
OTHER = "the event loop"

ROOMS = (
    (OTHER, ("uvicorn/_compat.py", "uvicorn/server.py", "uvicorn/main.py", "app/cli.py")),
    (
        "the provider's wire",
        ("httpx2", "httpcore2", "h11", "anyio", "sniffio", "ssl", "chains/transport.py", "chains/deltas.py"),
    ),
    ("openai", ("openai",)),
    ("LangChain", ("langchain_core", "langchain_openai", "langchain", "langsmith")),
    ("LangGraph", ("langgraph",)),
    ("pydantic", ("pydantic", "pydantic_core")),
    ("chains, tools", ("chains", "tools")),
    ("app/runs", ("app/runs",)),
    ("app/limits", ("app/limits",)),
    ("app/events", ("app/events",)),
    ("app/eventlog", ("app/eventlog",)),
    ("app/protocols", ("app/protocols",)),
    ("app/transports", ("app/transports",)),
    ("app/routes, FastAPI, Starlette", ("app/routes", "fastapi", "starlette", "sse_starlette")),
    ("app/telemetry", ("app/telemetry", "prometheus_client", "opentelemetry")),
    ("app, the rest", ("app",)),
    ("uvicorn", ("uvicorn", "httptools", "websockets")),
    ("SQLite", ("aiosqlite", "sqlite3")),
    ("the garbage collector", ("benchmarks/where.py",)),
)
"""Each with the packages and folders that it consists of; the first that fits has it."""


def place(file: str, roots: Mapping[str, str]) -> str:
    """A file's path below whatever it was installed in: ``openai/_streaming.py``; empty: it is nowhere."""
    for root, prefix in roots.items():
        if file.startswith(root):
            return prefix + file[len(root) :].lstrip("/")
    return ""


def room(path: str) -> str | None:
    """Whose a file is; ``None``: nobody's, so its caller's."""
    if not path:
        return None
    found = (name for name, parts in ROOMS for part in parts if path == part or path.startswith(f"{part}/"))
    return next(found, None)


class Sampler:
    """Looks at the main thread's stack; ``SIGUSR1`` begins, ``SIGUSR2`` ends and writes to ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rooms: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()
        self._last = 0.0
        # The innermost root first: the environment may stand within the project.
        house = str(Path(sys.modules["app"].__file__ or "").resolve().parents[1])
        self._roots = {sysconfig.get_path("purelib"): "", sysconfig.get_path("stdlib"): "\0", house: ""}
        self._names: dict[str, str] = {}
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)
        signal.signal(signal.SIGPROF, self._look)

    def _begin(self, *_: object) -> None:
        gc.callbacks.append(_collecting)
        self._last = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def _end(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._file.write_text(json.dumps({"rooms": self._rooms, "functions": self._functions}), encoding="utf-8")

    def _look(self, _: int, frame: FrameType | None) -> None:
        now = time.process_time()
        passed, self._last = now - self._last, now
        while frame is not None:
            path = self._name(frame.f_code.co_filename)
            if (owner := room(path)) is not None:
                self._rooms[owner] += passed  # type: ignore[assignment]
                self._functions[f"{path}: {frame.f_code.co_qualname}"] += passed  # type: ignore[assignment]
                return
            frame = frame.f_back
        self._rooms[OTHER] += passed  # type: ignore[assignment]

    def _name(self, file: str) -> str:
        if file not in self._names:
            found = place(file, self._roots)
            self._names[file] = "" if found.startswith("\0") else found
        return self._names[file]


def _collecting(_phase: str, _info: Mapping[str, Any]) -> None:
    """Called when a collection begins and ends: a tick that fell into it is handled here, so booked on this file."""


def serve(file: str, arguments: list[str]) -> None:
    """``millrace`` with the sampler in it."""
    from app.cli import main as millrace  # noqa: PLC0415 - in the server's process only

    Sampler(Path(file))
    sys.argv = ["millrace", *arguments]
    millrace()


# -- the other side of it ---------------------------------------------------------------------------------------------


class Looked(NamedTuple):
    """Seconds of processor time by room and by function, and the load that they are for."""

    rooms: Mapping[str, float]
    functions: Mapping[str, float]
    got: Driven

    def us(self, seconds: float) -> float:
        """Of each token."""
        return self.got.cpu_us * seconds / sum(self.rooms.values())


def measure(agent: str, runs: int, seconds: float) -> Looked:
    """A loaded server, looked at while it is steady."""
    with tempfile.TemporaryDirectory() as folder, harness.provider(PACE) as provider:
        file = Path(folder) / "looked.json"
        launcher = [sys.executable, str(Path(__file__).resolve()), "serve", str(file)]
        with harness.millrace({"OPENAI_BASE_URL": provider}, "live", launcher=launcher) as server:
            harness.say(f"{agent}: {runs} live runs, {seconds:g} s")
            begun = False

            def tell(line: str) -> None:
                nonlocal begun
                if not begun and line.startswith(f"{runs} live"):
                    begun = True
                    os.kill(server.process.pid, signal.SIGUSR1)

            path = f"/agents/{agent}/runs"
            got = drive(server, path, runs, PACE, tokens=TOKENS, settle=4, seconds=seconds, tell=tell)
            os.kill(server.process.pid, signal.SIGUSR2)
            deadline = time.monotonic() + 10
            while not file.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(0.2)  # for the whole of it
            found = json.loads(file.read_text(encoding="utf-8"))
    return Looked(found["rooms"], found["functions"], got)


# -- the page ---------------------------------------------------------------------------------------------------------


def report(looked: Looked, agent: str, runs: int) -> str:
    """What goes into the page."""
    whole = sum(looked.rooms.values())
    rooms = [
        [name, told(looked.us(one)), f"{one / whole:.1%}"]
        for name, one in sorted(looked.rooms.items(), key=lambda item: -item[1])
    ]
    functions = [
        [f"`{name}`", told(looked.us(one)), f"{one / whole:.1%}"]
        for name, one in sorted(looked.functions.items(), key=lambda item: -item[1])[:SHOWN]
    ]
    what = (
        f"{runs} live runs of `{agent}` at {PACE} tokens/s, answers of {TOKENS} tokens: {told(looked.got.cpu_us)} µs a "
        "token, the start of the runs included, by what the process was at when it was looked at. What the standard "
        "library does is booked on its caller, what C does on the Python that called it. Written by `python "
        "benchmarks/where.py`."
    )
    return "\n\n".join(
        (
            "## Where the time of a token goes",
            what,
            harness.table(["", "µs a token", "part"], rows=rooms),
            f"The {SHOWN} functions that most of it goes to, without what they call:",
            harness.table(["function", "µs a token", "part"], rows=functions),
            harness.machine(),
        )
    )


def main() -> None:
    """Measure all of it, and write the page."""
    parser = harness.options(
        "Where the time of a token goes.",
        agent=("assistant", "the agent, or `live`"),
        runs=(200, "live runs"),
        seconds=(15.0, "how long it is looked at"),
    )
    options = parser.parse_args()
    runs, seconds = (50, 5.0) if options.quick else (options.runs, options.seconds)
    text = report(measure(options.agent, runs, seconds), options.agent, runs)
    if not options.quick:
        harness.write("where", text, options.page)
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], sys.argv[4:])
    else:
        harness.run(main)
