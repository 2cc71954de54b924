"""A run's tool calls: from the pieces in which a model writes them to their results.

Pieces are kept by (message, index), never by "the current call", so that parallel calls may interleave as they like.
A call keeps the provider's id; where that is left out or comes again it is known by its place in its message
(``own_id``), which is how our own graphs name such a call too. Which call a tool's run answers is told by that id, by
its name and arguments where the id is another's as well, and last by the namespace.

What it promises of the order is in ``events.grammar``. Nothing awaits.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from langchain_core.messages import ToolMessage
from langchain_core.tools import ToolException
from langgraph.types import Command

from app.events import codec
from app.events.event import Event, ToolArgs, ToolFinished, ToolPending, ToolProgress, ToolStarted
from app.runs.agent import default_label
from app.runs.message import LONE, Call, Message, Place, paired
from app.runs.objects import next_parse, parsed

MAX_TOOL_OUTPUT = 256 * 1024
"""Bytes of a tool's output in its event; the graph sees all of it."""


class _Tool:
    """A call that a reader was told of and that has no result yet; ``call`` is what the model wrote of it."""

    __slots__ = ("call", "name", "place", "started_ts")

    def __init__(self, name: str, place: Place, call: Call | None = None) -> None:
        self.name = name
        self.place = place
        self.call = call
        self.started_ts: int | None = None

    def means(self, name: str, args: Any) -> bool:
        """Whether the model has called this tool with these arguments."""
        return self.name == name and self.call is not None and _partial("".join(self.call.args)) == args


def own_id(message_id: str, number: int) -> str:
    """The id of a call that has none of its own, by its place in its message, from 0.

    As every provider takes it back: OpenAI no more than 40 characters, Anthropic none but these.
    """
    return re.sub(r"[^a-zA-Z0-9_-]", "_", f"{message_id}-{number}")[-40:]


