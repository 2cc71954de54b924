"""``millrace serve`` and ``millrace settings``: the commands that have the server in them.

``serve`` puts what was said on the command line into the environment and lets uvicorn call ``create_app``, so that
a server started by hand, by uvicorn and by several workers is the same server.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.limits.policy import PolicyError
from app.main import create_app
from app.routes.access import names_loopback
from app.routes.keys import BadKeys
from app.runs.prices import PricesError
from app.settings import SIMULATED, Settings
from app.targets import TargetError
from app.telemetry.logs import configure
from app.transports.peer import is_loopback

commands = typer.Typer()
"""The two commands."""

SHUTDOWN_GRACE_S = 5
"""How long open connections are waited for when the runs have ended."""

LISTEN_S = 0.2
"""How soon a signal is heard while workers are waited for."""

PONG_TIMEOUT_S = 9.0
"""How long a WebSocket's peer may owe the answer to a ping; with the ping's own interval it is gone within 15 s."""


@commands.command()
def serve(
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=MODULE:ATTR", help="Your own agents: a compiled graph, a Runnable, or a factory."),
    ] = None,
    *,
    config: Annotated[Path | None, typer.Option(help="A langgraph.json whose graphs are served as they are.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that serve the port; they share nothing, and refuse what would need it."),
    ] = None,
    serve_anyone: Annotated[
        bool | None,
        typer.Option(help="Without keys, serve whoever reaches the port, at your cost. Else this machine only."),
    ] = None,
) -> None:
    """Serve the built-in agents and your own. For other machines to use it, set MILLRACE_API_KEYS."""
    if agents:
        os.environ["MILLRACE_AGENTS"] = " ".join(agents)
    if config is not None:
        os.environ["MILLRACE_CONFIG"] = str(config)
    if serve_anyone is not None:
        os.environ["MILLRACE_SERVE_ANYONE"] = str(serve_anyone).lower()
    if workers is not None:
        os.environ["MILLRACE_WORKERS"] = str(workers)
    settings = _settings()
    if settings.api_keys is None and not settings.serve_anyone and not (is_loopback(host) or names_loopback(host)):
        _fail(
            f"--host {host} lets other machines in, and no keys are set. Set MILLRACE_API_KEYS to key:user,key:user, "
            "or to a file with one a line, to say who may use the server; or give --serve-anyone, by which anybody who "
            "reaches the port may use the agents and spend the model provider's money."
        )
    configure(settings.log_level, settings.log_format)
    try:
        app = create_app(settings)
    except BadKeys as error:
        _fail(f"MILLRACE_API_KEYS: {error}")
    except PolicyError as error:
        _fail(f"MILLRACE_LIMITS_FILE: {error}")
    except PricesError as error:
        _fail(f"MILLRACE_PRICES_FILE: {error}")
    except (TargetError, ValueError, ImportError) as error:
        _fail(str(error))
    model = settings.chosen_model()
    said = (
        f"Millrace serves {', '.join(app.state.runner.agents)} on http://{host}:{port} "
        f"(model: {model}{', answers are simulated' if model == SIMULATED else ''})"
    )
    if settings.workers > 1:
        said += f", by {settings.workers} workers that share nothing: see docs/serving.md for what they refuse"
    if settings.log_format == "json":
        logging.getLogger("millrace").info(said)  # nothing but objects on stderr
    else:
        Console(stderr=True, soft_wrap=True).print(said, highlight=False)
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "workers": settings.workers,  # said, since uvicorn would look for WEB_CONCURRENCY
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "ws_ping_interval": settings.heartbeat_s,
        "ws_ping_timeout": PONG_TIMEOUT_S,
        "ws_per_message_deflate": False,  # 64 KiB a socket, and a bomb to unfold
        "timeout_graceful_shutdown": SHUTDOWN_GRACE_S,
    }
    if settings.workers > 1:
        _supervise(uvicorn.Config("app.serve:worker", factory=True, **options))
    else:
        # uvicorn raises the signal that ended it once more when all is done: a drained server has ended well.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        uvicorn.run(app, **options)


def worker() -> FastAPI:
    """The app of one of several workers. uvicorn calls this in each, with the environment of ``serve``."""
    settings = Settings()
    configure(settings.log_level, settings.log_format)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        return create_app(settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, the next one would fail in the same way
        logging.getLogger("millrace").critical("a worker cannot start: %s", error)
        sys.exit(STARTUP_FAILURE)


def _end_with_parent() -> None:
    """Drain when the parent is gone, however it went: nobody would be there to stop what goes on serving the port."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(Multiprocess):
    """uvicorn's, which would drain on SIGINT too, and hear no second signal: that one, and SIGINT, do not wait."""

    def handle_int(self) -> None:
        """Stop now."""
        super().handle_int()
        self._hurry()

    def handle_term(self) -> None:
        """Drain; the second time, stop now."""
        if self.should_exit.is_set():
            self._hurry()
        super().handle_term()

    def join_all(self) -> None:
        """Wait for the workers' end; a signal meanwhile is a second one."""
        for process in self.processes:
            while process.exitcode is None:
                process.process.join(LISTEN_S)
                if self.signal_queue:
                    self.signal_queue.clear()
                    self._hurry()

    def _hurry(self) -> None:
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, signal.SIGINT)


def _supervise(config: uvicorn.Config) -> None:
    """Start the workers, replace those that die, and stop them all on a signal."""
    listener = config.bind_socket()
    listener.listen(config.backlog)  # who connects while the workers start is served when they have
    supervisor = Supervisor(config, [listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


@commands.command()
def settings() -> None:
    """Every setting with its value, its default and what it means."""
    table = Table("setting", "value", "default", "meaning", box=None)
    current = _settings()
    for name, field in Settings.model_fields.items():
        shown = name.upper() if name.startswith("openai_") else f"MILLRACE_{name.upper()}"
        default = "–" if field.default in (None, []) else str(field.default)
        table.add_row(shown, _value(getattr(current, name)), default, field.description or "")
    Console(highlight=False).print(table)


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            ": ".join([*(f"MILLRACE_{str(name).upper()}" for name in one["loc"][:1]), one["msg"]])
            for one in error.errors()
        ]
        _fail("; ".join(problems))


def _value(value: object) -> str:
    return "–" if value in (None, []) else str(value)


def _fail(message: str) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"millrace: {message}", markup=False)
    sys.exit(2)
