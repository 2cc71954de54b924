"""LangChain's event stream in, our events out: ``astream_events(version="v2")`` → ``events.event``.

Plain functions over one run's state; nothing awaits. All ids are decided here and in ``calls``: a message keeps the id
of its first chunk (the one LangGraph stores it under), made unique where a provider repeats it. An answer that was
asked for as an object, by a schema, is told as one and not as text or as a call.

What it promises of the order is in ``events.grammar``; ``close`` ends whatever is open when a run is cut, so that
every message and tool that was opened is closed before the run finishes. When a run is paused, ``hold`` keeps its open
messages open, and ``adopt`` has the call that is made anew go on in them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage, message_chunk_to_message
from langgraph.errors import GraphInterrupt
from langgraph.types import Command, Interrupt
from pydantic import BaseModel

from app.events import codec
from app.events.event import (
    Custom,
    Event,
    MessageDiscarded,
    MessageFinished,
    MessageStarted,
    NodeFinished,
    NodeStarted,
    ObjectField,
    ObjectPartial,
    Reasoning,
    RunInterrupted,
    Token,
    ToolPending,
    ToolStarted,
)
from app.runs.calls import Calls, kept
from app.runs.message import LONE, Held, Message, Place, paired
from app.runs.usage import Meter

HIDDEN = frozenset(("langsmith:hidden",))
SILENT = frozenset(("nostream", "langsmith:nostream"))
"""LangGraph's tag for model calls whose tokens are not for the reader."""

RESULT = "tool.result"
"""The custom event by which a node tells a call's result before its step is over: ``call_id, status, output``."""

Raw = Mapping[str, Any]


