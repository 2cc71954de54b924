"""How the models that Millrace builds answer: with retries, with a bound, and able to go on with an answer.

``serve`` puts this layer in front of a model's own class, whichever that is, between LangChain's public methods and
the ones that talk to the provider. So graphs, bindings and structured output use it unawares, and the class keeps its
name, in events too.

- An attempt that failed before its first chunk is repeated where that is safe (``chains.retries``), each time with
  a ``provider.retry`` event; after the first chunk never.
- ``Control``, handed down in the config, bounds the answer and says whether the call goes on with a text. Then the
  first chunk is exactly that text, and what the provider adds follows without what it repeats (``chains.overlap``).
- Whoever stops reading, by a cancel or a ``break``, closes the provider's stream then, not when memory is collected.

Errors of callbacks pass through; they are the run's, not the provider's.
"""

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Protocol, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)
from langchain_core.utils.uuid import uuid7

from chains.overlap import Overlap
from chains.retries import Retries, Retry
from chains.shortcut import CONTROL, Caller, Shortcut, Shortcuts, caller, shortcut_ahead

RETRY_EVENT = "provider.retry"
"""The custom event of a repeated attempt; its data is ``Retry.data()``."""

GO_ON = (
    "Continue your answer, which was interrupted, exactly where it stops: begin with the very next character, repeat "
    "nothing of it, and do not mention the interruption."
)

SURE = 16
"""Characters: a model with prefill does not repeat itself, so that shorter repetitions are its text."""

_LIMITS = ("max_tokens", "max_output_tokens")
_LIMIT_KEYS = frozenset((*_LIMITS, "max_completion_tokens"))

# Claude 4.6 and later answer 400 to a conversation that ends with the assistant's words.
_CLAUDE_WITH_PREFILL = re.compile(
    r"claude-(?:2|3|instant|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?=$|[-@:](?:\d{8}|v\d|latest)))"
)

ModelT = TypeVar("ModelT", bound=BaseChatModel)


class Control(Shortcuts, Protocol):
    """What a run wants of its model calls. It lies in a config's ``configurable``, under ``CONTROL``."""

    @property
    def max_tokens(self) -> int | None:
        """The most tokens a call may generate; None: as many as the model likes."""

    def take(self, run_id: UUID) -> tuple[str, str] | None:
        """What the call of that id goes on with: the text, of none or more characters, and the id of the message.

        None: it is a call of its own.
        """


@dataclass(frozen=True)
class Serving:
    """How a model is served: its retries, and whether it goes on with an assistant message that ends a conversation."""

    retries: Retries
    prefills: bool


def serve(model: ModelT, *, retries: Retries | None = None, prefill: bool | None = None) -> ModelT:
    """``model`` with this layer in front of its class; the same object, still an instance of what it was.

    Served once more, the last word on it holds.

    ``prefill``: whether the provider continues a final assistant message; None: what is known of model and provider.
    """
    cls: type[BaseChatModel] = type(model)
    if issubclass(cls, Answering):
        cls = cls.__bases__[-1]
    streams = any(getattr(cls, name) is not getattr(BaseChatModel, name) for name in ("_stream", "_astream"))
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    metaclass: Any = type(cls)
    served = metaclass(cls.__name__, (Streaming if streams else Answering, cls), namespace)
    served.serving = Serving(retries or Retries(), _known_to_prefill(model) if prefill is None else prefill)
    model.__class__ = served
    return model


def prefills(model: Runnable[Any, Any]) -> bool:
    """Whether the model, bound or not, goes on with its text without a seam."""
    while isinstance(model, RunnableBindingBase):
        model = model.bound
    return isinstance(model, Answering) and model.serving.prefills


def _known_to_prefill(model: BaseChatModel) -> bool:
    params = model._get_ls_params()  # noqa: SLF001 - the one place where all classes name provider and model
    provider, name = params.get("ls_provider", ""), params.get("ls_model_name", "")
    if provider == "anthropic":
        return bool(_CLAUDE_WITH_PREFILL.match(name)) and not getattr(model, "thinking", None)
    return provider == "openai" and name.partition("?")[0] == "simulated"


# -- one call ---------------------------------------------------------------------------------------------------------


