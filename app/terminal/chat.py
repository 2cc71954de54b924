"""``millrace chat``: the conversation. Reads lines, starts runs, follows them, and hears Ctrl-C.

Ctrl-C stops the answer and not the program: the run is cancelled, what was said stays, and the prompt comes back.
Twice, when the server does not answer, it leaves all the same. However the program ends, its own answer is cancelled
with it.
"""

import os
import sys
import time
from typing import Annotated

import httpx
import typer
from rich.text import Text

from app.remote import Refusal, Url, answer, asking, fail, find_run, harmless, list_runs, refusing
from app.terminal.answer import Answer, json_text
from app.terminal.conversation import Conversation
from app.terminal.keyboard import Leave, Prompt, Quiet, Signals, history_file, leaving
from app.terminal.review import review
from app.terminal.screen import REFRESH_S, Screen, Terminal, build_screen
from app.terminal.stream import GRACE_S, Back, Ended, Frame, Lost, Reader, Start, cleaned
from app.terminal.tables import Agent, Agents, Usage, agents_table, budget, usage_table
from app.terminal.wording import FAILED, lasted

DEFAULT_AGENT, SIMULATED = "assistant", "simulated"

HELP = """\
/agents         who can be talked to
/agent NAME     talk to another one
/new            begin another conversation
/resume [RUN]   show a run from its start and follow it: the last, or the one whose id begins so
/usage [DAYS]   what it cost, by day
/quit           leave; so does Ctrl-D

Ctrl-C stops an answer and keeps the conversation. At an empty prompt it leaves."""

COMMANDS = ("/agent", "/agents", "/help", "/new", "/quit", "/resume", "/usage")

SHORT = 8
"""Characters of a run's id that are shown."""

STOP_S = 10.0
"""How long a cancel is waited for."""

IMPATIENT_S = 0.5
"""A second Ctrl-C counts as one after so long; before, it is a finger that trembled."""

LEAVE_S = 2.0
"""How long the program waits at its end until the server has heard of the cancel."""


