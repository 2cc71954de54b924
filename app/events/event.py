"""The closed set of events: everything a reader of a run can ever be told.

Each type is a frozen structure whose ``type`` is its name on the wire. Field names and meanings are the public
contract (``docs/events.md``); adding a field is fine, renaming one breaks clients. A field without a default is
always present on the wire, null included; one with a default is left out while it holds it.

Every event has ``ts`` (milliseconds since the epoch) and, when it comes from inside a graph, ``node`` (the graph
node's name) and ``namespace`` (the path of subgraphs, outermost first, as LangGraph writes it: ``"node:uuid"``).
"""

from typing import Any, ClassVar, Literal

import msgspec

Status = Literal["completed", "cancelled", "failed", "timed_out", "interrupted"]
"""How a run can end."""


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all events share. ``droppable`` ones may be skipped for a reader that lags; the others always arrive."""

    type: ClassVar[str]
    droppable: ClassVar[bool] = False

    ts: int
    node: str | None = None
    namespace: tuple[str, ...] = ()


class RunStarted(Event, frozen=True, kw_only=True):
    """The run was admitted; the first event of every run."""

    type: ClassVar[str] = "run.started"
    run_id: str
    agent: str
    thread_id: str | None
    model: str | None
    max_tokens: int | None


class RunQueued(Event, frozen=True, kw_only=True):
    """The run waits for the provider; ``position`` 1 is next."""

    type: ClassVar[str] = "run.queued"
    position: int


class RunPaused(Event, frozen=True, kw_only=True):
    """The run stands still and costs nothing until it is continued."""

    type: ClassVar[str] = "run.paused"
    reason: str
    usage: "Totals"


class RunResumed(Event, frozen=True, kw_only=True):
    """The run goes on; ``seamless`` is false where the text may show a seam."""

    type: ClassVar[str] = "run.resumed"
    seamless: bool


class RunInterrupted(Event, frozen=True, kw_only=True):
    """The graph waits for a person: ``interrupts`` is a list of ``{"id", "value"}``."""

    type: ClassVar[str] = "run.interrupted"
    interrupts: list[dict[str, Any]]


class NodeStarted(Event, frozen=True, kw_only=True):
    """A graph node begins its step; which one is in ``node``."""

    type: ClassVar[str] = "node.started"


class NodeFinished(Event, frozen=True, kw_only=True):
    """A graph node has ended its step."""

    type: ClassVar[str] = "node.finished"


class MessageStarted(Event, frozen=True, kw_only=True):
    """A message begins; its tokens carry the same ``message_id``."""

    type: ClassVar[str] = "message.started"
    message_id: str
    role: str


class MessageFinished(Event, frozen=True, kw_only=True):
    """Nothing more comes for this message."""

    type: ClassVar[str] = "message.finished"
    message_id: str
    role: str


class MessageDiscarded(Event, frozen=True, kw_only=True):
    """Forget what was shown of this message: it is being generated anew."""

    type: ClassVar[str] = "message.discarded"
    message_id: str
    role: str


class Token(Event, frozen=True, kw_only=True):
    """A piece of the answer's text, as the provider cut it."""

    type: ClassVar[str] = "token"
    droppable: ClassVar[bool] = True
    text: str
    message_id: str


class Reasoning(Event, frozen=True, kw_only=True):
    """A piece of the model's reasoning, where the provider shows it."""

    type: ClassVar[str] = "reasoning"
    droppable: ClassVar[bool] = True
    text: str
    message_id: str


class ToolPending(Event, frozen=True, kw_only=True):
    """The model named a tool; its arguments are still being written. ``label`` is for people."""

    type: ClassVar[str] = "tool.pending"
    call_id: str
    name: str
    label: str


class ToolArgs(Event, frozen=True, kw_only=True):
    """A piece of a call's arguments; ``args`` is the best parse so far, present when it grew enough and at the end."""

    type: ClassVar[str] = "tool.args"
    droppable: ClassVar[bool] = True
    call_id: str
    delta: str
    args: Any = None


