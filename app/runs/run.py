"""One run: its log, and what the log says of it.

Status, usage and times are read off the events as they are appended, in one place, so that nothing else can tell
another story. ``finish`` writes the run's end: it closes what is open, accounts for the calls that were cut, and
appends the terminal event; it never awaits, so nothing can come between.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables.config import ensure_config

from app.errors import BadRequest, RunExpired, RunNotFinished
from app.eventlog.base import Lag, LogFull, RunLog
from app.eventlog.memory import MemoryLog
from app.eventlog.subscriber import Subscriber
from app.events import codec
from app.events.event import (
    Error,
    Event,
    ObjectField,
    ObjectPartial,
    Reasoning,
    RunFinished,
    RunPaused,
    RunQueued,
    RunResumed,
    RunStarted,
    Status,
    Token,
    Totals,
)
from app.events.grammar import Grammar
from app.events.request import RunRequest
from app.limits.door import Slot
from app.limits.gate import Gate
from app.runs.agent import OBJECT, Agent
from app.runs.books import Account
from app.runs.failure import Failure
from app.runs.message import Held
from app.runs.passage import Passage
from app.runs.scope import Ending, Scope
from app.runs.shortcut import Overheard, Shortcut, are_deaf
from app.runs.tap import Tap
from app.runs.translate import Translator
from app.runs.usage import Meter, now_ms
from app.runs.watchdog import Watchdog

WITHOUT_RESULT: Mapping[Status, str] = {
    "completed": "The call was left without a result.",
    "cancelled": "The run was cancelled before this call had a result.",
    "failed": "The run failed before this call had a result.",
    "timed_out": "The run ran out of time before this call had a result.",
    "interrupted": "The run waits for a person before this call.",
}
"""What is told, as their result, of calls that a run's end has left open: to readers, and to the thread's next turn."""


FIRST = (Token, Reasoning, ObjectField, ObjectPartial)
"""What a reader has waited for: the first of these is the answer's beginning."""

MAX_LAG = Lag(1024, 1024 * 1024)
"""How far a reader may lag before it is told of a gap, unless the server says otherwise."""


class Stopwatch:
    """The time a run has been at work: its pauses do not count. Milliseconds."""

    def __init__(self, spent_ms: int = 0) -> None:
        self._spent_ms = spent_ms
        self._since: float | None = None

    def go(self) -> None:
        """Count from now on."""
        self._since = time.monotonic()

    def stop(self) -> int:
        """Stand still; what was counted in all."""
        if self._since is not None:
            self._spent_ms += int((time.monotonic() - self._since) * 1000)
            self._since = None
        return self._spent_ms


