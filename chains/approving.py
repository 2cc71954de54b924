"""A node that asks a person before a marked tool runs.

A tool marked ``metadata={"needs_approval": True}`` runs only when a person has said so. The question is one LangGraph
interrupt for all open calls of marked tools together, in the shape of LangChain's human-in-the-loop middleware (with
``call_id`` besides), so that clients which know that one know this::

    {"action_requests": [{"name", "args", "description", "call_id"}, …],
     "review_configs": [{"action_name", "allowed_decisions"}, …]}

The answer is that middleware's too: a decision for each request, in its order. Short forms are read as well::

    {"decisions": [{"type": "approve"}, {"type": "reject", "message": "…"},
                   {"type": "edit", "edited_action": {"name", "args"}}]}
    "approve" | "reject" | {"type": …}                          for all of them
    {"type": "edit", "args": {…}}                               where one call waits

Nothing of the message runs before the answer, its unmarked calls neither. An answer that cannot be followed to the
letter is followed in no part: the node asks again, with ``problem``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage, ToolCall
from langchain_core.messages.tool import tool_call
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.graph import MessagesState
from langgraph.types import interrupt

from chains.arguments import Fit, build_fit
from chains.step import Step
from chains.toolnode import error_result, open_calls
from chains.transcript import rewritten

DECISIONS = ("approve", "edit", "reject")

MOST_PROBLEMS = 5
"""Problems of edited arguments that are told."""


def needs_approval(tool: BaseTool) -> bool:
    """Whether the tool is marked."""
    return bool((tool.metadata or {}).get("needs_approval"))


def build_approve(tools: Sequence[BaseTool]) -> Runnable[MessagesState, dict[str, list[BaseMessage]]]:
    """The node: it lets pass, changes or answers the open calls of those ``tools`` that are marked.

    What is to run afterwards are the calls of the last AIMessage that have no result yet.
    """
    marked = {tool.name: _Marked(tool, build_fit(tool)) for tool in tools if needs_approval(tool)}

    def approve(state: MessagesState) -> dict[str, list[BaseMessage]]:
        asked = [call for call in open_calls(state["messages"]) if call["name"] in marked]
        if not asked:
            return {"messages": []}
        return {"messages": _followed(state["messages"], asked, _ask(asked, marked))}

    return Step(approve)


class _Marked(NamedTuple):
    """A tool that needs approval, and whether arguments fit it."""

    tool: BaseTool
    fit: Fit


# -- the question -----------------------------------------------------------------------------------------------------


def _ask(calls: Sequence[ToolCall], marked: Mapping[str, _Marked]) -> "list[_Decision]":
    """Wait for a person until there is an answer that can be followed: a decision for each call."""
    question: dict[str, Any] = {
        "action_requests": [_request(call, marked[call["name"]].tool) for call in calls],
        "review_configs": [{"action_name": call["name"], "allowed_decisions": [*DECISIONS]} for call in calls],
    }
    asked = question
    # LangGraph runs the node anew for each answer, and hands it the earlier ones again in their order. Its own check,
    # by a response_schema, fails the run instead of asking again.
    while True:
        try:
            return _read(interrupt(asked), calls, marked)
        except _Unclear as unclear:
            asked = {**question, "problem": str(unclear)}


def _request(call: ToolCall, tool: BaseTool) -> dict[str, Any]:
    what = tool.description.strip().partition("\n")[0]
    description = f"{tool.name} runs only when a person has approved it: {what}"
    return {"name": call["name"], "args": call["args"], "description": description, "call_id": call["id"]}


# -- the answer -------------------------------------------------------------------------------------------------------


class _Unclear(Exception):
    """The answer cannot be followed; the message says what to send instead."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """What becomes of one call. ``args``: those it is made with instead; ``message``: why it is not made."""

    call: ToolCall
    kind: Literal["approve", "edit", "reject"]
    args: dict[str, Any] | None = None
    message: str = ""


def _read(answer: Any, calls: Sequence[ToolCall], marked: Mapping[str, _Marked]) -> list[_Decision]:
    if isinstance(answer, Mapping) and "decisions" in answer:
        given = answer["decisions"]
        if not isinstance(given, list) or len(given) != len(calls):
            raise _Unclear(f"Send a list of {len(calls)} decisions, one for each request, in their order.")
        return [_decision(one, call, marked[call["name"]]) for one, call in zip(given, calls, strict=True)]
    if len(calls) > 1 and isinstance(answer, Mapping) and answer.get("type") == "edit":
        raise _Unclear(f"{len(calls)} calls wait, and it is not said which to edit: send decisions, one for each.")
    return [_decision(answer, call, marked[call["name"]]) for call in calls]


def _decision(given: Any, call: ToolCall, marked: _Marked) -> _Decision:
    """One decision in either form. Raises ``_Unclear``."""
    decision = given if isinstance(given, Mapping) else {"type": given}
    match decision.get("type"):
        case "approve":
            return _Decision(call, "approve")
        case "reject":
            message = decision.get("message") or ""
            if not isinstance(message, str):
                raise _Unclear("The message of a rejection must be a text.")
            return _Decision(call, "reject", message=message.strip())
        case "edit":
            return _Decision(call, "edit", args=_edited(decision, call, marked))
        case _:
            raise _Unclear(
                f"Decide about {call['name']} by a type that is one of {', '.join(DECISIONS)}: "
                'for example {"decisions": [{"type": "approve"}]}.'
            )


def _edited(decision: Mapping[str, Any], call: ToolCall, marked: _Marked) -> dict[str, Any]:
    action = decision.get("edited_action", decision)
    args = action.get("args") if isinstance(action, Mapping) else None
    if not isinstance(args, dict):
        raise _Unclear('An edit carries the whole arguments: {"edited_action": {"name": …, "args": {…}}}.')
    if action.get("name", call["name"]) != call["name"]:
        raise _Unclear(f"An edit changes the arguments of {call['name']}, not which tool is called.")
    if unknown := sorted(args.keys() - marked.tool.args.keys()):
        raise _Unclear(
            f"{call['name']} takes no argument {', '.join(unknown)}; it takes {', '.join(marked.tool.args)}."
        )
    if problems := marked.fit(args):
        raise _Unclear(f"The edited arguments do not fit {call['name']}: {'; '.join(problems[:MOST_PROBLEMS])}.")
    return args


# -- what follows -----------------------------------------------------------------------------------------------------


def _followed(messages: Sequence[BaseMessage], asked: Sequence[ToolCall], said: Sequence[_Decision]) -> list[Any]:
    """The AIMessage anew under its id, where calls were edited, and a result for each call that was rejected."""
    edits = {one.call["id"]: one.args for one in said if one.args is not None}
    rejected = [error_result(one.call, _rejection(one)) for one in said if one.kind == "reject"]
    if not edits:
        return [*rejected]
    last = next(message for message in reversed(messages) if isinstance(message, AIMessage))
    calls = [
        tool_call(name=call["name"], args=edits.get(call["id"], call["args"]), id=call["id"])
        for call in last.tool_calls
    ]
    return [rewritten(last, calls), *rejected]


def _rejection(decision: _Decision) -> str:
    why = f" They say: {decision.message}" if decision.message else ""
    return f"Error: a person rejected this call, and it was not made. Do not repeat it unless you are asked to.{why}"