class Translator:
    """One run's translation. ``labels`` names tools for people; the ``meter`` knows usage and call ids."""

    def __init__(self, labels: Mapping[str, str], meter: Meter) -> None:
        self.output: Any = None
        self.answer: Message | None = None
        self.object: Any = None
        self.interrupted = False
        self.ended = False
        self.pause_after: Literal["paragraph"] | None = None
        self.at_pause = False
        self._meter = meter
        self._calls = Calls(labels)
        self._models: dict[str, Message | None] = {}
        self._calling: dict[str, str] = {}
        self._begun: dict[str, Raw] = {}
        self._ahead: dict[str, int] = {}
        self._worked: set[str] = set()
        self._held: list[Message] = []
        self._adopted: set[str] = set()
        self._unsettled: dict[str, Message] = {}
        self._results: dict[tuple[str, str], ToolMessage] = {}
        self._seen: set[str] = set()
        self._told: set[str] = set()
        self._places: dict[str, Place] = {}
        self._root: str | None = None
        self._spoke = False

    def feed(self, raw: Raw, ts: int) -> Iterator[Event]:
        """The events one raw event stands for, none or several. ``ts``: now, in milliseconds."""
        if self._root is None:
            self._root = raw["run_id"]
        if raw["run_id"] == self._root and raw["event"].endswith("_end"):
            output = raw["data"].get("output")
            self.ended = True
            self.output = message_chunk_to_message(output) if isinstance(output, AIMessageChunk) else output
        match raw["event"]:
            case "on_chat_model_stream" | "on_llm_stream":
                return self._model_stream(raw, ts)
            case "on_chain_stream":
                return self._chain_stream(raw, ts)
            case "on_chain_start":
                return self._chain_start(raw, ts)
            case "on_chain_end":
                return self._chain_end(raw, ts)
            case "on_chat_model_start" | "on_llm_start":
                return self._model_start(raw, ts)
            case "on_chat_model_end" | "on_llm_end":
                return self._model_end(raw, ts)
            case "on_tool_start":
                return self._tool_start(raw, ts)
            case "on_tool_end":
                return self._tool_end(raw, ts)
            case "on_tool_error":
                return self._tool_error(raw, ts)
            case "on_custom_event":
                return self._custom(raw, ts)
        return iter(())

    def close(self, ts: int, why: str) -> Iterator[Event]:
        """End what is still open; ``why`` is told as the result of calls that will have none."""
        for message in (*self._models.values(), *self._held):
            if message is not None:
                self._grown(message)
                yield self._finished(message, ts)
        self._models.clear()
        self._held.clear()
        self._begun.clear()
        self._ahead.clear()
        yield from self._calls.close(ts, why)

    def text(self) -> str:
        """The answer's text as far as it came: the last message of the root graph, else the last of any."""
        return "".join(self.answer.text) if self.answer is not None else ""

    def said(self) -> list[tuple[str, str]]:
        """``(message_id, text)`` of the root's messages that their nodes have not handed to the graph."""
        return [(one.message_id, text) for one in self._unsettled.values() if (text := "".join(one.text)).strip()]

    def results(self) -> dict[str, ToolMessage]:
        """What tools have come to whose nodes have not handed it to the graph, by the ids of their calls."""
        return {call_id: kept(message) for (_, call_id), message in self._results.items()}

    # Pauses

    @property
    def pausable(self) -> bool:
        """Whether a call can be broken off here and made anew: a model speaks, and no tool call is open.

        Its node is run anew from its beginning, so nothing else may have been done in it. A call that is over already,
        though its events are still on their way here, cannot be broken off: what comes after it may have begun.
        """
        writing = (message for message in self._models.values() if message is not None)
        done = self._calls.open or self._worked or any(one.calls or one.form for one in writing)
        calls = {run_id: path for run_id, path in self._calling.items() if run_id not in self._meter.failed}
        alone = len(set(calls.values())) == len(calls)  # in one node it could not be told which goes on with what
        return bool(calls) and not done and alone and self._meter.speaks(calls.keys())

    def hold(self) -> list[Held]:
        """The calls have been broken off; their messages stay open until they are made anew, or the run ends."""
        self._held += [message for message in self._models.values() if message is not None]
        self._models.clear()
        self._calling.clear()
        self._begun.clear()
        self._ahead.clear()
        self.at_pause = False
        self.pause_after = None
        return [Held(one.message_id, *one.place, one.path, "".join(one.text)) for one in self._held]

    def restore(self, held: Sequence[Held], told: Iterable[Event]) -> None:
        """Take over the messages that another process has held, and the ids in what it has told."""
        for event in told:
            if isinstance(event, MessageStarted):
                self._told.add(event.message_id)
            elif isinstance(event, ToolPending | ToolStarted):
                self._calls.restore(event.call_id)
        for one in held:
            message = Message(one.message_id, (one.node, one.namespace), one.path)
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
        self._begun[raw["run_id"]] = {name: raw[name] for name in ("run_id", "tags", "metadata")}
        yield from self._discard(lambda message: message.path == path, ts)

    def _discard(self, anew: Callable[[Message], bool], ts: int) -> Iterator[Event]:
        for run_id, message in self._broken():
            if anew(message):
                yield from self._calls.void(message, ts)
                yield self._discarded(message, ts)
                message.text.clear()
                self._models[run_id] = None  # callbacks are ahead of the stream: more of it may come

    def _broken(self) -> list[tuple[str, Message]]:
        """The open messages whose calls failed half way."""
        failed = ((run_id, self._models.get(run_id)) for run_id in self._meter.failed)
        return [(run_id, message) for run_id, message in failed if message is not None]

    def begun(self, run_id: str) -> bool:
        """Whether a call has been told of that is not over: what it says can be told."""
        return run_id in self._begun

    def say(self, run_id: str, message_id: str, text: str, ts: int) -> Iterator[Event]:
        """A piece of a call's plain text that has come past LangChain, which will have it later in a chunk of its own.

        ``message_id``: as that chunk will have it.
        """
        if run_id not in self._models:
            yield from self._opened(run_id, message_id, self._begun[run_id], ts)
        message = self._models[run_id]
        if message is not None:
            yield from self._text(message, text, ts)
        self._ahead[run_id] = self._ahead.get(run_id, 0) + len(text)

    def _opened(self, run_id: str, message_id: str, raw: Raw, ts: int) -> Iterator[Event]:
        """Open the call's message if it is not; ``None`` stands for one that is not for the reader."""
        if run_id in self._models:
            return
        if not SILENT.isdisjoint(raw["tags"]):
            self._models[run_id] = None
            return
        message = self._open(message_id, raw)
        yield self._started(message, ts)
        self._models[run_id] = message

    def _model_stream(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, chunk = raw["run_id"], raw["data"]["chunk"]
        if run_id in self._adopted:  # its first chunk is what the reader has
            self._adopted.discard(run_id)
            return
        if self._ahead.get(run_id) and chunk.text:  # the reader has it
            self._ahead[run_id] -= len(chunk.text)
            return
        yield from self._opened(run_id, getattr(chunk, "id", None) or f"msg-{run_id}", raw, ts)
        message = self._models[run_id]
        if message is None:
            return
        yield from self._content(message, getattr(chunk, "content", None) or _chunk_text(chunk), ts)
        reasoning = getattr(chunk, "additional_kwargs", {}).get("reasoning_content")
        if reasoning and isinstance(reasoning, str):
            yield self._reasoning(message, reasoning, ts)
        for piece in getattr(chunk, "tool_call_chunks", ()):
            yield from self._piece(message, piece, ts)

    def _model_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, output = raw["run_id"], raw["data"].get("output")
        self._calling.pop(run_id, None)
        self._begun.pop(run_id, None)
        self._ahead.pop(run_id, None)
        self._worked.add(_path(raw))
        message = self._models.get(run_id)
        if message is not None:
            yield from self._finish_message(message, ts)
            if isinstance(output, AIMessage) and output.id is not None:
                self._seen.add(output.id)  # not always that of the first chunk
                self._calls.rename(message, output.id)
        elif isinstance(output, AIMessage) and SILENT.isdisjoint(raw["tags"]):
            yield from self._whole(output, raw, ts)
        self._models.pop(run_id, None)
        self._meter.forms.pop(run_id, None)
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
        read = [{**call, "args": orjson.dumps(codec.plain(call["args"])).decode()} for call in output.tool_calls]
        for index, call in enumerate([*read, *output.invalid_tool_calls]):
            yield from self._piece(message, {**call, "index": index}, ts)
        yield from self._finish_message(message, ts)
        del self._models[message.message_id]

    def _open(self, message_id: str, raw: Raw) -> Message:
        # Some providers give the same id again and again; ours is unique in what a run has said and what it was given.
        known = message_id in self._told or message_id in self._seen
        told = f"{message_id}:{len(self._told)}" if known else message_id
        self._seen.add(message_id)
        self._spoke = True
        self._told.add(told)
        form = self._meter.forms.get(raw["run_id"])
        message = Message(codec.text(told), self._place(raw), _path(raw), given=message_id, form=form)
        self._settle_later(message)
        if self.answer is None or not message.place[1] or self.answer.place[1]:
            self.answer = message
        return message

    def _settle_later(self, message: Message) -> None:
        if not message.place[1]:
            self._unsettled[message.message_id] = message

    def _started(self, message: Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageStarted(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _finished(self, message: Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageFinished(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _discarded(self, message: Message, ts: int) -> Event:
        node, namespace = message.place
        return MessageDiscarded(ts=ts, node=node, namespace=namespace, message_id=message.message_id, role="assistant")

    def _content(self, message: Message, content: Any, ts: int) -> Iterator[Event]:
        for block in [content] if isinstance(content, str) else content:
            text = block if isinstance(block, str) else block.get("text")
            if isinstance(text, str):
                yield from self._text(message, text, ts)
            elif isinstance(block, Mapping) and (thought := _thought(block)):
                yield self._reasoning(message, thought, ts)

    def _text(self, message: Message, text: str, ts: int) -> Iterator[Event]:
        if message.form is not None and not message.form.call:
            return self._grow(message, text, ts)
        return self._token(message, text, ts)

    def _token(self, message: Message, text: str, ts: int) -> Iterator[Event]:
        text, message.half = paired(message.half + text)
        if self.pause_after is not None and not message.place[1]:
            text = self._until_pause(message, text)
        if text:
            node, namespace = message.place
            yield Token(ts=ts, node=node, namespace=namespace, text=text, message_id=message.message_id)
            message.text.append(text)

    def _until_pause(self, message: Message, text: str) -> str:
        """What of the text is before the pause: the rest is generated anew."""
        if self.at_pause:
            return ""
        end = paragraph_end(message.text, text)
        if end is None or not self.pausable:
            return text
        self.at_pause = True
        message.half = ""
        return text[:end]

    def _reasoning(self, message: Message, text: str, ts: int) -> Event:
        node, namespace = message.place
        return Reasoning(ts=ts, node=node, namespace=namespace, text=codec.text(text), message_id=message.message_id)

    def _finish_message(self, message: Message, ts: int) -> Iterator[Event]:
        if message.half and message.growing is None:
            message.half = ""
            yield from self._token(message, LONE, ts)
        if message.form is None or not message.form.call:
            yield from self._calls.finish(message, ts)
        value = self._grown(message)
        if value is not None:
            yield self._object(message, value, ts)
        yield self._finished(message, ts)

    # Objects and tool calls

    def _piece(self, message: Message, piece: Mapping[str, Any], ts: int) -> Iterator[Event]:
        """A fragment of a call. The first one of an answer that was asked for as a call is the answer itself."""
        if message.form is None or not message.form.call:
            yield from self._calls.piece(message, piece, ts)
        elif self._calls.of(message, piece).number == 0:
            yield from self._grow(message, piece.get("args") or "", ts)

    def _grow(self, message: Message, text: str, ts: int) -> Iterator[Event]:
        assert message.growing is not None
        text, message.half = paired(message.half + text)
        node, namespace = message.place
        for path, value in message.growing.feed(text):
            yield ObjectField(
                ts=ts, node=node, namespace=namespace, message_id=message.message_id, path=path, value=value
            )
        value = self._grown(message, last=False)
        if value is not None:
            yield self._object(message, value, ts)

    def _grown(self, message: Message, *, last: bool = True) -> Any:
        """What there is of the message's object, if there is something new."""
        value = None if message.growing is None else message.growing.partial(last=last)
        if value is not None and not message.place[1]:
            self.object = value
        return value

    def _object(self, message: Message, value: Any, ts: int) -> Event:
        node, namespace = message.place
        return ObjectPartial(ts=ts, node=node, namespace=namespace, message_id=message.message_id, value=value)

    def _tool_start(self, raw: Raw, ts: int) -> Iterator[Event]:
        run_id, name = raw["run_id"], codec.text(raw["name"])
        given = self._meter.call_ids.pop(run_id, "")
        return self._calls.start(run_id, name, raw["data"].get("input") or {}, self._place(raw), ts, given=given)

    def _tool_end(self, raw: Raw, ts: int) -> Iterator[Event]:
        self._worked.add(_path(raw))
        output = raw["data"].get("output")
        if isinstance(output, ToolMessage):
            self._results[_path(raw), output.tool_call_id] = output
        return self._calls.end(raw["run_id"], output, ts)

    def _tool_error(self, raw: Raw, ts: int) -> Iterator[Event]:
        self._worked.add(_path(raw))
        error = raw["data"]["error"]
        # A tool that waits for a person has no result yet; LangGraph tells of that by an exception.
        return iter(()) if isinstance(error, GraphInterrupt) else self._calls.fail(raw["run_id"], error, ts)

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
            ran = {call_id for one, call_id in self._results if one == path}
            self._results = {key: one for key, one in self._results.items() if key[0] != path}
            for message in _messages(output):
                if isinstance(message, AIMessage) and message.id not in self._seen:
                    yield from self._whole(message, raw, ts)
                elif isinstance(message, ToolMessage) and message.tool_call_id not in ran:
                    yield from self._calls.result(message.tool_call_id, message.status, message, self._place(raw), ts)
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

    def _rest(self, held: Message, output: Any, ts: int) -> Iterator[Event]:
        said = "".join(held.text)
        for message in _messages(output):
            if message.id == held.message_id and message.text.startswith(said):
                yield from self._token(held, message.text[len(said) :], ts)
        yield self._finished(held, ts)

    def _custom(self, raw: Raw, ts: int) -> Iterator[Event]:
        place, data = self._place(raw), raw["data"]
        if raw["name"] == RESULT and isinstance(data, Mapping) and isinstance(data.get("call_id"), str):
            yield from self._calls.result(data["call_id"], str(data.get("status")), data.get("output"), place, ts)
            return
        data = codec.plain(data)
        run_ids = (raw["run_id"], *reversed(raw.get("parent_ids", ())))  # its run is that of its sender
        node, namespace = place
        progress = self._calls.progress(run_ids, data, place, ts)
        name = codec.text(raw["name"])
        yield progress or Custom(ts=ts, node=node, namespace=namespace, name=name, data=data)

    def _place(self, raw: Raw) -> Place:
        """``(node, namespace)``; LangGraph writes the path as ``"outer:uuid|inner:uuid"``, the node itself last."""
        path = _path(raw)
        place = self._places.get(path)
        if place is None:
            place = self._places[path] = (raw["metadata"].get("langgraph_node"), tuple(path.split("|")[:-1]))
        return place


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