class Call:
    """One call of a model: what LangChain's public method knows of it, for the method that talks to the provider.

    LangChain passes neither the call's id nor its config on to that one. ``stream`` is what the latter reads from,
    ``asks`` is LangChain's method that does, and ``shortcut`` the way of plain text past it; there need be neither.
    """

    def __init__(self, run_id: UUID, config: RunnableConfig) -> None:
        self.run_id = run_id
        self.config = config
        self.asks: Caller | None = None
        self.shortcut: Shortcut | None = None
        self.begun = False
        self.stream: AsyncGenerator[ChatGenerationChunk] | Generator[ChatGenerationChunk] | None = None

    @contextmanager
    def known(self) -> Iterator[None]:
        """The call in progress, for what is called meanwhile."""
        token, ahead = _CALL.set(self), shortcut_ahead.set(self.shortcut)
        try:
            yield
        finally:
            shortcut_ahead.reset(ahead)
            _CALL.reset(token)

    async def aclose(self) -> None:
        """Close the provider's stream, if there is one that is not at its end."""
        if isinstance(self.stream, AsyncGenerator):
            await self.stream.aclose()

    def close(self) -> None:
        """The same, of a synchronous call."""
        if isinstance(self.stream, Generator):
            self.stream.close()

    @property
    def control(self) -> Control | None:
        """What the run wants of it."""
        return cast("Control | None", self.config.get("configurable", {}).get(CONTROL))

    async def arepeats(self, retry: Retry) -> None:
        """Say that the call is made again. Under the step that made the call, as LangChain's own custom events are."""
        manager = get_async_callback_manager_for_config(self.config)
        await manager.on_custom_event(RETRY_EVENT, retry.data(), run_id=manager.parent_run_id or self.run_id)

    def repeats(self, retry: Retry) -> None:
        """The same, of a synchronous call."""
        manager = get_callback_manager_for_config(self.config)
        manager.on_custom_event(RETRY_EVENT, retry.data(), run_id=manager.parent_run_id or self.run_id)


_CALL: ContextVar[Call | None] = ContextVar("millrace_call", default=None)


