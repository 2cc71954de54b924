"""A real terminal for tests: tmux, whose keys a test presses and whose screen and scrollback it reads."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import program

SHELL = 'trap : INT; "$@"; echo "[exit $?]"; exec sleep 600'
"""What runs the program: tmux itself may forget to tell an exit code (3.3a). Ctrl-C reaches the shell as well."""


class Pane:
    """One window with one program in it. Use ``pane``."""

    def __init__(self, tmux: str, folder: str) -> None:
        self._call = [tmux, "-S", str(Path(folder, "socket")), "-f", str(Path(folder, "conf"))]

    def tmux(self, *args: str) -> str:
        done = subprocess.run([*self._call, *args], capture_output=True, text=True, check=True, timeout=20)
        return done.stdout

    @property
    def text(self) -> str:
        """All that is there, scrollback included."""
        return self.tmux("capture-pane", "-p", "-S", "-").rstrip()

    def type(self, line: str) -> None:
        """Type it, and Enter."""
        self.tmux("send-keys", "-l", line)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shows(self, *texts: str, times: int = 1) -> str:
        """Wait until these are there, so many times; all that is there."""
        deadline = time.monotonic() + 20
        while not all((text := self.text).count(one) >= times for one in texts):
            assert time.monotonic() < deadline, f"{texts} never came:\n{text}"
            time.sleep(0.02)
        return text

    def exit_code(self) -> int:
        """Wait for the program's end."""
        return int(self.shows("[exit ").rpartition("[exit ")[2].partition("]")[0])


@contextmanager
def pane(*command: str, columns: int = 80, rows: int = 24, **env: str) -> Iterator[Pane]:
    """The program in a window of that size, until the block ends."""
    tmux = program("tmux", package="tmux")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conf").write_text("set -g history-limit 20000\n")
        one = Pane(tmux, folder)
        said = [f"{name}={value}" for name, value in env.items()]
        one.tmux(
            "new-session",
            "-d",
            "-x",
            str(columns),
            "-y",
            str(rows),
            "--",
            "env",
            *said,
            "sh",
            "-c",
            SHELL,
            "sh",
            *command,
        )
        try:
            yield one
        finally:
            subprocess.run([*one._call, "kill-server"], capture_output=True, check=False, timeout=20)
