"""The house's books: who spent what on which model, told to whoever keeps count of it.

``Books`` are the server's, an ``Account`` is one run's. What a model call came to is booked when the call is over
(metrics, the ledger, the user's budget of the day), what a run came to at its end (metrics, the ledger, the user's
habits, a line in the log, spans). Nothing here waits, and nothing that fails here may keep a run from its end.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from app.errors import MillraceError
from app.events import codec
from app.events.event import Custom, Event, Reasoning, Token, ToolFinished, Totals
from app.limits.door import Door
from app.limits.habits import Habits
from app.runs.experience import Experience
from app.runs.ledger import Ledger
from app.runs.prices import Prices
from app.runs.scope import Ending
from app.telemetry.logs import log_run
from app.telemetry.metrics import RECOVERIES, Metrics
from app.telemetry.records import CallStatus, FinishedRun, ModelCall, ToolCall
from app.telemetry.spans import Spans

logger = logging.getLogger("millrace.books")

MAX_CALLS = 1000
"""Model and tool calls of one run that its line in the log and its spans know of."""

WORDS = (Token, Reasoning)
"""What a reader sees come word by word."""

STOPPED_BY_READER = ("requested", "disconnected", "superseded")
"""Why a cancelled run was cancelled, where it was its reader who had enough."""


class Spent(NamedTuple):
    """Tokens of one call. Reasoning is part of the output, what was cached part of the input."""

    input: int
    output: int
    reasoning: int = 0
    cached: int = 0


class Books:
    """What the server spends. ``prompts``: texts go into the log and the spans."""

    def __init__(
        self,
        ledger: Ledger,
        door: Door,
        *,
        metrics: Metrics | None = None,
        prices: Prices | None = None,
        spans: Spans | None = None,
        prompts: bool = False,
    ) -> None:
        self.ledger = ledger
        self.door = door
        self.metrics = metrics or Metrics()
        self.prices = prices or Prices()
        self.experience = Experience()
        self.habits = Habits()
        self.spans = spans
        self.prompts = prompts

    async def open(self) -> None:
        """Know what users have spent today, which the ledger remembers."""
        today = datetime.now(UTC).date()
        for user, (tokens, cost_usd) in (await self.ledger.spent(today)).items():
            self.door.budget.spend(user, tokens, cost_usd, today)

    def refused(self, error: MillraceError) -> None:
        """A limit has refused a request."""
        self.metrics.refused(error.reason)


class Account:
    """One run's, from its admission on. Without ``books`` it counts for nobody."""

    def __init__(
        self, books: Books | None = None, *, run_id: str = "", agent: str = "", user: str = "", most: int | None = None
    ) -> None:
        self._books = books
        self._run_id = run_id
        self._agent = agent
        self._user = user
        self._most = most
        self._calls: list[ModelCall] = []
        self._tools: list[ToolCall] = []
        self._token_at: float | None = None

    # A model call

    def input_tokens(self, model: str, counted: int) -> int:
        """The provider's own number, as far as experience tells it from ours."""
        return counted if self._books is None else self._books.experience.input_tokens(self._agent, model, counted)

    def learn(self, model: str, counted: int, spent: Spent) -> None:
        """A call came to its end, and the provider told what it was."""
        if self._books is not None:
            self._books.experience.learn(
                self._agent, model, counted=counted, input_tokens=spent.input, output_tokens=spent.output
            )

    def rest(self, model: str, output_tokens: int) -> int:
        """How much an answer that was cut would likely have had yet."""
        if self._books is None:
            return 0
        rest = self._books.experience.rest(self._agent, model, output_tokens)
        return rest if self._most is None else max(min(rest, self._most - output_tokens), 0)

    def cost(self, model: str, provider: str, spent: Spent) -> float | None:
        """US dollars; ``None`` where the price is not known."""
        if self._books is None:
            return None
        return self._books.prices.cost(
            model, provider, input_tokens=spent.input, output_tokens=spent.output, cached_tokens=spent.cached
        )

    def call(
        self,
        *,
        model: str,
        provider: str,
        status: CallStatus,
        began: float,
        first: float | None,
        ended: float,
        queue_s: float,
        spent: Spent,
        cost: float | None,
        estimated: bool,
    ) -> None:
        """Book a model call that is over."""
        if self._books is None:
            return
        call = ModelCall(
            run_id=self._run_id,
            agent=self._agent,
            user=self._user,
            model=model,
            provider=provider,
            status=status,
            started_at=began,
            ended_at=ended,
            queue_s=queue_s,
            ttft_s=None if first is None else max(first - began, 0.0),
            input_tokens=spent.input,
            output_tokens=spent.output,
            reasoning_tokens=spent.reasoning,
            cached_tokens=spent.cached,
            cost_usd=cost,
            estimated=estimated,
        )
        self._books.door.spend(self._user, spent.input + spent.output, cost or 0.0)
        with _logged("a call of run %s is missing in the books", self._run_id):
            self._books.metrics.call(call)
            self._books.ledger.spend(call)
        if len(self._calls) < MAX_CALLS:
            self._calls.append(call)

    def provider_refused(self) -> None:
        """The provider has refused a call as one too many; told from any thread."""
        if self._books is not None:
            self._books.metrics.provider_refused()

    # What the run's log is told

    def hear(self, event: Event) -> None:
        """An event of the run, as it is appended."""
        if self._books is None:
            return
        if isinstance(event, WORDS):
            now = time.perf_counter()
            if self._token_at is not None:
                self._books.metrics.token_gap(now - self._token_at)
            self._token_at = now
        else:
            self._token_at = None  # between a word and the next one was a tool, or a line at the gate
            if isinstance(event, Custom) and event.name in RECOVERIES:
                problem = event.data.get("problem") if isinstance(event.data, dict) else None
                self._books.metrics.recovered(event.name, str(problem))
            elif isinstance(event, ToolFinished) and len(self._tools) < MAX_CALLS:
                ended = event.ts / 1000
                began = ended - event.duration_ms / 1000
                self._tools.append(ToolCall(event.call_id, event.name, event.status, began, ended))

    def first_token(self, seconds: float) -> None:
        """The run's first word, so long after its admission."""
        if self._books is not None:
            self._books.metrics.first_token(self._agent, seconds)

    def missed(self, dropped: int) -> None:
        """A reader has lagged, and misses that many events."""
        if self._books is not None:
            self._books.metrics.gap(dropped)

    def finish(
        self,
        ending: Ending,
        totals: Totals,
        *,
        thread_id: str | None,
        created_at: float,
        finished_at: float,
        duration_ms: int,
        ttft_ms: int | None,
        cancel_s: float | None,
        events: int,
        asked: Callable[[], Any],
        answered: Callable[[], Any],
    ) -> None:
        """Book the run, which has ended."""
        if self._books is None:
            return
        prompts = self._books.prompts
        run = FinishedRun(
            run_id=self._run_id,
            agent=self._agent,
            user=self._user,
            thread_id=thread_id,
            status=ending.status,
            reason=ending.reason,
            created_at=created_at,
            finished_at=finished_at,
            duration_s=duration_ms / 1000,
            ttft_s=None if ttft_ms is None else ttft_ms / 1000,
            queue_s=totals.queue_ms / 1000,
            cancel_s=cancel_s,
            input_tokens=totals.input_tokens,
            output_tokens=totals.output_tokens,
            reasoning_tokens=totals.reasoning_tokens,
            cached_tokens=totals.cached_tokens,
            cost_usd=totals.cost_usd,
            saved_tokens=totals.saved_tokens,
            saved_usd=totals.saved_usd,
            estimated=totals.estimated,
            events=events,
            calls=tuple(self._calls),
            tools=tuple(self._tools),
            asked=_text(asked) if prompts else None,
            answered=_text(answered) if prompts else None,
        )
        stopped = ending.status == "cancelled" and ending.reason in STOPPED_BY_READER
        if stopped or ending.status == "completed":
            self._books.habits.note(self._user, self._agent, totals.output_tokens, stopped=stopped)
        with _logged("run %s is missing in the books", self._run_id):
            self._books.metrics.run(run)
            self._books.ledger.count(run)
            log_run(run)
            if self._books.spans is not None:
                self._books.spans.run(run)


@contextmanager
def _logged(problem: str, run_id: str) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception(problem, run_id)


def _text(of: Callable[[], Any]) -> str:
    value = of()
    return value if isinstance(value, str) else codec.dumps(value).decode("utf-8", "replace")
