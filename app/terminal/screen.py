"""Where a conversation is shown: on a terminal, or into a pipe.

On a terminal, what is done is printed once, into the scrollback; below it a few lines are live: the part of the answer
that may still change, tools at work, what is waited for. They are written over in place, in one write, without erasing
first, so that nothing flickers. rich's own ``Live`` is not used, since it counts lines and not rows: where a narrower
window has wrapped what it wrote, it would leave some and write over others.

Into a pipe goes the answer's text as it comes, and nothing else; the rest is told on stderr.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, TextIO

from rich.console import Console, RenderableType
from rich.segment import ControlType, Segment, Segments
from rich.text import Text

from app.terminal.markdown import Formatted, Growing, Line, Piece

REFRESH_S = 0.08

SETTLE_S = 0.3
"""A window that changes its size changes it again; nothing is drawn meanwhile."""

SHARE = 5
"""Drawing may take one part in so many of the time: what takes long is drawn less often."""

LONGEST_TAIL = 8

Kind = Literal["text", "note", "prompt"]


class Screen(ABC):
    """What is told of a conversation. ``write`` and ``end`` are the answer's text, all else is about it."""

    @abstractmethod
    def write(self, text: str) -> None:
        """The answer's text goes on."""

    @abstractmethod
    def end(self) -> None:
        """The answer's text is whole, as far as it is said before something else."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the text that has not ended."""

    @abstractmethod
    def note(self, line: Text) -> None:
        """A line about the conversation, for good; while a text is open it waits for the text's end."""

    @abstractmethod
    def show(self, what: RenderableType) -> None:
        """Something that was asked for, such as a table."""

    @abstractmethod
    def status(self, lines: Sequence[Text]) -> None:
        """What goes on right now, in place of what was told before."""

    @abstractmethod
    def refresh(self, *, now: bool = False) -> None:
        """Bring to the eye what has changed; soon, unless it must be now."""

    @abstractmethod
    def rest(self) -> None:
        """Leave the place below to somebody else: nothing is live."""


