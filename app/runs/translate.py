"""LangChain's event stream in, our events out: ``astream_events(version="v2")`` → ``events.event``.

Plain functions over one run's state; nothing awaits. All ids are decided here: a message keeps the id of its first
chunk (the one LangGraph stores it under), a tool call the provider's id, made unique where a provider repeats one
or leaves it out. Tool-call fragments are kept by (message, index), never by "the current call", so that parallel
calls may interleave as they like.

What it promises of the order is in ``events.grammar``; ``close`` ends whatever is open when a run is cut, so that
every message and tool that was opened is closed before the run finishes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, message_chunk_to_message
from langchain_core.tools import ToolException
from langgraph.types import Command, Interrupt
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

FIRST_PARSE = 16
"""Characters of arguments before the first partial parse; each next one waits until they grew by an eighth."""

Raw = Mapping[str, Any]
Place = tuple[str | None, tuple[str, ...]]


class _Call:
    """A tool call while the model writes it."""

    __slots__ = ("args", "call_id", "name", "parse_at", "pending", "size")

    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self.args: list[str] = []
        self.size = 0
        self.parse_at = FIRST_PARSE
        self.pending = False


class _Message:
    """A message while the model writes it, and what of it is needed afterwards: its text."""

    __slots__ = ("calls", "message_id", "place", "text")

    def __init__(self, message_id: str, place: Place) -> None:
        self.message_id = message_id
        self.place = place
        self.text: list[str] = []
        self.calls: dict[object, _Call] = {}


class _Tool:
    """A call that a reader was told of and that has no result yet."""

    __slots__ = ("name", "place", "started_ts")

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.place = place
        self.started_ts: int | None = None


class Translator:
    """One run's translation. ``labels`` names tools for people; the ``meter`` knows usage and call ids."""

    def __init__(self, labels: Mapping[str, str], meter: Meter) -> None:
        self.output: Any = None
        self.answer: _Message | None = None
        self.interrupted = False
        self._labels = labels
        self._meter = meter
        self._models: dict[str, _Message | None] = {}
        self._tools: dict[str, _Tool] = {}
        self._tool_runs: dict[str, str] = {}
        self._seen: set[str] = set()
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
            self.output = message_chunk_to_message(output) if isinstance(output, AIMessageChunk) else output
        handler = self._handlers.get(raw["event"])
        return handler(raw, ts) if handler is not None else iter(())

    def close(self, ts: int, why: str) -> Iterator[Event]:
        """End what is still open; ``why`` is told as the result of calls that will have none."""
        for message in self._models.values():
            if message is not None:
                yield from self._finish_message(message, ts)
        self._models.clear()
        for call_id in list(self._tools):
            yield self._finish_tool(call_id, "error", why, ts)

    def text(self) -> str:
        """The answer's text as far as it came: the last message of the root graph, else the last of any."""
        return "".join(self.answer.text) if self.answer is not None else ""

    # Messages

    def _model_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        place = self._place(raw)
        failed, self._meter.failed[:] = list(self._meter.failed), []
        for run_id in failed:
            # A call that failed half way and is made anew in its node: what it said is void.
            message = self._models.get(run_id)
            if message is not None and message.place == place:
                del self._models[run_id]
                yield MessageDiscarded(
                    ts=ts, node=place[0], namespace=place[1], message_id=message.message_id, role="assistant"
                )

    def _model_stream(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, chunk = raw["run_id"], raw["data"]["chunk"]
        message = self._models.get(run_id)
        if message is None:
            if run_id in self._models or not SILENT.isdisjoint(raw["tags"]):
                self._models[run_id] = None
                return
            message = self._models[run_id] = self._open(getattr(chunk, "id", None) or f"msg-{run_id}", raw)
            yield self._started(message, ts)
        yield from self._content(message, getattr(chunk, "content", None) or _chunk_text(chunk), ts)
        reasoning = getattr(chunk, "additional_kwargs", {}).get("reasoning_content")
        if reasoning:
            yield self._reasoning(message, reasoning, ts)
        for piece in getattr(chunk, "tool_call_chunks", ()):
            yield from self._fragment(message, piece, ts)

    def _model_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, output = raw["run_id"], raw["data"].get("output")
        message = self._models.pop(run_id, None)
        if message is not None:
            yield from self._finish_message(message, ts)
        elif isinstance(output, AIMessage) and SILENT.isdisjoint(raw["tags"]):
            yield from self._whole(output, raw, ts)
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
        yield from self._content(message, output.content, ts)
        for index, call in enumerate(output.tool_calls):
            args = orjson.dumps(codec.plain(call["args"])).decode()
            yield from self._fragment(message, {**call, "args": args, "index": index}, ts)
        yield from self._finish_message(message, ts)

    def _open(self, message_id: str, raw: Raw) -> _Message:
        self._seen.add(message_id)
        self._spoke = True
        message = _Message(message_id, self._place(raw))
        if self.answer is None or not message.place[1] or self.answer.place[1]:
            self.answer = message
        return message

    def _started(self, message: _Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageStarted(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _content(self, message: _Message, content: Any, ts: int) -> Iterator[Event]:
        if isinstance(content, str):
            if content:
                yield self._token(message, content, ts)
            return
        for block in content:
            if isinstance(block, str):
                yield self._token(message, block, ts)
            elif isinstance(block.get("text"), str) and block["text"]:
                yield self._token(message, block["text"], ts)
            else:
                thought = block.get("reasoning") or block.get("thinking")
                if isinstance(thought, str):
                    yield self._reasoning(message, thought, ts)

    def _token(self, message: _Message, text: str, ts: int) -> Event:
        text = codec.text(text)
        message.text.append(text)
        node, namespace = message.place
        return Token(ts=ts, node=node, namespace=namespace, text=text, message_id=message.message_id)

    def _reasoning(self, message: _Message, text: str, ts: int) -> Event:
        node, namespace = message.place
        return Reasoning(ts=ts, node=node, namespace=namespace, text=codec.text(text), message_id=message.message_id)

    def _finish_message(self, message: _Message, ts: int) -> Iterator[Event]:
        node, namespace = message.place
        for call in message.calls.values():
            if not call.pending:
                yield self._announce(message, call, ts)
            yield self._args(message, call, "", ts, parse=True)
        yield MessageFinished(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    # Tool calls

    def _fragment(self, message: _Message, piece: Mapping[str, Any], ts: int) -> Iterator[Event]:
        call = self._call(message, piece)
        call.name += piece.get("name") or ""
        delta = piece.get("args") or ""
        if not call.pending and call.name and (call.name in self._labels or delta):
            yield self._announce(message, call, ts)
            delta = "".join(call.args) + delta
            call.args, call.size = [], 0
        if not delta:
            return
        call.args.append(delta)
        call.size += len(delta)
        if call.pending:
            parse = call.size >= call.parse_at
            yield self._args(message, call, delta, ts, parse=parse)

    def _call(self, message: _Message, piece: Mapping[str, Any]) -> _Call:
        index, call_id = piece.get("index"), piece.get("id")
        if index is None:
            # No index: a new id begins a call, anything else goes on with the last one.
            index = call_id or next(reversed(message.calls), 0)
        call = message.calls.get(index)
        if call is None:
            call = message.calls[index] = _Call()
        if not call.call_id and call_id:
            call.call_id = call_id
        return call

    def _announce(self, message: _Message, call: _Call, ts: int) -> Event:
        """``tool.pending``: from here on the call's id is fixed, and unique within the run."""
        number = list(message.calls.values()).index(call)
        given = call.call_id
        call.call_id = self._unique(given or f"{message.message_id}:{number}", f"{message.message_id}:{number}")
        self._aliases.setdefault(given, []).append(call.call_id)
        call.pending = True
        self._tools[call.call_id] = _Tool(call.name, message.place)
        node, namespace = message.place
        label = self._labels.get(call.name) or default_label(call.name)
        return ToolPending(ts=ts, node=node, namespace=namespace, call_id=call.call_id, name=call.name, label=label)

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

    def _args(self, message: _Message, call: _Call, delta: str, ts: int, *, parse: bool) -> Event:
        args = None
        if parse:
            call.parse_at = call.size + max(call.size // 8, FIRST_PARSE)
            args = _partial("".join(call.args))
        node, namespace = message.place
        return ToolArgs(ts=ts, node=node, namespace=namespace, call_id=call.call_id, delta=codec.text(delta), args=args)

    def _tool_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, (node, namespace) = raw["run_id"], self._place(raw)
        given = self._meter.call_ids.pop(run_id, "")
        call_id = self._awaited(given)
        if call_id is None:  # a node called the tool itself, or runs a call for the second time
            call_id = self._unique(given or f"tool-{run_id}", run_id)
            self._tools[call_id] = _Tool(raw["name"], (node, namespace))
        self._tool_runs[run_id] = call_id
        tool = self._tools[call_id]
        tool.started_ts, tool.place = ts, (node, namespace)
        args = codec.plain(raw["data"].get("input") or {})
        yield ToolStarted(ts=ts, node=node, namespace=namespace, call_id=call_id, name=raw["name"], args=args)

    def _tool_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        call_id = self._tool_runs.pop(raw["run_id"], None)
        if call_id in self._tools:
            output = raw["data"].get("output")
            failed = isinstance(output, ToolMessage) and output.status == "error"
            yield self._finish_tool(call_id, "error" if failed else "ok", _tool_output(output), ts)

    def _tool_error(self, raw: Raw, ts: int) -> Iterator[Event]:
        call_id = self._tool_runs.pop(raw["run_id"], None)
        if call_id in self._tools:
            yield self._finish_tool(call_id, "error", tool_error(raw["data"]["error"]), ts)

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
            self._seen.update(one.id for one in _messages(raw["data"].get("input")) if one.id)
            node, namespace = self._place(raw)
            yield NodeStarted(ts=ts, node=node, namespace=namespace)

    def _chain_stream(self, raw: Raw, ts: int) -> Iterator[Event]:
        if raw["run_id"] != self._root:
            return
        chunk = raw["data"]["chunk"]
        if isinstance(chunk, Mapping) and "__interrupt__" in chunk:
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
            for message in _messages(output):
                if isinstance(message, AIMessage) and message.id not in self._seen:
                    yield from self._whole(message, raw, ts)
                elif isinstance(message, ToolMessage):
                    yield from self._never_ran(message, ts)
            node, namespace = self._place(raw)
            yield NodeFinished(ts=ts, node=node, namespace=namespace)

    def _root_end(self, raw: Raw, output: Any, ts: int) -> Iterator[Event]:
        streamed = self._models.pop(raw["run_id"], None)
        if streamed is not None:
            yield from self._finish_message(streamed, ts)
        elif not self._spoke and isinstance(output, str | AIMessage):
            yield from self._whole(AIMessage(output) if isinstance(output, str) else output, raw, ts)

    def _custom(self, raw: Raw, ts: int) -> Iterator[Event]:
        node, namespace = self._place(raw)
        data = codec.plain(raw["data"])
        for parent in reversed(raw.get("parent_ids", ())):
            call_id = self._tool_runs.get(parent)
            if call_id is not None:
                yield ToolProgress(ts=ts, node=node, namespace=namespace, call_id=call_id, data=data)
                return
        yield Custom(ts=ts, node=node, namespace=namespace, name=raw["name"], data=data)

    def _place(self, raw: Raw) -> Place:
        """``(node, namespace)``; LangGraph writes the path as ``"outer:uuid|inner:uuid"``, the node itself last."""
        metadata = raw["metadata"]
        path = metadata.get("langgraph_checkpoint_ns") or ""
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = (metadata.get("langgraph_node"), tuple(path.split("|")[:-1]))
        return place


def tool_error(error: BaseException) -> str:
    """What may be said of a tool's failure: its own words when it wrote them for a reader, one line, no path."""
    if isinstance(error, OSError):
        return f"The tool failed ({type(error).__name__})."
    words = str(error).strip().splitlines()
    if not words:
        return f"The tool failed ({type(error).__name__})."
    said = words[0][:500]
    return said if isinstance(error, ToolException) else f"{type(error).__name__}: {said}"


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
    else:
        yield from _listed(value)


def _listed(value: Any) -> Iterator[BaseMessage]:
    if isinstance(value, BaseMessage):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            if isinstance(item, BaseMessage):
                yield item
            elif isinstance(item, Command):
                yield from _messages(item)


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
    text = output if isinstance(output, str) else None
    size = len(text) if text is not None else len(codec.dumps(output))
    if size <= MAX_TOOL_OUTPUT:
        return output
    shown = text if text is not None else codec.dumps(output).decode()
    return f"{shown[:MAX_TOOL_OUTPUT]}… (cut: {size} characters in all)"
