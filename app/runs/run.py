"""One run: its log, and what the log says of it.

Status, usage and times are read off the events as they are appended, in one place, so that nothing else can tell
another story. ``finish`` writes the run's end: it closes what is open, accounts for the calls that were cut, and
appends the terminal event; it never awaits, so nothing can come between.
"""

import asyncio
import time
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage

from app.errors import BadRequest, RunExpired, RunNotFinished
from app.eventlog.base import RunLog
from app.eventlog.subscriber import Subscriber
from app.events import codec
from app.events.event import Error, Event, Reasoning, RunFinished, RunStarted, Status, Token, Totals
from app.events.grammar import Grammar
from app.events.request import RunRequest
from app.runs.agent import Agent
from app.runs.failure import Failure
from app.runs.scope import Ending, Scope
from app.runs.translate import Translator
from app.runs.usage import Meter, now_ms


class Run:
    """A run from its admission on. Times are in seconds since the epoch."""

    def __init__(
        self,
        run_id: str,
        *,
        agent: Agent,
        request: RunRequest,
        user: str,
        idempotency_key: str | None,
        log: RunLog,
        scope: Scope,
        grammar: Grammar | None,
    ) -> None:
        self.run_id = run_id
        self.agent = agent
        self.user = user
        self.idempotency_key = idempotency_key
        self.scope = scope
        self.thread_id = request.thread_id
        self.max_tokens = request.max_tokens
        self.metadata = request.metadata
        self.meter = Meter(scope)
        self.failure: Failure | None = None
        self.done = asyncio.Event()
        self.created_at = self.started_at = time.time()
        self.finished_at: float | None = None
        self.status: Status | Literal["running"] = "running"
        self.usage = Totals()
        self.ttft_ms: int | None = None
        self.last_event_id = 0
        self._began = time.monotonic()
        self._log: RunLog | None = log
        self._grammar = grammar
        self._translator = Translator(agent.labels, self.meter)
        self._result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the terminal event is in the log."""
        return self.status != "running"

    def start(self) -> None:
        """Append the first event."""
        self.append(
            RunStarted(
                ts=now_ms(),
                run_id=self.run_id,
                agent=self.agent.name,
                thread_id=self.thread_id,
                model=self.agent.model,
                max_tokens=self.max_tokens,
            )
        )

    def feed(self, raw: Any) -> None:
        """One of LangChain's events: append what it stands for."""
        for event in self._translator.feed(raw, now_ms()):
            self.append(event)

    def append(self, event: Event) -> None:
        """Everything that happens in the run passes here, once. Raises ``LogFull``."""
        if self._log is None or self._log.closed:
            return
        self.last_event_id = self._log.append(event).offset
        if self._grammar is not None:  # after the log, which may have refused the event
            self._grammar.check(event)
        if self.ttft_ms is None and isinstance(event, Token | Reasoning):
            self.ttft_ms = self._elapsed_ms()

    def finish(self, ending: Ending, failure: Failure | None = None) -> None:
        """Write the end: close what is open, account, say what failed, and append the terminal event. Once."""
        if self.finished:
            return
        ts = now_ms()
        if ending.status == "completed" and self._translator.interrupted:
            ending = Ending("interrupted")
        for event in self._translator.close(ts, _WITHOUT_RESULT[ending.status]):
            self.append(event)
        for usage in self.meter.take_rest(ts):
            self.append(usage)
        self.failure = failure
        if failure is not None:
            code, message, retryable, retry_after_ms = failure
            self.append(Error(ts=ts, code=code, message=message, retryable=retryable, retry_after_ms=retry_after_ms))
        self.finished_at = time.time()
        self.usage = self.meter.totals
        self._result = self._make_result(ending.status)
        self.append(
            RunFinished(
                ts=ts,
                status=ending.status,
                reason=ending.reason,
                usage=self.usage,
                ttft_ms=self.ttft_ms,
                duration_ms=self._elapsed_ms(),
            )
        )
        self.status = ending.status
        self.scope.close()
        self.done.set()

    def subscribe(self, after: int) -> Subscriber:
        """A reader from ``after`` on. Raises ``RunExpired``, and ``BadRequest`` for an id that lies in the future."""
        if self._log is None:
            raise RunExpired(f"the run is over and its events are no longer kept; its row is at /runs/{self.run_id}")
        if after > self._log.last:
            raise BadRequest(
                f"event id {after} lies in the future: the newest is {self._log.last}", code="bad_event_id"
            )
        return Subscriber(self._log, after)

    def result(self) -> dict[str, Any]:
        """The whole answer: ``status, text, message, object, usage``. Raises ``RunNotFinished``, ``RunExpired``."""
        if not self.finished:
            raise RunNotFinished("the run is still going; wait for it with ?wait=true")
        if self._result is None:
            raise RunExpired("the run is over and its result is no longer kept")
        return self._result

    @property
    def returned(self) -> bool:
        """Whether the runnable itself came to its end."""
        return self._translator.ended

    def output(self) -> Any:
        """What the runnable itself returned, in Python's objects; ``None`` when it did not come to an end."""
        return self._translator.output

    def row(self) -> dict[str, Any]:
        """One row of ``GET /runs``."""
        return {
            "run_id": self.run_id,
            "agent": self.agent.name,
            "thread_id": self.thread_id,
            "user": self.user,
            "status": self.status,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "usage": codec.plain(self.usage if self.finished else self.meter.totals),
            "ttft_ms": self.ttft_ms,
            "last_event_id": self.last_event_id,
            "metadata": self.metadata,
        }

    def expire(self) -> None:
        """Let go of all but the row. Twice is once."""
        if self._log is None:
            return
        self._log = self._result = None
        del self._translator, self.meter, self._grammar, self.scope

    def _make_result(self, status: Status) -> dict[str, Any]:
        text, message, other = _answer(self._translator.output)
        if text is None:
            text = self._translator.text()
        return {
            "run_id": self.run_id,
            "status": status,
            "text": text,
            "message": message,
            "object": other,
            "usage": codec.plain(self.usage),
        }

    def _elapsed_ms(self) -> int:
        return int((time.monotonic() - self._began) * 1000)


_WITHOUT_RESULT: dict[Status, str] = {
    "completed": "The call was left without a result.",
    "cancelled": "The run was cancelled before this call had a result.",
    "failed": "The run failed before this call had a result.",
    "timed_out": "The run ran out of time before this call had a result.",
    "interrupted": "The run waits for a person before this call.",
}


def _answer(output: Any) -> tuple[str | None, Any, Any]:
    """``(text, message, object)`` of what a runnable returned: text is the last message's where there is one."""
    try:
        last = _last_message(output)
        text = last if isinstance(last, str) else last.text if last is not None else None
    except Exception:  # noqa: BLE001 - a user's class may raise anything; the run must have its end
        last = text = None
    if text is None:
        return None, None, codec.plain(output)
    return codec.text(text), None if isinstance(last, str) else codec.plain(last), None


def _last_message(output: Any) -> str | BaseMessage | None:
    if isinstance(output, str | BaseMessage):
        return output
    messages = output.get("messages") if isinstance(output, dict) else getattr(output, "messages", None)
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last if isinstance(last, AIMessage) else None
