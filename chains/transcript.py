"""A model's message as the model wrote it, from the chunks it was streamed in.

LangChain's own sum of chunks closes what a model left open: a text that was cut in the middle becomes arguments that
nobody wrote. Here a call whose arguments are not JSON by the letter stays a text. As one list keeps the order of the
calls, and two do not, all calls of such a message stay texts, under ``invalid_tool_calls``, for ``chains.checking``.

Pieces of calls belong together by their index, else by their id, else to the call before. Pure; judges nothing.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall, message_chunk_to_message
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.messages.tool import invalid_tool_call, tool_call

from chains.repair import strict

_BLOCKS = ("tool_use", "function_call", "tool_call", "tool_call_chunk", "invalid_tool_call")
"""Types of content blocks that are calls: Anthropic's, OpenAI's, LangChain's own."""


def transcript(chunks: Sequence[AIMessage]) -> AIMessage:
    """The message of these chunks; one that came whole is what it is. Raises ``ValueError`` for none."""
    pieces = [chunk for chunk in chunks if isinstance(chunk, AIMessageChunk)]
    if pieces:
        # Without pieces of calls: LangChain reads their sum, and a broken one in time quadratic in its length.
        bare = [
            chunk.model_copy(update={"tool_call_chunks": [], "tool_calls": [], "invalid_tool_calls": []})
            for chunk in pieces
        ]
        message = message_chunk_to_message(add_ai_message_chunks(bare[0], *bare[1:]))
        assert isinstance(message, AIMessage)
        calls = _calls(piece for chunk in pieces for piece in chunk.tool_call_chunks)
    else:
        (message,) = chunks
        whole = [
            invalid_tool_call(name=one["name"], args=json.dumps(one["args"]), id=one["id"])
            for one in message.tool_calls
        ]
        calls = [*whole, *message.invalid_tool_calls]
    return _read(message, calls)


def _read(message: AIMessage, calls: Sequence[InvalidToolCall]) -> AIMessage:
    """The message with these calls; an id for each that has none, since LangGraph can keep no result without."""
    named = [
        invalid_tool_call(name=one["name"], args=one["args"], id=one["id"] or own_id(message.id or "call", at))
        for at, one in enumerate(calls)
    ]
    read = [(call, strict(call["args"] or "")) for call in named]
    sound = [tool_call(name=call["name"] or "", args=args, id=call["id"]) for call, args in read if args is not None]
    told = (sound, []) if len(sound) == len(calls) else ([], named)
    return message.model_copy(update={"tool_calls": told[0], "invalid_tool_calls": told[1]})


class Written(NamedTuple):
    """A call as the model wrote it; ``text``: its arguments, where they have not been read. ``cut``: it may go on."""

    name: str
    id: str
    args: dict[str, Any]
    text: str | None
    cut: bool = False


def own_id(message_id: str, number: int) -> str:
    """The id of a call that has none of its own, by its place in its message, from 0.

    As every provider takes it back: OpenAI no more than 40 characters, Anthropic none but these.
    """
    return re.sub(r"[^a-zA-Z0-9_-]", "_", f"{message_id}-{number}")[-40:]


def written(message: AIMessage) -> list[Written]:
    """The message's calls; in its own order where it is a ``transcript``."""
    calls = [
        *(Written(one["name"], one["id"] or "", one["args"], None) for one in message.tool_calls),
        *(Written(one["name"] or "", one["id"] or "", {}, one["args"] or "") for one in message.invalid_tool_calls),
    ]
    if calls and is_cut(message):
        calls[-1] = calls[-1]._replace(cut=True)
    return calls


def endings(message: AIMessage) -> set[str]:
    """Why the model stopped, in its provider's words, in lower case."""
    told = message.response_metadata
    details = told.get("incomplete_details")
    reasons = [told.get(key) for key in ("finish_reason", "stop_reason", "stopReason", "done_reason")]
    reasons += [details.get("reason")] if isinstance(details, dict) else []
    return {reason.lower() for reason in reasons if isinstance(reason, str)}


