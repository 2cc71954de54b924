"""The legal order of a run's events, as a table; h11 does the same for HTTP.

A run is one of three states. What may happen in each::

    new        run.started → live
    live       anything but run.started; run.paused → paused; run.finished → finished
    paused     run.resumed → live; usage, error, message.finished, tool.finished; run.finished → finished
    finished   nothing

Within a run, each message and each tool call has its own order, kept by ``message_id`` and ``call_id``::

    message    started, then token | reasoning | object.partial | object.field …,
               then finished (or discarded, after which it may start again)
    tool       pending, then args …, then started, then progress …, then finished

Tools may start without having been pending (a node may call one itself). When the run finishes, every message and
tool that was opened has been closed. ``Grammar.check`` raises ``IllegalOrder``; the runner feeds it every event in
tests and debug runs, so that an encoder may rely on the order without state of its own.
"""

from typing import Literal

from app.events.event import (
    Error,
    Event,
    Gap,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    ObjectField,
    ObjectPartial,
    Reasoning,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    Token,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolProgress,
    ToolStarted,
    Usage,
)

RunState = Literal["new", "live", "paused", "finished"]

_WHILE_PAUSED = (RunResumed, RunFinished, Usage, Error, MessageFinished, ToolFinished)
_NEXT: dict[type[Event], RunState] = {
    RunStarted: "live",
    RunPaused: "paused",
    RunResumed: "live",
    RunFinished: "finished",
}
_MESSAGE_BEFORE: dict[type[Event], tuple[str | None, ...]] = {
    MessageStarted: (None, "discarded"),
    Token: ("started",),
    Reasoning: ("started",),
    ObjectPartial: ("started",),
    ObjectField: ("started",),
    MessageFinished: ("started",),
    MessageDiscarded: ("started",),
}
_MESSAGE_AFTER: dict[type[Event], str] = {
    MessageStarted: "started",
    MessageFinished: "finished",
    MessageDiscarded: "discarded",
}
_TOOL_BEFORE: dict[type[Event], tuple[str | None, ...]] = {
    ToolPending: (None,),
    ToolArgs: ("pending",),
    ToolStarted: (None, "pending"),
    ToolProgress: ("started",),
    ToolFinished: ("pending", "started"),
}
_TOOL_AFTER: dict[type[Event], str] = {
    ToolPending: "pending",
    ToolStarted: "started",
    ToolFinished: "finished",
}


class IllegalOrder(AssertionError):
    """An event came where the table has no place for it: a defect of ours, never of the client's."""


class Grammar:
    """Follows one run and raises at the first event out of order."""

    def __init__(self) -> None:
        self.state: RunState = "new"
        self._messages: dict[str, str] = {}
        self._tools: dict[str, str] = {}

    def check(self, event: Event) -> None:
        """Admit the event, or raise ``IllegalOrder`` and stay as it was."""
        self._check_run(event)
        match event:
            case (
                MessageStarted()
                | Token()
                | Reasoning()
                | ObjectPartial()
                | ObjectField()
                | MessageFinished()
                | MessageDiscarded()
            ):
                self._check_message(event, event.message_id)
            case ToolPending() | ToolArgs() | ToolStarted() | ToolProgress() | ToolFinished():
                self._check_tool(event, event.call_id)
            case RunFinished():
                open_messages = "started" in self._messages.values()
                open_calls = any(state != "finished" for state in self._tools.values())
                self._require(not open_messages and not open_calls, event)
        self.state = _NEXT.get(type(event), self.state)

    def _check_run(self, event: Event) -> None:
        self._require(not isinstance(event, Gap), event)
        match self.state:
            case "new":
                self._require(isinstance(event, RunStarted), event)
            case "live":
                self._require(not isinstance(event, RunStarted | RunResumed), event)
            case "paused":
                self._require(isinstance(event, _WHILE_PAUSED), event)
            case "finished":
                self._require(False, event)

    def _check_message(self, event: Event, message: str) -> None:
        self._require(self._messages.get(message) in _MESSAGE_BEFORE[type(event)], event)
        self._messages[message] = _MESSAGE_AFTER.get(type(event), self._messages.get(message, ""))

    def _check_tool(self, event: Event, call: str) -> None:
        self._require(self._tools.get(call) in _TOOL_BEFORE[type(event)], event)
        self._tools[call] = _TOOL_AFTER.get(type(event), self._tools.get(call, ""))

    def _require(self, legal: bool, event: Event) -> None:
        if not legal:
            raise IllegalOrder(f"{event.type} is out of order while the run is {self.state}: {event}")
