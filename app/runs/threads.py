"""Conversations: one run at a time on a thread, and a thread that is always fit for its next turn.

LangGraph's checkpoints are the conversation. A run that ends abnormally leaves them in the middle of a step: calls
without results, which providers refuse on the next turn, and none of the text that the reader was shown. ``repair``
puts that right: each open call gets an error result, the partial text is appended under the id it was streamed
under, and what was still to be done is dropped.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START
from langgraph.types import StateSnapshot, StateUpdate

from app.errors import Conflict
from app.events import codec
from app.runs.agent import Graph
from app.runs.run import Run
from app.runs.scope import Ending

MAX_QUEUED = 8
"""Runs that may wait for their turn on a thread."""


class Turns:
    """Who may write on which thread now, and who is next. Nothing awaits: a run waits at its own ``turn``."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Run]] = {}

    def busy(self, thread_id: str) -> Run | None:
        """The run that has the thread now, a paused one included."""
        line = self._lines.get(thread_id)
        return line[0] if line else None

    def check(self, thread_id: str, strategy: str) -> None:
        """Raise ``Conflict`` where a run with that strategy would be refused."""
        waiting = len(self._lines.get(thread_id, ())) - 1
        if waiting >= 0 and strategy == "reject":
            raise Conflict(
                "the thread already runs; wait for its end, cancel it, or start with multitask_strategy"
                ' "enqueue" or "interrupt"',
                code="thread_busy",
            )
        if waiting >= MAX_QUEUED:
            raise Conflict(f"{MAX_QUEUED} runs wait on this thread already", code="thread_busy")

    def enter(self, run: Run, thread_id: str, strategy: str) -> None:
        """Get in line. Raises ``Conflict``; when it returns, the run must ``leave`` some time."""
        self.check(thread_id, strategy)
        line = self._lines.setdefault(thread_id, deque())
        if line:
            run.status = "queued"
        else:
            run.turn.set()
        if line and strategy == "interrupt":
            line.insert(1, run)
            line[0].scope.end(Ending("cancelled", "superseded"))
        else:
            line.append(run)

    def leave(self, run: Run, thread_id: str) -> None:
        """The run is over, or waits no more."""
        line = self._lines[thread_id]
        line.remove(run)
        if line:
            line[0].turn.set()
        else:
            del self._lines[thread_id]

    @contextmanager
    def place(self, run: Run) -> Iterator[None]:
        """The run is in line, if it has a thread; in the end it leaves, whatever happens."""
        try:
            yield
        finally:
            if run.thread_id is not None:
                self.leave(run, run.thread_id)


def is_broken(state: StateSnapshot) -> bool:
    """Whether a run ended in the middle of a step: something is still to be done, and it is no person's to do."""
    return bool(state.next) and not state.interrupts


async def repair(graph: Graph, config: RunnableConfig, *, said: Sequence[AIMessage], why: str) -> None:
    """Make the thread fit for its next turn. ``said``: messages that the reader has and the thread may lack."""
    state = await graph.aget_state(config)
    if state.next:  # keeps what steps of a broken-off round have come to, tools that were done for instance
        await graph.abulk_update_state(config, [[StateUpdate(None, END)]])
        state = await graph.aget_state(config)
    known = _messages(state)
    ids = {message.id for message in known}
    missing = [*_results(known, why), *(message for message in said if message.id not in ids)]
    if missing:
        added = StateUpdate({"messages": missing}, _writer(graph))
        await graph.abulk_update_state(config, [[added], [StateUpdate(None, END)]])


def _messages(state: StateSnapshot) -> Sequence[BaseMessage]:
    values = state.values if isinstance(state.values, dict) else vars(state.values)
    return values.get("messages") or ()


def _results(messages: Sequence[BaseMessage], why: str) -> Iterator[ToolMessage]:
    """An error result for each call that has none."""
    answered = {message.tool_call_id for message in messages if isinstance(message, ToolMessage)}
    last = next((message for message in reversed(messages) if isinstance(message, AIMessage)), None)
    if last is None:
        return
    for call in (*last.tool_calls, *last.invalid_tool_calls):
        if call["id"] is not None and call["id"] not in answered:
            yield ToolMessage(f"Error: {why}", tool_call_id=call["id"], name=call["name"], status="error")


def _writer(graph: Graph) -> str:
    """A node to write as: its edges are followed, so one that has no code of the user's on them, where there is one."""
    branches = graph.builder.branches
    return next((node for node in (START, *graph.builder.nodes) if not branches.get(node)), START)


def conversation(state: StateSnapshot) -> dict[str, Any]:
    """What ``GET /threads/{thread_id}`` tells of the graph's state."""
    return {
        "messages": [codec.plain(message) for message in _messages(state)],
        "interrupts": [{"id": one.id, "value": codec.plain(one.value)} for one in state.interrupts],
    }
