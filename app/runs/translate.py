"""LangChain's event stream in, our events out: ``astream_events(version="v2")`` → ``events.event``.

Plain functions over one run's state; nothing awaits. All ids are decided here: a message keeps the id of its first
chunk (the one LangGraph stores it under), a tool call the provider's id; both are made unique where a provider repeats
one or leaves it out. Tool-call fragments are kept by (message, index), never by "the current call", so that parallel
calls may interleave as they like.

What it promises of the order is in ``events.grammar``; ``close`` ends whatever is open when a run is cut, so that
every message and tool that was opened is closed before the run finishes. When a run is paused, ``hold`` keeps its open
messages open, and ``adopt`` has the call that is made anew go on in them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, message_chunk_to_message
from langchain_core.tools import ToolException
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, Interrupt
from pydantic import BaseModel
from pydantic_core import from_json

from app.events import codec
from app.events.event import (
    Custom,
    Event,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    NodeFinished,
    NodeStarted,
    Reasoning,
    RunInterrupted,
    Token,
    ToolArgs,
    ToolFinished,
    ToolPending,
    ToolProgress,
    ToolStarted,
)
from app.runs.agent import default_label
from app.runs.usage import Meter

HIDDEN = frozenset(("langsmith:hidden",))
SILENT = frozenset(("nostream", "langsmith:nostream"))
"""LangGraph's tag for model calls whose tokens are not for the reader."""

MAX_TOOL_OUTPUT = 256 * 1024
"""Bytes of a tool's output in its event; the graph sees all of it."""

LONE = "\ufffd"
"""What stands for half a pair of surrogates whose other half never came."""

FIRST_PARSE = 16
"""Characters of arguments before the first partial parse; each next one waits until they grew by an eighth."""

Raw = Mapping[str, Any]
Place = tuple[str | None, tuple[str, ...]]


