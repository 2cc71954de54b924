"""Counts the tokens of every model call of a run: streamed or not, nested or not, finished or cut.

One ``Meter`` a run, handed to the graph as an inherited callback, so it hears of every leaf model call, a user's own
models included. The provider's numbers are used where they exist. A call that was cut (cancelled, failed half way)
has none, and LangChain fires no callback at all for a cancel: so the meter remembers the calls it saw open, and the
run asks for them at its end. What has to be estimated says so; nothing is ever downloaded to count tokens.

Callbacks run inline, on the event loop for async nodes and on a worker thread for synchronous ones: each call's
record is written by one thread at a time, and the dictionary operations used are atomic.
"""

import asyncio
import time
from collections.abc import Set
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk, LLMResult

from app.events.event import Totals, Usage
from app.runs.failure import ProviderDropped
from app.runs.scope import Scope
from app.runs.watchdog import Watchdog

RETRY = "provider.retry"
"""The custom event by which a model of ours says that it calls the provider again, after ``wait_ms``."""

CHARS_PER_TOKEN = 4
"""The usual rule of thumb for text of unknown tokenisation."""

ONE_TOKEN_CHARS = 8
"""Chunks that are shorter than this on average are single tokens: the OpenAI wire sends one a chunk."""


class _Call:
    """One model call as far as it came."""

    __slots__ = ("chars", "chunks", "continued", "finish_required", "messages", "prompts", "repeats", "usage")

    def __init__(self, messages: list[BaseMessage], prompts: list[str], finish_required: bool) -> None:
        self.messages = messages
        self.prompts = prompts
        self.finish_required = finish_required
        self.chunks = 0
        self.chars = 0
        self.continued = False  # it goes on with an answer whose beginning was counted before
        self.repeats = False  # its next chunk is that beginning
        self.usage: tuple[int, int] | None = None

    def tokens(self) -> tuple[int, int, bool]:
        """``(input, output, estimated)``."""
        if self.usage is not None:
            return (*self.usage, False)
        return self._input(), self._output(), True

    def _input(self) -> int:
        if self.messages:
            return count_tokens_approximately(self.messages)
        return sum(len(prompt) // CHARS_PER_TOKEN + 1 for prompt in self.prompts)

    def _output(self) -> int:
        if self.chunks and self.chars / self.chunks < ONE_TOKEN_CHARS:
            return self.chunks
        return -(-self.chars // CHARS_PER_TOKEN)


class Meter(BaseCallbackHandler):
    """A run's account. Also notes which calls failed, and the tool call of each tool run, which the translator takes.

    ``streamed``: whether the call that failed last had sent something of its answer.
    """

    run_inline = True  # in order with the stream, and no thread hop a token
    raise_error = True  # a stream that ended without a finish reason must fail the run, see on_llm_end

    def __init__(self, scope: Scope, watchdog: Watchdog | None = None) -> None:
        self._scope = scope
        self._watchdog = watchdog
        self.totals = Totals(cost_usd=None)
        self.streamed = False
        self.call_ids: dict[str, str] = {}
        self.failed: list[str] = []
        self._calls: dict[UUID, _Call] = {}
        self._cut: set[UUID] = set()
        self._speaking: set[str] = set()

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is called."""
        provider = (metadata or {}).get("ls_provider")
        self._open(run_id, _Call(messages[0] if messages else [], [], provider in ("openai", "azure")))

    def on_llm_start(self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        """A text-completion model is called."""
        self._open(run_id, _Call([], prompts, finish_required=False))

    def on_llm_new_token(
        self,
        token: str | list[str | dict[str, Any]],
        *,
        chunk: GenerationChunk | ChatGenerationChunk | None = None,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """A chunk came: counted, not kept."""
        call = self._calls.get(run_id)
        if call is None:
            self._stop_if_cut(run_id)
            return
        if call.repeats:  # nor is it a sign of the provider's life
            call.repeats = False
        else:
            self._count(call, token, chunk)
            if self._watchdog is not None:
                self._watchdog.heard(run_id)
        self._scope.check()

    @staticmethod
    def _count(
        call: _Call, token: str | list[str | dict[str, Any]], chunk: GenerationChunk | ChatGenerationChunk | None
    ) -> None:
        size = len(token) if isinstance(token, str) else 0
        message = getattr(chunk, "message", None)
        if message is not None:
            if not isinstance(message.content, str):
                size = sum(_block_size(block) for block in message.content)
            size += sum(len(piece.get("args") or "") for piece in getattr(message, "tool_call_chunks", ()))
            thought = message.additional_kwargs.get("reasoning_content")
            size += len(thought) if isinstance(thought, str) else 0
        if size:
            call.chunks += 1
            call.chars += size

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A piece of an answer by LangChain's newer stream of typed events: a sign of life."""
        if self._watchdog is not None and run_id in self._calls:
            self._watchdog.heard(run_id)
        self._stop_if_cut(run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A call is over; the provider's numbers, where there are any, are in the response.

        Raises ``ProviderDropped`` for a stream of the OpenAI wire that closed cleanly but never said why: every
        client library takes that for success, and the reader would be shown half an answer as a whole one. And
        ``CancelledError`` when the call has been cut: it has come to its end too late for the graph to go on with it.
        """
        call = self._close(run_id)
        if call is not None:
            self._end(call, response, run_id)
        self._stop_if_cut(run_id)

    def _end(self, call: _Call, response: LLMResult, run_id: UUID) -> None:
        message = _message(response)
        if message is None:
            if not call.chunks and not call.continued:
                call.chars = sum(len(one.text) for many in response.generations for one in many)
            return
        if (
            call.finish_required
            and (call.chunks or call.continued)
            and not message.response_metadata.get("finish_reason")
        ):
            self.failed.append(str(run_id))
            raise ProviderDropped("the provider's stream ended without a finish reason")
        if message.usage_metadata is not None:
            call.usage = (message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"])
        if not call.chunks and not call.continued:
            call.chars = len(message.text) + sum(len(str(one["args"])) for one in message.tool_calls)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A call failed: what had come is counted, a call that was refused is not."""
        call = self._close(run_id)
        self.streamed = call is not None and call.chunks > 0
        if call is not None and not call.chunks:
            del self._calls[run_id]
        self.failed.append(str(run_id))

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """LangChain's event stream leaves the call's id out; here it is still known."""
        self._scope.check()
        self.call_ids[str(run_id)] = tool_call_id or ""

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        """A model of ours tries again: the provider lives, and its first token has its time anew."""
        if name == RETRY and self._watchdog is not None:
            wait_ms = data.get("wait_ms") if isinstance(data, dict) else None  # a user's event may have this name
            self._watchdog.retried(wait_ms / 1000 if isinstance(wait_ms, int) else 0)

    def speaks(self, told: Set[str]) -> bool:
        """Whether these calls go on, and nothing else does: no other call, no tool, nothing that is over and not told.

        The event stream, by which all that is told, lags behind the callbacks.
        """
        calls = {str(run_id) for run_id in list(self._calls)}.difference(self.failed)
        return told == calls == self._speaking and not self.call_ids

    def skip(self, run_id: UUID) -> None:
        """The next chunk of this call repeats what was counted when its answer was paused."""
        call = self._calls.get(run_id)
        if call is not None:
            call.continued = call.repeats = True

    def take(self, run_id: str, ts: int) -> Usage | None:
        """The account of a call that is over, once."""
        call = self._calls.pop(UUID(run_id), None)
        return None if call is None else self._account(call, ts)

    def take_rest(self, ts: int) -> list[Usage]:
        """The accounts of the calls that were cut, at the run's end."""
        if self._watchdog is not None:
            self._watchdog.clear()
        rest, self._calls = self._calls, {}
        self._cut.update(rest)
        self._speaking.clear()
        return [self._account(call, ts) for call in rest.values()]

    def _stop_if_cut(self, run_id: UUID) -> None:
        """In a thread that was left behind a call goes on when the run has had its end, or goes on after a pause."""
        self._scope.check()
        if run_id in self._cut:
            raise asyncio.CancelledError("the call was cut")

    def _open(self, run_id: UUID, call: _Call) -> None:
        if self._scope.over:
            # In a thread nothing else stops it. On the loop a cancel is on its way, and the first chunk is refused; to
            # raise here would leave the coroutines of LangChain's other callbacks unawaited.
            if not _on_a_loop():
                self._scope.check()
            self._cut.add(run_id)
            return
        self._calls[run_id] = call
        self._speaking.add(str(run_id))
        if self._watchdog is not None:
            self._watchdog.opened(run_id)

    def _close(self, run_id: UUID) -> _Call | None:
        self._speaking.discard(str(run_id))
        if self._watchdog is not None:
            self._watchdog.closed(run_id)
        return self._calls.get(run_id)

    def _account(self, call: _Call, ts: int) -> Usage:
        sent, received, estimated = call.tokens()
        total = self.totals
        self.totals = Totals(
            input_tokens=total.input_tokens + sent,
            output_tokens=total.output_tokens + received,
            total_tokens=total.total_tokens + sent + received,
            cost_usd=None,
            estimated=total.estimated or estimated,
        )
        return Usage(
            ts=ts,
            input_tokens=sent,
            output_tokens=received,
            total_tokens=sent + received,
            cost_usd=None,
            estimated=estimated,
        )


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _message(response: LLMResult) -> AIMessage | None:
    try:
        generation = response.generations[0][0]
    except IndexError:
        return None
    if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
        return generation.message
    return None


def _block_size(block: str | dict[str, Any]) -> int:
    if isinstance(block, str):
        return len(block)
    return sum(len(value) for key in ("text", "thinking", "reasoning") if isinstance(value := block.get(key), str))


def now_ms() -> int:
    """Milliseconds since the epoch: every event's ``ts``."""
    return time.time_ns() // 1_000_000