def _begun(run_manager: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> Call | None:
    """The call in progress, for the first that asks; None: another layer of the same model has it."""
    call = _CALL.get()
    if call is None:
        call = Call(run_manager.run_id if run_manager else uuid7(), ensure_config())
    elif call.begun:
        return None
    call.begun = True
    return call


# -- an answer that goes on -------------------------------------------------------------------------------------------


class Continuation:
    """An answer that goes on with ``said``: what the provider is sent, and its chunks without what they repeat.

    All chunks carry one id, under which the reader has the message already.
    """

    def __init__(self, said: str, message_id: str, *, prefill: bool) -> None:
        self.said = said
        self._prefill = prefill
        self._id = message_id
        # A model with prefill goes on behind the last word, white space included; some refuse it at the end.
        self._overlap = Overlap(said, least=SURE if prefill else 1)

    def messages(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The conversation, ending with the text so far or with the wish to go on with it, if a word of it was said."""
        if not self.said.strip():
            return list(messages)
        if self._prefill:
            return [*messages, AIMessage(self.said.rstrip())]
        return [*messages, AIMessage(self.said), HumanMessage(GO_ON)]

    def first(self) -> ChatGenerationChunk:
        """The text so far, which makes the graph's message whole."""
        return ChatGenerationChunk(message=AIMessageChunk(content=self.said, id=self._id))

    def next(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """A chunk of the provider without what it repeats."""
        content = _map_text(chunk.message.content, self._overlap.feed)
        if _ends_text(chunk) and (rest := self._overlap.close()):
            content = f"{rest}{content}" if isinstance(content, str) else [rest, *content]
        message = chunk.message.model_copy(update={"content": content, "id": self._id})
        return ChatGenerationChunk(message=message, generation_info=chunk.generation_info)

    def last(self) -> ChatGenerationChunk | None:
        """What was held back when the provider's stream ended without a word of it."""
        rest = self._overlap.close()
        return ChatGenerationChunk(message=AIMessageChunk(content=rest, id=self._id)) if rest else None

    def whole(self, result: ChatResult) -> ChatResult:
        """The same of an answer in one piece."""
        message = result.generations[0].message
        content = _map_text(message.content, self._overlap.feed)
        said = f"{self.said}{self._overlap.close()}"
        message.content = f"{said}{content}" if isinstance(content, str) else [said, *content]
        message.id = self._id
        return result


def _map_text(content: str | list[str | dict[str, Any]], change: Any) -> str | list[str | dict[str, Any]]:
    if isinstance(content, str):
        return cast("str", change(content)) if content else content
    return [_map_block(block, change) for block in content]


def _map_block(block: str | dict[str, Any], change: Any) -> str | dict[str, Any]:
    if isinstance(block, str):
        return cast("str", change(block))
    if block.get("type") == "text" and isinstance(block.get("text"), str):
        return {**block, "text": change(block["text"])}
    return block


def _ends_text(chunk: ChatGenerationChunk) -> bool:
    """Whether no text of the answer follows that could make a repetition complete."""
    message, info = chunk.message, chunk.generation_info or {}
    return bool(
        getattr(message, "tool_call_chunks", None)
        or getattr(message, "chunk_position", None) == "last"
        or info.get("finish_reason")
        or message.response_metadata.get("stop_reason")
    )


# -- in front of the model's class ------------------------------------------------------------------------------------


class Answering(BaseChatModel):
    """Answers in one piece: with retries, bound by the run, and going on where that is wanted."""

    serving: ClassVar[Serving]

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if run_manager is None:
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)
        with closing(Call(run_manager.run_id, ensure_config())) as call, call.known():
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        if run_manager is None:
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)
        async with aclosing(Call(run_manager.run_id, ensure_config())) as call:
            with call.known():
                return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _begun(run_manager)
        if call is None:
            return self._behind(messages, stop, run_manager, **kwargs)
        messages, kwargs, continuation = self._asked(call, messages, kwargs)
        for failed in count(1):
            try:
                result = self._behind(messages, stop, run_manager, **kwargs)
            except Exception as error:
                retry = self.serving.retries.after(error, failed)
                if retry is None:
                    raise
            else:
                break
            call.repeats(retry)
            self.serving.retries.block(retry.wait_s)
        return continuation.whole(result) if continuation else result

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _begun(run_manager)
        if call is None:
            return await super()._agenerate(messages, stop, run_manager, **kwargs)
        messages, kwargs, continuation = self._asked(call, messages, kwargs)
        for failed in count(1):
            try:
                result = await super()._agenerate(messages, stop, run_manager, **kwargs)
            except Exception as error:
                retry = None if _cancelled() else self.serving.retries.after(error, failed)
                if retry is None:
                    raise
            else:
                break
            await call.arepeats(retry)
            await self.serving.retries.sleep(retry.wait_s)
        return continuation.whole(result) if continuation else result

    def _behind(self, *args: Any, **kwargs: Any) -> ChatResult:
        """The answer of the class behind; it has one, which the types cannot know."""
        return super()._generate(*args, **kwargs)  # type: ignore[safe-super]

    def _asked(
        self, call: Call, messages: list[BaseMessage], kwargs: dict[str, Any]
    ) -> tuple[list[BaseMessage], dict[str, Any], Continuation | None]:
        """What the provider is asked, after the run's wishes."""
        control = call.control
        if control is None:
            return messages, kwargs, None
        kwargs = self._bounded(control.max_tokens, kwargs)
        said = control.take(call.run_id)
        if said is None:
            return messages, kwargs, None
        continuation = Continuation(*said, prefill=self.serving.prefills)
        return continuation.messages(messages), kwargs, continuation

    def _bounded(self, most: int | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """``kwargs`` with the run's bound, where the graph names none; the model's own bound holds as well."""
        name = next((name for name in _LIMITS if name in type(self).model_fields), None)
        if most is None or name is None or _LIMIT_KEYS & kwargs.keys():
            return dict(kwargs)
        own = getattr(self, name)
        return {**kwargs, name: min(most, own) if isinstance(own, int) else most}


class Streaming(Answering):
    """The same of a model that streams."""

    def stream(
        self,
        input: LanguageModelInput,  # noqa: A002 - LangChain's name for it
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """As the model's class has it; the provider's stream is closed when this one is."""
        call, config = _call(config)
        chunks = cast("Generator[AIMessageChunk]", super().stream(input, config, **kwargs))
        with closing(call), closing(chunks):
            with call.known():  # the model's own stream is made at the first step
                chunk = next(chunks, None)
            while chunk is not None:
                yield chunk
                chunk = next(chunks, None)

    async def astream(
        self,
        input: LanguageModelInput,  # noqa: A002
        config: RunnableConfig | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """As the model's class has it; the provider's stream is closed when this one is."""
        call, config = _call(config)
        chunks = cast("AsyncGenerator[AIMessageChunk]", super().astream(input, config, **kwargs))
        async with aclosing(call), aclosing(chunks):
            with call.known():
                chunk = await anext(chunks, None)
            while chunk is not None:
                yield chunk
                chunk = await anext(chunks, None)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = _begun(run_manager)
        if call is None:
            return super()._stream(messages, stop, run_manager, **kwargs)
        call.asks = caller(sys._getframe(1))  # noqa: SLF001
        call.stream = self._answer(call, messages, stop, run_manager, kwargs)
        return call.stream

    def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = _begun(run_manager)
        if call is None:
            return super()._astream(messages, stop, run_manager, **kwargs)
        call.asks = caller(sys._getframe(1))  # noqa: SLF001
        call.stream = self._aanswer(call, messages, stop, run_manager, kwargs)
        return call.stream

    def _answer(
        self,
        call: Call,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> Generator[ChatGenerationChunk]:
        """What the reader gets; reported here, and not by the class behind, which knows neither joint nor attempts."""
        messages, kwargs, continuation = self._asked(call, messages, kwargs)
        if call.asks is not None and continuation is None:
            call.shortcut = call.asks.shortcut(call.control)
        attempts = self._attempts(call, messages, stop, kwargs)
        with closing(_joined(continuation, attempts) if continuation else attempts) as chunks:
            for chunk in chunks:
                if run_manager is not None:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _aanswer(
        self,
        call: Call,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: AsyncCallbackManagerForLLMRun | None,
        kwargs: dict[str, Any],
    ) -> AsyncGenerator[ChatGenerationChunk]:
        messages, kwargs, continuation = self._asked(call, messages, kwargs)
        if call.asks is not None and continuation is None:
            call.shortcut = call.asks.shortcut(call.control)
        attempts = self._aattempts(call, messages, stop, kwargs)
        async with aclosing(_ajoined(continuation, attempts) if continuation else attempts) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _attempts(
        self, call: Call, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> Generator[ChatGenerationChunk]:
        """The provider's chunks, from the first attempt that has any."""
        for failed in count(1):
            provider = cast("Generator[ChatGenerationChunk]", super()._stream(messages, stop, **kwargs))
            with closing(provider):
                try:
                    with call.known():
                        chunk = next(provider, None)
                except Exception as error:
                    retry = self.serving.retries.after(error, failed)
                    if retry is None:
                        raise
                else:
                    if chunk is not None:
                        yield chunk
                        yield from provider
                    return
            call.repeats(retry)
            self.serving.retries.block(retry.wait_s)

    async def _aattempts(
        self, call: Call, messages: list[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> AsyncGenerator[ChatGenerationChunk]:
        for failed in count(1):
            provider = cast("AsyncGenerator[ChatGenerationChunk]", super()._astream(messages, stop, **kwargs))
            async with aclosing(provider):
                try:
                    with call.known():
                        chunk = await anext(provider, None)
                except Exception as error:
                    retry = None if _cancelled() else self.serving.retries.after(error, failed)
                    if retry is None:
                        raise
                else:
                    if chunk is not None:
                        yield chunk
                        async for chunk in provider:
                            yield chunk
                    return
            await call.arepeats(retry)
            await self.serving.retries.sleep(retry.wait_s)


def _call(config: RunnableConfig | None) -> tuple[Call, RunnableConfig]:
    """A call that is about to begin, and the config that gives it its id."""
    config = ensure_config(config)
    run_id = config.get("run_id") or uuid7()
    config["run_id"] = run_id
    return Call(run_id, config), config


def _cancelled() -> bool:
    """Whether the task was told to stop, though what reached us is another error: some libraries swallow a cancel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _joined(continuation: Continuation, attempts: Generator[ChatGenerationChunk]) -> Generator[ChatGenerationChunk]:
    with closing(attempts):
        yield continuation.first()
        for chunk in attempts:
            yield continuation.next(chunk)
        if last := continuation.last():
            yield last


async def _ajoined(
    continuation: Continuation, attempts: AsyncGenerator[ChatGenerationChunk]
) -> AsyncGenerator[ChatGenerationChunk]:
    async with aclosing(attempts):
        yield continuation.first()
        async for chunk in attempts:
            yield continuation.next(chunk)
        if last := continuation.last():
            yield last