class _Call:
    """A tool call while the model writes it. ``given`` is the provider's id of it, ``call_id`` ours."""

    __slots__ = ("args", "call_id", "given", "half", "name", "number", "parse_at", "pending", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.call_id = ""
        self.given = ""
        self.name = ""
        self.args: list[str] = []
        self.half = ""
        self.size = 0
        self.parse_at = FIRST_PARSE
        self.pending = False


class _Message:
    """A message while the model writes it, and what of it is needed afterwards: its text."""

    __slots__ = ("calls", "half", "keyed", "message_id", "path", "place", "text")

    def __init__(self, message_id: str, place: Place, path: str) -> None:
        self.message_id = message_id
        self.place = place
        self.path = path
        self.text: list[str] = []
        self.half = ""
        self.calls: list[_Call] = []
        self.keyed: dict[object, _Call] = {}


class Held(NamedTuple):
    """A message whose call was broken off by a pause, as it is kept over a restart."""

    message_id: str
    node: str | None
    namespace: tuple[str, ...]
    path: str
    text: str


class _Tool:
    """A call that a reader was told of and that has no result yet; ``call`` is what the model wrote of it."""

    __slots__ = ("call", "name", "place", "started_ts")

    def __init__(self, name: str, place: Place, call: _Call | None = None) -> None:
        self.name = name
        self.place = place
        self.call = call
        self.started_ts: int | None = None


class Translator:
    """One run's translation. ``labels`` names tools for people; the ``meter`` knows usage and call ids."""

    def __init__(self, labels: Mapping[str, str], meter: Meter) -> None:
        self.output: Any = None
        self.answer: _Message | None = None
        self.interrupted = False
        self.ended = False
        self.pause_after: Literal["paragraph"] | None = None
        self.at_pause = False
        self._labels = labels
        self._meter = meter
        self._models: dict[str, _Message | None] = {}
        self._calling: dict[str, str] = {}
        self._worked: set[str] = set()
        self._held: list[_Message] = []
        self._adopted: set[str] = set()
        self._unsettled: dict[str, _Message] = {}
        self._results: dict[str, tuple[str, ToolMessage]] = {}
        self._tools: dict[str, _Tool] = {}
        self._tool_runs: dict[str, str] = {}
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._places: dict[str, Place] = {}
        self._root: str | None = None
        self._spoke = False
        self._aliases: dict[str, list[str]] = {}
        self._handlers: dict[str, Callable[[Raw, int], Iterator[Event]]] = {
            "on_chat_model_stream": self._model_stream,
            "on_llm_stream": self._model_stream,
            "on_chat_model_start": self._model_start,
            "on_llm_start": self._model_start,
            "on_chat_model_end": self._model_end,
            "on_llm_end": self._model_end,
            "on_tool_start": self._tool_start,
            "on_tool_end": self._tool_end,
            "on_tool_error": self._tool_error,
            "on_chain_start": self._chain_start,
            "on_chain_stream": self._chain_stream,
            "on_chain_end": self._chain_end,
            "on_custom_event": self._custom,
        }

    def feed(self, raw: Raw, ts: int) -> Iterator[Event]:
        """The events one raw event stands for, none or several. ``ts``: now, in milliseconds."""
        if self._root is None:
            self._root = raw["run_id"]
        if raw["run_id"] == self._root and raw["event"].endswith("_end"):
            output = raw["data"].get("output")
            self.ended = True
            self.output = message_chunk_to_message(output) if isinstance(output, AIMessageChunk) else output
        handler = self._handlers.get(raw["event"])
        return handler(raw, ts) if handler is not None else iter(())

    def close(self, ts: int, why: str) -> Iterator[Event]:
        """End what is still open; ``why`` is told as the result of calls that will have none."""
        for message in (*self._models.values(), *self._held):
            if message is not None:
                yield self._finished(message, ts)
        self._models.clear()
        self._held.clear()
        for call_id in list(self._tools):
            yield self._finish_tool(call_id, "error", why, ts)

    def text(self) -> str:
        """The answer's text as far as it came: the last message of the root graph, else the last of any."""
        return "".join(self.answer.text) if self.answer is not None else ""

    def said(self) -> list[tuple[str, str]]:
        """``(message_id, text)`` of the root's messages that their nodes have not handed to the graph."""
        return [(one.message_id, text) for one in self._unsettled.values() if (text := "".join(one.text)).strip()]

    def results(self) -> dict[str, ToolMessage]:
        """What tools have come to whose nodes have not handed it to the graph, by the ids of their calls."""
        return {call_id: message for call_id, (_, message) in self._results.items()}

    # Pauses

    @property
    def pausable(self) -> bool:
        """Whether a call can be broken off here and made anew: a model speaks, and no tool call is open.

        Its node is run anew from its beginning, so nothing else may have been done in it. A call that is over already,
        though its events are still on their way here, cannot be broken off: what comes after it may have begun.
        """
        writing = (message for message in self._models.values() if message is not None)
        done = self._tools or self._worked or any(message.calls for message in writing)
        calls = {run_id: path for run_id, path in self._calling.items() if run_id not in self._meter.failed}
        alone = len(set(calls.values())) == len(calls)  # in one node it could not be told which goes on with what
        return bool(calls) and not done and alone and self._meter.speaks(calls.keys())

    def hold(self) -> list["Held"]:
        """The calls have been broken off; their messages stay open until they are made anew, or the run ends."""
        self._held += [message for message in self._models.values() if message is not None]
        self._models.clear()
        self._calling.clear()
        self.at_pause = False
        self.pause_after = None
        return [Held(one.message_id, *one.place, one.path, "".join(one.text)) for one in self._held]

    def restore(self, held: Sequence["Held"], told: Iterable[Event]) -> None:
        """Take over the messages that another process has held, and the ids in what it has told."""
        for event in told:
            if isinstance(event, MessageStarted):
                self._told.add(event.message_id)
            elif isinstance(event, ToolPending | ToolStarted):
                self._seen.add(event.call_id)
        for one in held:
            message = _Message(one.message_id, (one.node, one.namespace), one.path)
            message.text.append(one.text)
            self._held.append(message)
            self._settle_later(message)
            self.answer = message
            self._spoke = True

    def adopt(self, run_id: str, path: str) -> tuple[str, str] | None:
        """A call begins: ``(text, message_id)`` of the broken-off one that it goes on with, if it does.

        Called from the model, which may be on a thread of its own.
        """
        same = [one for one in self._held if one.path == path]
        alike = [one for one in self._held if _names(one.path) == _names(path)]
        for message in same or alike:
            self._held.remove(message)
            self._models[run_id] = message
            self._adopted.add(run_id)
            return "".join(message.text), message.message_id
        return None

    # Messages. What is told is noted after it was told: a log that is full refuses it, and then it is not open.

    def _model_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        # A call that failed half way and is made anew in its node: what it said is void.
        path = _path(raw)
        self._calling[raw["run_id"]] = path
        yield from self._discard(lambda message: message.path == path, ts)

    def _discard(self, anew: Callable[[_Message], bool], ts: int) -> Iterator[Event]:
        for run_id, message in self._broken():
            if anew(message):
                for call in message.calls:
                    if call.call_id in self._tools:
                        yield self._finish_tool(call.call_id, "error", "The call was given up.", ts)
                yield self._discarded(message, ts)
                message.text.clear()
                self._models[run_id] = None  # callbacks are ahead of the stream: more of it may come

    def _broken(self) -> list[tuple[str, _Message]]:
        """The open messages whose calls failed half way."""
        failed = ((run_id, self._models.get(run_id)) for run_id in self._meter.failed)
        return [(run_id, message) for run_id, message in failed if message is not None]

    def _model_stream(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, chunk = raw["run_id"], raw["data"]["chunk"]
        message = self._models.get(run_id)
        if run_id in self._adopted:  # its first chunk is what the reader has
            self._adopted.discard(run_id)
            return
        if message is None:
            if run_id in self._models or not SILENT.isdisjoint(raw["tags"]):
                self._models[run_id] = None
                return
            message = self._open(getattr(chunk, "id", None) or f"msg-{run_id}", raw)
            yield self._started(message, ts)
            self._models[run_id] = message
        yield from self._content(message, getattr(chunk, "content", None) or _chunk_text(chunk), ts)
        reasoning = getattr(chunk, "additional_kwargs", {}).get("reasoning_content")
        if reasoning and isinstance(reasoning, str):
            yield self._reasoning(message, reasoning, ts)
        for piece in getattr(chunk, "tool_call_chunks", ()):
            yield from self._fragment(message, piece, ts)

    def _model_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, output = raw["run_id"], raw["data"].get("output")
        self._calling.pop(run_id, None)
        self._worked.add(_path(raw))
        message = self._models.get(run_id)
        if message is not None:
            yield from self._finish_message(message, ts)
            if isinstance(output, AIMessage) and output.id is not None:
                self._seen.add(output.id)  # not always that of the first chunk
        elif isinstance(output, AIMessage) and SILENT.isdisjoint(raw["tags"]):
            yield from self._whole(output, raw, ts)
        self._models.pop(run_id, None)
        usage = self._meter.take(run_id, ts)
        if usage is not None:
            yield usage

    def _whole(self, output: AIMessage, raw: Raw, ts: int) -> Iterator[Event]:
        """A message that was not streamed: the same events, its text as one token."""
        if output.id is None:
            # LangGraph keeps an id that is there, so the state will know the message by the id we announce.
            output.id = f"msg-{raw['run_id']}-{len(self._seen)}"
        message = self._open(output.id, raw)
        yield self._started(message, ts)
        self._models[message.message_id] = message
        yield from self._content(message, output.content, ts)
        for index, call in enumerate(output.tool_calls):
            args = orjson.dumps(codec.plain(call["args"])).decode()
            yield from self._fragment(message, {**call, "args": args, "index": index}, ts)
        yield from self._finish_message(message, ts)
        del self._models[message.message_id]

    def _open(self, message_id: str, raw: Raw) -> _Message:
        # Some providers give the same id again and again; ours is unique in what a run has said and what it was given.
        known = message_id in self._told or message_id in self._seen
        told = f"{message_id}:{len(self._told)}" if known else message_id
        self._seen.add(message_id)
        self._spoke = True
        self._told.add(told)
        message = _Message(codec.text(told), self._place(raw), _path(raw))
        self._settle_later(message)
        if self.answer is None or not message.place[1] or self.answer.place[1]:
            self.answer = message
        return message

    def _settle_later(self, message: _Message) -> None:
        if not message.place[1]:
            self._unsettled[message.message_id] = message

    def _started(self, message: _Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageStarted(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _finished(self, message: _Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageFinished(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _discarded(self, message: _Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageDiscarded(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _content(self, message: _Message, content: Any, ts: int) -> Iterator[Event]:
        if isinstance(content, str):
            yield from self._token(message, content, ts)
            return
        for block in content:
            if isinstance(block, str):
                yield from self._token(message, block, ts)
            elif isinstance(block.get("text"), str):
                yield from self._token(message, block["text"], ts)
            elif thought := _thought(block):
                yield self._reasoning(message, thought, ts)

    def _token(self, message: _Message, text: str, ts: int) -> Iterator[Event]:
        text, message.half = _paired(message.half + text)
        if self.pause_after is not None and not message.place[1]:
            text = self._until_pause(message, text)
        if text:
            message.text.append(text)
            node, namespace = message.place
            yield Token(ts=ts, node=node, namespace=namespace, text=text, message_id=message.message_id)

    def _until_pause(self, message: _Message, text: str) -> str:
        """What of the text is before the pause: the rest is generated anew."""
        if self.at_pause:
            return ""
        end = paragraph_end(message.text, text)
        if end is None or not self.pausable:
            return text
        self.at_pause = True
        message.half = ""
        return text[:end]

    def _reasoning(self, message: _Message, text: str, ts: int) -> Event:
        node, namespace = message.place
        return Reasoning(ts=ts, node=node, namespace=namespace, text=codec.text(text), message_id=message.message_id)

    def _finish_message(self, message: _Message, ts: int) -> Iterator[Event]:
        if message.half:
            message.half = ""
            yield from self._token(message, LONE, ts)
        for call in message.calls:
            delta = ""
            if not call.pending:
                yield from self._announce(message, call, ts)
                delta = codec.text("".join(call.args))
            yield self._args(message, call, delta + (LONE if call.half else ""), ts, parse=True)
        yield self._finished(message, ts)

    # Tool calls

    def _fragment(self, message: _Message, piece: Mapping[str, Any], ts: int) -> Iterator[Event]:
        call = self._call(message, piece)
        call.name += codec.text(piece.get("name") or "")
        delta, call.half = _paired(call.half + (piece.get("args") or ""))
        if not call.pending and call.name and (call.name in self._labels or delta):
            yield from self._announce(message, call, ts)
            delta = "".join(call.args) + delta
            call.args, call.size = [], 0
        if not delta:
            return
        call.args.append(delta)
        call.size += len(delta)
        if call.pending:
            yield self._args(message, call, delta, ts, parse=call.size >= call.parse_at)

    def _call(self, message: _Message, piece: Mapping[str, Any]) -> _Call:
        """The call a piece belongs to: that of its index, else of its id, else the last one."""
        index, given = piece.get("index"), piece.get("id") or ""
        key = given if index is None else index
        last = message.calls[-1] if message.calls else None
        call = last if key == "" else message.keyed.get(key)
        if call is None or _begins_another(call, piece):
            call = _Call(len(message.calls))
            message.calls.append(call)
        if given and not call.given:
            call.given = given
            if call.pending:
                self._aliases.setdefault(given, []).append(call.call_id)
        message.keyed.update({one: call for one in (index, given) if one not in (None, "")})
        return call

    def _announce(self, message: _Message, call: _Call, ts: int) -> Iterator[Event]:
        """``tool.pending``: from here on the call's id is fixed, and unique within the run."""
        own = f"{message.message_id}:{call.number}"
        call.call_id = self._unique(codec.text(call.given) or own, own)
        node, namespace = message.place
        label = self._labels.get(call.name) or default_label(call.name)
        yield ToolPending(ts=ts, node=node, namespace=namespace, call_id=call.call_id, name=call.name, label=label)
        self._aliases.setdefault(call.given, []).append(call.call_id)
        call.pending = True
        self._tools[call.call_id] = _Tool(call.name, message.place, call)

    def _unique(self, call_id: str, suffix: str) -> str:
        unique = call_id if call_id not in self._seen else f"{call_id}:{suffix}"
        self._seen.add(unique)
        return unique

    def _awaited(self, given: str) -> str | None:
        """Our id of the first call by the provider's id that was announced and neither runs nor has a result."""
        for call_id in self._aliases.get(given, ()):
            if call_id in self._tools and self._tools[call_id].started_ts is None:
                return call_id
        return None

    def _meant(self, name: str, args: Any) -> str | None:
        """Our id of the call that a node answers by calling the tool with its arguments alone, without its id."""
        for call_id, tool in self._tools.items():
            waits = tool.name == name and tool.started_ts is None
            if waits and tool.call is not None and _partial("".join(tool.call.args)) == args:
                return call_id
        return None

    def _args(self, message: _Message, call: _Call, delta: str, ts: int, *, parse: bool) -> Event:
        args = None
        if parse:
            call.parse_at = call.size + max(call.size // 8, FIRST_PARSE)
            args = _partial("".join(call.args))
        node, namespace = message.place
        return ToolArgs(ts=ts, node=node, namespace=namespace, call_id=call.call_id, delta=delta, args=args)

    def _tool_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, name, (node, namespace) = raw["run_id"], codec.text(raw["name"]), self._place(raw)
        given = self._meter.call_ids.pop(run_id, "")
        args = codec.plain(raw["data"].get("input") or {})
        call_id = self._awaited(given) if given else self._meant(name, args) or self._awaited("")
        if call_id is None:  # a node called the tool itself, or runs a call for the second time
            call_id = self._unique(codec.text(given) or f"tool-{run_id}", run_id)
        yield ToolStarted(ts=ts, node=node, namespace=namespace, call_id=call_id, name=name, args=args)
        self._tool_runs[run_id] = call_id
        tool = self._tools[call_id] = _Tool(name, (node, namespace))
        tool.started_ts = ts

    def _tool_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        call_id = self._tool_runs.pop(raw["run_id"], None)
        self._worked.add(_path(raw))
        output = raw["data"].get("output")
        if isinstance(output, ToolMessage):
            self._results[output.tool_call_id] = (_path(raw), output)
        if call_id in self._tools:
            failed = isinstance(output, ToolMessage) and output.status == "error"
            yield self._finish_tool(call_id, "error" if failed else "ok", _tool_output(output), ts)

    def _tool_error(self, raw: Raw, ts: int) -> Iterator[Event]:
        call_id, error = self._tool_runs.pop(raw["run_id"], None), raw["data"]["error"]
        self._worked.add(_path(raw))
        # A tool that waits for a person has no result yet; LangGraph tells of that by an exception.
        if call_id in self._tools and not isinstance(error, GraphInterrupt):
            yield self._finish_tool(call_id, "error", tool_error(error), ts)

    def _never_ran(self, message: ToolMessage, ts: int) -> Iterator[Event]:
        """A result without a run: the tool is unknown, or the arguments do not fit its schema."""
        call_id = self._awaited(message.tool_call_id)
        if call_id is not None:
            status = "error" if message.status == "error" else "ok"
            yield self._finish_tool(call_id, status, message.content, ts)

    def _finish_tool(self, call_id: str, status: Any, output: Any, ts: int) -> Event:
        tool = self._tools.pop(call_id)
        node, namespace = tool.place
        return ToolFinished(
            ts=ts,
            node=node,
            namespace=namespace,
            call_id=call_id,
            name=tool.name,
            status=status,
            output=_bounded(codec.plain(output)),
            duration_ms=0 if tool.started_ts is None else ts - tool.started_ts,
        )

    # Graphs

    def _chain_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        if _is_node(raw):
            path = _path(raw)
            yield from self._discard(lambda message: f"{message.path}|".startswith(f"{path}|"), ts)
            self._seen.update(one.id for one in _messages(raw["data"].get("input")) if one.id)
            node, namespace = self._place(raw)
            yield NodeStarted(ts=ts, node=node, namespace=namespace)

    def _chain_stream(self, raw: Raw, ts: int) -> Iterator[Event]:
        if raw["run_id"] != self._root:
            return
        chunk = raw["data"]["chunk"]
        if isinstance(chunk, Mapping) and isinstance(chunk.get("__interrupt__"), tuple):
            found = [one for one in chunk["__interrupt__"] if isinstance(one, Interrupt)]
            shown = [{"id": one.id, "value": codec.plain(one.value)} for one in found]
            self.interrupted = True
            yield RunInterrupted(ts=ts, interrupts=shown)
        elif isinstance(chunk, str | AIMessageChunk) and (not self._spoke or self._root in self._models):
            # A runnable that streams text without a model of LangChain's: its chunks are the answer.
            yield from self._model_stream(raw, ts)

    def _chain_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        output = raw["data"].get("output")
        if raw["run_id"] == self._root:
            yield from self._root_end(raw, output, ts)
        elif _is_node(raw):
            path = _path(raw)
            self._worked = {one for one in self._worked if not f"{one}|".startswith(f"{path}|")}
            yield from self._resign(path, ts)
            for settled in [key for key, one in self._unsettled.items() if one.path == path]:
                del self._unsettled[settled]
            self._results = {key: one for key, one in self._results.items() if one[0] != path}
            for message in _messages(output):
                if isinstance(message, AIMessage) and message.id not in self._seen:
                    yield from self._whole(message, raw, ts)
                elif isinstance(message, ToolMessage):
                    yield from self._never_ran(message, ts)
            node, namespace = self._place(raw)
            yield NodeFinished(ts=ts, node=node, namespace=namespace)

    def _resign(self, path: str, ts: int) -> Iterator[Event]:
        """A node that ends well in spite of a failed call has made do with what there was of it."""
        for run_id, message in self._broken():
            if message.path == path:
                yield self._finished(message, ts)
                self._models[run_id] = None

    def _root_end(self, raw: Raw, output: Any, ts: int) -> Iterator[Event]:
        streamed = self._models.get(raw["run_id"])
        if streamed is not None:
            yield from self._finish_message(streamed, ts)
            del self._models[raw["run_id"]]
        elif not self._spoke and isinstance(output, str | AIMessage):
            yield from self._whole(AIMessage(output) if isinstance(output, str) else output, raw, ts)
        for held in self._held:  # its call came to its end in the very moment of the pause, and was not made anew
            yield from self._rest(held, output, ts)
        self._held.clear()

    def _rest(self, held: _Message, output: Any, ts: int) -> Iterator[Event]:
        said = "".join(held.text)
        for message in _messages(output):
            if message.id == held.message_id and message.text.startswith(said):
                yield from self._token(held, message.text[len(said) :], ts)
        yield self._finished(held, ts)

    def _custom(self, raw: Raw, ts: int) -> Iterator[Event]:
        node, namespace = self._place(raw)
        data = codec.plain(raw["data"])
        for parent in (raw["run_id"], *reversed(raw.get("parent_ids", ()))):  # its run is that of its sender
            call_id = self._tool_runs.get(parent)
            if call_id is not None:
                yield ToolProgress(ts=ts, node=node, namespace=namespace, call_id=call_id, data=data)
                return
        yield Custom(ts=ts, node=node, namespace=namespace, name=codec.text(raw["name"]), data=data)

    def _place(self, raw: Raw) -> Place:
        """``(node, namespace)``; LangGraph writes the path as ``"outer:uuid|inner:uuid"``, the node itself last."""
        path = _path(raw)
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = (raw["metadata"].get("langgraph_node"), tuple(path.split("|")[:-1]))
        return place


def tool_error(error: BaseException) -> str:
    """What may be said of a tool's failure: its own words when it wrote them for a reader, one line, no path."""
    if isinstance(error, OSError):
        return f"The tool failed ({type(error).__name__})."
    try:
        words = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - a user's exception may fail even at this
        words = []
    if not words:
        return f"The tool failed ({type(error).__name__})."
    said = words[0][:500]
    return said if isinstance(error, ToolException) else f"{type(error).__name__}: {said}"


def _path(raw: Raw) -> str:
    path: str = raw["metadata"].get("langgraph_checkpoint_ns") or ""
    return path


def _names(path: str) -> list[str]:
    """A path without LangGraph's task ids, which are others when a step is made anew."""
    return [part.partition(":")[0] for part in path.split("|")]


def paragraph_end(before: Sequence[str], text: str) -> int | None:
    """How much of ``text`` belongs to the paragraph that ``before`` began, when it ends here.

    A blank line ends a paragraph, but not in a block of code, and not before the first word.
    """
    joint = "\n" if before and before[-1].endswith("\n") else ""
    found = (joint + text).find("\n\n")
    if found < 0:
        return None
    end = found + 2 - len(joint)
    so_far = "".join(before) + text[:end]
    return end if so_far.strip() and so_far.count("```") % 2 == 0 else None


def _is_node(raw: Raw) -> bool:
    return (
        raw["name"] == raw["metadata"].get("langgraph_node")
        and any(tag.startswith("graph:step:") for tag in raw["tags"])
        and HIDDEN.isdisjoint(raw["tags"])
    )


def _messages(value: Any) -> Iterator[BaseMessage]:
    """The messages in a node's input or output: bare, in a list, in the values of a state, in a command's update."""
    if isinstance(value, Command):
        value = value.update
    if isinstance(value, BaseMessage):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _listed(item)
    elif isinstance(value, BaseModel):
        yield from _messages(vars(value))
    elif dataclasses.is_dataclass(value):
        yield from _messages({field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)})
    else:
        yield from _listed(value)


def _listed(value: Any) -> Iterator[BaseMessage]:
    if isinstance(value, BaseMessage):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            match item:
                case BaseMessage():
                    yield item
                case Command():
                    yield from _messages(item)
                case (str(), held):  # a command's update may be pairs
                    yield from _listed(held)


def _begins_another(call: _Call, piece: Mapping[str, Any]) -> bool:
    """Some providers give all calls one index, or neither index nor id: then another id or name tells them apart."""
    given = piece.get("id")
    if given or piece.get("index") is not None:
        return bool(given and call.given) and given != call.given
    return bool(call.size and call.name and piece.get("name"))


def _paired(text: str) -> tuple[str, str]:
    """``(text, half)``: a pair of surrogates that a provider cut in two waits for its other half."""
    if text and "\ud800" <= text[-1] <= "\udbff":
        return codec.text(text[:-1]), text[-1]
    return codec.text(text), ""


def _thought(block: Mapping[str, Any]) -> str:
    thought = block.get("reasoning") or block.get("thinking")
    if isinstance(thought, str):
        return thought
    parts = block.get("summary")  # OpenAI's
    return "".join(_part_texts(parts)) if isinstance(parts, list) else ""


def _part_texts(parts: Sequence[Any]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def _chunk_text(chunk: Any) -> str:
    if isinstance(chunk, str):
        return chunk
    text = getattr(chunk, "text", "")
    return text if isinstance(text, str) else ""


def _partial(text: str) -> Any:
    try:
        return codec.plain(from_json(text, allow_partial="trailing-strings")) if text else {}
    except ValueError:
        return None


def _tool_output(output: Any) -> Any:
    if isinstance(output, ToolMessage):
        return output.content
    if isinstance(output, Command):
        return [message.content for message in _messages(output) if isinstance(message, ToolMessage)] or None
    return output


def _bounded(output: Any) -> Any:
    """A tool's output, cut when it is larger than its event may be."""
    data = output.encode() if isinstance(output, str) else codec.dumps(output)
    if len(data) <= MAX_TOOL_OUTPUT:
        return output
    return f"{data[:MAX_TOOL_OUTPUT].decode(errors='ignore')}… (cut: {len(data)} bytes in all)"
