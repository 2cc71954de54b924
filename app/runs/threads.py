"""Conversations: one run at a time on a thread, and a thread that is always fit for its next turn.

LangGraph's checkpoints are the conversation. A run that ends abnormally leaves them in the middle of a step: calls
without results, which providers refuse on the next turn, and none of the text that the reader was shown. ``repair``
puts that right: each open call gets an error result, the partial text is appended under the id it was streamed
under, and what was still to be done is dropped.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from types import MappingProxyType
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import LastValue
from langgraph.graph import END, START
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import StateSnapshot, StateUpdate

from app.errors import Conflict, InvalidInput
from app.events import codec
from app.runs.agent import Graph
from app.runs.run import Run
from app.runs.scope import Ending

_PLAIN = re.compile(r"[!-~]{1,128}")
"""What providers take for a call's id and its tool's name, at the most: ASCII without blanks."""

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
            for other in list(line):  # one that came to interrupt and still waits is out of date as well
                if other is line[0] or other.request.multitask_strategy == "interrupt":
                    other.scope.end(Ending("cancelled", "superseded"))
            line.insert(1, run)
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


def is_broken(state: StateSnapshot, answers: Iterable[BaseMessage] = ()) -> bool:
    """Whether the last run ended in the middle, and no person is waited for.

    Then a step is not over, or, since a repair may end in the middle too, a call is left without a result that is not
    among the ``answers`` of the turn to come.
    """
    if state.interrupts:
        return False
    return bool(state.tasks) or any(_results([*_messages(state), *leading(answers)], why=""))


def leading(messages: Iterable[Any]) -> list[ToolMessage]:
    """The results with which a turn's messages begin: they answer calls that the thread was left with."""
    return list(takewhile(lambda one: isinstance(one, ToolMessage), messages))


def refuse_loose_calls(state: StateSnapshot, given: Sequence[Any]) -> None:
    """A client may hand in calls and results, of tools of its own for instance; each must have its counterpart.

    What no provider takes would be kept in the thread, and every later turn would fail. Raises ``InvalidInput``.
    """
    open_calls = {call_id for call_id, _ in _without_result(_messages(state))}
    own = False  # whether the open calls are the client's; those that the thread was left with have a repair
    for at, message in enumerate(given):
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in open_calls:
                raise _loose(at, f"is the result of a call {message.tool_call_id[:100]!r} that nobody has made")
            open_calls.discard(message.tool_call_id)
            continue
        if own and open_calls:
            raise _loose(at, "comes before the results of the calls that precede it")
        open_calls = set()  # those that the thread was left with are answered before the turn
        if isinstance(message, AIMessage):
            calls = [*message.tool_calls, *message.invalid_tool_calls]
            ids = [call["id"] or "" for call in calls]
            if len(set(ids)) < len(ids) or not all(_PLAIN.fullmatch(one) for one in ids):
                raise _loose(at, "has a call without an id of its own of 1 to 128 plain characters")
            if not all(_PLAIN.fullmatch(call["name"] or "") for call in calls):
                raise _loose(at, "calls a tool by a name that is not 1 to 128 plain characters")
            open_calls, own = set(ids), True


def _loose(at: int, problem: str) -> InvalidInput:
    field = f"input.messages[{at}]"
    return InvalidInput(f"{field} {problem}", detail=[{"field": field, "message": problem}])


Results = Mapping[str, ToolMessage]


async def repair(
    graph: Graph,
    config: RunnableConfig,
    *,
    said: Sequence[AIMessage] = (),
    results: Results = MappingProxyType({}),
    answers: Sequence[ToolMessage] = (),
    why: str,
) -> None:
    """Make the thread fit for its next turn: calls without a result are told ``why``.

    The reader has seen what is ``said``, and the ``results`` of calls by their ids; the thread may lack them.
    """
    await _repair(graph, graph, config, said=said, results=results, answers=answers, why=why)
    for namespace, inner in graph.get_subgraphs(recurse=True):
        if isinstance(inner, CompiledStateGraph) and inner.checkpointer is True:  # it has a memory of its own
            place: RunnableConfig = {"configurable": {**config["configurable"], "checkpoint_ns": namespace}}
            if (await graph.aget_state(place)).tasks:
                await _repair(graph, inner, place, said=(), results=results, answers=(), why=why)


async def _repair(
    root: Graph,
    graph: Graph,
    config: RunnableConfig,
    *,
    said: Sequence[AIMessage],
    results: Results,
    answers: Sequence[ToolMessage],
    why: str,
) -> None:
    clear = [StateUpdate(None, END)]
    state = await root.aget_state(config)
    while state.tasks:  # keeps what steps of a broken-off round have come to, and may lead to others
        await root.abulk_update_state(config, [clear])
        state = await root.aget_state(config)
    known = _messages(state)
    ids = {message.id for message in known if isinstance(message, BaseMessage)}
    missing = [*_results([*known, *answers], why, results), *(message for message in said if message.id not in ids)]
    if missing:
        # A channel without a reducer is overwritten by what it is given.
        whole = [*known, *missing] if isinstance(graph.channels.get("messages"), LastValue) else missing
        added = StateUpdate({"messages": whole}, _writer(graph))
        await root.abulk_update_state(config, [[added], clear])


def _messages(state: StateSnapshot) -> Sequence[Any]:
    """As the graph has them: messages, unless it speaks a provider's own dialect."""
    values = state.values if isinstance(state.values, dict) else vars(state.values)
    messages = values.get("messages")
    return messages if isinstance(messages, list) else ()


def _results(messages: Sequence[Any], why: str, done: Results = MappingProxyType({})) -> Iterator[ToolMessage]:
    """A result for each call that has none: its own where it is done, else an error."""
    for call_id, name in _without_result(messages):
        error = ToolMessage(f"Error: {why}", tool_call_id=call_id, name=name, status="error")
        yield done.get(call_id, error)


def _without_result(messages: Sequence[Any]) -> Iterator[tuple[str, str | None]]:
    """``(id, name)`` of the last answer's calls that have no result behind it; earlier turns may have had its ids."""
    answered = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            answered.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            calls = (*message.tool_calls, *message.invalid_tool_calls)
            yield from ((call["id"], call["name"]) for call in calls if call["id"] and call["id"] not in answered)
            return


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
