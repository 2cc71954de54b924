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
from app.runs.books import Account, Spent
from app.runs.failure import ProviderDropped, retry_after_ms
from app.runs.objects import Form, form_of
from app.runs.passage import Passage
from app.runs.scope import Scope
from app.runs.watchdog import Watchdog
from app.telemetry.records import CallStatus

RETRY = "provider.retry"
"""The custom event by which a model of ours says that it calls the provider again, after ``wait_ms``."""

TOO_MANY_REQUESTS = 429

NANO = 9
"""Decimals of a dollar: what a token costs has fewer."""

CHARS_PER_TOKEN = 4
"""The usual rule of thumb for text of unknown tokenisation."""

ONE_TOKEN_CHARS = 8
"""Chunks that are shorter than this on average are single tokens: the OpenAI wire sends one a chunk."""


class _Call:
    """One model call as far as it came. Times are seconds since the epoch."""

    __slots__ = (
        "ahead",
        "began",
        "chars",
        "chunks",
        "continued",
        "ended",
        "finish_required",
        "first",
        "messages",
        "model",
        "most",
        "prompts",
        "provider",
        "queue_s",
        "repeats",
        "status",
        "usage",
    )

    def __init__(
        self, messages: list[BaseMessage], prompts: list[str], metadata: dict[str, Any] | None, params: dict[str, Any]
    ) -> None:
        told = metadata or {}
        self.messages = messages
        self.prompts = prompts
        self.model = str(told.get("ls_model_name") or params.get("model") or params.get("model_name") or "")
        self.provider = str(told.get("ls_provider") or "")
        self.most = told.get("ls_max_tokens")
        self.finish_required = bool(messages) and self.provider in ("openai", "azure")
        self.began = time.time()
        self.queue_s = 0.0
        self.first: float | None = None
        self.ended: float | None = None
        self.status: CallStatus | None = None
        self.chunks = 0
        self.chars = 0
        self.continued = False  # it goes on with an answer whose beginning was counted before
        self.repeats = False  # its next chunk is that beginning
        self.ahead = 0  # characters that have come past LangChain, and are counted
        self.usage: Spent | None = None

    def input(self) -> int:
        """Tokens of what was asked, by rule of thumb."""
        if self.messages:
            return count_tokens_approximately(self.messages)
        return sum(len(prompt) // CHARS_PER_TOKEN + 1 for prompt in self.prompts)

    def output(self) -> int:
        """Tokens of what came."""
        if self.chunks and self.chars / self.chunks < ONE_TOKEN_CHARS:
            return self.chunks
        return -(-self.chars // CHARS_PER_TOKEN)


class Meter(BaseCallbackHandler):
    """A run's account. Also notes which calls failed, in which form an answer was asked for, and the tool call of each
    tool run, all of which the translator looks up.

    ``passage`` is the run's way through the gate, which this one tells of calls that end, and by which it holds back
    those of threads. ``streamed``: whether the call that failed last had sent something of its answer.
    """

    run_inline = True  # in order with the stream, and no thread hop a token
    raise_error = True  # a stream that ended without a finish reason must fail the run, see on_llm_end

    def __init__(
        self,
        scope: Scope,
        watchdog: Watchdog | None = None,
        *,
        passage: Passage | None = None,
        account: Account | None = None,
    ) -> None:
        self._scope = scope
        self._watchdog = watchdog
        self._passage = passage
        self._booked = account or Account()
        self.totals = Totals()
        self.streamed = False
        self.call_ids: dict[str, str] = {}
        self.failed: list[str] = []
        self.forms: dict[str, Form] = {}
        self._calls: dict[UUID, _Call] = {}
        self._cut: set[UUID] = set()
        self._refused: list[_Call] = []
        self._speaking: set[str] = set()
        self._streaming_s = 0.0
        self._streamed_tokens = 0

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is called; in a thread, this is where the call waits for its turn at the gate."""
        asked = messages[0] if messages else []
        form = form_of(kwargs)
        if form is not None:
            self.forms[str(run_id)] = form
        if self._passage is not None:
            self._passage.hold_back(run_id, lambda: count_tokens_approximately(asked))
        self._open(run_id, _Call(asked, [], metadata, kwargs.get("invocation_params") or {}))

    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A text-completion model is called."""
        if self._passage is not None:
            self._passage.hold_back(run_id, lambda: sum(map(len, prompts)) // CHARS_PER_TOKEN)
        self._open(run_id, _Call([], prompts, metadata, kwargs.get("invocation_params") or {}))

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
        elif call.ahead and (size := _size(token, chunk)):  # it was counted when it came
            call.ahead -= size
        else:
            self._count(run_id, call, _size(token, chunk))
        self._scope.check()

    def hear(self, run_id: UUID, text: str) -> None:
        """A piece of a call's plain text came past LangChain, which will tell of it later, in a chunk of its own."""
        call = self._calls.get(run_id)
        if call is not None:
            call.ahead += len(text)
            self._count(run_id, call, len(text))

    def _count(self, run_id: UUID, call: _Call, size: int) -> None:
        if size:
            if call.first is None:
                call.first = time.time()
                if self._passage is not None:
                    self._passage.answered()  # whether or not anybody hears it out
            call.chunks += 1
            call.chars += size
        if self._watchdog is not None:
            self._watchdog.heard(run_id)

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
        call = self._close(run_id, "completed")
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
            call.status = "failed"
            self.failed.append(str(run_id))
            raise ProviderDropped("the provider's stream ended without a finish reason")
        call.model = call.model or str(message.response_metadata.get("model_name") or "")
        call.usage = _spent(message)
        if not call.chunks and not call.continued:
            call.chars = len(message.text) + sum(len(str(one["args"])) for one in message.tool_calls)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A call failed: what had come is counted, a call that was refused is not."""
        cancelled = isinstance(error, asyncio.CancelledError)
        if self._passage is not None and getattr(error, "status_code", None) == TOO_MANY_REQUESTS:
            self._passage.refused(run_id, _seconds(retry_after_ms(error)))
            self._booked.provider_refused()
        call = self._close(run_id, None if cancelled else "failed")
        self.streamed = call is not None and call.chunks > 0
        if call is not None and not call.chunks and not cancelled:
            del self._calls[run_id]
            self._write_off(call, run_id)
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
        """A model of ours tries again: the provider lives, and its first token has its time anew.

        A retry after a 429 slows the gate for everybody, as a call that failed with it does.
        """
        if name != RETRY:
            return
        told = data if isinstance(data, dict) else {}  # a user's event may have this name
        wait_ms = told.get("wait_ms")
        wait_s = wait_ms / 1000 if isinstance(wait_ms, int) else 0.0
        if self._watchdog is not None:
            self._watchdog.retried(wait_s)
        if self._passage is not None and told.get("status") == TOO_MANY_REQUESTS:
            self._passage.refused(None, wait_s)
            self._booked.provider_refused()

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
        return None if call is None else self._account(call, UUID(run_id), ts, "completed")

    def take_rest(self, ts: int, status: CallStatus) -> list[Usage]:
        """The accounts of the calls that were cut, at the run's end or pause, which is their ``status``."""
        if self._watchdog is not None:
            self._watchdog.clear()
        rest, self._calls = self._calls, {}
        self._cut.update(rest)
        self._speaking.clear()
        refused, self._refused = self._refused, []
        for call in refused:
            self._book(call, Spent(0, 0), 0.0, "failed")
        return [self._account(call, run_id, ts, status) for run_id, call in rest.items()]

    def _stop_if_cut(self, run_id: UUID) -> None:
        """In a thread that was left behind a call goes on when the run has had its end, or goes on after a pause."""
        self._scope.check()
        if run_id in self._cut:
            raise asyncio.CancelledError("the call was cut")

    def _open(self, run_id: UUID, call: _Call) -> None:
        if self._scope.over:
            # In a thread nothing else stops it. On the loop a cancel is on its way, and the first chunk is refused; to
            # raise here would leave the coroutines of LangChain's other callbacks unawaited.
            if self._passage is not None:
                self._passage.leave(run_id)
            if not _on_a_loop():
                self._scope.check()
            self._cut.add(run_id)
            return
        if self._passage is not None:
            call.queue_s = self._passage.waited_s(run_id)
        self._calls[run_id] = call
        self._speaking.add(str(run_id))
        if self._watchdog is not None:
            self._watchdog.opened(run_id)

    def _close(self, run_id: UUID, status: CallStatus | None) -> _Call | None:
        self._speaking.discard(str(run_id))
        if self._watchdog is not None:
            self._watchdog.closed(run_id)
        call = self._calls.get(run_id)
        if self._passage is not None:
            if call is not None and call.first is None and status == "completed":
                self._passage.answered()
            self._passage.leave(run_id)
        if call is not None:
            call.ended = time.time()
            call.status = status
        return call

    # The account

    def _write_off(self, call: _Call, run_id: UUID) -> None:
        """The provider has refused the call, or was never reached: it came to nothing."""
        if self._passage is not None:
            self._passage.spent(run_id, 0)
        self._refused.append(call)  # this may be a thread, and the books are the loop's

    def _account(self, call: _Call, run_id: UUID, ts: int, cut: CallStatus) -> Usage:
        """Charge a call that is over, or was ``cut``."""
        status, spent, estimated = call.status or cut, call.usage, call.usage is None
        if spent is None:
            spent = Spent(self._booked.input_tokens(call.model, call.input()), call.output())
        elif status == "completed" and not call.continued:
            self._booked.learn(call.model, call.input(), spent)
        cost = self._booked.cost(call.model, call.provider, spent)
        saved = self._saved(call, spent) if status == "cancelled" else 0
        saved_usd = self._booked.cost(call.model, call.provider, Spent(0, saved)) if saved else 0.0
        if self._passage is not None:
            self._passage.spent(run_id, spent.input + spent.output)
        self._book(call, spent, cost, status, estimated=estimated)
        usage = Usage(
            ts=ts,
            input_tokens=spent.input,
            output_tokens=spent.output,
            total_tokens=spent.input + spent.output,
            cost_usd=cost,
            estimated=estimated,
            model=call.model or None,
            reasoning_tokens=spent.reasoning,
            cached_tokens=spent.cached,
            queue_ms=round(call.queue_s * 1000),
            ttft_ms=None if call.first is None else max(round((call.first - call.began) * 1000), 0),
            tokens_per_s=self._pace(call, spent),
            saved_tokens=saved,
            saved_usd=saved_usd if saved else None,
        )
        self._add(usage, saved_usd)
        return usage

    def _saved(self, call: _Call, spent: Spent) -> int:
        """What the call would likely have put out yet, within the bound that it was given."""
        rest = self._booked.rest(call.model, spent.output)
        most = call.most if isinstance(call.most, int) else None
        return rest if most is None else max(min(rest, most - spent.output), 0)

    def _pace(self, call: _Call, spent: Spent) -> float | None:
        """Tokens a second from the first chunk on."""
        took_s = 0.0 if call.first is None else (call.ended or time.time()) - call.first
        if call.chunks < 2 or spent.output < 2 or took_s <= 0:
            return None
        self._streaming_s += took_s
        self._streamed_tokens += spent.output
        return round(spent.output / took_s, 1)

    def _add(self, usage: Usage, saved_usd: float | None) -> None:
        total = self.totals
        self.totals = Totals(
            input_tokens=total.input_tokens + usage.input_tokens,
            output_tokens=total.output_tokens + usage.output_tokens,
            total_tokens=total.total_tokens + usage.total_tokens,
            reasoning_tokens=total.reasoning_tokens + usage.reasoning_tokens,
            cached_tokens=total.cached_tokens + usage.cached_tokens,
            cost_usd=_sum(total.cost_usd, usage.cost_usd),
            estimated=total.estimated or usage.estimated,
            queue_ms=total.queue_ms + usage.queue_ms,
            tokens_per_s=round(self._streamed_tokens / self._streaming_s, 1) if self._streaming_s else None,
            saved_tokens=total.saved_tokens + usage.saved_tokens,
            saved_usd=_sum(total.saved_usd, saved_usd),
        )

    def _book(
        self, call: _Call, spent: Spent, cost: float | None, status: CallStatus, *, estimated: bool = False
    ) -> None:
        self._booked.call(
            model=call.model,
            provider=call.provider,
            status=status,
            began=call.began,
            first=call.first,
            ended=call.ended or time.time(),
            queue_s=call.queue_s,
            spent=spent,
            cost=cost,
            estimated=estimated,
        )


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one + other, NANO)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _spent(message: AIMessage) -> Spent | None:
    """The provider's own numbers, if it sent any that can be."""
    usage = message.usage_metadata
    if usage is None:
        return None
    inputs: Any = usage.get("input_token_details") or {}
    outputs: Any = usage.get("output_token_details") or {}
    return Spent(
        max(usage["input_tokens"], 0),
        max(usage["output_tokens"], 0),
        max(outputs.get("reasoning") or 0, 0),
        max(inputs.get("cache_read") or 0, 0),
    )


def _message(response: LLMResult) -> AIMessage | None:
    try:
        generation = response.generations[0][0]
    except IndexError:
        return None
    if isinstance(generation, ChatGeneration) and isinstance(generation.message, AIMessage):
        return generation.message
    return None


def _size(token: str | list[str | dict[str, Any]], chunk: GenerationChunk | ChatGenerationChunk | None) -> int:
    """Characters of all that a chunk says: text, a call's arguments, thoughts."""
    size = len(token) if isinstance(token, str) else 0
    message = getattr(chunk, "message", None)
    if message is not None:
        if not isinstance(message.content, str):
            size = sum(_block_size(block) for block in message.content)
        size += sum(len(piece.get("args") or "") for piece in getattr(message, "tool_call_chunks", ()))
        thought = message.additional_kwargs.get("reasoning_content")
        size += len(thought) if isinstance(thought, str) else 0
    return size


def _block_size(block: str | dict[str, Any]) -> int:
    if isinstance(block, str):
        return len(block)
    return sum(len(value) for key in ("text", "thinking", "reasoning") if isinstance(value := block.get(key), str))


def now_ms() -> int:
    """Milliseconds since the epoch: every event's ``ts``."""
    return time.time_ns() // 1_000_000
