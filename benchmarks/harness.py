"""What the benchmarks share: servers as processes of their own, started as a user would, and the page with the tables.

A table is made by the run that measured it, names the machine, and stands in ``docs/performance.md`` between markers
of its own; nothing there is typed by hand. Times of different processes are compared by ``time.monotonic``, which on
Linux is one clock for the whole machine.
"""

import contextlib
import math
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, NamedTuple, Self
from urllib.request import urlopen

import psutil

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
START_S, STOP_S = 60.0, 5.0
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
        """The processor time it has used, in seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def millrace(environment: Mapping[str, str], *agents: str) -> Iterator[Server]:
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
        with _serving("Millrace", command, {**settings, **environment}, "--port") as server:
            yield server


@contextlib.contextmanager
def langserve(environment: Mapping[str, str]) -> Iterator[Server]:
    """The peer: LangServe with the same graphs."""
    with _serving("LangServe", [sys.executable, str(HERE / "langserve_app.py")], environment) as server:
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


@contextlib.contextmanager
def _serving(name: str, command: Sequence[str], environment: Mapping[str, str], *option: str) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, _process([*command, *option, str(port)], environment, log) as process:
        deadline = time.monotonic() + START_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"{name} did not start:\n{log.read().decode()[-4000:]}")
            time.sleep(0.05)
        yield Server(name, url, psutil.Process(process.pid))


def _ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/health/ready", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def _process(
    command: Sequence[str],
    environment: Mapping[str, str],
    stdout: int | IO[bytes],
    stderr: int | None = subprocess.STDOUT,
) -> Iterator[subprocess.Popen[bytes]]:
    _many_files()
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MILLRACE_", "OPENAI_"))}
    process = subprocess.Popen(command, cwd=HERE, env={**inherited, **environment}, stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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


# -- the page ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; numbers to the right."""
    lines = [head, [":--" if index < 1 else "--:" for index in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write(name: str, body: str, page: Path = PAGE) -> None:
    """Put ``body`` between the page's markers ``name``; a page or a place that is not there yet is made."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = page.read_text(encoding="utf-8") if page.exists() else HEAD
    if begin not in text:
        text = f"{text.rstrip()}\n\n{begin}\n{end}\n"
    before, after = text.split(begin)[0], text.split(end)[1]
    page.write_text(f"{before}{begin}\n{body.strip()}\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """The machine, the versions and the day, in a sentence."""
    packages = ("uvicorn", "langgraph", "langchain-core", "langchain-openai", "langserve")
    return (
        f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, "
        f"{', '.join(f'{one} {version(one)}' for one in packages)}; {datetime.now(UTC):%Y-%m-%d}. "
        "Server, providers and clients ran beside one another on it."
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