class Terminal(Screen):
    """A terminal that a person looks at."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text: Growing | None = None
        self._after: list[Text] = []
        self._status: list[Line] = []
        self._done: list[Line] = []
        self._last: Kind | None = None
        self._live: list[int] = []
        self._due = 0.0
        self._size = console.size

    def write(self, text: str) -> None:
        """The answer's text goes on."""
        if self._text is None:
            self._text = Growing()
        self._text.add(text)

    def end(self) -> None:
        """Print the rest of the text, then what has waited for it."""
        if self._text is not None:
            self._keep("text", self._text.finish(self._markdown))
            self._text = None
        waiting, self._after = self._after, []
        for line in waiting:
            self.note(line)

    def discard(self) -> None:
        """Forget what is live of the text. What was printed stays, since the scrollback is the terminal's."""
        self._text = None
        self.end()

    def note(self, line: Text) -> None:
        """Print a line, below the text that is open."""
        if self._text is not None:
            self._after.append(line)
        else:
            self._keep("note", Piece(self._lines(line), joined=True))

    def show(self, what: RenderableType) -> None:
        """Print it below all that is there."""
        self.end()
        self._keep("text", Piece(self._lines(what), joined=False))

    def status(self, lines: Sequence[Text]) -> None:
        """Each of them is one row, cut where it is longer."""
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        self._status = [row for line in lines for row in self._lines(line)[:1]]

    def refresh(self, *, now: bool = False) -> None:
        """Draw anew."""
        started = time.monotonic()
        if not now and started < self._due:
            return
        if not now and self._console.size != self._size:
            self._size, self._due = self._console.size, started + SETTLE_S
            return
        height = self._console.height
        most = max(3, min(LONGEST_TAIL, height // 3))
        tail: list[Line] = []
        if self._text is not None:
            for piece in self._text.settle(self._markdown, most):
                self._keep("text", piece)
            tail = self._spaced("text", self._text.tail(self._markdown))[-most:]
        status = self._status[: max(1, height - len(tail) - 3)]
        between: list[Line] = [[]] if status and (tail or self._last != "note") else []
        self._draw([*tail, *between, *status])
        self._due = time.monotonic() + max(REFRESH_S, SHARE * (time.monotonic() - started))

    def rest(self) -> None:
        """Print what is left; the next line is somebody else's, and an empty one is before it."""
        self._status = []
        self.end()
        if self._last != "prompt":
            self._done.append([])
        self._last = "prompt"
        self.refresh(now=True)

    def restart(self) -> None:
        """Somebody else has written on the terminal: what was live there stays where it is."""
        self._live = []

    # What is printed, and what is live

    def _keep(self, kind: Kind, piece: Piece) -> None:
        if piece.lines:
            self._done += self._spaced(kind, piece)
            self._last = kind

    def _spaced(self, kind: Kind, piece: Piece) -> list[Line]:
        """The lines, below an empty one where something else is above."""
        same = self._last == kind and piece.joined
        return piece.lines if same or self._last is None or not piece.lines else [[], *piece.lines]

    def _markdown(self, text: str) -> list[Line]:
        return self._lines(Formatted(text))

    def _lines(self, what: RenderableType) -> list[Line]:
        # The last column stays free: in it the cursor is neither on this row nor on the next.
        options = self._console.options.update(width=max(self._console.width - 1, 8), height=None)
        return [_trimmed(line) for line in self._console.render_lines(what, options, pad=False)]

    def _draw(self, live: list[Line]) -> None:
        width = max(self._console.width, 1)
        rows = min(sum(max(1, -(-cells // width)) for cells in self._live), self._console.height)
        done, self._done = self._done, []
        if not done and not live and not rows:
            return
        drawn = [_SYNCHRONOUS, _code(f"\x1b[{rows - 1}A\r" if rows > 1 else "\r")]
        for line in done:
            drawn += [*line, _END_OF_LINE, Segment.line()]
        for at, line in enumerate(live):
            drawn += [*([Segment.line()] if at else []), *line, _END_OF_LINE]
        self._live = [sum(segment.cell_length for segment in line) for line in live]
        drawn += [_BELOW, _ASYNCHRONOUS]
        with self._console:
            self._console.print(Segments(drawn), end="", crop=False, soft_wrap=True)


def _code(sequence: str) -> Segment:
    return Segment(sequence, None, [(ControlType.HOME,)])  # of a control only its text is written


_END_OF_LINE = _code("\x1b[K")
_BELOW = _code("\x1b[J")
_SYNCHRONOUS, _ASYNCHRONOUS = _code("\x1b[?2026h"), _code("\x1b[?2026l")


def _trimmed(line: Line) -> Line:
    """The line without the blanks at its end, which nobody wants to copy."""
    line = list(line)
    while line and not line[-1].text.strip() and (line[-1].style is None or line[-1].style.bgcolor is None):
        line.pop()
    if line and line[-1].text != line[-1].text.rstrip():
        line[-1] = Segment(line[-1].text.rstrip(), line[-1].style)
    return line


class Pipe(Screen):
    """A pipe or a file: the answer's text alone, without any code. All else is told by ``about``, which is stderr's."""

    def __init__(self, out: TextIO, about: Console) -> None:
        self._out = out
        self._about = about
        self._open = False

    def write(self, text: str) -> None:
        """Write it as it is."""
        self._open = True
        self._out.write(text)

    def end(self) -> None:
        """End the line."""
        if self._open:
            self._out.write("\n")
        self._open = False
        self._out.flush()

    def discard(self) -> None:
        """What is written is written."""
        self.end()

    def note(self, line: Text) -> None:
        """Told on stderr."""
        self._about.print(line, soft_wrap=True)

    def show(self, what: RenderableType) -> None:
        """Written among the answers: it was asked for."""
        self.end()
        Console(file=self._out, highlight=False, no_color=True, force_terminal=False).print(what)

    def status(self, lines: Sequence[Text]) -> None:
        """Nobody is there to look at it."""

    def refresh(self, *, now: bool = False) -> None:
        """Let go of what is written."""
        self._out.flush()

    def rest(self) -> None:
        """Let go of all."""
        self.end()


def build_screen() -> Screen:
    """The screen that this process has."""
    about = Console(stderr=True, highlight=False)
    if not sys.stdout.isatty():
        return Pipe(sys.stdout, about)
    # A window's size is the window's: COLUMNS and LINES would stay as they are when it changes.
    environ = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    console = Console(highlight=False, force_terminal=True, _environ=environ)
    return Pipe(sys.stdout, about) if console.is_dumb_terminal else Terminal(console)
