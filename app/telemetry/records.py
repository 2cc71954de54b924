"""What has happened, in plain values: a model call, a tool call, a run. Times are seconds since the epoch.

Texts (what was asked and answered) are there only where the operator wants prompts in the log.
"""

from typing import Literal, NamedTuple

CallStatus = Literal["completed", "failed", "cancelled", "timed_out", "paused"]
RunStatus = Literal["completed", "cancelled", "failed", "timed_out", "interrupted"]


class ModelCall(NamedTuple):
    """One call of a model. ``started_at`` is after its wait at the gate, which took ``queue_s``.

    ``status``: how it ended; a call that was cut ended as its run did. ``cost_usd`` is ``None`` for an unknown price;
    ``estimated``: the tokens were counted here, as the provider's own numbers never came.
    """

    run_id: str
    agent: str
    user: str
    model: str
    provider: str
    status: CallStatus
    started_at: float
    ended_at: float
    queue_s: float = 0.0
    ttft_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False


class ToolCall(NamedTuple):
    """One call of a tool that ran."""

    call_id: str
    name: str
    status: Literal["ok", "error"]
    started_at: float
    ended_at: float


class FinishedRun(NamedTuple):
    """A run that has ended. ``cancel_s``: from the decision to end it early until its work stood still.

    ``saved_tokens``: what a run that was cancelled would likely have generated yet, and ``saved_usd`` its price.
    """

    run_id: str
    agent: str
    user: str
    thread_id: str | None
    status: RunStatus
    reason: str | None
    created_at: float
    finished_at: float
    duration_s: float
    ttft_s: float | None = None
    queue_s: float = 0.0
    cancel_s: float | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = None
    saved_tokens: int = 0
    saved_usd: float | None = None
    estimated: bool = False
    events: int = 0
    calls: tuple[ModelCall, ...] = ()
    tools: tuple[ToolCall, ...] = ()
    asked: str | None = None
    answered: str | None = None
