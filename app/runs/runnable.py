"""A Runner as a Runnable: what LangServe's routes are given in place of the agent itself.

LangServe is no encoder: it calls ``ainvoke``, ``abatch``, ``astream``, ``astream_log`` and ``astream_events`` and
sends on what they yield. Each of those calls is a run here, by the one door: in ``/runs``, counted, cancellable,
and ended with its client. Who asks is in ``caller``, a context variable that the route sets: LangServe drops what
its config hook adds on the way to a batch.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, cast
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.utils import ConfigurableFieldSpec, _RootEventFilter
from langchain_core.tracers.log_stream import LogStreamCallbackHandler, RunLogPatch, _astream_log_implementation
from pydantic import RootModel, model_validator
from typing_extensions import override

from app.errors import RunFailed
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.run import Run
from app.runs.runner import Runner
from app.runs.scope import Attachment
from app.runs.tap import Tap


class Caller:
    """Whoever sent the request being served; leaving it leaves every run it reads."""

    def __init__(self, user: str) -> None:
        self.user = user
        self._attachments: list[Attachment] = []

    def attach(self, run: Run) -> Attachment:
        """Read the run until this caller is closed, or sooner."""
        attachment = run.scope.attach()
        self._attachments.append(attachment)
        return attachment

    def close(self) -> None:
        """The client is gone, or has its answer."""
        for attachment in self._attachments:
            attachment.close()


_caller: ContextVar[Caller] = ContextVar("caller")


@contextmanager
def calling(user: str) -> Iterator[Caller]:
    """Within this block, runs are started for ``user``, and are left at its end."""
    caller = Caller(user)
    token = _caller.set(caller)
    try:
        yield caller
    finally:
        _caller.reset(token)
        caller.close()


class AgentRunnable(Runnable[Any, Any]):
    """An agent whose every call is a run. Only the asynchronous methods work: a run needs the event loop."""

    def __init__(self, runner: Runner, agent: Agent) -> None:
        self._runner = runner
        self._agent = agent
        self.name = agent.name
        self._input = _input_model(agent)
        self._output = _output_model(agent)

    @property
    @override
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        allowed = self._agent.configurable
        return [spec for spec in self._agent.runnable.config_specs if spec.id in allowed]

    @override
    def get_input_schema(self, config: RunnableConfig | None = None) -> type[RootModel[Any]]:
        return self._input

    @override
    def get_output_schema(self, config: RunnableConfig | None = None) -> type[RootModel[Any]]:
        return self._output

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError("a run needs the event loop: use ainvoke")

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        run, attachment = self._start(input, config, None)
        with attachment:
            await run.done.wait()
        _raise_if_failed(run)
        return run.output()

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        # astream_log asks for this stream too, with a handler that hears of every step.
        tap = Tap()
        run, attachment = self._start(input, config, tap, _log_handlers(config))
        with attachment:
            root: str | None = None
            async for raw in tap:
                root = root or raw["run_id"]
                if raw["run_id"] == root and raw["event"].endswith("_stream"):
                    yield raw["data"]["chunk"]
        _raise_if_failed(run)

    @override
    async def astream_log(
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        diff: bool = True,
        **filters: Any,
    ) -> AsyncIterator[Any]:
        # What the inherited method does, without its warning that it will go: LangServe's clients decide when.
        patches = _astream_log_implementation(
            self,
            input,
            config,
            stream=LogStreamCallbackHandler(auto_close=False, _schema_format="original", **filters),
            diff=True,
        )
        async with aclosing(cast("AsyncGenerator[RunLogPatch, None]", patches)) as closing:
            async for patch in closing:
                for op in patch.ops:
                    entry = op.get("value")
                    if isinstance(entry, dict) and entry.get("type") == "tool":
                        # RemoteRunnable takes any object of that type for a ToolMessage; without this it breaks.
                        entry.setdefault("tool_call_id", None)
                yield patch

    @override
    async def astream_events(  # type: ignore[override]  # the base is an overload by version; LangServe asks for v2
        self,
        input: Any,
        config: RunnableConfig | None = None,
        *,
        include_names: Sequence[str] | None = None,
        include_types: Sequence[str] | None = None,
        include_tags: Sequence[str] | None = None,
        exclude_names: Sequence[str] | None = None,
        exclude_types: Sequence[str] | None = None,
        exclude_tags: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[Mapping[str, Any]]:
        wanted = _RootEventFilter(
            include_names=include_names,
            include_types=include_types,
            include_tags=include_tags,
            exclude_names=exclude_names,
            exclude_types=exclude_types,
            exclude_tags=exclude_tags,
        )
        tap = Tap()
        run, attachment = self._start(input, config, tap)
        with attachment:
            async for raw in tap:
                if wanted.include_event(raw, _run_type(raw["event"])):  # type: ignore[arg-type]
                    yield raw
        _raise_if_failed(run)

    def _start(
        self,
        value: Any,
        config: RunnableConfig | None,
        tap: Tap | None,
        callbacks: Sequence[BaseCallbackHandler] = (),
    ) -> tuple[Run, Attachment]:
        caller = _caller.get()
        config = config or {}
        run_id = config.get("run_id")
        passed: RunnableConfig = {"configurable": config.get("configurable", {})}
        if "run_name" in config:
            passed["run_name"] = config["run_name"]
        run = self._runner.start(
            self._agent,
            RunRequest(input=value),
            user=caller.user,
            streams=True,
            run_id=UUID(str(run_id)) if run_id else None,
            config=passed,
            callbacks=callbacks,
            tap=tap,
        )
        return run, caller.attach(run)


def _input_model(agent: Agent) -> type[RootModel[Any]]:
    """Any input, checked as every protocol's is; its schema for the playground is the agent's own."""

    class Input(RootModel[Any]):
        @model_validator(mode="before")
        @classmethod
        def check(cls, value: Any) -> Any:
            agent.prepare(value)
            return value

        @classmethod
        @override
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return agent.input_schema

    Input.__name__ = f"{agent.name}_input"
    return Input


def _output_model(agent: Agent) -> type[RootModel[Any]]:
    class Output(RootModel[Any]):
        @classmethod
        @override
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return agent.output_schema

    Output.__name__ = f"{agent.name}_output"
    return Output


def _log_handlers(config: RunnableConfig | None) -> list[BaseCallbackHandler]:
    # LangServe's own aggregator is left out: it would keep every event of the run until its end.
    handlers = (config or {}).get("callbacks") or []
    return [one for one in handlers if isinstance(one, LogStreamCallbackHandler)] if isinstance(handlers, list) else []


def _run_type(event: str) -> str:
    """``on_chat_model_start`` → ``chat_model``."""
    return event.removeprefix("on_").rsplit("_", 1)[0]


def _raise_if_failed(run: Run) -> None:
    if run.status in ("completed", "interrupted"):
        return
    failure = run.failure
    if failure is not None:
        raise RunFailed(failure.message, code=failure.code)
    raise RunFailed(f"the run was {run.status.replace('_', ' ')}", code=run.status)
