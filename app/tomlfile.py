"""A TOML file that an operator writes, whose every mistake is told with file and line.

``tomllib`` says where the syntax is wrong and nothing about what was read. ``Document`` remembers on which line each
table and key is first named, so that whoever reads the values can say it too. Each file has an error type of its own.
"""

import difflib
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Place = tuple[str, ...]
"""The path of a table or key: ``[users.alice]`` is ``("users", "alice")``."""


class Document:
    """What the file says. Raises what ``error`` makes of a message when it cannot be read or is no TOML."""

    def __init__(self, path: Path, error: Callable[[str], Exception]) -> None:
        self._path = path
        self._error = error
        text = self._read()
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except (ValueError, RecursionError) as problem:  # also of a number or a nesting beyond Python's bounds
            raise error(f"{path}: {problem}") from None
        self._lines = _lines(text)

    def _read(self) -> str:
        try:
            return self._path.read_text("utf-8")
        except OSError as problem:
            raise self._error(f"{self._path}: cannot be read ({problem.strerror})") from None
        except UnicodeDecodeError as problem:
            line = problem.object.count(b"\n", 0, problem.start) + 1
            raise self._error(f"{self._path}, line {line}: is not UTF-8") from None

    def wrong(self, place: Place, problem: str) -> Exception:
        """The error for what stands at ``place``."""
        known = next((line for end in range(len(place), 0, -1) if (line := self._lines.get(place[:end]))), None)
        where = f"{self._path}, line {known}" if known else str(self._path)
        return self._error(f"{where}: {'.'.join(place)} {problem}")

    def unknown(self, place: Place, known: Collection[str]) -> Exception:
        """The error for a key that is none of the ``known``."""
        near = difflib.get_close_matches(place[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        return self.wrong(place, f"is not known; {hint}")


def _lines(text: str) -> dict[Place, int]:
    """Where each table and key is first named. Reads line by line, which is enough for files of plain values."""
    places: dict[Place, int] = {}
    table: Place = ()
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("["):
            path = table = _named(line)
        else:
            path = (*table, *_named(f"{line.partition('=')[0]} = 0"))
        for end in range(len(path), 0, -1):
            places.setdefault(path[:end], number)
    return places


def _named(line: str) -> Place:
    """What a line of TOML names."""
    try:
        value: Any = tomllib.loads(line)
    except ValueError:
        return ()
    path: list[str] = []
    while isinstance(value, dict) and value:
        key, value = next(iter(value.items()))
        path.append(key)
    return tuple(path)
