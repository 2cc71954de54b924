"""What a run's events come to."""

from io import StringIO
from typing import Any

from rich.console import Console

from app.terminal.answer import Answer
from app.terminal.screen import Pipe

USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cost_usd": None, "estimated": False}
END = {"status": "completed", "reason": None, "usage": USAGE, "ttft_ms": None, "duration_ms": 1}


class Told:
    """An answer and what is shown of it."""

    def __init__(self) -> None:
        self._text, self._notes = StringIO(), StringIO()
        self.answer = Answer(Pipe(self._text, Console(file=self._notes, width=200)), 0.0)

    def take(self, event: str, **data: Any) -> "Told":
        self.answer.take(event, data, 0.0)
        return self

    def say(self, message: str, text: str, *inside: str) -> "Told":
        return self.take("token", message_id=message, text=text, namespace=list(inside))

    def end_of(self, message: str) -> "Told":
        return self.take("message.finished", message_id=message, role="assistant")

    @property
    def text(self) -> str:
        return self._text.getvalue()

    @property
    def notes(self) -> str:
        return self._notes.getvalue()

    def status(self, now: float = 0.0) -> str:
        return "\n".join(line.plain for line in self.answer.status(now))


def test_messages_that_are_said_at_once_are_shown_one_after_another() -> None:
    told = Told().say("a", "A1").say("b", "B1").say("c", "C1").say("a", " A2").end_of("b")
    assert told.text == "A1 A2"
    told.end_of("a").say("c", " C2").end_of("c")
    assert told.text == "A1 A2\nB1\nC1 C2\n"
    assert told.answer.text == "C1 C2"


def test_what_is_said_inside_the_graph_is_shown_while_it_is_said_and_does_not_stay() -> None:
    told = Told().say("x", "looking into it", "branch:1")
    assert "looking into it" in told.status()
    told.end_of("x")
    assert "looking into it" not in told.status()
    assert told.text == ""
    assert told.take("run.finished", **END).answer.lacks


def test_tools_at_work_have_a_line_each_and_one_when_they_are_done() -> None:
    told = Told()
    for call in ("1", "2"):
        told.take("tool.pending", call_id=call, name="weather", label=f"Looking {call}…")
    told.take("tool.args", call_id="1", delta="{", args={"place": "Oslo"}).take(
        "tool.started", call_id="1", name="weather", args={"place": "Oslo"}
    )
    assert 'Looking 1…  place="Oslo"' in told.status()
    assert "Looking 2…" in told.status()
    told.take("tool.progress", call_id="1", data={"done": 3})
    assert '{"done": 3}' in told.status()
    told.take("tool.finished", call_id="1", name="weather", status="ok", output={"sky": "blue"}, duration_ms=1234)
    assert told.notes == '✓ weather(place="Oslo") 1.2 s {"sky": "blue"}\n'
    assert "Looking 1…" not in told.status()


def test_a_call_that_waits_for_a_person_is_no_failure_and_one_that_was_cancelled_is() -> None:
    end = {"call_id": "1", "name": "send", "status": "error", "output": "It did not run.", "duration_ms": 0}
    for status, failed in (("interrupted", False), ("cancelled", True)):
        told = Told().take("tool.pending", call_id="1", name="send", label="Sending…").take("tool.finished", **end)
        told.take("run.finished", **{**END, "status": status}).answer.tell_end()
        assert ("✗ send()" in told.notes) is failed


def test_text_that_is_said_anew_is_forgotten() -> None:
    told = Told().say("a", "wrong").take("message.discarded", message_id="a", role="assistant").say("b", "right")
    assert told.answer.text == "right"
    assert "said anew" in told.notes


def test_it_is_told_what_is_waited_for() -> None:
    told = Told()
    assert "Waiting for the answer…" in told.status()
    assert "In line for the provider, place 3…" in told.take("run.queued", position=3).status()
    assert "Thinking… 4 s" in told.take("reasoning", text="hm", message_id="a").status(4.0)
    assert "Paused" in told.take("run.paused", reason="requested", usage=USAGE).status()
    told.say("a", "It is")
    assert told.status(0.5) == ""
    assert "Waiting for more… 5 s" in told.status(5.0)


def test_errors_and_gaps_are_told() -> None:
    told = Told().take("error", code="token_timeout", message="The provider went silent", retryable=True)
    assert told.notes == "✗ The provider went silent. Trying again may help.\n"
    told.take("gap", **{"from": 1, "to": 9, "dropped": 9}).take("run.finished", **END)
    assert told.answer.lacks


def test_an_object_fills_in_and_what_came_of_one_that_broke_off_is_shown() -> None:
    told = Told().take("object.partial", message_id="a", value={"title": "A"})
    assert '"title": "A"' in told.status()
    told.take("run.finished", **{**END, "status": "cancelled", "reason": "requested"}).answer.tell_end()
    assert told.text == '{\n  "title": "A"\n}\n'
