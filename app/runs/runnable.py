"""A Runner as a Runnable: what LangServe's routes are given in place of the agent itself.

LangServe is no encoder: it calls ``ainvoke``, ``abatch``, ``astream``, ``astream_log`` and ``astream_events`` and
sends on what they yield. Each of those calls is a run here, by the one door: in ``/runs``, counted, cancellable,
and ended with its client. Who asks is in ``caller``, a context variable that the route sets: LangServe drops what
its config hook adds on the way to a batch.
"""

import asyncio
import copy
import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessageChunk, message_chunk_to_message
from langchain_core.prompt_values import ChatPromptValueConcrete, StringPromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list
from langchain_core.runnables.utils import ConfigurableFieldSpec, _RootEventFilter
from langchain_core.tracers.log_stream import RunLogPatch
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError, create_model, model_serializer, model_validator
from typing_extensions import override

from app.errors import RunFailed, UpstreamBusy
from app.events.event import Event, ObjectPartial
from app.events.request import RunRequest
from app.limits.door import Seat, Slot
from app.runs.agent import MAX_INPUT_DEPTH, OBJECT, Agent
from app.runs.run import Run
from app.runs.runlog import Output, Steps, Sum, Words, is_chunk, readable
from app.runs.runner import Brought, Runner
from app.runs.scope import Attachment
from app.runs.tap import Tap


class Caller:
    """Whoever sent the request being served: a reader of every run it starts, until it is closed.

    ``at_playground``: a person at LangServe's page rather than a program. ``started`` is done with its first run.
    ``thread_id``: the conversation it goes on with.
    """

    def __init__(self, user: str, *, at_playground: bool = False) -> None:
        self.user = user
        self.at_playground = at_playground
        self.thread_id: str | None = None
        self.runs: list[str] = []
        self.slots: deque[Slot] = deque()
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attachments: list[Attachment] = []
        self._left = False
        self._seat: Seat | None = None

    @property
    def seated(self) -> bool:
        """Whether the caller is counted as a reader: once, however many runs it starts."""
        return self._seat is not None

    def attach(self, run: Run, runner: Runner) -> None:
        """Read the run. When the caller has left while it was being started, that is the end of its reading."""
        if self._seat is None:
            self._seat = runner.seat(self.user)
        self.runs.append(run.run_id)
        self._attachments.append(run.scope.attach())
        if self._left:
            self.close()
        if not self.started.done():
            self.started.set_result(None)

    def close(self) -> None:
        """The client is gone, has its answer, or does not read what is written. Closing twice is leaving once."""
        self._left = True
        for attachment in self._attachments:
            attachment.close()
        if self._seat is not None:
            self._seat.close()


