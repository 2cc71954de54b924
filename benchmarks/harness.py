"""What the benchmarks share: servers as processes of their own, started as a user would, and the page with the tables.

A table is made by the run that measured it, names the machine, and stands in ``docs/performance.md`` between markers
of its own; nothing there is typed by hand. Times of different processes are compared by ``time.monotonic``, which on
Linux is one clock for the whole machine.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, Self
from urllib.request import urlopen

import peers
import psutil

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
README = HERE.parent / "README.md"
START_S, STOP_S = 60.0, 5.0
SERVER_CORE, OTHERS_CORE = 0, 1
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
PINNED = len(CORES) > 1
"""The server has a core, provider and clients share another one, where the system knows how."""
HEAD = """# Performance

What was measured, on which machine, and how to measure it again. Each table is written by the script that it names.
"""


class Server(NamedTuple):
    """A running server: where it listens, and its process."""

    name: str
    url: str
    process: psutil.Process

    @property
    def address(self) -> tuple[str, int]:
        """For a socket."""
        return address(self.url)

    def rss(self) -> float:
        """What it holds in memory, in MB."""
        return float(self.process.memory_info().rss) / 1e6

    def cpu_s(self) -> float:
        """The processor time it has used, in seconds, by the operating system's account."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def millrace(environment: Mapping[str, str], *agents: str, launcher: Sequence[str] = ()) -> Iterator[Server]:
    """``millrace serve`` with the built-in agents and those of ``agents.py`` that are named."""
    command = [str(Path(sys.executable).with_name("millrace")), "serve", *(f"{name}=agents:{name}" for name in agents)]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "MILLRACE_MODEL": "openai:simulated",
            "MILLRACE_LOG_LEVEL": "warning",
            "MILLRACE_DATABASE_URL": f"sqlite:///{folder}/millrace.db",
            "MILLRACE_MAX_STREAMS_PER_USER": "0",
            "MILLRACE_MAX_READERS_PER_USER": "100000",
            "MILLRACE_UPSTREAM_CONCURRENCY": "100000",
            "MILLRACE_DRAIN_GRACE_S": "1",
        }
        with _serving("Millrace", [*launcher, *command], {**settings, **environment}, "--port") as server:
            yield server


@contextlib.contextmanager
def langserve(environment: Mapping[str, str]) -> Iterator[Server]:
    """The peer: LangServe with the same graphs."""
    with _serving("LangServe", [sys.executable, str(HERE / "langserve_app.py")], environment) as server:
        yield server


@contextlib.contextmanager
def langgraph_api(environment: Mapping[str, str]) -> Iterator[Server]:
    """The peer: langgraph-api with the same graph, in memory, from an environment of its own."""
    command = [peers.python("langgraph-api"), str(HERE / "langgraph_app.py")]
    settings = {"LOG_LEVEL": "ERROR", "LANGSMITH_TRACING": "false"}
    with (
        tempfile.TemporaryDirectory() as folder,  # it keeps a folder of its own wherever it is started
        _serving("langgraph-api", command, {**settings, **environment}, ready="/ok", folder=folder) as server,
    ):
        yield server


@contextlib.contextmanager
def floor(environment: Mapping[str, str]) -> Iterator[Server]:
    """Bare ASGI under the same uvicorn, with no agent."""
    with _serving("bare ASGI", [sys.executable, str(HERE / "floor_app.py")], environment) as server:
        yield server


@contextlib.contextmanager
def provider(tokens_per_second: float) -> Iterator[str]:
    """A simulated provider as a process of its own; gives its base URL."""
    command = [sys.executable, "-m", "app.simulator", "--tokens-per-second", str(tokens_per_second)]
    with piped([*command, "--log", os.devnull]) as process:
        assert process.stdout is not None
        with process.stdout:
            yield process.stdout.readline().decode().strip()


@contextlib.contextmanager
def piped(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that tells something on its standard output."""
    with _process(command, {}, subprocess.PIPE, None) as process:
        yield process


def lines(command: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What a process tells, a JSON object a line, as it tells it."""
    with piped(command) as process:
        assert process.stdout is not None
        with process.stdout:
            yield from map(json.loads, process.stdout)


@contextlib.contextmanager
def _serving(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *option: str,
    ready: str = "/health/ready",
    folder: str | Path = HERE,
) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [*command, *option, str(port)]
    with (
        tempfile.TemporaryFile() as log,
        _process(command, environment, log, core=SERVER_CORE, folder=folder) as process,
    ):
        deadline = time.monotonic() + START_S
        while not _ready(url + ready):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"{name} did not start:\n{log.read().decode()[-4000:]}")
            time.sleep(0.05)
        yield Server(name, url, psutil.Process(process.pid))


