"""What a person says to the program: lines, with readline's editing and history, and signals while an answer comes.

A prompt is plain text: readline counts its columns. While an answer comes nothing is echoed, since it would be written
into the live lines; what was typed is there at the next prompt.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

if sys.platform != "win32":
    import termios

try:
    import readline
except ImportError:  # a Python that was built without it
    readline = None  # type: ignore[assignment]

HISTORY = 1000
"""Lines that are remembered."""

ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""What ends the program from outside; SIGHUP: the terminal was closed."""


class Leave(Exception):
    """The program ends now, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Prompt:
    """Where lines are read: one after another from a person, or from a pipe. ``words`` complete what is typed."""

    def __init__(self, history: Path, words: Sequence[str]) -> None:
        self.interactive = sys.stdin.isatty()
        self._edits = self.interactive and sys.stdout.isatty() and readline is not None
        self._history = history
        if self._edits:
            readline.set_auto_history(False)
            readline.set_history_length(HISTORY)
            readline.set_completer_delims("\n")
            readline.set_completer(lambda typed, at: next(iter([w for w in words if w.startswith(typed)][at:]), None))
            readline.parse_and_bind("tab: complete")
            with contextlib.suppress(OSError):
                readline.read_history_file(history)

    def ask(self, text: str, prefilled: str = "") -> str:
        """One line. Raises ``EOFError`` where there is no more, ``KeyboardInterrupt`` for Ctrl-C."""
        if not self.interactive:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")
        if not self._edits:
            print(text, end="", file=sys.stderr, flush=True)  # noqa: T201 - where stdout is a pipe, it is the answers'
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")
        readline.set_startup_hook(lambda: readline.insert_text(prefilled))
        return input(text)

    def remember(self, line: str) -> None:
        """Have it in the history, also of the next time; a file that cannot be written is no reason to complain."""
        if self._edits:
            readline.add_history(line)
            with contextlib.suppress(OSError):
                self._history.parent.mkdir(parents=True, exist_ok=True)
                self._history.touch(mode=0o600)
                readline.write_history_file(self._history)

    @property
    def typed(self) -> str:
        """What stood in the line when Ctrl-C came."""
        return readline.get_line_buffer() if self._edits else ""


def history_file() -> Path:
    """Where the questions are remembered, by the user's own choice of a folder for such things."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "millrace" / "chat_history"


class Signals:
    """Notes what comes while an answer is shown, so that nothing is broken off in the middle of a line.

    ``presses``: when Ctrl-C was pressed, in seconds of the monotonic clock. ``ending``: the signal that ends the
    program. ``resumed``: the program was stopped and goes on, and the terminal may look different.
    """

    def __init__(self) -> None:
        self.presses: list[float] = []
        self.ending: int | None = None
        self.resumed = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in [signal.SIGINT, *ENDINGS, *([signal.SIGCONT] if hasattr(signal, "SIGCONT") else [])]:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as it was given

    def _hear(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.presses.append(time.monotonic())
        elif number in ENDINGS:
            self.ending = number
        else:
            self.resumed = True


@contextmanager
def leaving() -> Iterator[None]:
    """Where the program is ended from outside, raise ``Leave``: readline then gives the terminal back as it was."""

    def leave(number: int, _: FrameType | None) -> None:
        raise Leave(128 + number)

    before = {number: signal.signal(number, leave) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Quiet:
    """What is typed is not echoed."""

    def __init__(self) -> None:
        self._descriptor: int | None = None
        if sys.platform != "win32" and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._descriptor)

    def __enter__(self) -> Self:
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._before)

    def renew(self) -> None:
        """Once more, after somebody else has had the terminal."""
        if self._descriptor is not None:
            with contextlib.suppress(termios.error):
                attributes = termios.tcgetattr(self._descriptor)
                attributes[3] &= ~termios.ECHO
                termios.tcsetattr(self._descriptor, termios.TCSANOW, attributes)
