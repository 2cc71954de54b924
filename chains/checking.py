"""The node that judges a model's calls, the only place where that is done: what goes on from here can be run.

Each call of the last message is looked at on its own. Mended is what is certain: an id that is missing or was used
before, a name written twice over, text that ``chains.repair`` is sure of. Refused is the rest: unreadable arguments,
arguments that do not fit the tool's schema, tools that are not there. A refused call gets an error result that says
what to do, so that the model can make it again; the others are not held up by it.

The message is written anew under its id, so that the conversation tells what was done and every provider takes it:
each call among ``tool_calls``, with an id of its own, content blocks to match. Custom events tell of each recovery. How
often calls were refused in a row is counted from the messages; past the limit the graph gives up by
``InvalidToolArgs``.

It never runs a tool, never asks a person, and keeps no state.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Never

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.messages.tool import tool_call
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langgraph.graph import MessagesState

from chains.arguments import Fit, build_fit, shown
from chains.repair import MAX_DEPTH, repaired, strict
from chains.step import Step
from chains.toolnode import error_result
from chains.transcript import Written, own_id, rewritten, written

REPAIRED_EVENT = "tool.repaired"
"""The custom event of a mended call: ``{call_id, name, problem}``."""

REFUSED_EVENT = "tool.refused"
"""The custom event of a call that the model is to make again: ``{call_id, name, problem, attempt, attempts}``."""

Problem = Literal["not_json", "schema", "unknown_tool", "no_id", "repeated_id"]

Told = list[tuple[str, dict[str, Any]]]

SHOWN = 300
"""Characters of what a model wrote that its error result quotes."""

MOST_PROBLEMS = 5
"""Problems of one call with its schema that are told."""

LONGEST_NAME = 64
"""Characters of a tool's name that providers take, in a conversation too; of ASCII letters, digits, _ and -."""

NOT_MADE = "Error: this call was not made. Another one beside it was wrong once too often, and the run was given up."

_WORDS: Mapping[str, str] = {
    "not_json": "with arguments that are not valid JSON",
    "schema": "with arguments that do not fit it",
    "unknown_tool": "though there is no such tool",
}


class InvalidToolArgs(Exception):
    """The model's calls were refused more often in a row than the limit allows. ``str()`` names tool and problem."""

    failure_code = "invalid_tool_args"


class Refusal(NamedTuple):
    """Why a call is not made, and what the model is told."""

    problem: Problem
    said: str


class Judged(NamedTuple):
    """A call as it goes on, what of it was mended, and why it is not made, if it is not."""

    call: ToolCall
    mended: list[Problem]
    refusal: Refusal | None

    @property
    def sound(self) -> bool:
        """Whether it goes on as it was written."""
        return not self.mended and self.refusal is None


def build_check(tools: Sequence[BaseTool], attempts: int = 3) -> Runnable[MessagesState, dict[str, list[AnyMessage]]]:
    """The node: state with ``messages`` → the last message mended, and the results of the calls that are refused.

    ``attempts``: see ``ToolLimits``; it is told in the events, and ``gives_up`` goes by it.
    """
    fits = {tool.name: build_fit(tool) for tool in tools}

    def check(state: MessagesState) -> dict[str, list[AnyMessage]]:
        update, told = _check(state["messages"], fits, attempts)
        for name, data in told:
            dispatch_custom_event(name, data)
        return update

    async def acheck(state: MessagesState) -> dict[str, list[AnyMessage]]:
        update, told = _check(state["messages"], fits, attempts)
        for name, data in told:
            await adispatch_custom_event(name, data)
        return update

    return Step(check, acheck)


def gives_up(messages: Sequence[BaseMessage], attempts: int) -> bool:
    """Whether the model's calls have been refused more often in a row than ``attempts``."""
    return _refused_turns(messages) > attempts


def give_up(messages: Sequence[BaseMessage]) -> Never:
    """Raise ``InvalidToolArgs`` for what was refused last."""
    last = next(one for one in reversed(messages) if _problem(one))
    assert isinstance(last, ToolMessage)
    turns = _refused_turns(messages)
    raise InvalidToolArgs(
        f"The model called {last.name} {_WORDS[_problem(last)]}, and its calls were wrong {turns} times in a row. "
        "Ask in other words, or use another model."
    )


def _refused_turns(messages: Sequence[BaseMessage]) -> int:
    """How many of the model's last messages in a row have a call that was refused."""
    turns, refused = 0, False
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            refused = refused or bool(_problem(message))
        elif isinstance(message, AIMessage) and refused:
            turns, refused = turns + 1, False
        elif isinstance(message, AIMessage | HumanMessage):
            break
    return turns


def _problem(message: BaseMessage) -> str:
    """What was wrong with the call, if this is a refusal; tools have artifacts of their own."""
    artifact = message.artifact if isinstance(message, ToolMessage) and message.status == "error" else None
    found = artifact.get(REFUSED_EVENT) if isinstance(artifact, dict) else None
    return found if isinstance(found, str) and found in _WORDS else ""


# -- judging ----------------------------------------------------------------------------------------------------------


