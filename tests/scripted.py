"""A model that says what a test tells it to, piece by piece, and waits or breaks where the test wants."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, message_chunk_to_message
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from typing_extensions import override

Step = AIMessageChunk | Exception | threading.Event | Callable[[], Awaitable[Any]]
"""A chunk is sent, an exception raised, a thread waits for an event, anything else is called and waited for."""

Turn = Sequence[Step]


class Scripted(BaseChatModel):
    """Each call takes the next turn; the last one is repeated."""

    turns: Any  # a list of turns, kept as it is: pydantic would take every step for a chunk
    provider: str = "scripted"

    @property
    @override
    def _llm_type(self) -> str:
        return "scripted"

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider=self.provider, ls_model_type="chat")

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    def _turn(self) -> Iterator[Step]:
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        # Copies, as off a wire: LangChain writes the run's id into chunks that have none.
        yield from (step.model_copy() if isinstance(step, AIMessageChunk) else step for step in turn)

    @override
    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        whole: BaseMessage = AIMessageChunk(content="")
        for step in self._turn():
            if isinstance(step, Exception):
                raise step
            if isinstance(step, AIMessageChunk):
                whole = whole + step  # type: ignore[assignment]  # the sum of two chunks is a chunk
        return ChatResult(generations=[ChatGeneration(message=message_chunk_to_message(whole))])

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for step in self._turn():
            if isinstance(step, Exception):
                raise step
            if isinstance(step, threading.Event):
                assert step.wait(20)
            if isinstance(step, AIMessageChunk):
                yield ChatGenerationChunk(message=step)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for step in self._turn():
            if isinstance(step, Exception):
                raise step
            if isinstance(step, AIMessageChunk):
                yield ChatGenerationChunk(message=step)
                await asyncio.sleep(0)  # others have their turn, as between two reads of a socket
            elif not isinstance(step, threading.Event):
                await step()


class Gate:
    """A step that waits until the test, from whatever thread, lets it go on."""

    def __init__(self) -> None:
        self._opened: Future[None] = Future()

    async def __call__(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._opened))

    def open(self) -> None:
        self._opened.set_result(None)


def say(content: str | list[Any] = "", *pieces: dict[str, Any], **fields: Any) -> AIMessageChunk:
    """One chunk: text or content blocks, pieces of tool calls, and whatever fields a provider sets."""
    return AIMessageChunk(content=content, tool_call_chunks=list(pieces), **fields)  # type: ignore[arg-type]


def piece(
    name: str | None = None, args: str | None = None, call_id: str | None = None, index: Any = None
) -> dict[str, Any]:
    """A fragment of a tool call, as providers cut them."""
    return {"type": "tool_call_chunk", "name": name, "args": args, "id": call_id, "index": index}


def words(*texts: str) -> list[Step]:
    """A turn of plain text."""
    return [say(text) for text in texts]


def usage(sent: int, received: int) -> dict[str, int]:
    """A provider's own count."""
    return {"input_tokens": sent, "output_tokens": received, "total_tokens": sent + received}