class Calls:
    """One run's. ``labels`` names tools for people."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = labels
        self._beginnings = {name for name in labels for other in labels if other != name and other.startswith(name)}
        self._open: dict[str, _Tool] = {}
        self._runs: dict[str, str] = {}
        self._ids: set[str] = set()
        self._given: dict[str, list[str]] = {}

    @property
    def open(self) -> bool:
        """Whether any call has no result yet."""
        return bool(self._open)

    def restore(self, call_id: str) -> None:
        """Another process has told of this call."""
        self._ids.add(call_id)

    def close(self, ts: int, why: str) -> Iterator[Event]:
        """End what has no result, and say why."""
        for call_id in list(self._open):
            yield self._finish(call_id, "error", why, ts)

    def void(self, message: Message, ts: int) -> Iterator[Event]:
        """The message is given up, and its calls with it."""
        for call in message.calls:
            if call.call_id in self._open:
                yield self._finish(call.call_id, "error", "The call was given up.", ts)

    # While the model writes

    def piece(self, message: Message, piece: Mapping[str, Any], ts: int) -> Iterator[Event]:
        """A fragment of a call, as LangChain's ``ToolCallChunk``."""
        call = self.of(message, piece)
        delta, call.half = paired(call.half + (piece.get("args") or ""))
        self._name(call, codec.text(piece.get("name") or ""))
        if not call.pending and call.name and (self._is_whole(call.name) or delta):
            yield from self._announce(message, call, ts)
            delta = "".join(call.args) + delta
            call.args, call.size = [], 0
        if not delta:
            return
        call.args.append(delta)
        call.size += len(delta)
        if call.pending:
            yield self._args(message, call, delta, ts, parse=call.size >= call.parse_at)

    def finish(self, message: Message, ts: int) -> Iterator[Event]:
        """The message is complete, and so are its calls: the last parse of each."""
        for call in message.calls:
            delta = ""
            if not call.pending:
                yield from self._announce(message, call, ts)
                delta = codec.text("".join(call.args))
            yield self._args(message, call, delta + (LONE if call.half else ""), ts, parse=True)

    def rename(self, message: Message, message_id: str) -> None:
        """The graph knows the message by another id than its first chunk had."""
        for call in message.calls:
            self._given.setdefault(own_id(message_id, call.number), []).append(call.call_id)

    def of(self, message: Message, piece: Mapping[str, Any]) -> Call:
        """The call a piece belongs to: that of its index, else of its id, else the last one."""
        index, given = piece.get("index"), piece.get("id") or ""
        key = given if index is None else index
        last = message.calls[-1] if message.calls else None
        call = last if key == "" else message.keyed.get(key)
        if call is None or _begins_another(call, piece):
            call = Call(len(message.calls))
            message.calls.append(call)
        if given and not call.given:
            call.given = given
            if call.pending:
                self._given.setdefault(given, []).append(call.call_id)
        message.keyed.update({one: call for one in (index, given) if one not in (None, "")})
        return call

    def _name(self, call: Call, piece: str) -> None:
        """Names come in pieces, too; some providers send the whole of it again and again."""
        if not call.pending and not (piece == call.name and piece in self._labels):
            call.name += piece

    def _is_whole(self, name: str) -> bool:
        """Whether it is a tool's name, and not the beginning of another's as well."""
        return name in self._labels and name not in self._beginnings

    def _announce(self, message: Message, call: Call, ts: int) -> Iterator[Event]:
        """``tool.pending``: from here on the call's id is fixed, and unique within the run."""
        own = own_id(message.message_id, call.number)
        call.call_id = self._unique(codec.text(call.given), own)
        node, namespace = message.place
        label = self._labels.get(call.name) or default_label(call.name)
        yield ToolPending(ts=ts, node=node, namespace=namespace, call_id=call.call_id, name=call.name, label=label)
        for known in {call.given, own, own_id(message.given, call.number)}:
            self._given.setdefault(known, []).append(call.call_id)
        call.pending = True
        self._open[call.call_id] = _Tool(call.name, message.place, call)

    def _unique(self, given: str, own: str) -> str:
        """The id that was given, where there is one that is new; else one of our own."""
        call_id = given if given and given not in self._ids else own
        self._ids.add(call_id)
        return call_id

    def _args(self, message: Message, call: Call, delta: str, ts: int, *, parse: bool) -> Event:
        args = None
        if parse:
            call.parse_at = next_parse(call.size)
            args = _partial("".join(call.args))
        node, namespace = message.place
        return ToolArgs(ts=ts, node=node, namespace=namespace, call_id=call.call_id, delta=delta, args=args)

    # While the tool works

    def start(self, run_id: str, name: str, args: Any, place: Place, ts: int, *, given: str) -> Iterator[Event]:
        """A tool's run begins; ``given`` is the id of the call that it answers, where it answers one."""
        args = codec.plain(args)
        call_id = self._answered(given, name, args, place)
        if call_id is None:  # a node called the tool itself, or runs a call for the second time
            call_id = self._unique(codec.text(given), f"{codec.text(given) or 'tool'}:{run_id}")
            self._given.setdefault(given, []).append(call_id)
        node, namespace = place
        yield ToolStarted(ts=ts, node=node, namespace=namespace, call_id=call_id, name=name, args=args)
        self._runs[run_id] = call_id
        tool = self._open[call_id] = _Tool(name, place)
        tool.started_ts = ts

    def progress(self, run_ids: Iterable[str], data: Any, place: Place, ts: int) -> Event | None:
        """What was told in one of these runs, when it is a tool's, innermost first."""
        call_id = next((self._runs[run_id] for run_id in run_ids if run_id in self._runs), None)
        if call_id is None:
            return None
        node, namespace = place
        return ToolProgress(ts=ts, node=node, namespace=namespace, call_id=call_id, data=data)

    def end(self, run_id: str, output: Any, ts: int) -> Iterator[Event]:
        """A tool's run is over."""
        call_id = self._runs.get(run_id)
        if call_id is not None:
            failed = isinstance(output, ToolMessage) and output.status == "error"
            yield self._finish(call_id, "error" if failed else "ok", output, ts)

    def fail(self, run_id: str, error: BaseException, ts: int) -> Iterator[Event]:
        """A tool's run has raised."""
        call_id = self._runs.get(run_id)
        if call_id is not None:
            yield self._finish(call_id, "error", tool_error(error), ts)

    def result(self, given: str, status: str, output: Any, place: Place, ts: int) -> Iterator[Event]:
        """A node tells a call's result: the tool never ran, or runs on though nobody waits for it any more."""
        for call_id in self._given.get(given, ()):
            tool = self._open.get(call_id)
            # In parallel branches the same id may be another's: of a tool at work its own node alone can tell.
            if tool is not None and tool.place[1] == place[1] and (tool.started_ts is None or tool.place == place):
                yield self._finish(call_id, "error" if status == "error" else "ok", output, ts)
                return

    def _answered(self, given: str, name: str, args: Any, place: Place) -> str | None:
        """The call that a tool's run answers: of several by that id, the one of its name and arguments."""
        waiting = [call_id for call_id, tool in self._open.items() if tool.started_ts is None]
        meant = [call_id for call_id in waiting if self._open[call_id].means(name, args)]
        known = [call_id for call_id in self._given.get(given, ()) if call_id in waiting]
        if given and known:
            return self._nearest([one for one in known if one in meant] or known, place)
        return self._nearest(meant, place) or (None if given else self._nearest(known, place))

    def _nearest(self, call_ids: Sequence[str], place: Place) -> str | None:
        """The first of them, one of the same namespace before others."""
        return min(call_ids, key=lambda one: self._open[one].place[1] != place[1], default=None)

    def _finish(self, call_id: str, status: Literal["ok", "error"], output: Any, ts: int) -> Event:
        tool = self._open.pop(call_id)
        self._runs = {run_id: one for run_id, one in self._runs.items() if one != call_id}
        node, namespace = tool.place
        return ToolFinished(
            ts=ts,
            node=node,
            namespace=namespace,
            call_id=call_id,
            name=tool.name,
            status=status,
            output=_bounded(codec.plain(_content(output))),
            duration_ms=0 if tool.started_ts is None else ts - tool.started_ts,
        )


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