def _check(
    messages: Sequence[AnyMessage], fits: Mapping[str, Fit], attempts: int
) -> tuple[dict[str, list[AnyMessage]], Told]:
    at = max(at for at, one in enumerate(messages) if isinstance(one, AIMessage))
    message = messages[at]
    assert isinstance(message, AIMessage)
    judged = _with_ids([_judge(one, fits) for one in written(message)], message.id or "call", _ids(messages[:at]))
    if not message.invalid_tool_calls and all(one.sound for one in judged):
        return {"messages": []}, []
    results = [_result(one.call, one.refusal) for one in judged if one.refusal is not None]
    attempt = _refused_turns([*messages, *results])
    if attempt > attempts:  # the graph ends here, and leaves no call open
        results = [
            _result(one.call, one.refusal) if one.refusal else error_result(one.call, NOT_MADE) for one in judged
        ]
    told = [event for one in judged for event in _events(one, attempt, attempts)]
    return {"messages": [rewritten(message, [one.call for one in judged]), *results]}, told


def _judge(call: Written, fits: Mapping[str, Fit]) -> Judged:
    name = _known(call.name, fits)
    args, mended, refusal = _read(call, name or call.name)
    if name is None:
        refusal = Refusal("unknown_tool", _unknown(call.name, fits))
    elif name != call.name:
        mended = ["unknown_tool", *mended]
    if name is not None and refusal is None and (problems := fits[name](args)):
        refusal = Refusal("schema", _unfit(name, problems))
    return Judged(tool_call(name=name or _sendable(call.name), args=args, id=call.id), mended, refusal)


def _read(call: Written, name: str) -> tuple[dict[str, Any], list[Problem], Refusal | None]:
    """The call's arguments, what of them was mended, and why there are none, if so."""
    if call.cut:
        return {}, [], Refusal("not_json", _cut(name))
    text = json.dumps(call.args) if call.text is None else call.text  # read by others, who may be less strict
    if (args := strict(text)) is not None:
        return args, [], None
    if (args := repaired(text)) is not None:
        return args, ["not_json"], None
    return {}, [], Refusal("not_json", _unreadable(name, text))


def _known(written: str, names: Iterable[str]) -> str | None:
    """The tool that is meant: some providers repeat a name with every piece, some models put ``functions.`` before."""
    plain = written.strip()
    if plain in names:
        return plain
    plain = plain.removeprefix("functions.").strip()
    found = [name for name in names if plain and plain == name * (len(plain) // len(name))]
    return found[0] if len(found) == 1 else None


def _sendable(name: str) -> str:
    """A name that providers take, near to one that they might not."""
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:LONGEST_NAME] or "unknown"


def _with_ids(judged: Iterable[Judged], message_id: str, taken: set[str]) -> list[Judged]:
    """The calls with an id each that none of the conversation has: theirs, or one by their place in the message.

    The ``transcript`` has given such an id to those without.
    """
    found, taken = [], set(taken)
    for number, one in enumerate(judged):
        given, own = one.call["id"] or "", own_id(message_id, number)
        if given in ("", own) or given in taken:
            problem: Problem = "no_id" if given in ("", own) else "repeated_id"
            call = tool_call(name=one.call["name"], args=one.call["args"], id=own)
            one = one._replace(call=call, mended=[problem, *one.mended])  # noqa: PLW2901 - the same one, with an id
        taken.add(one.call["id"] or "")
        found.append(one)
    return found


def _ids(messages: Iterable[BaseMessage]) -> set[str]:
    said = [one for one in messages if isinstance(one, AIMessage)]
    return {call["id"] or "" for one in said for call in (*one.tool_calls, *one.invalid_tool_calls)}


def _events(judged: Judged, attempt: int, attempts: int) -> Iterator[tuple[str, dict[str, Any]]]:
    call, refusal = judged.call, judged.refusal
    about = {"call_id": call["id"], "name": call["name"]}
    for problem in judged.mended:
        yield REPAIRED_EVENT, {**about, "problem": problem}
    if refusal is not None and attempt <= attempts:  # the last one is not made again: it is the run's error
        yield REFUSED_EVENT, {**about, "problem": refusal.problem, "attempt": attempt, "attempts": attempts}


def _result(call: ToolCall, refusal: Refusal) -> ToolMessage:
    return error_result(call, refusal.said).model_copy(update={"artifact": {REFUSED_EVENT: refusal.problem}})


# -- what the model is told -------------------------------------------------------------------------------------------


def _cut(name: str) -> str:
    return (
        "Error: the answer reached its token limit within this call, so that its arguments may be incomplete. "
        f"Call {name} again, with less in it."
    )


def _unreadable(name: str, text: str) -> str:
    return (
        "Error: the arguments of this call are not valid JSON, or hold numbers of more than 64 bits or more than "
        f"{MAX_DEPTH} levels, and how to mend them is not certain. They were: {shown(text, SHOWN)}\n"
        f"Call {name} again with arguments that are one JSON object."
    )


def _unknown(name: str, names: Iterable[str]) -> str:
    known = ", ".join(names)
    instead = f"The tools are: {known}. Call one of these" if known else "There are none: answer"
    return f"Error: there is no tool {shown(name, LONGEST_NAME)!r}. {instead}{', or answer without' if known else ''}."


def _unfit(name: str, problems: Sequence[str]) -> str:
    lines = [f"- {one}" for one in problems[:MOST_PROBLEMS]]
    more = [f"- and {len(problems) - MOST_PROBLEMS} more"] if len(problems) > MOST_PROBLEMS else []
    listed = "\n".join([*lines, *more])
    return f"Error: these arguments do not fit the tool.\n{listed}\nCall {name} again with arguments that do."
