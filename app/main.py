"""The composition root: reads the settings, opens what must be opened, and joins the rooms.

``create_app`` builds everything and starts nothing; what needs the event loop is opened by the app's lifespan and
closed in the reverse order. To embed it, pass the settings and the agents. To deploy it, let uvicorn call it::

    uvicorn app.main:create_app --factory
"""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from httpx2 import Limits as ConnectionLimits
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from openai import DefaultAsyncHttpxClient
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from typing_extensions import override

from app.eventlog.base import Lag
from app.limits.door import Door
from app.limits.gate import Gate
from app.limits.policy import Limits, Policy, load
from app.memory import frugal
from app.routes import errors
from app.routes.access import Access
from app.routes.agents import agent_routes
from app.routes.health import health_routes
from app.routes.keys import Keys, parse_keys
from app.routes.langserve import langserve_routes
from app.routes.metrics import metrics_routes
from app.routes.page import page_routes
from app.routes.runs import run_routes
from app.routes.session import session_routes
from app.routes.usage import usage_routes
from app.routes.websocket import WebSockets
from app.runs.agent import Agent
from app.runs.books import Books
from app.runs.executor import blocking_nodes, installed
from app.runs.ledger import Ledger
from app.runs.parsing import bound_parsing
from app.runs.prices import Prices, load_prices
from app.runs.runner import Runner, Timing
from app.runs.shortcut import are_deaf
from app.runs.worker import Worker
from app.settings import SIMULATED, Settings
from app.simulator.server import Simulator
from app.targets import Target, load_config, load_target
from app.telemetry.metrics import Metrics
from app.telemetry.spans import Spans, open_spans
from app.transports.body import BodyLimit
from app.transports.peer import Peer
from app.transports.wire import Wire
from chains.models import build_model, prefills
from chains.quick import quick_deltas
from chains.registry import BUILTINS
from chains.toolnode import ToolLimits
from tools.calculator import build_calculator
from tools.clock import build_clock
from tools.search_documents import build_search_documents
from tools.send_email import build_send_email
from tools.weather import build_weather

logger = logging.getLogger("millrace")

CONNECTIONS = ConnectionLimits(max_connections=None, max_keepalive_connections=1000)
"""To the model provider: as many as there are calls, which the gate bounds."""

ROOT = Path(__file__).resolve().parent.parent