def _ready(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int | IO[bytes],
    stderr: int | None = subprocess.STDOUT,
    *,
    core: int = OTHERS_CORE,
    folder: str | Path = HERE,
) -> Iterator[subprocess.Popen[bytes]]:
    _many_files()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MILLRACE_", "OPENAI_"))}
    with _on(core):
        # In a session of its own: Ctrl-C is the script's, which then takes down what it has started in its own order.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**inherited, **environment},
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _on(core: int) -> Iterator[None]:
    """What is started in here is kept on one core; a process has its parent's mask."""
    if not PINNED:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CORES[core]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def _many_files() -> None:
    """A thousand runs are several thousand sockets; processes started from here inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 20_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(20_000, hard), hard))


class Memory:
    """Watches a server's memory from beside it, every 50 ms, while it is open."""

    def __init__(self, server: Server) -> None:
        self.before = self.peak = server.rss()
        self._server = server
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stopped.wait(0.05):
            self.peak = max(self.peak, self._server.rss())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of ``values`` do not exceed (nearest rank); NaN of none."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def address(url: str) -> tuple[str, int]:
    """Host and port of ``http://host:port``."""
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def told(number: float, unit: str = "") -> str:
    """A figure as people read it: three digits, or whole when it is large; a dash for what there is not."""
    if math.isnan(number):
        return "–"
    return (f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}") + unit


def three(values: Sequence[float]) -> str:
    """p50 / p99 / longest, say."""
    return " / ".join(told(one) for one in values)


# -- the script -------------------------------------------------------------------------------------------------------


def options(description: str, **own: tuple[float | str, str]) -> argparse.ArgumentParser:
    """What every script understands: ``--quick``, ``--page``, and its own options with their defaults and meanings."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="little of everything, and no page: to see that it works")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that the table is written to")
    for name, (default, meaning) in own.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning} ({default})")
    return parser


def run(main: Callable[[], int | None]) -> NoReturn:
    """The script; ended by Ctrl-C or SIGTERM, it takes down all that it has started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if PINNED:  # several scripts are clients themselves
        os.sched_setaffinity(0, {CORES[OTHERS_CORE]})
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)


def say(text: str) -> None:
    """What is going on, for whoever waits."""
    print(f"{datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)  # noqa: DTZ005 - a clock on the wall


# -- the page ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; numbers to the right."""
    lines = [head, [":--" if index < 1 else "--:" for index in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write(name: str, body: str, page: Path = PAGE, readme: Path | None = None) -> None:
    """Put ``body`` between the page's markers ``name``; a page or a place that is not there yet is made.

    With the project's own page its headlines go into the README.
    """
    _put(name, body, page, HEAD)
    readme = README if page == PAGE else readme
    if readme is not None:
        _put("headlines", headlines(page.read_text(encoding="utf-8")), readme, "")


def _put(name: str, body: str, page: Path, head: str) -> None:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else head
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{body.strip()}\n{end}{after}", encoding="utf-8")


def headlines(page: str) -> str:
    """The lines of the page that stand alone in bold, as a list."""
    return "\n".join(f"- {line}" for line in re.findall(r"^\*\*(.+)\*\*$", page, re.MULTILINE))


@contextlib.contextmanager
def chart(name: str, page: Path = PAGE, *, width: float = 8.0, height: float = 3.2) -> Iterator[Any]:
    """Axes to draw on; written beside the page as ``NAME.svg``, by the same data always the same bytes."""
    import matplotlib as mpl  # noqa: PLC0415 - half a second that --help need not wait for
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": "millrace", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes
        figure.savefig(page.with_name(f"{name}.svg"), format="svg", metadata={"Date": None})


def bars(name: str, title: str, unit: str, values: Mapping[str, float], page: Path = PAGE) -> str:
    """A chart of one bar each, the figures beside them; gives the line that shows it."""
    known = {label: value for label, value in values.items() if not math.isnan(value)}
    with chart(name, page, height=0.9 + 0.34 * len(known)) as axes:
        drawn = axes.barh(
            list(known), list(known.values()), color=["#2a78a8" if "Millrace" in one else "#b9b9b9" for one in known]
        )
        axes.bar_label(
            drawn, [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in known.values()], padding=3
        )
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.set_title(title, loc="left")
        axes.margins(x=0.12)
    return f"![{title}]({name}.svg)"


def machine() -> str:
    """The machine, the versions and the day, in a sentence."""
    packages = ("uvicorn", "uvloop", "langgraph", "langchain-core", "langchain-openai", "openai", "langserve")
    pinned = "the server on a core of its own, provider and clients together on another"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, "
        f"{', '.join(f'{one} {version(one)}' for one in packages)}, "
        f"{peers.versions('langgraph-api', 'langgraph-api')}; {datetime.now(UTC):%Y-%m-%d}. "
        f"Server, providers and clients ran beside one another on it{f', {pinned}' if PINNED else ''}."
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