def chat(
    agent: Annotated[str | None, typer.Argument(help="Whom to talk to: assistant, unless another is named.")] = None,
    url: Url = "http://127.0.0.1:8000",
) -> None:
    """Talk to an agent. Ctrl-C stops an answer, Ctrl-D leaves. The key is MILLRACE_API_KEY, where one is wanted."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a sign shows another
    with asking(url) as server:
        agents = {one["name"]: one for one in cleaned(answer(server.get("/agents"), Agents))["agents"]}
        wanted = agent or (DEFAULT_AGENT if DEFAULT_AGENT in agents else next(iter(agents), DEFAULT_AGENT))
        if wanted not in agents:
            fail(f"there is no agent {wanted!r} at {url}; there are {', '.join(agents)}")
        try:
            with leaving():
                code = Chat(server, agents, wanted, build_screen()).run()
        except OSError:  # nobody reads what would be written any more, nor what is flushed at the very end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
    raise typer.Exit(code)


class Chat:
    """A session at the screen."""

    def __init__(self, server: httpx.Client, agents: dict[str, Agent], agent: str, screen: Screen) -> None:
        self._server = server
        self._agents = agents
        self._screen = screen
        self._talks: dict[str, Conversation] = {}
        self._talk = Conversation(agents[agent])
        self._prompt = Prompt(history_file(), [*COMMANDS, *(f"/agent {name}" for name in agents)])
        self._last_run: str | None = None
        self._stopped_at = 0.0
        self._failed = False

    def run(self) -> int:
        """Until the person leaves; the exit code: 1 where the last answer, or from a pipe any, did not come."""
        self._greet()
        while True:
            self._screen.rest()
            try:
                if line := self._read():
                    self._obey(line)
            except Refusal as refusal:
                said = str(refusal).rstrip(".")
                self._note(f"{FAILED} {said[:1].upper()}{said[1:]}.", "red")
                self._failed = self._failed or not self._prompt.interactive
            except KeyboardInterrupt:
                self._note("Stopped.", "yellow")
            except Leave as leave:
                self._screen.rest()
                return leave.code

    def _read(self) -> str:
        """A line. Raises ``Leave``."""
        try:
            return self._prompt.ask(f"{self._talk.agent['name']}> ").strip()
        except EOFError:
            self._new_line()
        except KeyboardInterrupt:
            self._new_line()
            if not self._prompt.interactive:
                raise Leave(130) from None
            # A finger that trembled on the Ctrl-C that stopped an answer does not mean to leave.
            if self._prompt.typed or time.monotonic() - self._stopped_at < IMPATIENT_S:
                return ""
        raise self._leave()

    def _obey(self, line: str) -> None:
        self._prompt.remember(line)
        if not self._prompt.interactive:
            self._note(f"> {line}", "bold")
        command, _, rest = line.partition(" ")
        if command[0] != "/" or "/" in command[1:]:
            return self._ask(line)
        match command, rest.strip():
            case "/help", _:
                self._screen.show(Text(HELP))
            case "/agents", _:
                self._screen.show(agents_table(self._agents.values(), self._talk.agent["name"]))
            case "/agent", str(name):
                self._switch(name)
            case "/new", _:
                self._talk = Conversation(self._talk.agent)
                self._note("A new conversation.", "dim")
            case "/usage", str(days):
                self._usage(days)
            case "/resume", str(run):
                self._resume(run)
            case (("/quit" | "/exit"), _):
                raise self._leave()
            case _:
                raise Refusal(f"there is no {command}; /help tells what there is")
        return None

    # Whom one talks to

    def _greet(self) -> None:
        model = self._talk.agent["model"]
        self._note(f"{self._talk.agent['name']} at {harmless(str(self._server.base_url))}, model {model or '–'}.", "")
        if model == SIMULATED:
            self._note("The answers are simulated: the server has no key for a model.", "yellow")
        self._tell_memory()
        if self._prompt.interactive:
            self._note("Ctrl-C stops an answer, Ctrl-D leaves, /help tells the rest.", "dim")

    def _tell_memory(self) -> None:
        if (memory := self._talk.memory) is not None:
            self._note(memory, "dim")

    def _switch(self, name: str) -> None:
        if name not in self._agents:
            raise Refusal(f"there is no agent {name!r}; there are {', '.join(self._agents)}")
        self._talks[self._talk.agent["name"]] = self._talk
        self._talk = self._talks.get(name) or Conversation(self._agents[name])
        self._note(f"Now you talk to {name}.", "dim")
        self._tell_memory()

    def _leave(self) -> Leave:
        if self._prompt.interactive and self._last_run is not None:
            self._note(f"To see the last answer again: /resume {self._last_run[:SHORT]}", "dim")
        return Leave(int(self._failed))

    def _new_line(self) -> None:
        """End the line of the prompt."""
        if self._prompt.interactive:
            print(file=sys.stdout if isinstance(self._screen, Terminal) else sys.stderr)

    # Questions and answers

    def _ask(self, question: str) -> None:
        name = self._talk.agent["name"]
        told = self._converse(Start(name, self._talk.ask(question)))
        self._talk.hear(question, told.text)

    def _converse(self, run: Start | str) -> Answer:
        """A run, and those that go on with it once a person has answered."""
        told = self._follow(run)
        while told.interrupts and told.agent is not None:
            if told.thread_id is None or not self._prompt.interactive:
                raise Refusal("it waits for a person's answer: /resume asks for it in a terminal")
            try:
                value = review(told.interrupts, self._prompt.ask, self._screen)
            except (EOFError, KeyboardInterrupt):
                self._new_line()
                self._talk.waits = True
                self._note("Left without an answer: /resume asks again, /new begins another conversation.", "yellow")
                break
            self._talk.waits = False
            told = self._follow(Start(told.agent, {"resume": value, "thread_id": told.thread_id}))
        return told

    def _follow(self, run: Start | str) -> Answer:
        failed_before, self._failed = self._failed and not self._prompt.interactive, True
        told = Answer(self._screen, time.monotonic())
        reader = Reader(self._server, run)
        with Quiet() as quiet, Signals() as signals:
            try:
                self._watch(reader, told, signals, quiet)
            except Refusal:
                raise
            except BaseException:
                if isinstance(run, Start) and not reader.cancelled:
                    reader.cancel().join(LEAVE_S)
                raise
            finally:
                reader.close()
                self._last_run = reader.run_id or self._last_run
                self._screen.status(())
                self._screen.end()
        if signals.presses:
            self._stopped_at = time.monotonic()
        self._complete(told)
        told.tell_end()
        self._failed = failed_before or (told.failed and not signals.presses)
        return told

    def _watch(self, reader: Reader, told: Answer, signals: Signals, quiet: Quiet) -> None:
        """Show the run until it is over. Raises ``Refusal`` where it cannot be had, ``Leave`` where it must end."""
        lost = False
        while told.finished is None:
            for news in reader.take(REFRESH_S):
                match news:
                    case Frame():
                        told.take(news.event, news.data, time.monotonic())
                    case Lost():
                        lost = True
                    case Back():
                        lost = False
                        self._note(f"The connection was lost for {lasted(news.after_s)}; nothing is missing.", "dim")
                    case Ended(problem):
                        if problem is not None:
                            raise Refusal(problem)
                        return
            if signals.resumed:
                signals.resumed = False
                quiet.renew()
                if isinstance(self._screen, Terminal):
                    self._screen.restart()
            self._heed(signals, reader)
            lines = told.status(time.monotonic())
            if signals.presses:
                late = time.monotonic() - signals.presses[0] > IMPATIENT_S
                hint = " Ctrl-C once more leaves without waiting." if late else ""
                lines = [Text(f"Stopping…{hint}", "yellow")]
            elif lost:
                lines = [Text("The connection is lost; looking for the server…", "yellow")]
            self._screen.status(lines)
            self._screen.refresh()

    def _heed(self, signals: Signals, reader: Reader) -> None:
        if signals.ending is not None:
            raise Leave(128 + signals.ending)
        if not signals.presses:
            return
        first, last = signals.presses[0], signals.presses[-1]
        if last - first > IMPATIENT_S or not self._prompt.interactive:
            raise Leave(130)
        if not reader.cancelled:
            reader.cancel()
        if time.monotonic() - first > STOP_S:
            raise Refusal(f"the server does not say that it has stopped; without a reader it does within {GRACE_S} s")

    def _complete(self, told: Answer) -> None:
        """Show what the events did not: all of it after a gap, or an answer that only the graph's output has."""
        if told.finished is None or not told.lacks:
            return
        with refusing(str(self._server.base_url)):
            result = cleaned(answer(self._server.get(f"/runs/{told.run_id}/result"), dict))
        if result.get("object") is not None:
            self._screen.show(Text(json_text(result["object"])))
        elif result.get("text") and (told.missed or not told.spoke):
            told.text = result["text"]
            self._screen.write(result["text"])
            self._screen.end()

    # Looking back

    def _resume(self, wanted: str) -> None:
        with refusing(str(self._server.base_url)):
            rows = [find_run(self._server, wanted)] if wanted else list_runs(self._server)[:1]
        if not rows:
            raise Refusal("there is no run to go back to")
        row = cleaned(rows[0])
        if row["agent"] in self._agents and row["thread_id"] not in (None, self._talk.thread_id):
            self._talks[self._talk.agent["name"]] = self._talk
            self._talk = Conversation(self._agents[row["agent"]], row["thread_id"])
        self._note(f"Run {row['run_id'][:SHORT]} of {row['agent']}, {row['status']}.", "dim")
        self._converse(row["run_id"])

    def _usage(self, days: str) -> None:
        with refusing(str(self._server.base_url)):
            usage = cleaned(answer(self._server.get("/usage", params={"days": days or "30"}), Usage))
        self._screen.show(usage_table(usage))
        if (left := budget(usage)) is not None:
            self._note(left, "dim")

    def _note(self, text: str, style: str) -> None:
        self._screen.note(Text(text, style))