def is_cut(message: AIMessage) -> bool:
    """Whether the message ends where its tokens did, by any provider's word for it."""
    return any(one.startswith(("length", "max_tokens", "max_output_tokens")) for one in endings(message))


def rewritten(message: AIMessage, calls: list[ToolCall]) -> AIMessage:
    """The message with these calls, one for each that was ``written``, wherever it tells of them.

    Which of these places LangChain sends on depends on the provider.
    """
    raw = {key: value for key, value in message.additional_kwargs.items() if key != "tool_calls"}
    return message.model_copy(
        update={
            "content": _content(message.content, written(message), calls),
            "additional_kwargs": raw,
            "tool_calls": calls,
            "invalid_tool_calls": [],
        }
    )


Content = str | list[str | dict[str, Any]]


def _content(content: Content, before: Sequence[Written], calls: Sequence[ToolCall]) -> Content:
    """The content with its blocks of calls as the calls are; without them where it is not sure which is which."""
    if isinstance(content, str):
        return content
    told = [(one.get("name"), _block_id(one)) for one in content if _is_call(one)]
    rest = iter(calls if told == [(one.name, one.id) for one in before] else ())
    blocks = [_block(one, rest) if _is_call(one) else one for one in content]
    return [one for one in blocks if one is not None]


def _is_call(block: str | dict[str, Any]) -> TypeGuard[dict[str, Any]]:
    return isinstance(block, dict) and block.get("type") in _BLOCKS


def _block_id(block: dict[str, Any]) -> str:
    return block.get("call_id") or block.get("id") or ""


def _block(block: dict[str, Any], calls: Iterator[ToolCall]) -> dict[str, Any] | None:
    call = next(calls, None)
    if call is None:
        return None
    match block["type"]:
        case "tool_use":
            kept = {key: value for key, value in block.items() if key != "partial_json"}
            return {**kept, "id": call["id"], "name": call["name"], "input": call["args"]}
        case "function_call":
            return {**block, "call_id": call["id"], "name": call["name"], "arguments": json.dumps(call["args"])}
    return {"type": "tool_call", "id": call["id"], "name": call["name"], "args": call["args"]}


# -- pieces -----------------------------------------------------------------------------------------------------------


class _Call:
    """A call while its pieces come."""

    __slots__ = ("args", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name: list[str] = []
        self.args: list[str] = []

    def take(self, piece: Mapping[str, Any]) -> None:
        self.id = self.id or piece.get("id") or ""
        self.name.append(piece.get("name") or "")
        self.args.append(piece.get("args") or "")

    def whole(self) -> InvalidToolCall:
        return invalid_tool_call(name=_joined(self.name), args=_joined(self.args), id=self.id or None)


def _joined(pieces: Iterable[str]) -> str:
    """The whole text: pairs of surrogates that were cut in two are characters again, and a lone half an escape."""
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError:
        paired = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return paired.encode(errors="backslashreplace").decode()
    return text


def _calls(pieces: Iterable[Mapping[str, Any]]) -> list[InvalidToolCall]:
    calls: list[_Call] = []
    keyed: dict[object, _Call] = {}
    for piece in pieces:
        index, given = piece.get("index"), piece.get("id") or ""
        key = given if index is None else index
        call = keyed.get(key) if key != "" else calls[-1] if calls else None
        if call is None or _begins_another(call, piece):
            call = _Call()
            calls.append(call)
        call.take(piece)
        keyed.update({one: call for one in (index, given) if one not in (None, "")})
    return [call.whole() for call in calls]


def _begins_another(call: _Call, piece: Mapping[str, Any]) -> bool:
    """Some providers give all calls one index, or neither index nor id: another id or a new name tells them apart."""
    given = piece.get("id")
    if given or piece.get("index") is not None:
        return bool(given and call.id) and given != call.id
    return bool(any(call.args) and any(call.name) and piece.get("name"))
