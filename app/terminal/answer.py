"""What a run's events come to, for a person who looks on: text, tools at work, what is waited for, how it ended.

It takes events and tells a ``Screen``; it asks for nothing and waits for nothing. The conversation's own messages are
shown one after another. What agents inside the graph say is shown while they say it, and does not stay: the graph makes
its answer of it.
"""

import json
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from app.terminal.screen import Screen
from app.terminal.wording import DONE, FAILED, arguments, ending, failure, lasted, one_line, output, retry, tally

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
TURNS_PER_S = 10

SILENCE_S = 1.0
"""After so long without news it is shown that something is still waited for."""

LONGEST_INSIDE = 160
"""Characters that are shown of what is said inside the graph."""

OBJECT_LINES = 8
"""Lines of an object that are shown while it fills in: its last ones."""


class Tool:
    """A call under way. ``doing`` is for people."""

    def __init__(self, name: str, doing: str) -> None:
        self.name = name
        self.doing = doing
        self.begun = False
        self.args: Any = None
        self.progress = ""


@dataclass
class Object:
    """A structured answer as far as it is there. What is made of it in the end is in the run's result."""

    message: str
    value: Any
    open: bool = True


class Answer:
    """One run as it is told. Times are seconds of a monotonic clock."""

    def __init__(self, screen: Screen, now: float) -> None:
        self.run_id: str | None = None
        self.agent: str | None = None
        self.thread_id: str | None = None
        self.finished: dict[str, Any] | None = None
        self.interrupts: list[dict[str, Any]] = []
        self.missed = False
        self.spoke = False
        self.text = ""
        self._screen = screen
        self._began = self._heard = now
        self._waiting = "Waiting for the answer"
        self._tools: dict[str, Tool] = {}
        self._open: dict[str, str] = {}
        self._whole: set[str] = set()
        self._inside: dict[str, str] = {}
        self._object: Object | None = None
        self._unmade: list[Text] = []

    @property
    def lacks(self) -> bool:
        """Whether the events have not told all of it: the rest is in the run's result."""
        whole = self.finished is not None and self.finished["status"] == "completed"
        return self.missed or (whole and (self._object is not None or not self.spoke))

    @property
    def failed(self) -> bool:
        """Whether it is over, and not well. Waiting for a person is well."""
        return self.finished is not None and self.finished["status"] not in ("completed", "interrupted")

    def take(self, event: str, data: dict[str, Any], now: float) -> None:
        """One event."""
        self._heard = now
        if event not in ("tool.finished", "run.interrupted", "run.finished"):
            self._tell_unmade()
        match event.partition("."):
            case ("run", _, what):
                self._run(what, data)
            case ("message", _, what):
                self._message(what, data)
            case ("token", _, _):
                self._token(data["message_id"], data["text"], inside=bool(data.get("namespace")))
            case ("reasoning", _, _):
                self._waiting = "Thinking"
            case ("tool", _, what):
                self._tool(what, data)
            case ("object", _, "partial"):
                self._object = Object(data["message_id"], data["value"])
            case ("custom", _, _):
                self._custom(data["name"], data["data"])
            case ("gap", _, _):
                self.missed = True
                self._note(f"Some of it was missed ({data['dropped']} events); the whole answer follows.", "yellow")
            case ("error", _, _):
                self._note(f"{FAILED} {failure(data)}", "red")

    def status(self, now: float) -> list[Text]:
        """What goes on at this moment, a line for each."""
        wheel = SPINNER[int(now * TURNS_PER_S) % len(SPINNER)]
        lines = [Text(one_line(text, LONGEST_INSIDE), "dim") for text in self._inside.values()]
        filling = self._object is not None and self._object.open
        if self._object is not None and filling:
            lines += [Text(line, "dim") for line in json_text(self._object.value).splitlines()[-OBJECT_LINES:]]
        for tool in self._tools.values():
            doing = tool.progress or arguments(tool.args)
            lines += [Text.assemble((f"{wheel} ", "cyan"), tool.doing, (f"  {doing}", "dim"))]
        if not self._tools and not ((self._open or filling) and now - self._heard < SILENCE_S):
            since = now - (self._heard if self.spoke else self._began)
            waited = f" {int(since)} s" if since >= 2 else ""
            lines.append(Text.assemble((f"{wheel} ", "cyan"), (f"{self._waiting}…{waited}", "dim")))
        return lines

    def tell_end(self) -> None:
        """Say how it ended, and what it took."""
        self._screen.end()
        if self.finished is not None and self.finished["status"] != "interrupted":
            self._tell_unmade()
            if self._object is not None and not self.lacks:
                self._screen.show(Text(json_text(self._object.value)))
            if said := ending(self.finished):
                self._note(said, "yellow")
            if self.finished["usage"]["total_tokens"]:
                self._note(tally(self.finished), "dim")

    def _run(self, what: str, data: dict[str, Any]) -> None:
        if what == "started":
            self.run_id, self.agent, self.thread_id = data["run_id"], data["agent"], data["thread_id"]
        elif what == "queued":
            self._waiting = f"In line for the provider, place {data['position']}"
        elif what == "paused":
            self._waiting = "Paused; it goes on when it is continued, and Ctrl-C ends it"
        elif what == "resumed":
            self._waiting = "Going on"
        elif what == "interrupted":
            self.interrupts = data["interrupts"]
        elif what == "finished":
            self.finished = data

    # What is said

    def _message(self, what: str, data: dict[str, Any]) -> None:
        message = data["message_id"]
        if what == "discarded":
            self._discard(message)
        elif what == "finished":
            self._inside.pop(message, None)
            if self._object is not None and self._object.message == message:
                self._object.open = False
            if message in self._open:
                self._whole.add(message)
                self._go_on()

    def _token(self, message: str, text: str, *, inside: bool) -> None:
        self._waiting = "Waiting for more"
        if inside:
            self._inside[message] = (self._inside.get(message, "") + text)[-LONGEST_INSIDE:]
            return
        if not self._open:
            self.text = ""
        self.spoke = True
        first = next(iter(self._open), message)
        self._open[message] = self._open.get(message, "") + ("" if message == first else text)
        if message == first:
            self._say(text)

    def _say(self, text: str) -> None:
        self.text += text
        self._screen.write(text)

    def _go_on(self) -> None:
        """End the messages that are whole, in their order; of those that were said meanwhile show what there is."""
        while self._open and next(iter(self._open)) in self._whole:
            self._open.pop(next(iter(self._open)))
            self._screen.end()
            for message, text in self._open.items():
                self.text, self._open[message] = "", ""
                self._say(text)
                break

    def _discard(self, message: str) -> None:
        self._inside.pop(message, None)
        if self._object is not None and self._object.message == message:
            self._object = None
        if message in self._open:
            shown = next(iter(self._open)) == message
            self._whole.add(message)
            self._open[message] = ""
            if shown:
                self.text = ""
                self._screen.discard()
                self._note("What was said last is said anew.", "yellow")
            self._go_on()

    # What is done

    def _tool(self, what: str, data: dict[str, Any]) -> None:
        call = data["call_id"]
        if what == "pending":
            self._screen.end()
            self._tools[call] = Tool(data["name"], data["label"])
            return
        tool = self._tools.setdefault(call, Tool(data.get("name", ""), f"Calling {data.get('name', 'a tool')}…"))
        tool.begun = tool.begun or what == "started"
        if what in ("args", "started"):
            tool.args = data.get("args", tool.args)
        elif what == "progress":
            tool.progress = one_line(data["data"], LONGEST_INSIDE)
        elif what == "finished":
            del self._tools[call]
            self._screen.end()
            self._unmade.append(_outcome(tool, data))
            if tool.begun:
                self._tell_unmade()
            self._waiting = "Waiting for the answer"

    def _tell_unmade(self) -> None:
        """Calls that never ran are told once it is known that they do not wait for a person's word."""
        for line in self._unmade:
            self._screen.note(line)
        self._unmade.clear()

    def _custom(self, name: str, data: Any) -> None:
        if not isinstance(data, dict):
            return
        match name:
            case "provider.retry":
                self._note(retry(data), "yellow")
            case "tool.repaired":
                self._note(f"The call of {data.get('name')} was written wrongly, and mended.", "dim")
            case "tool.refused":
                self._note(f"The call of {data.get('name')} was written wrongly; the model is told so.", "yellow")
            case "branch.started":
                self._note(f"{data.get('number')}. {data.get('question')}", "dim")

    def _note(self, text: str, style: str) -> None:
        self._screen.note(Text(text, style))


def json_text(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def _outcome(tool: Tool, data: dict[str, Any]) -> Text:
    sound = data["status"] == "ok"
    mark, style = (DONE, "green") if sound else (FAILED, "red")
    duration = f" {lasted(data['duration_ms'] / 1000)}" if data["duration_ms"] else ""
    line = Text.assemble((f"{mark} ", style), f"{data['name']}", (f"({arguments(tool.args)}){duration}", "dim"))
    line.append(f" {output(data['output'])}", "" if sound else "red")
    line.no_wrap, line.overflow = sound, "ellipsis" if sound else "fold"  # why it failed is worth a second row
    return line