class Run:
    """A run from its admission on. Times are in seconds since the epoch.

    ``slot`` is its place among its user's runs, ``gate`` where its model calls wait, each for ``queue_timeout_s`` at
    the most. ``max_tokens`` bounds each answer; the models that Millrace builds read it. ``tool_places`` bounds the
    tools at work at once; the graphs that Millrace builds take one for each. ``durable``: it is paused, and another
    process could go on with it. ``direct``: nobody but its log wants to be shown what its models say, token by token.
    """

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
        watchdog: Watchdog | None = None,
        lag: Lag = MAX_LAG,
        pausable: bool = False,
        direct: bool = False,
        max_tokens: int | None = None,
        slot: Slot | None = None,
        gate: Gate | None = None,
        queue_timeout_s: float = 30,
        tools_at_once: int = 8,
        account: Account | None = None,
    ) -> None:
        self.run_id = run_id
        self.agent = agent
        self.request = request
        self.user = user
        self.idempotency_key = idempotency_key
        self.scope = scope
        self.thread_id = request.thread_id
        self.pausable = pausable
        self.held: list[Held] | None = None
        self.durable = False
        self.direct = direct
        self.max_tokens = request.max_tokens if max_tokens is None else max_tokens
        self.slot = slot
        self.passage = None if gate is None else Passage(gate, user, scope, self._queued, timeout_s=queue_timeout_s)
        self.tool_places = asyncio.Semaphore(tools_at_once)
        self._account = account or Account()
        self.meter = Meter(scope, watchdog, passage=self.passage, account=self._account)
        self.failure: Failure | None = None
        self.turn = asyncio.Event()
        self.paused = asyncio.Event()
        self.going = asyncio.Event()
        self.done = asyncio.Event()
        self.created_at = time.time()
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.threads = 0
        self._resting = False
        self.status: Status | Literal["queued", "running", "paused"] = "running"
        self.reason: str | None = None
        self.usage = Totals()
        self.ttft_ms: int | None = None
        self.last_event_id = 0
        self.active = Stopwatch()
        self._log: RunLog | None = log
        self._grammar = grammar
        self._lag = lag
        self._pause_wanted: str | None = None
        self._early: dict[str, list[tuple[Shortcut, str]]] = {}
        self._overflow: LogFull | None = None
        self._spell = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._translator = Translator(agent.labels, self.meter)
        self._translator.pause_after = request.pause_after
        self._result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the terminal event is in the log."""
        return self.status not in ("queued", "running", "paused")

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

    def begin(self) -> None:
        """The graph is about to run, or to go on: from here the run's time counts."""
        self.status = "running"
        self._loop = asyncio.get_running_loop()
        self.started_at = self.started_at or time.time()
        self.active.go()
        self.scope.start_clock()

    def feed(self, raw: Any, tap: Tap | None = None) -> None:
        """One of LangChain's events: append what it stands for, and show it to a ``tap`` that wants to know."""
        if self._overflow is not None:
            raise self._overflow
        if self.scope.pausing is not None:
            return  # what comes after the pause was decided is generated anew
        for event in self._translator.feed(raw, now_ms()):
            self.append(event)
            if tap is not None and tap.events:
                tap.put(event)
        if self._early and self._translator.begun(raw["run_id"]):
            for early in self._early.pop(raw["run_id"], ()):
                self._tell(*early)
        self._look_for_pause()

    def shortcut(self, call: UUID, message_id: str, handlers: Sequence[object], *, seen: bool) -> Shortcut | None:
        """A way for a model call's plain text past LangChain; ``None`` where somebody listens to every chunk.

        ``message_id`` is what LangChain will call the answer. ``seen``: whoever calls reads it chunk by chunk; only of
        Millrace's own agents is it known that this makes no difference. A node in a thread may have a loop of its own,
        whose calls have none.
        """
        if not self.direct or self.meter not in handlers or (seen and not self.agent.served_model):
            return None
        loop = _running_loop()
        if loop is not None and loop is not self._loop:
            return None
        others = [one for one in handlers if one is not self.meter and one is not self.passage]
        kind = Overheard if loop is None else Shortcut
        return kind(self, call, message_id, self._spell) if are_deaf(others) else None

    def hear(self, shortcut: Shortcut, text: str) -> bool:
        """A piece of plain text that has come by a call's shortcut. False: it must come the usual way, and can fail.

        What comes before LangChain's event stream has told of the call waits for that. A run that ends, or stands
        still, refuses it: the callbacks stop the call, also one in a task that the graph's cancel does not reach.
        """
        if not self._hears(shortcut):
            return False
        try:
            self._take(shortcut, text)
        except LogFull:
            return False
        self.meter.hear(shortcut.call, text)
        self._look_for_pause()
        return True

    def overhear(self, shortcut: Shortcut, text: str) -> bool:
        """The same of a call that is made in a thread, where it is counted, as LangChain's callbacks are called there.

        It is told on the run's loop, in the order in which it came: before LangChain's event stream, which takes the
        same way, tells of it. By then it cannot be refused any more: a run that is over, or stands still, passes over
        it. One whose log has no room refuses what follows, and fails at the next event, which that makes.
        """
        if not self._hears(shortcut) or self._loop is None:
            return False
        self.meter.hear(shortcut.call, text)
        try:
            self._loop.call_soon_threadsafe(self._hear_late, shortcut, text)
        except RuntimeError:  # the thread has outlived the loop
            return False
        return True

    def _hear_late(self, shortcut: Shortcut, text: str) -> None:
        if self._hears(shortcut):
            try:
                self._take(shortcut, text)
            except LogFull as error:
                self._overflow = error
            self._look_for_pause()

    def _hears(self, shortcut: Shortcut) -> bool:
        over = self.finished or self.scope.over or self._overflow is not None
        return not over and shortcut.spell == self._spell

    def _take(self, shortcut: Shortcut, text: str) -> None:
        if self._translator.begun(shortcut.run_id):
            self._tell(shortcut, text)
        else:
            self._early.setdefault(shortcut.run_id, []).append((shortcut, text))

    def _tell(self, shortcut: Shortcut, text: str) -> None:
        for event in self._translator.say(shortcut.run_id, shortcut.message_id, text, now_ms()):
            self.append(event)

    def _look_for_pause(self) -> None:
        if self._translator.at_pause:
            self.scope.pause("paragraph")
        elif self._pause_wanted is not None and self._translator.pausable:
            self.scope.pause(self._pause_wanted)

    def append(self, event: Event) -> None:
        """Everything that happens in the run passes here, once. Raises ``LogFull``."""
        if self._log is None or self._log.closed:
            return
        self.last_event_id = self._log.append(event).offset
        if self._grammar is not None:  # after the log, which may have refused the event
            self._grammar.check(event)
        if self.ttft_ms is None and isinstance(event, FIRST):
            self.ttft_ms = max(int((time.time() - self.created_at) * 1000), 0)
            self._account.first_token(self.ttft_ms / 1000)
        self._account.hear(event)

    def _queued(self, position: int) -> None:
        """A call of the run waits at the gate."""
        if self.status == "running" and not self.scope.over:
            with contextlib.suppress(LogFull):  # whatever comes next says so
                self.append(RunQueued(ts=now_ms(), position=position))

    def enter(self) -> None:
        """A thread is asked for: a synchronous node or tool of the run. See `runs.executor.Occupant`."""
        self.threads += 1

    def leave(self) -> None:
        """It is done."""
        self.threads -= 1
        if not self.threads and self._resting:
            self._free()

    def rest(self) -> None:
        """Nothing of the run is at work now, but for threads that were left behind: its places are free with them."""
        self._resting = True
        if self.passage is not None:
            self.passage.close()
        if not self.threads:
            self._free()

    def _free(self) -> None:
        if self.passage is not None:
            self.passage.close_threads()
        if self.slot is not None:
            self.slot.release()

    # Pauses: see `runs.pause` for what is kept.

    def want_pause(self, reason: str) -> None:
        """Pause as soon as a call can be broken off: at once in mid-answer, else when a model is called next."""
        self._pause_wanted = reason
        if self._translator.pausable:
            self.scope.pause(reason)

    def stop(self) -> None:
        """The graph has been stopped for a pause: account for what was cut, and hold what is half said."""
        self._pause_wanted = None
        self._early.clear()
        self._spell += 1
        self.active.stop()
        for usage in self.meter.take_rest(now_ms(), "paused"):
            self.append(usage)
        self.held = self._translator.hold()

    def pause(self, ts: int) -> None:
        """Everything is kept: tell that the run stands still."""
        self.append(RunPaused(ts=ts, reason=self.scope.pausing or "requested", usage=self.meter.totals))
        self.status = "paused"
        self.going.clear()
        self.paused.set()

    def go_on(self) -> None:
        """End the pause, soon."""
        self._resting = False
        self.paused.clear()
        self.scope.resume()

    def resume(self) -> None:
        """The graph is about to go on."""
        self.status = "running"
        self.paused.clear()
        self.going.set()
        self.append(RunResumed(ts=now_ms(), seamless=self.agent.seamless))

    def take(self, run_id: UUID) -> tuple[str, str] | None:
        """A model is called: the text so far and the message's id, when the call goes on with one that was paused."""
        path = ensure_config().get("metadata", {}).get("langgraph_checkpoint_ns") or ""
        adopted = self._translator.adopt(str(run_id), path)
        if adopted is not None:
            self.meter.skip(run_id)
        return adopted

    def said(self) -> list[AIMessage]:
        """What the reader was shown of the root's answers that the graph does not know of."""
        return [AIMessage(text, id=message_id) for message_id, text in self._translator.said()]

    def results(self) -> Mapping[str, ToolMessage]:
        """What tools have come to that the graph does not know of: done is done, and must not be done again."""
        return self._translator.results()

    def dump(self) -> bytes:
        """The log, to be kept over a restart."""
        assert isinstance(self._log, MemoryLog)
        return self._log.dump()

    def restore(self, log: MemoryLog, held: Sequence[Held]) -> None:
        """Be the run that another process has paused: with its log, and its messages half said."""
        self._log = log
        self.last_event_id = log.last
        self.held = list(held)
        self.durable = True
        events = [entry.event for entry in log.read(0, log.last)]
        self._translator.restore(self.held, events)
        self._translator.pause_after = None
        if self._grammar is not None:
            for event in events:
                self._grammar.check(event)

    def abandon(self) -> None:
        """This process goes, the paused run stays: its readers are to come back to the next one."""
        if self._log is not None:
            self._log.abandon()

    def finish(self, ending: Ending, failure: Failure | None = None) -> None:
        """Write the end: close what is open, account, say what failed, and append the terminal event. Once."""
        if self.finished:
            return
        ts = now_ms()
        if ending.status == "completed" and self._translator.interrupted:
            ending = Ending("interrupted")
        for event in self._translator.close(ts, WITHOUT_RESULT[ending.status]):
            self.append(event)
        for usage in self.meter.take_rest(ts, "completed" if ending.status == "interrupted" else ending.status):
            self.append(usage)
        self.failure = failure
        if failure is not None:
            code, message, retryable, retry_after_ms = failure
            self.append(Error(ts=ts, code=code, message=message, retryable=retryable, retry_after_ms=retry_after_ms))
        self._early.clear()
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
                duration_ms=self.active.stop(),
            )
        )
        self.status, self.reason = ending
        self.rest()
        self.scope.close()
        self.paused.set()
        self.going.set()
        self.done.set()
        self._book(ending)

    def _book(self, ending: Ending) -> None:
        result = self._result or {}
        self._account.finish(
            ending,
            self.usage,
            thread_id=self.thread_id,
            created_at=self.created_at,
            finished_at=self.finished_at or self.created_at,
            duration_ms=self.active.stop(),
            ttft_ms=self.ttft_ms,
            cancel_s=self.scope.cancel_s,
            events=self.last_event_id,
            asked=lambda: codec.plain(self.request.input),
            answered=lambda: result.get("text") or result.get("object"),
        )

    def subscribe(self, after: int) -> Subscriber:
        """A reader from ``after`` on. Raises ``RunExpired``, and ``BadRequest`` for an id that lies in the future."""
        if self._log is None:
            raise RunExpired(f"the run is over and its events are no longer kept; its row is at /runs/{self.run_id}")
        if after > self._log.last:
            raise BadRequest(
                f"event id {after} lies in the future: the newest is {self._log.last}", code="bad_event_id"
            )
        lag = self._lag
        return Subscriber(self._log, after, max_events=lag.events, max_bytes=lag.bytes, missed=self._account.missed)

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
            "reason": self.reason,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "usage": codec.plain(self.usage if self.finished else self.meter.totals),
            "ttft_ms": self.ttft_ms,
            "last_event_id": self.last_event_id,
            "metadata": self.request.metadata,
        }

    def expire(self) -> None:
        """Let go of all but the row. Twice is once."""
        if self._log is None:
            return
        self._log = self._result = None
        del self._translator, self.meter, self._grammar, self.scope, self.passage, self._account

    def _make_result(self, status: Status) -> dict[str, Any]:
        text, message, other = _answer(self._translator.output)
        if text is None:
            text = self._translator.text()
        if other is None and self.agent.answers_object and not self._translator.ended:
            other = self._translator.object  # as far as it came
        if status == "interrupted" and not _has_object(self._translator.output):
            other = None  # the state of a graph that waits for a person is no answer
        return {
            "run_id": self.run_id,
            "status": status,
            "text": text,
            "message": message,
            "object": other,
            "usage": codec.plain(self.usage),
        }


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _answer(output: Any) -> tuple[str | None, Any, Any]:
    """``(text, message, object)`` of what a runnable returned: text is the last message's where there is one."""
    try:
        last = _last_message(output)
        text = last if isinstance(last, str) else last.text if last is not None else None
    except Exception:  # noqa: BLE001 - a user's class may raise anything; the run must have its end
        last = text = None
    if text is None:
        return None, None, codec.plain(output[OBJECT] if _has_object(output) else output)
    made = codec.plain(output[OBJECT]) if _has_object(output) else None
    return codec.text(text), None if isinstance(last, str) else codec.plain(last), made


def _has_object(output: Any) -> bool:
    return isinstance(output, dict) and OBJECT in output


def _last_message(output: Any) -> str | BaseMessage | None:
    if isinstance(output, str | BaseMessage):
        return output
    messages = output.get("messages") if isinstance(output, dict) else getattr(output, "messages", None)
    last = messages[-1] if isinstance(messages, list) and messages else None
    return last if isinstance(last, AIMessage) else None
