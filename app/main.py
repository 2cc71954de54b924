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
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi import FastAPI
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from openai import DefaultAsyncHttpxClient

from app.routes import errors
from app.routes.access import LoopbackOnly
from app.routes.agents import agent_routes
from app.routes.health import health_routes
from app.routes.langserve import langserve_routes
from app.routes.runs import run_routes
from app.runs.agent import Agent
from app.runs.runner import Runner
from app.settings import SIMULATED, Settings
from app.simulator.server import Simulator
from app.targets import Target, load_config, load_target
from app.transports.body import BodyLimit
from chains.models import build_model
from chains.registry import BUILTINS
from tools.calculator import build_calculator
from tools.clock import build_clock
from tools.search_documents import build_search_documents
from tools.weather import build_weather

logger = logging.getLogger("millrace")

ROOT = Path(__file__).resolve().parent.parent


def create_app(settings: Settings | None = None, agents: Mapping[str, Runnable[Any, Any]] | None = None) -> FastAPI:
    """The server as an ASGI app.

    ``agents`` are served beside the built-in ones (and replace one of the same name); they may also be named in
    the settings (``MILLRACE_AGENTS``, ``MILLRACE_CONFIG``). Without ``settings`` they are read from the environment.
    Raises ``app.targets.TargetError`` when a named agent cannot be loaded.
    """
    settings = settings or Settings()
    simulator = Simulator(tokens_per_second=settings.simulated_tokens_per_second) if _simulated(settings) else None
    client = DefaultAsyncHttpxClient()
    served = {
        **_builtins(settings, simulator, client),
        **{name: Agent(name, runnable) for name, runnable in (agents or {}).items()},
        **{target.name: _named(target) for target in _targets(settings)},
    }
    runner = Runner(
        served,
        run_timeout_s=settings.run_timeout_s,
        disconnect_grace_s=settings.disconnect_grace_s,
        retention_s=settings.run_retention_s,
        run_max_bytes=settings.run_max_bytes,
        strict=settings.strict,
    )
    app = FastAPI(
        title="Millrace",
        version=version("millrace"),
        summary="Serves LangGraph agents as streams that survive production.",
        lifespan=_lifespan(runner, simulator, client),
    )
    app.state.runner = runner
    app.state.simulator = simulator
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(LoopbackOnly)
    errors.install(app)
    app.include_router(health_routes(lambda: runner.open))
    app.include_router(agent_routes(runner, heartbeat_s=settings.heartbeat_s))
    app.include_router(run_routes(runner, heartbeat_s=settings.heartbeat_s))
    app.include_router(langserve_routes(runner, heartbeat_s=settings.heartbeat_s))
    return app


def _lifespan(
    runner: Runner, simulator: Simulator | None, client: DefaultAsyncHttpxClient
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if simulator is not None:
            simulator.start()
            logger.warning(
                "no provider is set: answers are SIMULATED. Set OPENAI_API_KEY or OPENAI_BASE_URL for a model."
            )
        try:
            with _before_exit(runner.stop):
                yield
        finally:
            await runner.close()
            await client.aclose()
            if simulator is not None:
                simulator.stop()

    return lifespan


@contextmanager
def _before_exit(stop: Callable[[], None]) -> Iterator[None]:
    """Call ``stop`` on SIGINT and SIGTERM, before the server's own handler.

    uvicorn waits for open streams first and ends the lifespan after them; but a stream ends with its run. So the runs
    are ended as soon as the signal is there, and every reader gets its terminal event.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    chained = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop)
        following = chained[signal.Signals(number)]
        if callable(following):
            following(number, frame)

    for number in chained:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, following in chained.items():
            signal.signal(number, following)


def _simulated(settings: Settings) -> bool:
    return settings.chosen_model() == SIMULATED


def _builtins(settings: Settings, simulator: Simulator | None, client: DefaultAsyncHttpxClient) -> dict[str, Agent]:
    name, model, tools = settings.chosen_model(), _model(settings, simulator, client), _tools(settings)
    return {
        agent: Agent(agent, built.build(model, tools), description=built.description, model=name)
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
    ]


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
