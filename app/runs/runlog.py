"""A run as LangChain's log, for LangServe's ``stream_log``: a document of its steps and its output, told in patches.

LangChain's own has no bound, a thread's hop for every token, and tells the whole output anew with each of its chunks.
Here the patches go through a tap, and the output is told when it has grown by an eighth, and at the end.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from langchain_core.messages import AIMessageChunk
from langchain_core.tracers.log_stream import LogStreamCallbackHandler, RunLogPatch
from typing_extensions import override

from app.runs.run import Run
from app.runs.tap import Tap
from app.runs.translate import SILENT


class Steps(LogStreamCallbackHandler):
    """LangChain's tracer, with a tap for its stream."""

    run_inline = True

    def __init__(self, tap: Tap, **filters: Any) -> None:
        super().__init__(auto_close=False, _schema_format="original", **filters)
        self._tap = tap
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    @override
    def send(self, *ops: dict[str, Any]) -> bool:
        if threading.get_ident() == self._thread:
            self._tap.put(RunLogPatch(*ops))
        else:  # a synchronous node's callback
            self._loop.call_soon_threadsafe(self._tap.put, RunLogPatch(*ops))
        return True


class Output(ABC):
    """The part of a log that tells the root's output: its chunks, and their sum where it is due."""

    pauses_s: Sequence[float] = (0.0,)
    """After each telling of the end."""

    def __init__(self) -> None:
        self._count = 0
        self._shown = 0

    @abstractmethod
    def wants(self, raw: Mapping[str, Any]) -> bool:
        """Whether the event is told at all."""

    @abstractmethod
    def add(self, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The operations that tell of the event."""

    @abstractmethod
    def end(self, run: Run) -> list[dict[str, Any]]:
        """The last operations."""

    def _tell(self, chunk: Any, total: Any) -> list[dict[str, Any]]:
        self._count += 1
        told = {"op": "add", "path": "/streamed_output/-", "value": chunk}
        if self._count <= self._shown + self._shown // 8:
            return [told]
        self._shown = self._count
        return [told, _replace("/final_output", total)]


class Sum(Output):
    """The runnable's own chunks, added up as LangChain adds them up."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id
        self._total: Any = None

    @override
    def wants(self, raw: Mapping[str, Any]) -> bool:
        return is_chunk(raw, self._run_id)

    @override
    def add(self, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        chunk = raw["data"]["chunk"]
        try:
            self._total = self._total + chunk if self._count else chunk
        except TypeError:
            self._total = chunk
        return self._tell(chunk, self._total)

    @override
    def end(self, run: Run) -> list[dict[str, Any]]:
        return [_replace("/final_output", self._total)] if self._count > self._shown else []


class Words(Output):
    """What the agent says, for the playground: of a graph it would show the updates as JSON, and no error at all.

    One message at a time, and at the end the answer alone.
    """

    # The page loses an update that meets one still being drawn, and at the stream's end goes back to what it has drawn.
    pauses_s = (0.2, 0.2)

    def __init__(self) -> None:
        super().__init__()
        self._text = ""
        self._message: str | None = None

    @override
    def wants(self, raw: Mapping[str, Any]) -> bool:
        return raw["event"] in ("on_chat_model_stream", "on_chat_model_end") and SILENT.isdisjoint(raw["tags"])

    @override
    def add(self, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        if raw["event"] == "on_chat_model_end":
            self._message = None if self._message == raw["run_id"] else self._message
            return []
        words = raw["data"]["chunk"].text
        if not words or self._message not in (None, raw["run_id"]):
            return []
        begun: list[dict[str, Any]] = []
        if self._message is None:
            self._message, self._text, begun = raw["run_id"], "", [_replace("/streamed_output", [])]
            self._count = self._shown = 0
        self._text += words
        return [*begun, *self._tell(AIMessageChunk(content=words), AIMessageChunk(content=self._text))]

    @override
    def end(self, run: Run) -> list[dict[str, Any]]:
        result = run.result()
        made = orjson.dumps(result["object"], option=orjson.OPT_INDENT_2).decode() if result["object"] else None
        said = [result["text"] or made, _waits(run), run.failure.message if run.failure else None]
        answer = AIMessageChunk(content="\n\n".join(filter(None, said)))
        return [_replace("/streamed_output", [answer]), _replace("/final_output", answer)]


def _waits(run: Run) -> str | None:
    """That a person is asked; of a graph that asks without a thread, that nobody can answer."""
    if run.status != "interrupted":
        return None
    if run.thread_id is None:
        return "(It waits for a person, but there is no thread on which to answer.)"
    return f"(It waits for a person: answer on the thread {run.thread_id}.)"


def _replace(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def readable(patch: RunLogPatch) -> RunLogPatch:
    """RemoteRunnable takes any object of type ``tool`` for a ToolMessage; without its field it breaks on the step."""
    for op in patch.ops:
        entry = op.get("value")
        if isinstance(entry, dict) and entry.get("type") == "tool":
            entry.setdefault("tool_call_id", None)
    return patch


def is_chunk(raw: Mapping[str, Any], run_id: str) -> bool:
    """Whether the event is a piece of the root's own output."""
    return bool(raw["run_id"] == run_id and raw["event"].endswith("_stream"))