def create_app(settings: Settings | None = None, agents: Mapping[str, Runnable[Any, Any]] | None = None) -> FastAPI:
    """The server as an ASGI app.

    ``agents`` are served beside the built-in ones (and replace one of the same name); they may also be named in
    the settings (``MILLRACE_AGENTS``, ``MILLRACE_CONFIG``). Without ``settings`` they are read from the environment.
    Raises ``app.targets.TargetError`` when a named agent cannot be loaded, ``app.routes.keys.BadKeys`` for keys that
    cannot be used.
    """
    settings = settings or Settings()
    keys = _keys(settings)
    simulator = Simulator(tokens_per_second=settings.simulated_tokens_per_second) if _simulated(settings) else None
    client = DefaultAsyncHttpxClient(limits=CONNECTIONS)
    served = {
        **_builtins(settings, simulator, client),
        **{name: Agent(name, runnable) for name, runnable in (agents or {}).items()},
        **{target.name: _named(target) for target in _targets(settings)},
    }
    ledger = Ledger(settings.database_path(), demanded=settings.database_url is not None)
    door, gate, metrics = Door(_policy(settings)), _gate(settings), Metrics(served)
    prices = Prices(load_prices(settings.prices_file) if settings.prices_file else {})
    spans = open_spans() if settings.otel else None
    runner = (Runner if settings.workers == 1 else partial(Worker, workers=settings.workers))(
        served,
        ledger,
        timing=Timing(
            run_timeout_s=settings.run_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            token_timeout_s=settings.token_timeout_s,
            disconnect_grace_s=settings.disconnect_grace_s,
            pause_timeout_s=settings.pause_timeout_s,
            retention_s=settings.run_retention_s,
            queue_timeout_s=settings.upstream_queue_timeout_s,
        ),
        lag=Lag(settings.subscriber_max_events, settings.subscriber_max_bytes),
        run_max_bytes=settings.run_max_bytes,
        strict=settings.strict,
        door=door,
        gate=gate,
        books=Books(ledger, door, metrics=metrics, prices=prices, spans=spans, prompts=settings.log_prompts),
        adaptive=settings.adaptive_max_tokens,
        tools_at_once=settings.tools_at_once,
    )
    metrics.watch(
        runs=runner.states,
        readers=lambda: door.readers,
        gate=lambda: (gate.under_way, gate.waiting, gate.limit),
    )
    app = _App(
        send_timeout_s=settings.send_timeout_s,
        title="Millrace",
        redoc_url=None,  # `/docs` shows the same
        version=version("millrace"),
        summary="Serves LangGraph agents as streams that survive production.",
        lifespan=_lifespan(settings, runner, simulator, client, spans),
    )
    app.state.runner = runner
    app.state.simulator = simulator
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(WebSockets, runner=runner, max_frame_bytes=settings.max_body_bytes)
    app.add_middleware(
        Access, keys=keys, origins=settings.cors_origins, anyone=settings.serve_anyone, allowance=runner.allowance
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Content-Type", "Last-Event-ID", "Idempotency-Key", "Authorization", "X-API-Key"),
            expose_headers=("X-Run-Id", "Content-Location", "Retry-After", "RateLimit", "RateLimit-Policy"),
        )
    app.add_middleware(Peer, trusted_proxies=settings.trusted_proxies)  # the last is the outermost: see ``_App``
    errors.install(app)
    app.include_router(health_routes(lambda: runner.open_for_runs))
    app.include_router(agent_routes(runner, heartbeat_s=settings.heartbeat_s))
    app.include_router(run_routes(runner, heartbeat_s=settings.heartbeat_s))
    app.include_router(usage_routes(runner))
    app.include_router(metrics_routes(metrics))
    app.include_router(langserve_routes(runner, heartbeat_s=settings.heartbeat_s))
    app.include_router(session_routes(keys))
    app.include_router(page_routes())
    return app