caller: ContextVar[Caller] = ContextVar("caller")
"""Set by the route, in its request's own context."""


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
    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        return self._input

    @override
    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        return self._output

    @override
    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError("a run needs the event loop: use ainvoke")

    @override
    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        run = await self._start(input, config, _run_id(config))
        await run.done.wait()
        _raise_if_failed(run)
        return _whole(run.output())

    @override
    async def abatch(
        self,
        inputs: list[Any],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        # Let in as a whole, as so many requests in one slot: where runs are limited, one begins as the one before ends.
        who, outputs = caller.get(), []
        who.slots.extend(self._runner.admit(who.user, len(inputs)) if inputs else ())
        try:
            if not self._runner.door.policy.of(who.user).max_streams:
                return await super().abatch(inputs, config, return_exceptions=return_exceptions)
            for value, one in zip(inputs, get_config_list(config, len(inputs)), strict=True):
                try:
                    outputs.append(await self.ainvoke(value, one))
                except Exception as error:
                    if not return_exceptions:
                        raise
                    outputs.append(error)
            return outputs
        finally:
            while who.slots:
                who.slots.popleft().release()

    @override
    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        run_id = _run_id(config)
        partials = self._agent.is_graph and self._agent.answers_object

        def wanted(item: Any) -> bool:
            return _is_answer(item) if isinstance(item, Event) else is_chunk(item, str(run_id))

        run = await self._start(input, config, run_id, tap := _tap(wanted, events=partials))
        async for item in tap:
            # A graph's chunks are what its nodes return: so is an object that a node is still writing.
            yield {item.node: {OBJECT: item.value}} if isinstance(item, ObjectPartial) else item["data"]["chunk"]
        _raise_if_failed(run)

    @override
    async def astream_log(
        self, input: Any, config: RunnableConfig | None = None, *, diff: bool = True, **filters: Any
    ) -> AsyncIterator[Any]:
        run_id = _run_id(config)
        output: Output = Words() if self._agent.takes_messages and caller.get().at_playground else Sum(str(run_id))
        tap = _tap(lambda item: isinstance(item, RunLogPatch) or output.wants(item))
        run = await self._start(input, config, run_id, tap, [Steps(tap, **filters)])
        async for item in tap:
            if isinstance(item, RunLogPatch):
                yield readable(item)
            elif ops := output.add(item):
                yield RunLogPatch(*ops)
        ops = output.end(run)
        for pause_s in output.pauses_s:
            if ops:
                yield RunLogPatch(*ops)
            await asyncio.sleep(pause_s)
        _raise_if_failed(run)

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
        chosen = _RootEventFilter(
            include_names=include_names,
            include_types=include_types,
            include_tags=include_tags,
            exclude_names=exclude_names,
            exclude_types=exclude_types,
            exclude_tags=exclude_tags,
        )
        tap = _tap(lambda raw: chosen.include_event(raw, _run_type(raw["event"])))
        run = await self._start(input, config, _run_id(config), tap)
        async for raw in tap:
            yield raw
        _raise_if_failed(run)

    async def _start(
        self,
        value: Any,
        config: RunnableConfig | None,
        run_id: UUID,
        tap: Tap | None = None,
        callbacks: Sequence[BaseCallbackHandler] = (),
    ) -> Run:
        config = config or {}
        passed: RunnableConfig = {"configurable": config.get("configurable", {})}
        if "run_name" in config:
            passed["run_name"] = config["run_name"]
        who = caller.get()
        slot = who.slots.popleft() if who.slots else None
        with ExitStack() as undo:
            if slot is not None:
                undo.enter_context(slot)
            run = await self._runner.start(
                self._agent,
                RunRequest(input=value, thread_id=who.thread_id),
                user=who.user,
                streams=True,
                run_id=run_id,
                brought=Brought(passed, callbacks, tap, slot, who.seated),
            )
            undo.pop_all()  # it is the run's now
        who.attach(run, self._runner)
        return run


def _run_id(config: RunnableConfig | None) -> UUID:
    """The id that LangServe tells the client."""
    run_id = (config or {}).get("run_id")
    return UUID(str(run_id)) if run_id else uuid4()


def _tap(wanted: Callable[[Any], bool], *, events: bool = False) -> Tap:
    return Tap(wanted=wanted, on_overflow=caller.get().close, events=events)


def _is_answer(event: Event) -> bool:
    return isinstance(event, ObjectPartial) and not event.namespace


def _run_type(event: str) -> str:
    """``on_chat_model_start`` → ``chat_model``."""
    return event.removeprefix("on_").rsplit("_", 1)[0]


def _raise_if_failed(run: Run) -> None:
    if run.status in ("completed", "interrupted"):
        return
    failure = run.failure
    if failure is not None and failure.code == UpstreamBusy.code:
        raise UpstreamBusy(failure.message, retry_after_ms=failure.retry_after_ms)
    if failure is not None:
        raise RunFailed(failure.message, code=failure.code)
    raise RunFailed(f"the run was {run.status.replace('_', ' ')}", code=run.status)


def _whole(output: Any) -> Any:
    """An output as ``ainvoke`` gives it: summed from a stream, its messages are still chunks."""
    if isinstance(output, BaseMessageChunk):
        return message_chunk_to_message(output)
    if isinstance(output, dict):
        return {key: _whole(item) for key, item in output.items()}
    return [_whole(item) for item in output] if isinstance(output, list) else output


def _input_model(agent: Agent) -> type[BaseModel]:
    """Any input, checked as every protocol's is; its schema is the agent's own."""

    class Input(RootModel[Any]):
        @model_validator(mode="before")
        @classmethod
        def check(cls, value: Any) -> Any:
            return _read(agent, value)

    return _described(f"{agent.name}_input", Input, _for_people(agent), agent.runnable.get_input_schema)


def _output_model(agent: Agent) -> type[BaseModel]:
    class Output(RootModel[Any]):
        @model_serializer
        def wrap(self) -> dict[str, Any]:
            # LangServe unwraps a key "root" wherever it finds one: better ours than the agent's.
            return {"root": self.root}

    return _described(f"{agent.name}_output", Output, agent.output_schema, agent.runnable.get_output_schema)


def _described(
    name: str, base: type[RootModel[Any]], schema: dict[str, Any], real: Callable[[], Any]
) -> type[BaseModel]:
    """The model with a schema that is not its own: as it stands for the playground, by reference for OpenAPI."""
    # LangServe keeps all models of the process by their schema, and then by name: an output that looks like its input
    # would be checked as one, and a second server's agent of the same name would break. So both are made unique.
    schema = {**schema, "title": name}
    try:
        core = real().__pydantic_core_schema__
    except Exception:  # noqa: BLE001 - types that pydantic cannot describe are common in users' states
        core = None

    class Described(base):  # type: ignore[misc, valid-type]
        @classmethod
        @override
        def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return schema

        @classmethod
        def __get_pydantic_json_schema__(cls, _: Any, handler: Any) -> Any:
            return {} if core is None else handler(core)

    model = create_model(name, __base__=Described)
    model.__name__ = f"{name}_{hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:12]}"
    return model


def _for_people(agent: Agent) -> dict[str, Any]:
    """The input's schema as the playground can make a form of it."""
    schema = copy.deepcopy(agent.input_schema)
    if agent.takes_messages:
        # A conversation, with a message to fill in, instead of a list to add to.
        schema["properties"]["messages"]["extra"] = {"widget": {"type": "chat"}}
        # Where null is an option the page shows nothing at all; what is optional can be left out of the form.
        optional = schema["properties"].keys() - {"messages", *schema.get("required", ())}
        for name in [one for one in optional if _may_be_null(schema["properties"][one])]:
            del schema["properties"][name]
    elif not schema.keys() - {"title"}:
        schema["type"] = "string"  # it takes anything; without a type there is no form at all
    return schema


def _may_be_null(schema: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "null" for one in schema.get("anyOf", ()))


def _read(agent: Agent, value: Any) -> Any:
    """The input as the runnable takes it. RemoteRunnable sends messages and prompts as their fields."""
    prepared = agent.prepare(_revive(value))
    takes_prompts = "ChatPromptValueConcrete" in agent.input_schema.get("$defs", ())
    if not takes_prompts or not isinstance(prepared, dict):
        return prepared
    return _PROMPT.validate_python(prepared)


_PROMPT: TypeAdapter[Any] = TypeAdapter(ChatPromptValueConcrete | StringPromptValue | Any)
_REVIVED: dict[str, type[AIMessage]] = {"ai": AIMessage, "AIMessageChunk": AIMessageChunk}


def _revive(value: Any, depth: int = 0) -> Any:
    """A model's messages, also those summed from chunks, with all they had: what is plain JSON loses their usage."""
    if depth > MAX_INPUT_DEPTH:
        return value
    if isinstance(value, list):
        return [_revive(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    kind = _REVIVED.get(str(value.get("type")))
    if kind is None or "content" not in value:
        return {key: _revive(item, depth + 1) for key, item in value.items()}
    try:
        message = _whole(kind.model_validate(value))
    except ValidationError:
        return value
    message.id = message.id or str(uuid4())  # as agents give to all messages of a history
    return message