def kept(message: ToolMessage) -> ToolMessage:
    """The result as a thread may be given it when its own node could not: no longer than its event."""
    if len(message.content) <= MAX_TOOL_OUTPUT:
        return message
    return message.model_copy(update={"content": _bounded(codec.plain(message.content))})


def _begins_another(call: Call, piece: Mapping[str, Any]) -> bool:
    """Some providers give all calls one index, or neither index nor id: then another id or name tells them apart."""
    given = piece.get("id")
    if given or piece.get("index") is not None:
        return bool(given and call.given) and given != call.given
    return bool(call.size and call.name and piece.get("name"))


def _partial(text: str) -> Any:
    """The best parse of arguments, whole or not; what LangChain reads of whole ones, this does too."""
    if text.endswith("}"):
        with suppress(ValueError, RecursionError):
            return codec.plain(json.loads(text, strict=False))
    return codec.plain(parsed(text)) if text else {}


def _content(output: Any) -> Any:
    if isinstance(output, ToolMessage):
        return output.content
    if isinstance(output, Command):
        update = output.update if isinstance(output.update, Mapping) else {}
        said = [one.content for one in update.get("messages", ()) if isinstance(one, ToolMessage)]
        return said or None
    return output


def _bounded(output: Any) -> Any:
    """A tool's output, cut when it is larger than its event may be."""
    data = output.encode() if isinstance(output, str) else codec.dumps(output)
    if len(data) <= MAX_TOOL_OUTPUT:
        return output
    return f"{data[:MAX_TOOL_OUTPUT].decode(errors='ignore')}… (cut: {len(data)} bytes in all)"