class _App(FastAPI):
    """FastAPI with ``Wire`` outside of everything, also of the error handler that Starlette keeps outermost."""

    def __init__(self, *, send_timeout_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._send_timeout_s = send_timeout_s

    @override
    def build_middleware_stack(self) -> ASGIApp:
        """The whole app."""
        # One that was added after ours may count or change what is sent: then no stream may write past it.
        outermost: object = self.user_middleware[0].cls
        direct = outermost is Peer
        return Wire(super().build_middleware_stack(), send_timeout_s=self._send_timeout_s, direct=direct)


def _lifespan(
    settings: Settings,
    runner: Runner,
    simulator: Simulator | None,
    client: DefaultAsyncHttpxClient,
    spans: Spans | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as closing:
            closing.enter_context(frugal())
            if simulator is not None:
                simulator.start()
                closing.callback(simulator.stop)
                logger.warning(
                    "no provider is set: answers are SIMULATED. Set OPENAI_API_KEY or OPENAI_BASE_URL for a model."
                )
            closing.push_async_callback(client.aclose)
            if spans is not None:
                closing.push_async_callback(asyncio.to_thread, spans.close)
            closing.enter_context(installed(settings.sync_threads))
            bound_parsing()
            await closing.enter_async_context(quick_deltas(are_deaf))
            closing.push_async_callback(runner.close)
            await runner.open()
            closing.enter_context(_draining(runner, settings.drain_grace_s, supervised=settings.workers > 1))
            for name, agent in runner.agents.items():
                if nodes := blocking_nodes(agent.runnable):
                    logger.info("agent %s: a cancel reaches these synchronous nodes late: %s", name, ", ".join(nodes))
            yield

    return lifespan


@contextmanager
def _draining(runner: Runner, grace_s: float, *, supervised: bool) -> Iterator[None]:
    """Drain on SIGTERM before the server hears of it; stop at once on SIGINT, or at the second signal.

    One of several workers is ``supervised``: who sends a signal to all processes has it sent again by the first of
    them, for which a second signal is SIGINT.

    uvicorn would close its doors first, wait for the open streams, and end the lifespan after them; but a stream ends
    with its run. So while the runs have their grace the server goes on as it was, for readers and probes, and its own
    handler is called when the last run has its terminal event.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    chained = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    drains: list[asyncio.Task[None]] = []
    stopped: list[int] = []

    def hand_over(number: int) -> None:
        following = chained[signal.Signals(number)]
        if callable(following):
            following(number, None)

    def heard(number: int) -> None:
        if number == signal.SIGTERM and not drains:
            drains.append(loop.create_task(runner.drain(grace_s)))
            drains[0].add_done_callback(lambda _: hand_over(number))
        elif not supervised or (number != signal.SIGTERM and not stopped):
            stopped.append(number)
            runner.stop()
            hand_over(number)

    for number in chained:
        signal.signal(number, lambda number, _: loop.call_soon_threadsafe(heard, number))
    try:
        yield
    finally:
        for number, following in chained.items():
            signal.signal(number, following)


def _keys(settings: Settings) -> Keys | None:
    """Who may use the server. What is open, weak or over is said in the log, at every start."""
    if settings.api_keys is None:
        if settings.serve_anyone:
            logger.warning(
                "MILLRACE_SERVE_ANYONE is set and there are no keys: ANYBODY who reaches this port may use the agents "
                "and spend the model provider's money. Set MILLRACE_API_KEYS to say who may."
            )
        return None
    keys = Keys(parse_keys(settings.api_keys.get_secret_value()))
    for user in keys.weak:
        logger.warning("a key of user %s is so short that it may be guessed; 32 random characters are not", user)
    for user in keys.expired:
        logger.warning("a key of user %s has expired", user)
    return keys


def _simulated(settings: Settings) -> bool:
    return settings.chosen_model() == SIMULATED


def _builtins(settings: Settings, simulator: Simulator | None, client: DefaultAsyncHttpxClient) -> dict[str, Agent]:
    name, model = settings.chosen_model(), _model(settings, simulator, client)
    tools, limits = {tool.name: tool for tool in _tools(settings)}, _tool_limits(settings)
    return {
        agent: Agent(
            agent,
            built.build(model, [tools[one] for one in built.tools], limits),
            description=built.description,
            model=name,
            served_model=True,
            seamless=prefills(model),
        )
        for agent, built in BUILTINS.items()
    }


def _model(settings: Settings, simulator: Simulator | None, client: DefaultAsyncHttpxClient) -> BaseChatModel:
    if simulator is not None:
        return build_model("openai:simulated", base_url=simulator.base_url, client=client)
    key = settings.openai_api_key
    return build_model(
        settings.chosen_model(),
        base_url=settings.openai_base_url,
        api_key=key.get_secret_value() if key else None,
        client=client,
    )


def _tools(settings: Settings) -> list[BaseTool]:
    return [
        build_calculator(),
        build_clock(),
        build_weather(settings.weather_url),
        build_search_documents(settings.docs_dir or ROOT / "docs"),
        build_send_email(settings.outbox_dir),
    ]


def _tool_limits(settings: Settings) -> ToolLimits:
    return ToolLimits(
        timeout_s=settings.tool_timeout_s,
        output_chars=settings.tool_output_chars,
        at_once=settings.tools_at_once,
        attempts=settings.tool_attempts,
    )


def _policy(settings: Settings) -> Policy:
    limits = Limits(
        max_streams=settings.max_streams_per_user,
        requests_per_minute=settings.requests_a_minute(),
        tokens_per_day=settings.tokens_per_day,
        cost_per_day_usd=settings.cost_per_day_usd,
        max_readers=settings.max_readers_per_user,
    )
    return load(settings.limits_file, limits) if settings.limits_file is not None else Policy(limits)


def _gate(settings: Settings) -> Gate:
    return Gate(
        settings.share(settings.upstream_concurrency),
        tokens_per_minute=settings.share(settings.upstream_tokens_per_minute),
        max_waiting=settings.share(settings.upstream_queue_max),
        max_waiting_per_user=settings.share(settings.upstream_queue_max_per_user),
    )


def _targets(settings: Settings) -> list[Target]:
    targets = [load_target(spec, root=Path.cwd()) for spec in settings.agents]
    if settings.config is not None:
        graphs, notes = load_config(settings.config)
        targets += graphs
        for note in notes:
            logger.warning("%s: %s", settings.config.name, note)
    return targets


def _named(target: Target) -> Agent:
    return Agent(target.name, target.runnable, description=target.description)