class ToolStarted(Event, frozen=True, kw_only=True):
    """The tool runs, with these arguments."""

    type: ClassVar[str] = "tool.started"
    call_id: str
    name: str
    args: Any


class ToolProgress(Event, frozen=True, kw_only=True):
    """What a running tool says of itself."""

    type: ClassVar[str] = "tool.progress"
    droppable: ClassVar[bool] = True
    call_id: str
    data: Any


class ToolFinished(Event, frozen=True, kw_only=True):
    """The tool's result, or why there is none. ``duration_ms`` is 0 for a call that never ran."""

    type: ClassVar[str] = "tool.finished"
    call_id: str
    name: str
    status: Literal["ok", "error"]
    output: Any
    duration_ms: int


class ObjectPartial(Event, frozen=True, kw_only=True):
    """A structured answer as far as it is valid; another ``message_id`` begins another one."""

    type: ClassVar[str] = "object.partial"
    droppable: ClassVar[bool] = True
    value: Any
    message_id: str


class ObjectField(Event, frozen=True, kw_only=True):
    """One value of a structured answer is complete: a number, text, boolean, null, or an empty list or object.

    Set at their paths in the order in which they come, they make the object.
    """

    type: ClassVar[str] = "object.field"
    path: list[str | int]
    value: Any
    message_id: str


class State(Event, frozen=True, kw_only=True):
    """The graph's values after a step, where the agent asks for it."""

    type: ClassVar[str] = "state"
    values: Any


class Custom(Event, frozen=True, kw_only=True):
    """What a graph or tool dispatched by LangChain's custom events."""

    type: ClassVar[str] = "custom"
    droppable: ClassVar[bool] = True
    name: str
    data: Any


class Usage(Event, frozen=True, kw_only=True):
    """What one model call consumed. ``estimated``: counted here, because the provider's own numbers never came.

    Reasoning is part of the output, what was cached part of the input. ``queue_ms`` is the wait at the server's own
    gate; ``ttft_ms`` runs from there to the first chunk. ``saved_tokens``: what a call that was cancelled would likely
    have generated yet, and ``saved_usd`` their price.
    """

    type: ClassVar[str] = "usage"
    input_tokens: int
    output_tokens: int
    total_tokens: int
    cost_usd: float | None
    estimated: bool
    model: str | None = None
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    queue_ms: int = 0
    ttft_ms: int | None = None
    tokens_per_s: float | None = None
    saved_tokens: int = 0
    saved_usd: float | None = None


class Gap(Event, frozen=True, kw_only=True):
    """This reader missed the events ``from`` to ``to``, both inclusive; the answer is whole at ``/result``."""

    type: ClassVar[str] = "gap"
    start: int = msgspec.field(name="from")
    to: int
    dropped: int


class Error(Event, frozen=True, kw_only=True):
    """Something failed. The message is harmless; ``retry_after_ms`` is there when waiting that long helps."""

    type: ClassVar[str] = "error"
    code: str
    message: str
    retryable: bool
    retry_after_ms: int | None = None


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and cost of a run so far; ``cost_usd`` is null when one price is unknown, ``saved_usd`` as well.

    ``queue_ms`` is the waits of all its calls at the gate; ``tokens_per_s`` is null until a streamed answer was whole.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cost_usd: float | None = 0.0
    estimated: bool = False
    queue_ms: int = 0
    tokens_per_s: float | None = None
    saved_tokens: int = 0
    saved_usd: float | None = 0.0


class RunFinished(Event, frozen=True, kw_only=True):
    """The terminal event: always last, always exactly once. ``ttft_ms`` is null when no token came."""

    type: ClassVar[str] = "run.finished"
    status: Status
    reason: str | None
    usage: Totals
    ttft_ms: int | None
    duration_ms: int


TYPES: dict[str, type[Event]] = {cls.type: cls for cls in Event.__subclasses__()}
"""Every event by its name on the wire."""
